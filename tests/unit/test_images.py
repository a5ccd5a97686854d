"""OOD benchmarks on images: the parts of a split against its definition, pixels against Pillow and NumPy."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
import yaml
from PIL import Image

from outlie.data import images as module
from outlie.data.image_arrays import balanced, channel_statistics, resize, to_grey, to_shape
from outlie.data.image_lints import image_hashes, imbalance, lint_images
from outlie.data.image_sources import Images, read_source
from outlie.data.images import OODImages
from outlie.data.split import Split
from outlie.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs/dataset"
RNG = np.random.RandomState(0)


def random_images(n: int, c: int = 3, h: int = 9, w: int = 9) -> np.ndarray:
    return RNG.randint(0, 256, (n, c, h, w), np.uint8)


def load(name: str, seed: int = 0, **options: object) -> Split:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    config.pop("_target_")
    return OODImages(**config | options).load(seed)


@pytest.fixture
def needs_data() -> None:
    root = Path(os.environ.get("OUTLIE_DATA", ""))
    if not os.environ.get("OUTLIE_DATA") or not (root / "fashion_mnist").is_dir():
        pytest.skip("needs OUTLIE_DATA with image sets")


# pixels


def test_grey_is_pillows_to_the_last_bit():
    x = random_images(1500)
    pillow = np.stack([np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L")) for image in x])
    assert np.array_equal(to_grey(x)[:, 0], pillow)


@pytest.mark.parametrize("side", [5, 9, 14])
def test_resizing_is_pillows_but_for_its_rounding(side):
    x = random_images(40)
    images = [Image.fromarray(image.transpose(1, 2, 0)) for image in x]
    pillow = np.stack([np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)) for image in images])
    difference = np.abs(resize(x, side, side).transpose(0, 2, 3, 1).astype(int) - pillow)
    assert difference.max() <= 1 and difference.mean() < 0.2


def test_one_shape_for_all():
    grey, colour = random_images(3, 1), random_images(3)
    assert np.array_equal(to_shape(grey, (3, 9, 9)), np.concatenate([grey] * 3, 1))
    assert np.array_equal(to_shape(colour, (3, 9, 9)), colour)
    assert np.array_equal(to_shape(colour, (1, 9, 9)), to_grey(colour))
    for x in (grey, colour):
        for shape in ((1, 4, 4), (3, 12, 7)):
            assert to_shape(x, shape).shape == (3, *shape)
    flat = np.full((2, 3, 9, 9), 77, np.uint8)
    assert (to_shape(flat, (1, 4, 4)) == 77).all()


def test_statistics_are_numpys_in_float64():
    x = random_images(2500, 3, 4, 5)
    x[:, 2] = 8
    mean, scale = channel_statistics(x)
    np.testing.assert_allclose(mean[:, 0, 0], x.astype(float).mean((0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(scale[:2, 0, 0], x.astype(float).std((0, 2, 3))[:2], rtol=1e-12)
    assert scale[2, 0, 0] == 1.0 and mean.shape == scale.shape == (3, 1, 1)


@pytest.mark.parametrize("n", [1, 7, 50, 99])
def test_draws_are_balanced(n):
    y = RNG.permutation(np.repeat([0, 1, 2, 5], [50, 30, 15, 4]))
    rows = balanced(y, n, np.random.RandomState(3))
    assert len(rows) == len(set(rows)) == n and (np.diff(rows) > 0).all()
    for c in np.unique(y):
        assert abs((y[rows] == c).sum() - n * (y == c).mean()) < 1
    assert np.array_equal(rows, balanced(y, n, np.random.RandomState(3)))


@pytest.mark.parametrize("shape", [(1, 3, 3), (3, 4, 4), (1, 1, 1)])
def test_hashes_tell_images_apart_as_their_bytes_do(shape):
    x = RNG.randint(0, 3, (3000, *shape)).astype(np.uint8)  # few values, so that there are copies
    contents = [image.tobytes() for image in x]
    hashes = image_hashes(x)
    assert len(set(hashes.tolist())) == len(set(contents))
    known = set(contents[:1500])
    assert np.isin(hashes[1500:], hashes[:1500]).tolist() == [content in known for content in contents[1500:]]
    top = np.zeros((2, 1, 4, 4), np.uint8)  # a sum of products would not see two changes of the highest bytes
    top[0, 0, 1, 3] = top[1, 0, 3, 3] = 128
    assert image_hashes(top)[0] != image_hashes(top)[1]


def test_findings():
    train, calibration, test, far = (random_images(n) for n in (30, 5, 10, 4))
    y = np.repeat([0, 1], 15)

    def found(**tests: np.ndarray) -> list[str]:
        return lint_images(train, y, calibration, tests, ("a", "b"))

    assert found(test=test, far=far) == []
    copied = test.copy()
    copied[:3] = train[:3]
    assert found(test=copied) == ["3 of 10 test images (30.0 %) are exact copies of training images"]
    copied = far.copy()
    copied[1], copied[2] = test[4], calibration[0]
    assert found(test=test, far=copied) == [
        "1 of 4 far images (25.0 %) are exact copies of calibration images",
        "1 of 4 far images (25.0 %) are exact copies of test images",
    ]
    blank = test.copy()
    blank[7] = 3
    assert found(test=blank) == ["1 of 10 test images have one value in all pixels"]
    unequal = np.repeat([0, 1], [24, 6])
    assert imbalance(unequal, ("a", "b")) == ["classes are unequal: 24 training images of a, 6 training images of b"]


# splits


def test_digits_are_there_without_any_file(empty_cache):
    split = load("digits_ood")
    table = sklearn.datasets.load_digits()
    x = torch.from_numpy(np.rint(table.images * 255 / 16).astype(np.uint8))[:, None]
    y = torch.from_numpy(table.target)
    assert split.protocol == "ood" and split.protocols == {"held_out": "ood_near"}
    assert split.classes == tuple("01234567") and list(split.tests) == ["test", "held_out"]
    for rows, offset, label in (
        (split.train, 0, 0),
        (split.calibration, 0, 0),
        (split.tests["test"], 1000, 0),
        (split.tests["held_out"], 1000, 1),
    ):
        assert torch.equal(rows.x, x[offset + rows.index]) and rows.x.dtype == torch.uint8
        assert (rows.label == label).all()
        if rows.y is not None:
            assert torch.equal(rows.y, y[offset + rows.index])
        assert torch.isin(y[offset + rows.index], torch.tensor([8, 9])).all() == (label == 1)
    assert split.tests["held_out"].y is None
    used = torch.cat([split.train.index, split.calibration.index])
    assert torch.equal(used.sort().values, torch.where(y[:1000] < 8)[0])
    assert len(split.tests["test"]) + len(split.tests["held_out"]) == 797
    assert len(split.calibration) == round(0.2 * len(used))
    pixels = split.train.x.double()
    torch.testing.assert_close(split.mean, pixels.mean((0, 2, 3), keepdim=True)[0])
    torch.testing.assert_close(split.scale, pixels.std((0, 2, 3), correction=0, keepdim=True)[0])


def test_the_seed_moves_training_and_calibration_only():
    one, same, other = load("digits_ood"), load("digits_ood"), load("digits_ood", seed=1)
    assert torch.equal(one.train.index, same.train.index) and one.data_sha256 == same.data_sha256
    assert not torch.equal(one.train.index, other.train.index)
    for name, rows in one.tests.items():
        assert torch.equal(rows.x, other.tests[name].x)


def test_training_does_not_depend_on_near_and_far(needs_data):
    assert OODImages.scoring == ("near", "far")
    options = {"train_rows": 60, "near": [], "far": ["mnist"], "held_out": []}
    one = OODImages("digits", **options).load(0)
    two = OODImages("digits", **options | {"near": ["cifar10_part"], "far": ["dtd_part", "fashion_mnist"]}).load(0)
    assert torch.equal(one.train.x, two.train.x) and torch.equal(one.calibration.x, two.calibration.x)
    assert torch.equal(one.mean, two.mean) and torch.equal(one.scale, two.scale)
    assert two.protocols == {"cifar10_part": "ood_near", "dtd_part": "ood_far", "fashion_mnist": "ood_far"}
    assert "2000 of 2000 cifar10_part images are in colour, made grey (luma)" in two.findings
    assert {rows.x.shape[1:] for rows in two.tests.values()} == {(1, 8, 8)}


def test_fewer_training_rows_and_another_shape():
    full, few = load("digits_ood"), load("digits_ood", train_rows=80)
    assert len(few.train) == 80 and few.train.y.bincount().tolist() == [10] * 8
    assert torch.equal(few.calibration.index, full.calibration.index)
    assert set(few.train.index.tolist()) < set(full.train.index.tolist())
    large = load("digits_ood", size=16, channels=3)
    assert large.train.x.shape[1:] == (3, 16, 16) and large.mean.shape == (3, 1, 1)
    assert torch.equal(large.train.x[:, 0], large.train.x[:, 2])


def test_fashion_against_mnist_is_quick_and_has_the_known_statistics(needs_data):
    start = time.process_time()
    split = load("fashion_ood")
    assert time.process_time() - start < 4  # 0.8 s on a free core
    assert len(split.train) == 54_000 and split.train.y.bincount().tolist() == [5400] * 10
    assert {name: len(rows) for name, rows in split.tests.items()} == {"test": 10_000, "mnist": 10_000}
    assert split.mean.item() / 255 == pytest.approx(0.2860, abs=5e-4)  # widely used, of all 60,000
    assert split.scale.item() / 255 == pytest.approx(0.3530, abs=5e-4)
    assert split.classes[0] == "T-shirt/top" and split.findings == []
    everything = read_source("mnist", "train").x / np.float32(255)
    assert everything.mean() == pytest.approx(0.1307, abs=1e-4) and everything.std() == pytest.approx(0.3081, abs=1e-4)


def test_cifar_part_against_textures_and_digits(needs_data):
    split = load("cifar10_part_ood")
    assert split.train.x.shape == (9000, 3, 32, 32)
    assert split.protocols == {"dtd_part": "ood_far", "mnist": "ood_far"}
    assert {name: tuple(rows.x.shape) for name, rows in split.tests.items()} == {
        "test": (2000, 3, 32, 32), "dtd_part": (1200, 3, 32, 32), "mnist": (10_000, 3, 32, 32),
    }  # fmt: skip
    assert "10000 of 10000 mnist images are grey, made colour by repeating" in split.findings
    with np.load(Path(os.environ["OUTLIE_DATA"]) / "cifar10/cifar10_test_2000.npz") as file:
        assert np.array_equal(split.tests["test"].x.permute(0, 2, 3, 1), file["images"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id": "digit", "far": ["mnist"]}, r"unknown dataset.id 'digit' \(did you mean 'digits'\?\)"),
        ({"id": "digits", "far": ["mnst"]}, r"unknown dataset.far 'mnst' \(did you mean 'mnist'\?\)"),
        ({"id": "dtd", "far": ["mnist"]}, r"dataset.id=dtd has no training part"),
        ({"id": "digits", "far": ["digits"]}, r"digits is named twice"),
        ({"id": "digits", "far": ["mnist"], "near": ["mnist"]}, r"mnist is named twice"),
        ({"id": "digits"}, r"no OOD set: name some with dataset.far"),
        ({"id": "digits", "held_out": [10]}, r"held_out=10 is no class of digits, allowed: 0 to 9"),
        ({"id": "digits", "held_out": list(range(9))}, r"leaves 1 of 10 classes"),
        ({"id": "digits", "held_out": [1], "channels": 2}, r"channels=2, allowed: 1 \(grey\), 3"),
        ({"id": "digits", "held_out": [1], "train_rows": 5}, r"5 training rows leave no image of 4 classes"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        OODImages(**options).load(0)


def test_a_class_without_images(monkeypatch):
    def source(name: str, part: str, size: int | None = None) -> Images:
        return Images(random_images(20), np.repeat([0, 2], 10), ("a", "b", "c"))

    monkeypatch.setattr(module, "read_source", source)
    with pytest.raises(UserError, match=r"digits has no training images of class b"):
        OODImages("digits", far=["mnist"]).load(0)


def test_a_missing_file_that_is_not_on_the_web(empty_cache, monkeypatch):
    monkeypatch.setenv("OUTLIE_IMAGES_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("outlie.data.fetch.time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match=r"cannot download http://127.0.0.1:9/mnist/.*OUTLIE_DATA"):
        OODImages("mnist", far=["fashion_mnist"]).load(0)
