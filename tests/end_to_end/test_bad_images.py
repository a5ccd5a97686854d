"""What a user may get wrong with folders of images, through the command line: the value and the fix in words."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from outlie import stages
from outlie.data import image_folders

from .conftest import only, result_of, scores_of
from .test_images import RESNET

IMAGES = (
    "dataset=image_folder", "dataset.train=train", "dataset.test=test", "+dataset.ood.grey=grey", "dataset.size=8",
    "detector=msp", *RESNET, "backbone.epochs=1",
)  # fmt: skip


@pytest.fixture
def images(tmp_path):
    """Write images of noise around a level into a folder."""
    rng = np.random.default_rng(0)

    def write(folder, level=100, n=12, side=10):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = (level + rng.integers(0, 40, (side, side, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i:02d}.png")
        return tmp_path / folder

    return write


@pytest.fixture
def folders(images):
    """Two classes, train and test, and an OOD set."""
    for part in ("train", "test"):
        images(f"{part}/dark", 20)
        images(f"{part}/light", 180)
    images("grey", 100)


def test_good_folders_give_a_run(folders, train, tmp_path):
    train(*IMAGES)
    folder = only(tmp_path / "outputs" / "train")
    assert result_of(folder)["rows"] == {"train": 22, "calibration": 2, "test": 24, "grey": 12}
    assert dict(scores_of(folder).group_by("split").len().iter_rows()) == {"calibration": 2, "test": 24, "grey": 12}


@pytest.mark.parametrize("place", ["train/dark", "test/light", "grey"])
@pytest.mark.parametrize("content", ["half", "text", "nothing"])
def test_a_damaged_image_is_named(place, content, folders, refused, tmp_path):
    file = tmp_path / place / "07.png"
    whole = file.read_bytes()
    file.write_bytes({"half": whole[: len(whole) // 2], "text": b"a letter, not an image", "nothing": b""}[content])
    message = refused("train", *IMAGES)
    assert f"{place}/07.png is damaged or no image" in message
    assert "make or fetch it again" in message


def test_the_run_goes_on_once_a_damaged_image_is_repaired(folders, refused, train, tmp_path, monkeypatch):
    file = tmp_path / "grey" / "07.png"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "grey/07.png" in refused("train", *IMAGES)
    file.write_bytes(whole)
    monkeypatch.setattr(stages, "train", lambda *_, **__: pytest.fail("trained again"))
    train(*IMAGES)
    states = [result_of(folder)["status"] for folder in (tmp_path / "outputs" / "train").iterdir()]
    assert sorted(states) == ["done", "failed"]  # another file, another run; the same weights


def test_a_folder_with_other_images_is_another_run(folders, images, train, tmp_path):
    train(*IMAGES)
    images("train/dark", 60)
    assert "done already" not in train(*IMAGES).err
    assert len(list((tmp_path / "outputs" / "stages").iterdir())) == 2


def test_grey_among_colour_is_a_finding_and_no_error(folders, train, tmp_path):
    for i in range(3):
        path = tmp_path / "train" / "dark" / f"{i:02d}.png"
        Image.open(path).convert("L").save(path)
    done = train(*IMAGES, "dataset.calibration=0.05")
    result = result_of(only(tmp_path / "outputs" / "train"))
    found = [text for text in result["lints"] if "training images are grey, made colour by repeating" in text]
    assert len(found) == 1
    assert found[0] in " ".join(done.out.split())
    assert scores_of(only(tmp_path / "outputs" / "train"))["score"].is_finite().all()


def test_images_of_other_modes_are_read(folders, train, tmp_path):
    for i, mode in enumerate(("RGBA", "P", "LA", "1", "CMYK")):
        path = tmp_path / "grey" / f"{i:02d}.png"
        Image.open(path).convert(mode).save(path.with_suffix(".tif"))
        path.unlink()
    train(*IMAGES)
    assert result_of(only(tmp_path / "outputs" / "train"))["rows"]["grey"] == 12


def test_16_bits_are_refused(folders, refused, tmp_path):
    Image.fromarray(np.full((10, 10), 40_000, np.uint16)).save(tmp_path / "grey" / "07.png")
    message = refused("train", *IMAGES)
    assert "grey/07.png has more than 8 bits a pixel: convert it to 8 bits" in message


def test_an_empty_folder(folders, refused, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "readme.txt").write_text("no image")
    for option in ("+dataset.ood.none", "dataset.train", "dataset.test"):
        message = refused("train", *IMAGES, f"{option}=none")
        assert f"{option.removeprefix('+')}=none holds no images; read are: .jpg" in message
    (tmp_path / "train" / "middle").mkdir()
    assert "train has no image of class middle: give some" in refused("train", *IMAGES)


def test_classes_that_do_not_agree(folders, images, refused):
    images("test/drak", 20)
    message = refused("train", *IMAGES)
    assert "unknown class in test 'drak' (did you mean 'dark'?)" in message
    assert "for OOD images: dataset.ood" in message


def test_a_class_without_test_images(folders, refused, train, tmp_path):
    shutil.rmtree(tmp_path / "test" / "dark")
    (tmp_path / "test" / "dark").mkdir()
    assert "test has no image of class dark: give some" in refused("train", *IMAGES)
    (tmp_path / "test" / "dark").rmdir()  # a test set of some of the classes is one
    train(*IMAGES)
    assert result_of(only(tmp_path / "outputs" / "train"))["classifier"]["accuracy"] in np.arange(13) / 12


def test_one_class_only(folders, refused, tmp_path):
    shutil.rmtree(tmp_path / "train" / "dark")
    shutil.rmtree(tmp_path / "test" / "dark")
    message = refused("train", *IMAGES)
    assert "only one class in the training rows: a classifier needs two" in message
    assert "set backbone=identity" in message


def test_an_image_beside_the_class_folders(folders, refused, tmp_path):
    shutil.copy(tmp_path / "grey" / "00.png", tmp_path / "train" / "loose.png")
    assert "train/loose.png is in no class folder: dataset.train needs a folder for each class" in refused(
        "train", *IMAGES
    )


def test_too_few_images(tmp_path, images, refused):
    for part in ("train", "test"):
        images(f"{part}/dark", 20, n=1)
        images(f"{part}/light", 180, n=1)
    images("grey")
    message = refused("train", *IMAGES)
    assert "train has 2 training images: too few to hold out" in message


@pytest.mark.parametrize(("option", "guess"), [("dataset.train=trian", "train"), ("dataset.test=tset", "test")])
def test_a_mistyped_folder_gets_the_nearest_and_loads_nothing(option, guess, folders, refused, monkeypatch):
    monkeypatch.setattr(image_folders, "list_images", lambda *_: pytest.fail("looked into folders"))
    message = refused("train", *IMAGES, option)
    assert f"{option.replace('=', chr(61) + chr(39))}'" in message
    assert f"did you mean '{guess}'?" in message


def test_a_mistyped_ood_folder_and_name(folders, refused):
    message = refused("train", *IMAGES, "dataset.ood.grey=gray")
    assert "'gray'" in message
    assert "path that exists" in message
    assert "unknown OOD set in dataset.near 'gray' (did you mean 'grey'?)" in refused(
        "train", *IMAGES, "dataset.near=[gray]"
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("dataset.channels=2", "dataset.channels=2, allowed: 1 (grey), 3 (colour)"),
        ("dataset.resize=4", "dataset.resize=4 is below dataset.size=8"),
        ("dataset.size=0", "dataset.size=0"),
        ("dataset.calibration=1.5", "dataset.calibration=1.5"),
    ],
)
def test_options_that_cannot_be(option, message, folders, refused):
    assert message in refused("train", *IMAGES, option)


def test_a_file_in_place_of_a_folder(folders, refused, tmp_path):
    assert "dataset.train=grey/00.png is not a folder: name a folder" in refused(
        "train", *IMAGES, "dataset.train=grey/00.png"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read(folders, refused, tmp_path):
    (tmp_path / "grey" / "00.png").chmod(0)
    assert "grey/00.png" in refused("train", *IMAGES)


def test_without_a_network_the_pixels_are_scored(folders, train, tmp_path):
    words = tuple(word for word in IMAGES if not word.startswith(("backbone", "detector")))
    train(*words, "detector=knn")
    folder = only(tmp_path / "outputs" / "train")
    assert result_of(folder)["metrics"]["grey"]["auroc"] == 1  # noise around another level
