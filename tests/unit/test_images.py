"""OOD benchmarks on images: the parts of a split against its definition, pixels against Pillow and NumPy."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import torch
import yaml
from PIL import Image, ImageOps

from outlie.commands.data import main as data
from outlie.commands.train import plain as as_dict
from outlie.compose import compose
from outlie.data import images as module
from outlie.data.image_arrays import balanced, channel_statistics, resize, to_grey, to_shape
from outlie.data.image_lints import image_hashes, imbalance, lint_images, lint_sides
from outlie.data.image_sources import Images, read_source
from outlie.data.images import OODImages
from outlie.data.split import Split
from outlie.errors import UserError
from outlie.metrics.evaluation import Metrics
from outlie.results import evaluated, store

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


def test_a_symmetric_image_is_no_copy_of_a_test_image():
    train, calibration, test = (random_images(n) for n in (30, 5, 10))
    y = np.repeat([0, 1], 15)

    def found() -> list[str]:
        return lint_images(train, y, calibration, {"test": test, "vflip": test[:, :, ::-1]}, ("a", "b"))

    assert found() == []
    test[2, :, 5:], test[7, :, 5:] = test[2, :, 3::-1], test[7, :, 3::-1]
    assert found() == ["2 of 10 vflip images are symmetric: equal to the images that were flipped"]
    test[4] = test[5][:, ::-1]  # a flip that is another test image, both ways
    assert found() == [
        "2 of 8 other vflip images (25.0 %) are exact copies of test images",
        "2 of 10 vflip images are symmetric: equal to the images that were flipped",
    ]
    test[2], test[7] = random_images(2)
    train[0] = test[0, :, ::-1]
    assert found() == [
        "1 of 10 vflip images (10.0 %) are exact copies of training images",
        "2 of 10 vflip images (20.0 %) are exact copies of test images",
    ]


TOLD = "a score that sees blur tells {} apart by that alone; dataset.size={} brings all to one resolution"


@pytest.mark.parametrize(
    ("sides", "side", "findings"),
    [
        ({"id": 32, "a": 32, "b": 64, "c": 300}, 32, []),
        ({"id": 32, "a": 28, "b": 64}, 28, []),  # all are shrunk to it, or as they were
        ({"id": 28, "a": 28}, 64, []),  # all are blurred alike
        ({"id": 28, "a": 32, "b": 8}, 8, []),
        ({"id": 32, "a": 28, "b": 64}, 32, ["a images were enlarged from 28 to 32 pixels, id images were not", "a"]),
        ({"id": 28, "a": 32}, 32, ["id images were enlarged from 28 to 32 pixels, a images were not", "a"]),
        ({"id": 64, "a": 28, "b": 64}, 40, ["a images were enlarged from 28 to 40 pixels, id images were not", "a"]),
        ({"id": 32, "a": 28}, 64, ["a images were enlarged from 28 to 64 pixels, id images from 32", "a"]),
        ({"id": 28, "a": 32}, 64, ["id images were enlarged from 28 to 64 pixels, a images from 32", "a"]),
    ],
)
def test_one_set_blurred_and_another_sharp_is_a_finding(sides, side, findings):
    expected = [f"{findings[0]}: {TOLD.format(findings[1], min(sides.values()))}"] if findings else []
    assert lint_sides(sides, "id", side) == expected


def test_the_finding_on_blur_is_of_the_sides_of_the_files(monkeypatch):
    side = {"cifar10_part": 32, "mnist": 28, "kmnist": 28, "svhn": 32}

    def source(name: str, part: str, size: int | None = None) -> Images:
        return Images(random_images(20, 3, side[name], side[name]), np.repeat([0, 1], 10), ("a", "b"))

    monkeypatch.setattr(module, "read_source", source)
    blurred = f"mnist images were enlarged from 28 to 32 pixels, cifar10_part images were not: {TOLD}".format(
        "mnist", 28
    )
    assert OODImages("cifar10_part", far=["mnist", "svhn", "vflip"]).load(0).findings == [blurred]
    assert OODImages("cifar10_part", far=["mnist", "svhn"], size=28).load(0).findings == []
    assert OODImages("cifar10_part", far=["svhn"], size=40).load(0).findings == []
    assert OODImages("mnist", near=["kmnist"], far=["svhn"]).load(0).findings == []
    assert len(OODImages("mnist", near=["kmnist"], far=["svhn"], size=32).load(0).findings) == 1


# splits


def test_digits_are_there_without_any_file(empty_cache):
    split = load("digits_ood")
    table: Any = sklearn.datasets.load_digits()
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
    assert OODImages.scoring == ("near", "far", "scored_rows")
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


def test_fewer_scored_rows_leave_training_alone():
    full = load("digits_ood", far=["vflip"])
    few = load("digits_ood", far=["vflip"], scored_rows=50)
    assert torch.equal(few.train.x, full.train.x) and torch.equal(few.train.index, full.train.index)
    assert torch.equal(few.mean, full.mean) and torch.equal(few.scale, full.scale)
    digits = torch.from_numpy(sklearn.datasets.load_digits(return_X_y=True)[1])
    offset = {"calibration": 0}
    parts = {"calibration": few.calibration, **few.tests}
    for name, rows in parts.items():
        whole = full.calibration if name == "calibration" else full.tests[name]
        place = torch.searchsorted(whole.index, rows.index)  # in the rows of the full set
        assert torch.equal(whole.index[place], rows.index) and torch.equal(whole.x[place], rows.x)
        assert len(rows) == len(rows.label) == 50 and torch.equal(whole.label[place], rows.label)
        classes, of_all = (digits[offset.get(name, 1000) + one.index].bincount(minlength=10) for one in (rows, whole))
        assert (classes - 50 * of_all / len(whole)).abs().max() < 1
        if rows.y is not None:
            assert torch.equal(whole.y[place], rows.y)


def test_scored_rows_are_drawn_by_the_seed_and_for_each_set_alone():
    one = load("digits_ood", scored_rows=30)
    other, fewer_sets = load("digits_ood", seed=1, scored_rows=30), load("digits_ood", far=["hflip"], scored_rows=30)
    for name, rows in one.tests.items():
        assert not torch.equal(rows.index, other.tests[name].index)
        assert torch.equal(rows.index, fewer_sets.tests[name].index)
    full, all_of_them = load("digits_ood"), load("digits_ood", scored_rows=10**6)
    assert full.data_sha256 == all_of_them.data_sha256 != one.data_sha256
    single = load("digits_ood", scored_rows=1)
    assert {len(rows) for rows in (single.calibration, *single.tests.values())} == {1}


def test_scored_rows_of_other_sources_are_balanced(needs_data):
    split = OODImages("digits", far=["dtd_part", "mnist"], scored_rows=40).load(0)
    for name, classes in {"dtd_part": 10, "mnist": 10}.items():
        source = read_source(name, "test")
        index = split.tests[name].index.numpy()
        drawn, all_of = (np.bincount(y, minlength=classes) for y in (source.y[index], source.y))
        assert np.abs(drawn - 40 * all_of / len(source.y)).max() < 1
        assert np.array_equal(split.tests[name].x, to_shape(source.x[index], (1, 8, 8)))
    assert split.findings == ["40 of 40 dtd_part images are in colour, made grey (luma)"]


def test_what_is_scored_moves_a_run_and_not_what_was_trained():
    words = ["dataset=digits_ood", "backbone=resnet18", "detector=knn"]
    plain, few, flipped = (
        as_dict(compose("train", [*words, *more])) for more in ([], ["dataset.scored_rows=30"], ["dataset.far=[vflip]"])
    )
    assert len({store.run_folder(config) for config in (plain, few, flipped)}) == 3
    assert len({store.backbone_folder(config) for config in (plain, few, flipped)}) == 1
    assert len({store.stage_folder(config, ("k",)) for config in (plain, few, flipped)}) == 1


def test_too_few_scored_rows_for_the_threshold_are_said():
    def found(rows: int) -> list[str]:
        split = load("digits_ood", scored_rows=rows)
        parts = {"calibration": split.calibration, **split.tests}
        scores = {name: (part.index.numpy(), part.label.numpy(), RNG.rand(len(part))) for name, part in parts.items()}
        return evaluated.evaluate_scores(scores, Metrics(false_alarms=0.05, bootstrap=0), 0, [])["findings"]

    (said,) = [text for text in found(18) if "calibration" in text]
    assert said.startswith("18 calibration rows cannot guarantee 5 % false alarms")
    assert not [text for text in found(19) if "calibration" in text]


def test_flips_are_pillows_of_the_test_images_that_stay_in_distribution():
    split = load("digits_ood", near=["hflip"], far=["vflip"])
    assert split.protocols == {"held_out": "ood_near", "hflip": "ood_near", "vflip": "ood_far"}
    assert list(split.tests) == ["test", "held_out", "hflip", "vflip"]
    images = [Image.fromarray(image[0]) for image in split.tests["test"].x.numpy()]
    for name, flip in {"vflip": ImageOps.flip, "hflip": ImageOps.mirror}.items():
        rows = split.tests[name]
        assert np.array_equal(rows.x[:, 0], np.stack([np.asarray(flip(image)) for image in images]))
        assert rows.x.is_contiguous() and (rows.label == 1).all() and rows.y is None
        assert torch.equal(rows.index, split.tests["test"].index)
    few = load("digits_ood", far=["vflip"], scored_rows=20)
    assert torch.equal(few.tests["vflip"].x, few.tests["test"].x.flip(2))
    assert split.data_sha256 != load("digits_ood", near=["vflip"], far=["hflip"]).data_sha256


def test_flips_have_no_files(empty_cache):
    for words in (["fetch", "image/vflip"], ["verify", "image/vflip/test"]):
        with pytest.raises(UserError, match=r"vflip has no files: it is the test images of dataset.id, upside down"):
            data(words)


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
    assert any(finding.startswith("mnist images were enlarged from 28 to 32 pixels") for finding in split.findings)
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
        ({"id": "digits", "far": ["vflp"]}, r"unknown dataset.far 'vflp' \(did you mean 'vflip'\?\)"),
        ({"id": "vflip", "far": ["mnist"]}, r"vflip has no files: .*allowed in dataset.near and dataset.far only"),
        ({"id": "digits", "far": ["vflip"], "near": ["vflip"]}, r"vflip is named twice"),
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
