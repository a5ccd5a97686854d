"""Every yaml of configs/dataset that gives images: composed, built and, where its data are here, loaded.

Images of a user's own are made for the test: one colour a class, in the folders and lists that the yaml names.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from outlie import catalog, signatures
from outlie.build import build
from outlie.compose import compose
from outlie.data.image_arrays import channel_statistics
from outlie.data.image_sets import DERIVED, image_files
from outlie.data.images import HELD_OUT
from outlie.data.locate import find
from outlie.data.split import Rows, Split

WHERE = catalog.roots()
TARGETS = {name: catalog.target(path) for name, path in catalog.choices("dataset", WHERE).items()}
OF_IMAGES = ("outlie.data.image", "outlie.data.one_class_images")
NAMES = sorted(name for name, target in TARGETS.items() if target.startswith(OF_IMAGES))
BENCHMARKS = [name for name in NAMES if TARGETS[name].endswith("OODImages")]
OWN = [name for name in NAMES if name not in BENCHMARKS and name != "magnetic_tile"]  # unit/test_one_class_images.py
CLASSES = ("blue", "green", "red")


def test_nothing_is_left_out():
    assert {"cifar10_ood", "cifar100_ood", "digits_ood", "fashion_ood", "mnist_ood"} <= set(BENCHMARKS)
    assert {"image_folder", "mvtec", "openood/cifar10", "openood/imagenet"} <= set(OWN)


def section(name: str, *words: str) -> dict[str, Any]:
    config = OmegaConf.to_container(compose("train", [f"dataset={name}", *words]).dataset)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def loaded(own: dict[str, Any], seed: int = 0, **changed: Any) -> Split:
    return build(own | changed).load(seed)


def is_here(source: str) -> bool:
    files = image_files()[source]
    return all(find(file) for file in files) or (source in DERIVED and is_here(DERIVED[source]))


def paint(path: Path, colour: str, n: int, seed: int) -> list[str]:
    """n noisy images of a colour; their names."""
    rng = np.random.RandomState(seed)
    path.mkdir(parents=True)
    for i in range(n):
        noise = np.asarray(Image.new("RGB", (40, 36), colour)) // 2 + rng.randint(0, 100, (36, 40, 3))
        Image.fromarray(noise.astype(np.uint8)).save(path / f"{i}.png")
    return [f"{i}.png" for i in range(n)]


def words_of_my_own(name: str, folder: Path) -> list[str]:
    """Make what the yaml leaves to the user, and name it."""
    target = TARGETS[name].rsplit(".", 1)[-1]
    if target == "OneClassImages":
        for i, (part, n) in enumerate({"train/good": 12, "test/good": 5, "test/crack": 4}.items()):
            paint(folder / part, "green" if "good" in part else "red", n, i)
        return [f"dataset.path={folder}"]
    if target == "ImageFolder":
        for i, colour in enumerate(CLASSES):
            paint(folder / "train" / colour, colour, 12, i)
            paint(folder / "test" / colour, colour, 4, 10 + i)
        for i, far in enumerate(("near", "far")):
            paint(folder / far, "white", 3, 20 + i)
        paths = [f"dataset.{part}={folder / part}" for part in ("train", "test")]
        return [*paths, f"+dataset.ood.near={folder}/near", f"+dataset.ood.far={folder}/far", "dataset.near=[near]"]
    own = section(name, f"dataset.root={folder}")
    lists, images = folder / own["lists"], folder / own["images"]
    lists.mkdir(parents=True)
    for i, part in enumerate(("train", "test", "calibration")):
        names = [(f"{part}/{c}/{file}", label) for label, c in enumerate(CLASSES)
                 for file in paint(images / part / c, c, 4, 10 * i + label)]  # fmt: skip
        (lists / own[part]).write_text("".join(f"{file} {label}\n" for file, label in names))
    for i, (far, file) in enumerate({**own["near"], **own["far"]}.items()):
        root = folder / (own["images_of"] or {}).get(far, own["images"])
        names = paint(root / far, "white", 3, 40 + i)
        (lists / file).write_text("".join(f"{far}/{one} -1\n" for one in names))
    return [f"dataset.root={folder}"]


def pixels(rows: Rows) -> torch.Tensor:
    return rows.x[torch.arange(len(rows))]


def check(split: Split) -> None:
    """What every image split promises."""
    parts = {"train": split.train, "calibration": split.calibration, **split.tests}
    assert split.calibration is not None and "test" in split.tests
    assert len({tuple(rows.x.shape[1:]) for rows in parts.values()}) == 1
    channels = split.train.x.shape[1]
    for name, rows in parts.items():
        assert len(rows) == len(rows.x) == len(rows.index) == len(rows.label) > 0
        assert len(rows.index.unique()) == len(rows)
        some = rows.x[torch.arange(min(5, len(rows)))]
        assert some.dtype == torch.uint8 and some.ndim == 4 and some.shape[1] == channels in (1, 3)
        assert rows.label.dtype == torch.int64
        if split.protocol == "ood":
            assert rows.label.unique().tolist() == [int(name not in ("train", "calibration", "test"))]
        if rows.y is not None:
            assert rows.y.dtype == torch.int64 and rows.y.min() >= 0 and rows.y.max() < len(split.classes)
    if split.protocol == "ood":
        assert sorted(split.train.y.unique().tolist()) == list(range(len(split.classes)))
        assert split.tests["test"].y is not None
        assert set(split.protocols) == set(split.tests) - {"test"} != set()
        assert set(split.protocols.values()) <= {"ood_near", "ood_far"}
    assert split.mean.shape == split.scale.shape == (channels, 1, 1)
    assert split.mean.dtype == split.scale.dtype == torch.float64
    mean, scale = channel_statistics(pixels(split.train).numpy())
    np.testing.assert_allclose(split.mean.numpy(), mean)
    np.testing.assert_allclose(split.scale.numpy(), scale)


def check_same_training(one: Split, other: Split) -> None:
    for a, b in ((one.train, other.train), (one.calibration, other.calibration)):
        assert torch.equal(a.index, b.index) and torch.equal(a.y, b.y)
        assert torch.equal(pixels(a), pixels(b))
    assert torch.equal(one.mean, other.mean) and torch.equal(one.scale, other.scale)
    assert one.classes == other.classes
    assert torch.equal(one.tests["test"].index, other.tests["test"].index)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_keeps_its_promises(name):
    own = section(name)
    build(own)  # without its files
    sources = [own["id"], *own["near"], *own["far"]]
    if missing := [source for source in sources if not is_here(source)]:
        pytest.skip(f"needs {', '.join(missing)} under OUTLIE_DATA")
    split = loaded(own)
    check(split)
    assert not set(split.train.index.tolist()) & set(split.calibration.index.tolist())
    held_out = [HELD_OUT] if own["held_out"] else []
    assert list(split.tests) == ["test", *held_out, *own["near"], *own["far"]]
    far = "digits" if own["id"] != "digits" else "dtd_part"
    if is_here(far):
        others = {option: type(own[option])() for option in signatures.read(TARGETS[name]).scoring} | {"far": [far]}
        other = loaded(own, **others)
        assert list(other.tests) == ["test", *held_out, far]
        check_same_training(split, other)


@pytest.mark.parametrize("name", OWN)
def test_images_of_my_own_keep_the_promises(name, tmp_path):
    own = section(name, *words_of_my_own(name, tmp_path))
    split = loaded(own)
    check(split)
    assert split.train.x.shape[2:] == (own["size"], own["size"])
    if own.get("calibration") is None or isinstance(own["calibration"], float):  # not a list of its own
        assert not set(split.train.index.tolist()) & set(split.calibration.index.tolist())
    if split.protocol == "one_class":
        assert split.tests["test"].label.tolist() == [int(y != 0) for y in split.tests["test"].y.tolist()]
        assert split.train.y is None
        return
    assert split.classes == CLASSES
    scoring = signatures.read(TARGETS[name]).scoring
    alone = loaded(own, **{option: type(own[option])() for option in scoring if option != "test"})
    assert list(alone.tests) == ["test"]
    check_same_training(split, alone)
    if "test" in scoring:
        elsewhere = loaded(own, test=own["train"])
        assert len(elsewhere.tests["test"]) == 3 * 12 != len(split.tests["test"])
        check_same_training(split, replace(elsewhere, tests=split.tests))


def test_the_seed_moves_calibration_rows_and_no_test_row():
    own = section("digits_ood")
    one, same, other = (loaded(own, seed) for seed in (0, 0, 1))
    check_same_training(one, same)
    assert not torch.equal(one.calibration.index, other.calibration.index)
    for name, rows in one.tests.items():
        assert torch.equal(rows.x, other.tests[name].x) and torch.equal(rows.index, other.tests[name].index)
