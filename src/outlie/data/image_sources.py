"""The images of a source by name, as one uint8 array: found, derived or downloaded, verified, read."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from outlie.data.image_archives import read_dtd, read_tiny_imagenet
from outlie.data.image_files import Transform
from outlie.data.image_formats import idx_pair, read_cifar, read_images_npz, read_mat
from outlie.data.image_sets import DERIVED, file_of, image_files, image_set
from outlie.data.locate import find, obtain
from outlie.errors import UserError

PART_CLASSES = 10  # of dtd_part: the alphabetically first
PER_CLASS = {"train": 1000, "test": 200}  # of cifar10_part


@dataclass(frozen=True)
class Images:
    """Images of one part of a source, in its order."""

    x: np.ndarray  # (N, C, H, W) uint8
    y: np.ndarray  # (N,) int64
    classes: tuple[str, ...]


def read_source(name: str, part: str, size: int | None = None) -> Images:
    """The images of a source.

    Args:
        part: 'train' or 'test'; a source without such parts gives all its images for 'test'.
        size: Side in pixels for sources whose images differ in size.

    Raises:
        UserError: unknown source, no such part, a wrong or unobtainable file.
    """
    info = image_set(name)
    if part not in info.rows and (part != "test" or "all" not in info.rows):
        raise UserError(f"{name} has no {part} part, it is for test only: take another in-distribution set")
    images = _read(name, part, size)
    if (wrong := _out_of_range(images)) is not None:
        raise UserError(f"{name} has the label {wrong}, allowed: 0 to {len(images.classes) - 1}; fetch it again")
    return images


def _read(name: str, part: str, size: int | None) -> Images:
    info = image_set(name)
    match info.format:
        case "idx":
            x, y = idx_pair(obtain(file_of(name, f"{part}_images")), obtain(file_of(name, f"{part}_labels")))
            return Images(x, y, info.names)
        case "cifar":
            return Images(*read_cifar(obtain(file_of(name, "archive")), part))
        case "mat":
            return Images(*read_mat(obtain(file_of(name, part))), info.names)
        case "npz":
            if any(find(file) is None for file in image_files()[name]):
                return _derived(name, part)
            return Images(*read_images_npz(obtain(file_of(name, "all" if "all" in info.rows else part))))
        case "archive":
            return _from_archive(name, part, size)
        case "sklearn":
            return _digits(part, info.rows["train"])


def _digits(part: str, n_train: int) -> Images:
    """UCI's 8 x 8 digits, 0..16 stretched to 0..255; rows lie in the order of their writers, so the last ones test."""
    import sklearn.datasets

    table: Any = sklearn.datasets.load_digits()
    x = np.rint(table.images * (255 / 16)).astype(np.uint8)[:, None]
    rows = slice(None, n_train) if part == "train" else slice(n_train, None)
    return Images(x[rows], table.target[rows].astype(np.int64), tuple("0123456789"))


def _from_archive(name: str, part: str, size: int | None) -> Images:
    path = obtain(file_of(name, "archive"))
    if name == "tiny_imagenet":
        x, y, classes = read_tiny_imagenet(path, part, Transform(64))
    else:
        side = size or 224
        x, y, classes = read_dtd(path, Transform(side, resize=side))
    return Images(x, y, tuple(classes))


def _derived(name: str, part: str) -> Images:
    """The part by the rule that its README states, from the full set."""
    if name == "dtd_part":
        x, y, classes = read_dtd(obtain(file_of("dtd", "archive")), Transform(32, square=True), PART_CLASSES)
        return Images(x, y, tuple(classes))
    full = _read(DERIVED[name], part, None)
    rows = interleaved(full.y, PER_CLASS[part])
    return Images(full.x[rows], full.y[rows], full.classes)


def interleaved(y: np.ndarray, per_class: int) -> np.ndarray:
    """Rows of the first `per_class` samples of each class, in order, classes taking turns: 0, 1, ..., 0, 1, ...

    Raises:
        UserError: a class has fewer.
    """
    found = [np.flatnonzero(y == c)[:per_class] for c in np.unique(y)]
    if (fewest := min(map(len, found))) < per_class:
        raise UserError(f"the full set has a class of {fewest} images, {per_class} are needed of each; fetch it again")
    return np.stack(found, 1).reshape(-1)


def _out_of_range(images: Images) -> int | None:
    bad = images.y[(images.y < 0) | (images.y >= len(images.classes))]
    return int(bad[0]) if len(bad) else None
