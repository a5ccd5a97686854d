"""Image sets that are archives of JPEG files: DTD's tar.gz and Tiny ImageNet's zip, read without unpacking them."""

import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from outlie.data.image_files import Transform, decode_all
from outlie.data.image_formats import DAMAGED, damaged
from outlie.errors import UserError

AT_ONCE = 256  # files in memory before they are decoded


def read_dtd(path: Path, transform: Transform, classes: int | None = None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """All images of dtd/images/CLASS/*.jpg, sorted by name, with labels and class names.

    Args:
        classes: Only the alphabetically first so many classes.
    """
    found = sorted(_tar_names(path, ".jpg"))
    names = sorted({name.split("/")[-2] for name in found})
    names = names[: classes or len(names)]
    chosen = [name for name in found if name.split("/")[-2] in names]
    if not chosen:
        raise UserError(f"{path} holds no images/CLASS/*.jpg: it is not DTD")
    row = {name: i for i, name in enumerate(chosen)}
    x = _decoded(_tar_contents(path, set(row)), row, transform, path)
    return x, np.array([names.index(name.split("/")[-2]) for name in chosen], np.int64), names


def read_tiny_imagenet(path: Path, part: str, transform: Transform) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images, labels and class names (WordNet ids) of the part 'train' or 'test' (the authors' val)."""
    try:
        with zipfile.ZipFile(path) as archive:
            everything = archive.namelist()
            root = everything[0].partition("/")[0]
            classes = archive.read(f"{root}/wnids.txt").decode().split()
            label = {name: i for i, name in enumerate(classes)}
            if part == "train":
                inside = sorted(n for n in everything if n.startswith(f"{root}/train/") and n.endswith(".JPEG"))
                y = [label[name.split("/")[2]] for name in inside]
            else:
                lines = archive.read(f"{root}/val/val_annotations.txt").decode().splitlines()
                pairs = sorted(line.split("\t")[:2] for line in lines)
                inside, y = [f"{root}/val/images/{name}" for name, _ in pairs], [label[wnid] for _, wnid in pairs]
            row = {name: i for i, name in enumerate(inside)}
            x = _decoded(((name, archive.read(name)) for name in inside), row, transform, path)
    except (*DAMAGED, zipfile.BadZipFile, IndexError) as error:
        raise UserError(damaged(path, error)) from error
    return x, np.array(y, np.int64), classes


def _tar_names(path: Path, suffix: str) -> list[str]:
    try:
        with tarfile.open(path) as archive:
            return [member.name for member in archive if member.isfile() and member.name.endswith(suffix)]
    except DAMAGED as error:
        raise UserError(damaged(path, error)) from error


def _tar_contents(path: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """In the order of the file: seeking back would unpack it again."""
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name in wanted and (content := archive.extractfile(member)) is not None:
                    yield member.name, content.read()
    except DAMAGED as error:
        raise UserError(damaged(path, error)) from error


def _decoded(
    contents: Iterator[tuple[str, bytes]], row: dict[str, int], transform: Transform, path: Path
) -> np.ndarray:
    """Each content decoded into its row."""
    out = np.zeros((len(row), transform.channels, transform.size, transform.size), np.uint8)
    some: list[tuple[str, bytes]] = []

    def flush() -> None:
        rows = [row[name] for name, _ in some]
        out[rows] = decode_all([c for _, c in some], transform, [f"{path}: {name}" for name, _ in some])
        some.clear()

    for pair in contents:
        some.append(pair)
        if len(some) == AT_ONCE:
            flush()
    if some:
        flush()
    return out
