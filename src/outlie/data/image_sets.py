"""Image sets by name, with their files (image_sets.csv); no torch, no numpy, so that lists are quick.

Sums are those that torchvision checks (md5), the authors publish (CIFAR's binary version, md5), or that the manifests
of our own copies give (sha256); an empty cell = nobody has told.
"""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from outlie.errors import UserError, unknown

Format = Literal["idx", "cifar", "mat", "npz", "archive", "sklearn"]


@dataclass(frozen=True)
class ImageFile:
    """One file of an image set; None and "" where nobody has told."""

    name: str  # the source's name: fashion_mnist
    part: str  # which of its files: train_images
    paths: tuple[str, ...]  # where it lies under a data folder; downloads go to the first
    urls: tuple[str, ...]  # mirrors, tried in order; () = not on the web
    md5: str
    sha256: str
    bytes: int | None
    terms: str

    @property
    def title(self) -> str:
        """How a user asks for it: `image/mnist/train_images`."""
        return f"image/{self.name}/{self.part}"

    @property
    def path(self) -> str:
        """The name under which a first checksum is recorded, and where it is downloaded to."""
        return self.paths[0]


@dataclass(frozen=True)
class ImageSet:
    """What a source is: shape (C, H, W), None where images differ; rows of each part, names of the classes."""

    format: Format
    shape: tuple[int, int | None, int | None]
    rows: dict[str, int]  # 'train' and 'test', or 'all' where the authors made no such parts
    classes: int
    names: tuple[str, ...] = ()  # of the classes; () = they stand in the files


DIGITS = tuple("0123456789")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
KMNIST = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
MNIST_ROWS = {"train": 60_000, "test": 10_000}

SETS: dict[str, ImageSet] = {
    "mnist": ImageSet("idx", (1, 28, 28), MNIST_ROWS, 10, DIGITS),
    "fashion_mnist": ImageSet("idx", (1, 28, 28), MNIST_ROWS, 10, FASHION),
    "kmnist": ImageSet("idx", (1, 28, 28), MNIST_ROWS, 10, KMNIST),
    "cifar10": ImageSet("cifar", (3, 32, 32), {"train": 50_000, "test": 10_000}, 10),
    "cifar100": ImageSet("cifar", (3, 32, 32), {"train": 50_000, "test": 10_000}, 100),
    "svhn": ImageSet("mat", (3, 32, 32), {"train": 73_257, "test": 26_032}, 10, DIGITS),
    "dtd": ImageSet("archive", (3, None, None), {"all": 5_640}, 47),
    "tiny_imagenet": ImageSet("archive", (3, 64, 64), {"train": 100_000, "test": 10_000}, 200),
    "cifar10_part": ImageSet("npz", (3, 32, 32), {"train": 10_000, "test": 2_000}, 10, CIFAR10),
    "dtd_part": ImageSet("npz", (3, 32, 32), {"all": 1_200}, 10),
    "digits": ImageSet("sklearn", (1, 8, 8), {"train": 1_000, "test": 797}, 10, DIGITS),
}
# OOD sets without files: the in-distribution test images, turned over
FLIPS = {"vflip": "upside down", "hflip": "mirrored"}
DERIVED = {"cifar10_part": "cifar10", "dtd_part": "dtd"}  # made from the full set where the part's own file is missing


@cache
def image_files() -> dict[str, tuple[ImageFile, ...]]:
    """Source -> its files; a source inside a dependency has none."""
    table: dict[str, list[ImageFile]] = {name: [] for name in SETS}
    with files("outlie.data").joinpath("image_sets.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            size = row["bytes"]
            table[row["name"]].append(
                ImageFile(
                    row["name"],
                    row["part"],
                    tuple(row["paths"].split()),
                    tuple(row["urls"].split()),
                    row["md5"],
                    row["sha256"],
                    int(size) if size else None,
                    row["terms"],
                )
            )
    return {name: tuple(parts) for name, parts in table.items()}


def select_images(word: str) -> list[ImageFile]:
    """Files for what a user typed, without its `image/`: `mnist`, `mnist/test_images`."""
    name, _, part = word.partition("/")
    image_set(name)
    found = image_files()[name]
    if not found:
        raise UserError(f"{name} comes inside scikit-learn: nothing to fetch")
    if part and part not in {file.part for file in found}:
        raise UserError(unknown(f"file of image/{name}", part, [file.part for file in found]))
    return [file for file in found if part in ("", file.part)]


def image_set(name: str, option: str = "image set") -> ImageSet:
    """What is known of a source; UserError with the nearest match for an unknown name."""
    if name in FLIPS:
        raise UserError(
            f"{name} has no files: it is the test images of dataset.id, {FLIPS[name]}, allowed in dataset.near and "
            "dataset.far only"
        )
    if name not in SETS:
        raise UserError(unknown(option, name, SETS) + "; see: run data list")
    return SETS[name]


def require_ood_set(name: str, option: str) -> None:
    """UserError with the nearest match for what can be no OOD set: neither a source nor a flip."""
    if name not in SETS and name not in FLIPS:
        raise UserError(unknown(option, name, [*SETS, *FLIPS]) + "; see: run data list")


def file_of(name: str, part: str) -> ImageFile:
    """One file of a source."""
    return next(file for file in image_files()[name] if file.part == part)
