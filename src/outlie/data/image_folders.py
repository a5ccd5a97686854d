"""Your own images: a folder for each class, or OpenOOD's lists; files are decoded when needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from outlie.data.file_lints import lint_files
from outlie.data.image_arrays import balanced
from outlie.data.image_files import ImageFiles, Transform, file_statistics, list_images
from outlie.data.image_lists import Listed, read_list
from outlie.data.split import Rows, Split
from outlie.errors import UserError, unknown
from outlie.options import Fraction, PositiveInt


class ImageFolder:
    """Images in folders: train/CLASS/*, test/CLASS/*, and a folder for each OOD set.

    Args:
        train: Folder with a folder for each class.
        test: The same for the in-distribution test images.
        ood: Name -> folder with images, in it or below.
        near: Which of `ood` are near (protocol ood_near); the others are far.
        size: Side of the images in pixels.
        resize: The shorter side becomes so long, then the centre is cut out; null = squeezed, nothing cut off.
        channels: 1 = grey, 3 = colour.
        calibration: Fraction of the training images of each class that is held out for the threshold.
    """

    scoring: ClassVar[tuple[str, ...]] = ("test", "ood", "near")  # they choose test sets only

    def __init__(
        self,
        train: Path,
        test: Path,
        ood: dict[str, Path] | None = None,
        near: Sequence[str] = (),
        size: PositiveInt = 224,
        resize: PositiveInt | None = None,
        channels: PositiveInt = 3,
        calibration: Fraction = 0.1,
    ):
        self.train, self.test = Path(train).expanduser(), Path(test).expanduser()
        self.ood = {str(name): Path(path).expanduser() for name, path in (ood or {}).items()}
        if wrong := [name for name in near if name not in self.ood]:
            raise UserError(unknown("OOD set in dataset.near", wrong[0], self.ood))
        self.near = tuple(near)
        self.transform = transform(size, resize, channels)
        self.calibration = calibration

    def load(self, seed: int) -> Split:
        """The split of this seed, which draws the calibration images.

        Raises:
            UserError: a folder that is missing or empty, a test class that training does not have.
        """
        train = by_class(self.train, "dataset.train")
        test = by_class(self.test, "dataset.test")
        if new := [name for name in test.classes if name not in train.classes]:
            raise UserError(unknown(f"class in {self.test}", new[0], train.classes) + "; for OOD images: dataset.ood")
        test.y = relabelled(test, train.classes)
        ood = {name: Listed(path, list_images(path, f"dataset.ood.{name}")) for name, path in self.ood.items()}
        protocols = {name: "ood_near" if name in self.near else "ood_far" for name in ood}
        return assemble_files(train, None, test, ood, protocols, self.transform, self.calibration, seed)


class ImageList:
    """Images named by list files of lines `PATH LABEL`, as OpenOOD's benchmark_imglist has them.

    Args:
        root: Folder that `lists` and `images` lie in.
        train: List of the training images.
        test: List of the in-distribution test images.
        calibration: List of in-distribution images that fix the threshold; null = a tenth of each training class.
        near: Name -> list of a near OOD set.
        far: Name -> list of a far OOD set.
        lists: Folder of the lists, below `root`.
        images: Folder that the paths in the lists start from, below `root`.
        images_of: OOD set -> another folder that its paths start from, below `root`.
        size: Side of the images in pixels.
        resize: The shorter side becomes so long, then the centre is cut out; null = squeezed, nothing cut off.
        channels: 1 = grey, 3 = colour.
    """

    scoring: ClassVar[tuple[str, ...]] = ("near", "far", "images_of")

    def __init__(
        self,
        root: Path,
        train: str,
        test: str,
        calibration: str | None = None,
        near: dict[str, str] | None = None,
        far: dict[str, str] | None = None,
        lists: str = "",
        images: str = "",
        images_of: dict[str, str] | None = None,
        size: PositiveInt = 224,
        resize: PositiveInt | None = None,
        channels: PositiveInt = 3,
    ):
        self.root = Path(root).expanduser()
        self.train, self.test, self.calibration = train, test, calibration
        self.near, self.far = dict(near or {}), dict(far or {})
        if twice := set(self.near) & set(self.far):
            raise UserError(f"{min(twice)} is in dataset.near and in dataset.far: once is right")
        self.lists, self.images, self.images_of = lists, images, dict(images_of or {})
        self.transform = transform(size, resize, channels)

    def load(self, seed: int) -> Split:
        """The split; the seed draws calibration images where no list gives them.

        Raises:
            UserError: a list or an image that is missing, a label that is no class of the training list.
        """
        train = self._read(self.train, "dataset.train")
        train.require_classes(self.root / self.lists / self.train)
        test, calibration = (
            self._read(file, option, train.classes) if file else None
            for file, option in ((self.test, "dataset.test"), (self.calibration, "dataset.calibration"))
        )
        assert test is not None
        ood = {
            name: self._read(file, f"dataset.ood.{name}", None, self.images_of.get(name))
            for name, file in {**self.near, **self.far}.items()
        }
        protocols = dict.fromkeys(self.near, "ood_near") | dict.fromkeys(self.far, "ood_far")
        return assemble_files(train, calibration, test, ood, protocols, self.transform, 0.1, seed)

    def _read(
        self, file: str, option: str, classes: tuple[str, ...] | None = None, images: str | None = None
    ) -> Listed:
        folder = self.root / (self.images if images is None else images)
        return read_list(self.root / self.lists / file, folder, option, classes)


def transform(size: int, resize: int | None, channels: int) -> Transform:
    """The options as a Transform; UserError where they cannot be."""
    if channels not in (1, 3):
        raise UserError(f"dataset.channels={channels}, allowed: 1 (grey), 3 (colour)")
    if resize is not None and resize < size:
        raise UserError(f"dataset.resize={resize} is below dataset.size={size}: nothing could be cut out; raise it")
    return Transform(size, channels, resize)


def relabelled(listed: Listed, classes: tuple[str, ...]) -> np.ndarray:
    """(N,) labels that count another order of the classes."""
    return np.array([classes.index(name) for name in listed.classes], np.int64)[listed.y]


def by_class(folder: Path, option: str) -> Listed:
    """Images of a folder of folders; each class needs one."""
    everything = list_images(folder, option)
    if loose := [name for name in everything if "/" not in name]:
        raise UserError(f"{folder / loose[0]} is in no class folder: {option} needs a folder for each class")
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))
    label = {name: i for i, name in enumerate(classes)}
    y = np.array([label[name.partition("/")[0]] for name in everything], np.int64)
    listed = Listed(folder, everything, y, classes)
    listed.require_classes(folder)
    return listed


def assemble_files(
    train: Listed,
    calibration: Listed | None,
    test: Listed,
    ood: dict[str, Listed],
    protocols: dict[str, str],
    transform: Transform,
    fraction: float,
    seed: int,
    held: np.ndarray | None = None,
) -> Split:
    """The Split of listed files; without a calibration list `held`, or a fraction of each class, is held out."""
    used = everything = np.arange(len(train))
    files = ImageFiles(train.root, train.names, transform)
    if calibration is None:
        if held is None:
            held = balanced(train.y, max(1, round(fraction * len(train))), np.random.RandomState(seed))
        used = np.setdiff1d(everything, held)
        if len(used) < 2 or set(train.y[used]) != set(train.y):
            raise UserError(
                f"{train.root} has {len(train)} training images: too few to hold out {len(held)} and train on each "
                "class; give more, or lower dataset.calibration"
            )
        calibration_rows = _rows(files.subset(held), held, 0, train.y[held])
    else:
        held_files = ImageFiles(calibration.root, calibration.names, transform)
        calibration_rows = _rows(held_files, np.arange(len(calibration)), 0, calibration.y)
    train_rows = _rows(files.subset(used), used, 0, train.y[used])
    tests = {"test": _rows(ImageFiles(test.root, test.names, transform), np.arange(len(test)), 0, test.y)}
    for name, listed in ood.items():
        tests[name] = _rows(ImageFiles(listed.root, listed.names, transform), np.arange(len(listed)), 1, None)
    mean, scale = file_statistics(train_rows.x)  # type: ignore[arg-type]
    parts = {"training": train_rows, "calibration": calibration_rows, **tests}
    return Split(
        protocol="ood",
        train=train_rows,
        tests=tests,
        calibration=calibration_rows,
        mean=torch.from_numpy(mean),
        scale=torch.from_numpy(scale),
        data_sha256=ImageFiles.joint_fingerprint([rows.x for rows in parts.values()]),  # type: ignore[misc]
        findings=lint_files({name: rows.x for name, rows in parts.items()}, train.y[used], train.classes),  # type: ignore[arg-type]
        classes=train.classes,
        protocols=protocols,
    )


def _rows(x: ImageFiles, index: np.ndarray, label: int, y: np.ndarray | None) -> Rows:
    return Rows(
        x,  # type: ignore[arg-type]
        torch.from_numpy(index),
        torch.full((len(index),), label, dtype=torch.int64),
        None if y is None else torch.from_numpy(y),
    )
