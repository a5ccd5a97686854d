"""Lists of images: from folders, or from text files of lines `PATH LABEL` as OpenOOD has them."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from outlie.data.arrays import require_file
from outlie.errors import UserError


@dataclass
class Listed:
    """Files of one part, relative to `root`, with class labels where they count."""

    root: Path
    names: list[str]
    y: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # (N,) int64; empty for OOD sets
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def require_classes(self, where: Path) -> None:
        """UserError that names a class without images."""
        counts = np.bincount(self.y, minlength=len(self.classes))
        if (counts == 0).any():
            raise UserError(f"{where} has no image of class {self.classes[int(counts.argmin())]}: give some")


def read_list(path: Path, images: Path, option: str, classes: tuple[str, ...] | None = None) -> Listed:
    """One list file; blank lines are passed over.

    Args:
        images: Folder that the paths start from.
        classes: Those of training: labels must be among them; None = labels make them, or are not used (OOD: -1).

    Raises:
        UserError: no such file, an empty one, a line of another form, a label out of range.
    """
    lines = require_file(path, option).read_text(encoding="utf-8").splitlines()
    names, labels = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.lstrip("-").isdigit():
            raise UserError(f"{path} line {number} is '{line.strip()[:80]}', expected: PATH LABEL, the label a number")
        if name.startswith("/"):
            raise UserError(f"{path} line {number} names {name}: paths must be relative, they start from {images}")
        names.append(name)
        labels.append(int(label))
    if not names:
        raise UserError(f"{path} is empty, expected lines of PATH LABEL")
    y = np.array(labels, np.int64)
    if option.startswith("dataset.ood"):
        return Listed(images, names)
    allowed = len(classes) if classes else None
    wrong = np.flatnonzero((y < 0) | (y >= (allowed or np.inf)))
    if len(wrong):
        top = "" if allowed is None else f" to {allowed - 1}, the classes of training"
        raise UserError(f"{path} has the label {y[wrong[0]]} for {names[wrong[0]]}, allowed: 0{top or ' and above'}")
    return Listed(images, names, y, classes or _class_names(names, y))


def _class_names(names: list[str], y: np.ndarray) -> tuple[str, ...]:
    """The folder that all images of a class lie in, where each class has its own; else the label."""
    folders: list[set[str]] = [set() for _ in range(int(y.max()) + 1)]
    for name, label in zip(names, y, strict=True):
        folders[label].add(name.rpartition("/")[0].rpartition("/")[2])
    one_each = all(len(one) == 1 for one in folders) and len(set().union(*folders)) == len(folders)
    return tuple(min(one) for one in folders) if one_each else tuple(str(i) for i in range(len(folders)))
