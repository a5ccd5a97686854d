"""Images that stay files against Pillow's own calls; folders, lists and MVTec's layout; what is wrong is said once."""

import hashlib
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from outlie.data.file_lints import copies
from outlie.data.image_files import ImageFiles, Transform, decode, file_statistics, list_images
from outlie.data.image_folders import ImageFolder, ImageList
from outlie.data.one_class_images import OneClassImages
from outlie.errors import UserError

SHARED_TILES = Path(os.environ.get("OUTLIE_DATA", "")) / "magnetic_tile"


def save(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Path:
    """A random image of (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, shape, np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    for i in range(20):
        save(tmp_path / f"{i:02}.png", i, (12 + i, 10))
    return tmp_path


def files(folder: Path, transform: Transform | None = None) -> ImageFiles:
    return ImageFiles(folder, list_images(folder, "dataset.train"), transform or Transform(8))


def test_squeezed_or_cut_out_as_pillow_does(tmp_path):
    path = save(tmp_path / "a.png", 1, (50, 31))
    image = Image.open(path)
    squeezed = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(decode(path, Transform(8)), squeezed)
    # torchvision: Resize(16) makes the shorter side 16 and the longer int(16 * 50 / 31), CenterCrop(8) rounds
    wide = image.resize((25, 16), Image.Resampling.BILINEAR)
    left, top = round((25 - 8) / 2.0), round((16 - 8) / 2.0)
    cut = np.asarray(wide).transpose(2, 0, 1)[:, top : top + 8, left : left + 8]
    assert np.array_equal(decode(path, Transform(8, resize=16)), cut)
    grey = np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BILINEAR))
    assert np.array_equal(decode(path, Transform(8, channels=1))[0], grey)
    square = image.crop((9, 0, 40, 31)).resize((8, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(decode(path, Transform(8, square=True)), np.asarray(square).transpose(2, 0, 1))


def test_indexing_is_that_of_a_tensor(folder):
    x = files(folder)
    everything = torch.stack([torch.from_numpy(decode(folder / f"{i:02}.png", Transform(8)).copy()) for i in range(20)])
    assert x.shape == everything.shape and len(x) == 20 and x.ndim == 4 and x.dtype == torch.uint8
    for index in (
        slice(3, 18, 4),
        slice(None),
        torch.tensor([5, 0, 5, 19]),
        np.array([2, 1]),
        [7],
        torch.arange(20) % 3 == 0,
        torch.tensor([], dtype=torch.int64),
    ):
        assert torch.equal(x[index], everything[index])
    assert torch.equal(x[4], everything[4]) and torch.equal(x[torch.tensor(-1)], everything[-1])
    part = x.subset(torch.tensor([9, 3]))
    assert torch.equal(part[:], everything[[9, 3]]) and len(part) == 2
    assert torch.equal(torch.cat([p[:] for p in x.split(7)]), everything)
    assert x.to("meta") is x


def test_fingerprint_sees_what_matters(folder, tmp_path):
    x = files(folder)
    assert x.fingerprint() == files(folder).fingerprint()
    seen = {x.fingerprint(), files(folder, Transform(9)).fingerprint(), x.subset(slice(1, None)).fingerprint()}
    os.utime(folder / "03.png", ns=(1, 1))
    seen.add(files(folder).fingerprint())
    assert files(folder).fingerprint(mtimes=False) == x.fingerprint(mtimes=False)
    save(folder / "03.png", 99, (30, 30))
    seen.add(files(folder).fingerprint())
    (folder / "03.png").rename(folder / "03b.png")
    seen.add(files(folder).fingerprint())
    assert len(seen) == 6
    assert all(len(one) == len(hashlib.sha256().hexdigest()) for one in seen)


def test_statistics_are_numpys(folder):
    mean, scale = file_statistics(files(folder))
    x = files(folder)[:].double()
    torch.testing.assert_close(torch.from_numpy(mean), x.mean((0, 2, 3))[:, None, None], rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.from_numpy(scale), x.std((0, 2, 3), correction=0)[:, None, None], rtol=1e-12, atol=0
    )
    some = file_statistics(files(folder), at_most=3)[0]
    np.testing.assert_allclose(some, x[[0, 10, 19]].mean((0, 2, 3))[:, None, None], rtol=1e-12)


def test_what_cannot_be_decoded_names_its_file(folder):
    whole = (folder / "05.png").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"text"):
        (folder / "05.png").write_bytes(content)
        with pytest.raises(UserError, match=r"05.png is damaged or no image"):
            files(folder)[:]
        with pytest.raises(UserError, match=r"05.png is damaged or no image"):
            files(folder)[5]
    deep = Image.fromarray(np.full((9, 9), 40_000, np.uint16))
    deep.save(folder / "05.png")
    with pytest.raises(UserError, match=r"05.png has more than 8 bits a pixel"):
        files(folder)[5]


def test_an_empty_or_missing_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"dataset.train=.* holds no images; read are: .jpg"):
        list_images(tmp_path, "dataset.train")
    with pytest.raises(UserError, match=r"is not there"):
        list_images(tmp_path / "nowhere", "dataset.train")


# a folder for each class


@pytest.fixture
def classes(tmp_path) -> Path:
    for k, name in enumerate(("cat", "dog")):
        for i in range(10):
            save(tmp_path / "train" / name / f"{i}.png", 100 * k + i)
        for i in range(3):
            save(tmp_path / "test" / name / f"{i}.png", 1000 + 100 * k + i)
    for i in range(4):
        save(tmp_path / "birds" / "deeper" / f"{i}.png", 2000 + i)
        save(tmp_path / "noise" / f"{i}.png", 3000 + i)
    return tmp_path


def image_folder(root: Path, **options: object) -> ImageFolder:
    ood = {"birds": root / "birds", "noise": root / "noise"}
    return ImageFolder(root / "train", root / "test", **{"ood": ood, "near": ["birds"], "size": 8, **options})


def test_folders_become_a_split(classes):
    split = image_folder(classes, calibration=0.2).load(0)
    assert split.classes == ("cat", "dog") and split.protocol == "ood"
    assert split.protocols == {"birds": "ood_near", "noise": "ood_far"}
    assert split.train.y.bincount().tolist() == [8, 8] and split.calibration.y.bincount().tolist() == [2, 2]
    assert sorted(torch.cat([split.train.index, split.calibration.index]).tolist()) == list(range(20))
    assert split.tests["test"].y.tolist() == [0, 0, 0, 1, 1, 1]
    assert [(name, len(rows), int(rows.label.sum())) for name, rows in split.tests.items()] == [
        ("test", 6, 0),
        ("birds", 4, 4),
        ("noise", 4, 4),
    ]
    names = list_images(classes / "train", "")
    assert torch.equal(split.train.x[0], files(classes / "train")[int(split.train.index[0])])
    assert [names[i].split("/")[0] for i in split.train.index] == [split.classes[y] for y in split.train.y]
    assert split.findings == []
    other = image_folder(classes, calibration=0.2).load(1)
    assert not torch.equal(other.train.index, split.train.index)


def test_training_does_not_depend_on_the_ood_sets(classes):
    plain, other = image_folder(classes).load(0), image_folder(classes, ood={}, near=[]).load(0)
    assert torch.equal(plain.train.index, other.train.index)
    assert torch.equal(plain.mean, other.mean) and torch.equal(plain.scale, other.scale)
    assert plain.train.x.fingerprint() == other.train.x.fingerprint()


def test_findings_about_files(classes):
    before = image_folder(classes).load(0)
    used = next(name for name in before.train.x.names if name.startswith("cat"))
    shutil.copy(classes / "train" / used, classes / "noise/copy.png")
    save(classes / "birds/grey.png", 5, mode="L")
    assert image_folder(classes).load(0).findings == [
        "1 of 5 noise images (20.0 %) are exact copies of training images",
        "1 of 5 birds images are grey, made colour by repeating",
    ]
    for i in range(7):
        (classes / f"train/dog/{i}.png").unlink()
    unequal = image_folder(classes).load(0).findings[-1]
    assert unequal == "classes are unequal: 9 training images of cat, 3 training images of dog"


def test_copies_are_found_as_by_brute_force(tmp_path):
    rng = np.random.RandomState(0)
    for part in ("a", "b"):
        for i in range(30):
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / part / f"{i}.png").write_bytes(bytes(rng.randint(0, 3, rng.randint(1, 4)).tolist()))
    a, b = files(tmp_path / "a"), files(tmp_path / "b")
    contents = {path.read_bytes() for path in (tmp_path / "b").iterdir()}
    count = sum(path.read_bytes() in contents for path in (tmp_path / "a").iterdir())
    assert 0 < count < 30
    assert copies(a, b) == count


def test_wrong_folders(classes):
    (classes / "train/owl").mkdir()
    with pytest.raises(UserError, match=r"train has no image of class owl"):
        image_folder(classes).load(0)
    (classes / "train/owl").rmdir()
    save(classes / "train/loose.png")
    with pytest.raises(UserError, match=r"loose.png is in no class folder"):
        image_folder(classes).load(0)
    (classes / "train/loose.png").unlink()
    save(classes / "test/dogs/1.png")
    with pytest.raises(UserError, match=r"unknown class in .* 'dogs' \(did you mean 'dog'\?\)"):
        image_folder(classes).load(0)
    with pytest.raises(UserError, match=r"unknown OOD set in dataset.near 'bird' \(did you mean 'birds'\?\)"):
        image_folder(classes, near=["bird"])
    with pytest.raises(UserError, match=r"dataset.resize=4 is below dataset.size=8"):
        image_folder(classes, resize=4)
    with pytest.raises(UserError, match=r"dataset.channels=2, allowed: 1"):
        image_folder(classes, channels=2)


# OpenOOD's lists


@pytest.fixture
def openood(tmp_path) -> Path:
    lists = tmp_path / "benchmark_imglist/cifar10"
    lists.mkdir(parents=True)

    def make(name: str, where: str, labels: list[int]) -> None:
        lines = []
        for i, label in enumerate(labels):
            path = f"{where}/{label}_x/{name} {i}.png"  # a blank in the name
            save(tmp_path / "images_classic" / path, zlib.crc32(path.encode()), (32, 32))
            lines.append(f"{path} {label}")
        (lists / f"{name}.txt").write_text("\n".join(lines) + "\n")

    make("train_cifar10", "cifar10/train", [0, 1, 2] * 4)
    make("test_cifar10", "cifar10/test", [0, 1, 2])
    make("val_cifar10", "cifar10/test", [2, 1])
    for name in ("cifar100", "tin", "mnist", "svhn", "texture", "places365"):
        make(f"test_{name}", name, [-1, -1])
    return tmp_path


def openood_cifar10(root: Path) -> ImageList:
    import yaml

    config = yaml.safe_load((Path(__file__).parents[2] / "configs/dataset/openood/cifar10.yaml").read_text())
    assert config.pop("_target_") == "outlie.data.image_folders.ImageList"
    return ImageList(**config | {"root": root})


def test_openoods_lists(openood):
    split = openood_cifar10(openood).load(0)
    assert split.train.y.tolist() == [0, 1, 2] * 4 and split.calibration.y.tolist() == [2, 1]
    assert split.classes == ("0_x", "1_x", "2_x")
    assert list(split.tests) == ["test", "cifar100", "tin", "mnist", "svhn", "texture", "places365"]
    near = [name for name, protocol in split.protocols.items() if protocol == "ood_near"]
    assert near == ["cifar100", "tin"] and set(split.protocols.values()) == {"ood_near", "ood_far"}
    image = Image.open(openood / "images_classic/cifar10/train/1_x/train_cifar10 4.png")
    assert np.array_equal(split.train.x[4], np.asarray(image).transpose(2, 0, 1))


def test_wrong_lists(openood):
    lists = openood / "benchmark_imglist/cifar10"
    good = (lists / "test_cifar10.txt").read_text()
    first = good.splitlines()[0].rpartition(" ")[0]
    for content, message in (
        (f"{first} 3\n", r"label 3 for .*allowed: 0 to 2, the classes of training"),
        (f"{first} -1\n", r"label -1 for"),
        (f"{first}\n", r"line 1 is '.*', expected: PATH LABEL"),
        ("/etc/passwd 0\n", r"paths must be relative"),
        ("\n", r"is empty"),
        (
            good + "cifar10/test/gone.png 0\ncifar10/test/gone2.png 0\n",
            r"gone.png and 1 more of 5 images are not there",
        ),
    ):
        (lists / "test_cifar10.txt").write_text(content)
        with pytest.raises(UserError, match=message):
            openood_cifar10(openood).load(0)
    (lists / "test_cifar10.txt").unlink()
    with pytest.raises(UserError, match=r"dataset.test=.*test_cifar10.txt is not a file"):
        openood_cifar10(openood).load(0)
    lines = (lists / "train_cifar10.txt").read_text().splitlines()
    (lists / "train_cifar10.txt").write_text("\n".join(line for line in lines if not line.endswith(" 1")))
    with pytest.raises(UserError, match=r"train_cifar10.txt has no image of class 1"):
        openood_cifar10(openood).load(0)


# MVTec AD's layout


def test_one_class(tmp_path):
    for i in range(10):
        save(tmp_path / f"train/good/{i}.png", i)
    for k, kind in enumerate(("crack", "good", "zip")):
        for i in range(3):
            save(tmp_path / f"test/{kind}/{i}.png", 100 + 10 * k + i)
    save(tmp_path / "ground_truth/crack/0_mask.png")
    split = OneClassImages(tmp_path, size=8).load(0)
    assert split.protocol == "one_class" and split.protocols == {}
    assert (len(split.train), len(split.calibration)) == (9, 1) and split.train.y is None
    assert split.classes == ("good", "crack", "zip")
    assert split.tests["test"].y.tolist() == [1] * 3 + [0] * 3 + [2] * 3
    assert split.tests["test"].label.tolist() == [1] * 3 + [0] * 3 + [1] * 3
    save(tmp_path / "train/crack/0.png")
    with pytest.raises(UserError, match=r"train has crack, good, allowed: good"):
        OneClassImages(tmp_path).load(0)
    shutil.rmtree(tmp_path / "train/crack")
    shutil.rmtree(tmp_path / "test/good")
    with pytest.raises(UserError, match=r"test has crack, zip: good and a defect are needed"):
        OneClassImages(tmp_path).load(0)


@pytest.mark.skipif(not SHARED_TILES.is_dir(), reason="needs OUTLIE_DATA with magnetic_tile/")
def test_magnetic_tiles():
    split = OneClassImages(SHARED_TILES, size=32, channels=1).load(0)
    assert len(split.train) + len(split.calibration) == 712
    counts = dict(zip(split.classes, split.tests["test"].y.bincount().tolist(), strict=True))
    assert counts == {"good": 240, "blowhole": 115, "break": 85, "crack": 57, "fray": 32, "uneven": 99}
    assert split.findings == []
