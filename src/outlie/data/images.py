"""OOD benchmarks on images: one in-distribution set whose classes train, and others that must stand out."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch

from outlie.data.arrays import hash_arrays
from outlie.data.image_arrays import balanced, channel_statistics, to_shape
from outlie.data.image_lints import lint_images, lint_sides
from outlie.data.image_sets import FLIPS, image_set, require_ood_set
from outlie.data.image_sources import Images, read_source
from outlie.data.split import Rows, Split
from outlie.errors import UserError
from outlie.options import Fraction, PositiveInt

HELD_OUT = "held_out"


class OODImages:
    """An in-distribution image set with its own training and test images, and OOD sets by name.

    Test set `test` holds the in-distribution test images (label 0), every other one the images of one OOD set
    (label 1), each image once. OOD images get the shape of the in-distribution ones. The OOD sets vflip and hflip are
    the in-distribution test images upside down and mirrored.

    Args:
        id: In-distribution source: mnist, fashion_mnist, kmnist, cifar10, cifar100, svhn, tiny_imagenet, cifar10_part
            or digits.
        near: OOD sources that are like it (protocol ood_near), or vflip, hflip: its own test images turned over.
        far: OOD sources that are unlike it (protocol ood_far), or vflip, hflip.
        held_out: Class labels of `id` that are taken out of training; their test images are the near OOD set held_out.
        size: Side of the images in pixels; null = that of `id`.
        channels: 1 = grey, 3 = colour; null = that of `id`.
        calibration: Fraction of the training images of each class that is held out for the threshold.
        train_rows: Train on so many images only, drawn class by class; null = all.
        scored_rows: Score at most so many images of each test set and so many calibration images, drawn class by class:
            for scores that cost hundreds of passes; null = all. A detector fitted on calibration images gets these.
    """

    scoring: ClassVar[tuple[str, ...]] = ("near", "far", "scored_rows")

    def __init__(
        self,
        id: str,
        near: Sequence[str] = (),
        far: Sequence[str] = (),
        held_out: Sequence[int] = (),
        size: PositiveInt | None = None,
        channels: PositiveInt | None = None,
        calibration: Fraction = 0.1,
        train_rows: PositiveInt | None = None,
        scored_rows: PositiveInt | None = None,
    ):
        if "train" not in image_set(id, "dataset.id").rows:
            raise UserError(f"dataset.id={id} has no training part: it can be in dataset.near or dataset.far only")
        self.id = id
        self.near, self.far = tuple(near), tuple(far)
        self.held_out = tuple(held_out)
        others = [*self.near, *self.far]
        for option, names in (("dataset.near", self.near), ("dataset.far", self.far)):
            for name in names:
                require_ood_set(name, option)
        if twice := {name for name in others if others.count(name) > 1 or name == id}:
            raise UserError(f"{min(twice)} is named twice in dataset.id, dataset.near, dataset.far: once is right")
        if not others and not self.held_out:
            raise UserError("no OOD set: name some with dataset.far=[...], or classes with dataset.held_out=[...]")
        if channels not in (None, 1, 3):
            raise UserError(f"dataset.channels={channels}, allowed: 1 (grey), 3 (colour), null")
        self.size = size
        self.channels = channels
        self.calibration = calibration
        self.train_rows = train_rows
        self.scored_rows = scored_rows

    def load(self, seed: int) -> Split:
        """The split of this seed, which draws calibration, training and scored rows; without the last, tests are fixed.

        Raises:
            UserError: a class that does not exist or has no images, too few rows, a file that is wrong or missing.
        """
        first = read_source(self.id, "train", self.size)
        last = read_source(self.id, "test", self.size)
        c, h, w = first.x.shape[1:]
        shape = (self.channels or c, self.size or h, self.size or w)
        kept = self._kept(len(first.classes))
        classes = tuple(first.classes[label] for label in kept)

        index, y = _select(first, kept)
        _require_classes(y, classes, self.id)
        used, held = self._draw(y, seed)
        held = held[self._scored(y[held], seed)]
        train, calibration = (to_shape(first.x[index[rows]], shape) for rows in (used, held))
        index_test, y_test = _select(last, kept)
        scored = self._scored(y_test, seed)
        index_test, y_test = index_test[scored], y_test[scored]
        images = {"test": to_shape(last.x[index_test], shape)}
        indices = {"test": index_test}
        findings, sides = [], {self.id: h}
        if self.held_out:
            others = np.flatnonzero(np.isin(last.y, self.held_out))
            indices[HELD_OUT] = others[self._scored(last.y[others], seed)]
            images[HELD_OUT] = to_shape(last.x[indices[HELD_OUT]], shape)
        for name in (*self.near, *self.far):
            if name in FLIPS:
                indices[name], images[name] = index_test, np.flip(images["test"], 2 if name == "vflip" else 3)
                continue
            source = read_source(name, "test", shape[1])
            indices[name] = self._scored(source.y, seed)
            x = source.x if len(indices[name]) == len(source.x) else source.x[indices[name]]
            findings += _converted(name, x, shape)
            sides[name], images[name] = x.shape[2], to_shape(x, shape)
        findings += lint_sides(sides, self.id, shape[1])

        mean, scale = channel_statistics(train)
        near = dict.fromkeys([HELD_OUT] * bool(self.held_out) + list(self.near), "ood_near")
        return Split(
            protocol="ood",
            train=_rows(train, index[used], 0, y[used]),
            tests={name: _rows(x, indices[name], int(name != "test"), y_test if name == "test" else None)
                   for name, x in images.items()},
            calibration=_rows(calibration, index[held], 0, y[held]),
            mean=torch.from_numpy(mean),
            scale=torch.from_numpy(scale),
            data_sha256=hash_arrays(train, y[used], calibration, *images.values()),
            findings=findings + lint_images(train, y[used], calibration, images, classes),
            classes=classes,
            protocols=near | dict.fromkeys(self.far, "ood_far"),
        )  # fmt: skip

    def _kept(self, n: int) -> list[int]:
        """Class labels that stay in distribution; label i of the split is the i-th of them."""
        if wrong := [label for label in self.held_out if not 0 <= label < n]:
            raise UserError(f"dataset.held_out={wrong[0]} is no class of {self.id}, allowed: 0 to {n - 1}")
        kept = [label for label in range(n) if label not in self.held_out]
        if len(kept) < 2:
            raise UserError(f"dataset.held_out leaves {len(kept)} of {n} classes of {self.id}: at least 2 must train")
        return kept

    def _draw(self, y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Training and calibration rows: held out first, so that train_rows does not move the threshold's rows."""
        rng = np.random.RandomState(seed)  # its stream is frozen across NumPy versions, a Generator's is not
        held = balanced(y, max(1, round(self.calibration * len(y))), rng)
        used = np.setdiff1d(np.arange(len(y)), held)
        if self.train_rows is not None and self.train_rows < len(used):
            used = used[balanced(y[used], self.train_rows, rng)]
        if missing := set(np.unique(y)) - set(np.unique(y[used])):
            raise UserError(
                f"{len(used)} training rows leave no image of {len(missing)} classes of {self.id}: "
                "raise dataset.train_rows, or lower dataset.calibration"
            )
        return used, held

    def _scored(self, y: np.ndarray, seed: int) -> np.ndarray:
        """Which of the rows are scored; a set's draw does not depend on what other sets there are."""
        if not self.scored_rows or self.scored_rows >= len(y):
            return np.arange(len(y))
        return balanced(y, self.scored_rows, np.random.RandomState(seed))


