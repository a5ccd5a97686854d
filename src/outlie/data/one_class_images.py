"""Normal images for training, normal and defective ones for the test: MVTec AD's layout, with masks and groups.

train/good/*   test/good/*   test/DEFECT/*   ground_truth/DEFECT/STEM_mask.png   MANIFEST.csv (optional)
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from outlie.data.image_files import DAMAGED
from outlie.data.image_folders import assemble_files, by_class, relabelled, transform
from outlie.data.image_lists import Listed
from outlie.data.locate import cache_dir, data_dir
from outlie.data.split import Split
from outlie.errors import UserError
from outlie.options import Fraction, PositiveInt

CITE = "Huang et al., Surface defect saliency of magnetic tile, The Visual Computer 2020"


class OneClassImages:
    """One product in MVTec AD's layout: train/good, test/good and test/DEFECT for each kind of defect.

    Masks ground_truth/DEFECT/STEM_mask.png make pixel metrics. A MANIFEST.csv with the columns file and group_id says
    which images are no independent samples (photos of one part): such a group is calibrated on, or trained on, as a
    whole, and intervals resample groups.

    Args:
        path: Folder with train, test and, where there are masks, ground_truth.
        size: Side of the images in pixels; both sides are squeezed to it.
        channels: 1 = grey, 3 = colour.
        calibration: Fraction of the training images that is held out for the threshold.
    """

    def __init__(self, path: Path, size: PositiveInt = 256, channels: PositiveInt = 3, calibration: Fraction = 0.1):
        self.path = Path(path).expanduser()
        self.transform = transform(size, None, channels)
        self.calibration = calibration

    def load(self, seed: int) -> Split:
        """The split of this seed, which draws the calibration images; `y` of the test rows is the kind of defect.

        Raises:
            UserError: another layout, an empty folder, a mask that does not fit its image, an image without a group.
        """
        train = by_class(self.path / "train", "dataset.path")
        if train.classes != ("good",):
            raise UserError(f"{self.path / 'train'} has {', '.join(train.classes)}, allowed: good (normal images only)")
        test = by_class(self.path / "test", "dataset.path")
        if "good" not in test.classes or len(test.classes) < 2:
            raise UserError(f"{self.path / 'test'} has {', '.join(test.classes)}: good and a defect are needed")
        classes = ("good", *(name for name in test.classes if name != "good"))
        test.y = relabelled(test, classes)
        group_of = read_groups(self.path / "MANIFEST.csv")
        groups = {part: groups_of(group_of, part, listed) for part, listed in (("train", train), ("test", test))}
        held = None
        if group_of is not None:
            held = whole_groups(groups["train"], self.calibration, np.random.RandomState(seed))
        split = assemble_files(train, None, test, {}, {}, self.transform, self.calibration, seed, held)
        split.protocol, split.classes = "one_class", classes
        rows, calibration = split.tests["test"], split.calibration
        assert calibration is not None
        split.train.y = calibration.y = None
        rows.label = torch.from_numpy((test.y > 0).astype(np.int64))
        rows.mask, found = read_masks(self.path, test, self.transform.size)
        split.findings += found
        if group_of is not None:
            rows.group = torch.from_numpy(groups["test"])
            for part in (split.train, calibration):
                part.group = torch.from_numpy(groups["train"])[part.index]
            if shared := len(np.intersect1d(groups["train"], groups["test"])):
                split.findings.append(f"{shared} groups of images are in training and in the test: near copies")
        return split


class MagneticTile(OneClassImages):
    """Grey photos of magnetic tiles with five kinds of defects: 712 normal ones to train on, 240 and 388 to test.

    Each tile was photographed about six times; the copy's MANIFEST.csv has the groups, which never meet both parts.

    Args:
        path: Folder with train, test, ground_truth and MANIFEST.csv; null = magnetic_tile below OUTLIE_DATA or the
            cache folder.
    """

    def __init__(self, path: Path | None = None, **shared: Any):
        super().__init__(magnetic_tile_folder() if path is None else path, **shared)


def magnetic_tile_folder() -> Path:
    """Where the tiles lie; UserError that says where to get them."""
    places = [folder / "magnetic_tile" for folder in (data_dir(), cache_dir()) if folder is not None]
    if found := next((place for place in places if place.is_dir()), None):
        return found
    raise UserError(
        f"no magnetic tiles ({CITE}) in {' or '.join(map(str, places))}: the authors' photos are at "
        "github.com/abin24/Magnetic-tile-defect-datasets.; bring them into MVTec AD's layout (train/good, test/good, "
        "test/DEFECT, ground_truth/DEFECT), or set dataset.path"
    )


def read_groups(path: Path) -> dict[str, int] | None:
    """File -> number of its group; None where there is no such table."""
    if not path.is_file():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        if not {"file", "group_id"} <= set(lines.fieldnames or ()):
            return None
        named = {line["file"]: line["group_id"] for line in lines}
    number = {name: i for i, name in enumerate(sorted(set(named.values())))}
    return {file: number[name] for file, name in named.items()}


def groups_of(group_of: dict[str, int] | None, part: str, listed: Listed) -> np.ndarray:
    """(N,) int64 group of each image; empty where nobody has told."""
    if group_of is None:
        return np.empty(0, np.int64)
    names = [f"{part}/{name}" for name in listed.names]
    if lost := next((name for name in names if name not in group_of), None):
        raise UserError(f"MANIFEST.csv has groups, but no line for {lost}: add it, or take the column group_id away")
    return np.array([group_of[name] for name in names], np.int64)


def whole_groups(group: np.ndarray, fraction: float, rng: np.random.RandomState) -> np.ndarray:
    """Rows of groups drawn until they are that fraction of all rows, in order."""
    drawn = rng.permutation(np.unique(group))
    sizes = np.cumsum([np.count_nonzero(group == one) for one in drawn])
    enough = int(np.searchsorted(sizes, fraction * len(group))) + 1
    return np.flatnonzero(np.isin(group, drawn[:enough]))


def read_masks(root: Path, test: Listed, size: int) -> tuple[Tensor | None, list[str]]:
    """(N, size, size) bool of the test images, and a finding where only some defects have a mask: then None."""
    folder = root / "ground_truth"
    if not folder.is_dir():
        return None, []
    files = {i: folder / Path(test.names[i]).with_suffix("") for i in np.flatnonzero(test.y > 0)}
    files = {i: path.with_name(f"{path.name}_mask.png") for i, path in files.items()}
    if lost := [path for path in files.values() if not path.is_file()]:
        return None, [f"{len(lost)} of {len(files)} defects have no mask ({lost[0].name}): no pixel metrics"]
    masks = np.zeros((len(test), size, size), bool)
    for i, path in files.items():
        masks[i] = read_mask(path, test.root / test.names[i], size)
    return torch.from_numpy(masks), []


def read_mask(path: Path, image: Path, size: int) -> np.ndarray:
    """(size, size) bool; a defect that nearest neighbours lose is kept wherever it touches a pixel."""
    try:
        with Image.open(path) as mask, Image.open(image) as photo:
            if mask.size != photo.size:
                raise UserError(f"{path} is {mask.width} x {mask.height}, its image {photo.width} x {photo.height}")
            marked = np.asarray(mask.convert("L")) > 127  # edges may be faint
            full = Image.fromarray(np.where(marked, 255, 0).astype(np.uint8))
            small = np.asarray(full.resize((size, size), Image.Resampling.NEAREST)) > 0
            return small if small.any() else np.asarray(full.resize((size, size), Image.Resampling.BOX)) > 0
    except DAMAGED as error:
        raise UserError(f"{path} is damaged or no image ({error}): make or fetch it again") from error
