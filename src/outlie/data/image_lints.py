"""What is suspicious about an image split: copies between its parts, blur, constant images, unequal classes."""

import numpy as np

from outlie.data.image_arrays import CHUNK
from outlie.data.image_sets import FLIPS
from outlie.data.lints import mix, repeats

IMBALANCE = 3  # times more images in the largest class than in the smallest


def image_hashes(x: np.ndarray) -> np.ndarray:
    """(N,) uint64 of the pixels: equal images have equal hashes, different ones not (but for N^2 / 2^64)."""
    x = x.reshape(len(x), -1)
    width = -(-x.shape[1] // 8) * 8
    place = mix(np.arange(1, width // 8 + 1, dtype=np.uint64))  # so that order counts
    hashes = np.empty(len(x), np.uint64)
    for i in range(0, len(x), CHUNK):  # a chunk stays in the cache
        chunk = x[i : i + CHUNK]
        padded = np.zeros((len(chunk), width), np.uint8)
        padded[:, : x.shape[1]] = chunk
        hashes[i : i + CHUNK] = mix(padded.view(np.uint64) + place).sum(1, dtype=np.uint64)
    return mix(hashes)


def lint_images(
    train: np.ndarray,
    y: np.ndarray,
    calibration: np.ndarray,
    tests: dict[str, np.ndarray],
    classes: tuple[str, ...],
) -> list[str]:
    """Findings about images in memory, all (N, C, H, W) uint8; an empty list if nothing is suspicious.

    A test set named in FLIPS has the images of `test`, in their order.
    """
    train_hash, calibration_hash = image_hashes(train), image_hashes(calibration)
    findings = repeats(calibration_hash, train_hash, "calibration", "training", "images")
    test_hash = image_hashes(tests["test"])
    for name, x in tests.items():
        hashes = image_hashes(x)
        findings += repeats(hashes, train_hash, name, "training", "images")
        findings += repeats(hashes, calibration_hash, name, "calibration", "images")
        if name in FLIPS:
            findings += _flipped(name, hashes, test_hash)
        elif name != "test":
            findings += repeats(hashes, test_hash, name, "test", "images")
    for name, x in {"training": train, **tests}.items():
        flat = x.reshape(len(x), -1)
        if constant := int((flat.min(1) == flat.max(1)).sum()):
            findings.append(f"{constant} of {len(x)} {name} images have one value in all pixels")
    return findings + imbalance(y, classes)


def _flipped(name: str, hashes: np.ndarray, test_hash: np.ndarray) -> list[str]:
    """A symmetric image equals its own flip, which is no leak; equal to another test image it would be one."""
    symmetric = hashes == test_hash
    findings = repeats(hashes[~symmetric], test_hash, f"other {name}" if symmetric.any() else name, "test", "images")
    if count := int(symmetric.sum()):
        findings.append(f"{count} of {len(hashes)} {name} images are symmetric: equal to the images that were flipped")
    return findings


def lint_sides(sides: dict[str, int], id: str, side: int) -> list[str]:
    """A finding for each set that is blurred where the in-distribution one is sharp, or the other way round.

    An image of n pixels a side shown with `side` has the detail of min(n, side).

    Args:
        sides: Set -> the pixels of its sides before resizing.
        id: Name of the in-distribution set.
        side: Pixels of all sides after resizing.
    """
    findings = []
    for name in sides:
        less, more = sorted((name, id), key=lambda one: min(sides[one], side))
        if min(sides[less], side) < min(sides[more], side):
            other = "were not" if sides[more] >= side else f"from {sides[more]}"
            findings.append(
                f"{less} images were enlarged from {sides[less]} to {side} pixels, {more} images {other}: a score that "
                f"sees blur tells {name} apart by that alone; dataset.size={min(sides.values())} brings all to one "
                "resolution"
            )
    return findings


def imbalance(y: np.ndarray, classes: tuple[str, ...]) -> list[str]:
    """A finding where the largest class has several times the images of the smallest."""
    counts = np.bincount(y, minlength=len(classes))
    least, most = int(counts.argmin()), int(counts.argmax())
    if counts[most] < IMBALANCE * counts[least]:
        return []
    of = [f"{counts[c]} training images of {classes[c]}" for c in (most, least)]
    return [f"classes are unequal: {of[0]}, {of[1]}"]