def _select(images: Images, kept: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the classes that stay, and their labels counted anew."""
    new = np.full(len(images.classes), -1)
    new[kept] = np.arange(len(kept))
    y = new[images.y]
    index = np.flatnonzero(y >= 0)
    return index, y[index]


def _require_classes(y: np.ndarray, classes: tuple[str, ...], name: str) -> None:
    counts = np.bincount(y, minlength=len(classes))
    if (counts == 0).any():
        empty = classes[int(counts.argmin())]
        raise UserError(f"{name} has no training images of class {empty}: give some, or take it out of the classes")


def _converted(name: str, x: np.ndarray, shape: tuple[int, int, int]) -> list[str]:
    """Say that images of another kind were made alike."""
    if x.shape[1] == shape[0]:
        return []
    change = "grey, made colour by repeating" if x.shape[1] == 1 else "in colour, made grey (luma)"
    return [f"{len(x)} of {len(x)} {name} images are {change}"]


def _rows(x: np.ndarray, index: np.ndarray, label: int, y: np.ndarray | None) -> Rows:
    return Rows(
        torch.from_numpy(np.ascontiguousarray(x) if x.flags.writeable else x.copy()),
        torch.from_numpy(index.astype(np.int64)),
        torch.full((len(x),), label, dtype=torch.int64),
        None if y is None else torch.from_numpy(y),
    )
