"""MVTec AD's layout with masks and groups: what becomes of masks, whole groups, intervals by group, wrong folders."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from outlie import cell
from outlie.backbones.resnet import ResNet
from outlie.data.one_class_images import MagneticTile, OneClassImages, whole_groups
from outlie.data.split import Rows, Split
from outlie.errors import UserError
from outlie.metrics import bootstrap, ranking
from outlie.metrics.evaluation import Metrics
from outlie.results import evaluated, kinds, store

TILES = Path(os.environ.get("OUTLIE_DATA", "/nowhere")) / "magnetic_tile"


def save(path: Path, seed: int = 0, size: tuple[int, int] = (24, 16), pixels: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3), np.uint8) if pixels is None else pixels
    Image.fromarray(pixels).save(path)


def marked(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = (24, 16)) -> np.ndarray:
    mask = np.zeros(size[::-1], np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


@pytest.fixture
def folder(tmp_path) -> Path:
    for i in range(12):
        save(tmp_path / f"train/good/{i:02d}.png", i)
    for k, kind in enumerate(("crack", "good", "zip")):
        for i in range(3):
            save(tmp_path / f"test/{kind}/{i}.png", 100 + 10 * k + i)
            if kind != "good":
                save(tmp_path / f"ground_truth/{kind}/{i}_mask.png", pixels=marked(4, 6, 8, 12))
    return tmp_path


def groups(folder: Path, group_of: dict[str, str]) -> None:
    with open(folder / "MANIFEST.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "group_id"])
        writer.writerows(group_of.items())


def images_of(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for part in ("train", "test") for path in (folder / part).rglob("*.png")
    )


def test_masks_come_at_the_images_size(folder):
    rows = OneClassImages(folder, size=8).load(0).tests["test"]
    assert rows.mask.shape == (9, 8, 8) and rows.mask.dtype == torch.bool
    expected = np.zeros((8, 8), bool)
    expected[2:4, 2:4] = True  # of 16 x 24 pixels, rows 4 to 8 and columns 6 to 12
    for row, y in enumerate(rows.y):
        assert np.array_equal(rows.mask[row], expected if y else np.zeros((8, 8)))
    assert (rows.mask.flatten(1).any(1) == (rows.label == 1)).all()


def test_a_defect_that_shrinks_away_is_kept_and_faint_edges_are_none(folder):
    save(folder / "ground_truth/crack/1_mask.png", pixels=marked(0, 0, 1, 1))
    save(folder / "ground_truth/zip/2_mask.png", pixels=(marked(4, 6, 8, 12) // 255 * 250 + 5).astype(np.uint8))
    rows = OneClassImages(folder, size=4).load(0).tests["test"]
    assert int(rows.mask[1].sum()) == 1 and bool(rows.mask[1, 0, 0])
    assert torch.equal(rows.mask[8], rows.mask[7])


def test_missing_masks_are_a_finding_and_wrong_ones_are_refused(folder):
    (folder / "ground_truth/crack/1_mask.png").unlink()
    split = OneClassImages(folder, size=8).load(0)
    assert split.tests["test"].mask is None
    assert split.findings == ["1 of 6 defects have no mask (1_mask.png): no pixel metrics"]
    save(folder / "ground_truth/crack/1_mask.png", pixels=marked(0, 0, 5, 5, (10, 10)))
    with pytest.raises(UserError, match=r"1_mask.png is 10 x 10, its image 24 x 16"):
        OneClassImages(folder, size=8).load(0)
    (folder / "ground_truth/crack/1_mask.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"1_mask.png is damaged or no image"):
        OneClassImages(folder, size=8).load(0)
    shutil.rmtree(folder / "ground_truth")
    split = OneClassImages(folder, size=8).load(0)
    assert split.tests["test"].mask is None and split.findings == []


def test_groups_are_calibrated_on_as_a_whole(folder):
    names = images_of(folder)
    groups(folder, {name: f"{name.split('/')[0]}{i // 3}" for i, name in enumerate(names)})
    for seed in range(4):
        split = OneClassImages(folder, size=8, calibration=0.25).load(seed)
        assert len(split.calibration) == 3 and len(split.train) == 9
        assert not set(split.calibration.group.tolist()) & set(split.train.group.tolist())
        assert len(split.tests["test"].group) == 9
        assert not [finding for finding in split.findings if "groups" in finding]
    groups(folder, {name: name[-5] for name in names})  # by the last digit: tests meet training
    found = OneClassImages(folder, size=8, calibration=0.25).load(0).findings
    assert "3 groups of images are in training and in the test: near copies" in found


def test_whole_groups_are_as_many_as_asked_for():
    group = np.repeat(np.arange(20), 5)
    for fraction in (0.05, 0.1, 0.11, 0.5):
        rows = whole_groups(group, fraction, np.random.RandomState(0))
        assert len(rows) == -(-round(fraction * 100) // 5) * 5
        assert (np.bincount(group[rows], minlength=20) % 5 == 0).all()


def test_a_manifest_without_groups_or_without_an_image(folder):
    (folder / "MANIFEST.csv").write_text("file,sha256\nx,y\n")
    assert OneClassImages(folder, size=8).load(0).train.group is None
    groups(folder, dict.fromkeys(images_of(folder)[1:], "1"))
    with pytest.raises(UserError, match=r"no line for test/crack/0.png: add it"):
        OneClassImages(folder, size=8).load(0)


def test_without_tiles_it_is_said_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTLIE_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"no magnetic tiles .* github.com/abin24"):
        MagneticTile()


@pytest.mark.skipif(not TILES.is_dir(), reason="needs OUTLIE_DATA with magnetic_tile/")
def test_magnetic_tiles_keep_their_groups_apart():
    split = MagneticTile(size=32, calibration=0.2).load(0)
    parts = [set(rows.group.tolist()) for rows in (split.train, split.calibration, split.tests["test"])]
    assert [len(part) for part in parts][2] == 81 and len(parts[0] | parts[1]) == 103
    assert not parts[0] & parts[1] and not (parts[0] | parts[1]) & parts[2]
    assert 0.2 * 712 <= len(split.calibration) < 0.2 * 712 + 24  # the largest group has 24 images
    with open(TILES / "MANIFEST.csv", newline="") as file:
        share = {line["file"]: float(line["mask_fraction"]) for line in csv.DictReader(file) if line["mask_fraction"]}
    rows = MagneticTile(size=128).load(0).tests["test"]
    told = np.array([share.get(f"test/{name}", 0.0) for name in rows.x.names])
    found = rows.mask.float().mean((1, 2)).numpy()
    np.testing.assert_allclose(found, told, atol=0.01)
    assert (rows.mask.flatten(1).any(1) == (rows.label == 1)).all()


# --- intervals by group, metrics by kind


def grouped(seed: int = 0):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(12), 4)
    label = np.isin(group, (0, 1, 2, 3)) & (np.arange(48) % 4 > 0)
    score = rng.normal(size=48) + 1.5 * label + 0.7 * rng.normal(size=12)[group]
    return score, label.astype(np.int64), group


@pytest.mark.parametrize("names", [["auroc"], list(ranking.METRICS)])
def test_groups_are_resampled_as_when_written_out(names):
    score, label, group = grouped()
    together = bootstrap.resample(score, label, names, 40, np.random.default_rng(1), group)
    rng = np.random.default_rng(1)
    anomalous, normal = np.array([0, 1, 2, 3]), np.arange(4, 12)
    draws = [kind[rng.integers(0, len(kind), size=(40, len(kind)))] for kind in (anomalous, normal)]
    for r in range(40):
        drawn = np.concatenate([draws[0][r], draws[1][r]])
        rows = np.sort(np.concatenate([np.flatnonzero(group == one) for one in drawn]))
        for name in names:
            expected = ranking.measure(name, score[rows], label[rows])
            assert together[name][r] == pytest.approx(expected, abs=1e-12), name


def test_near_copies_widen_the_interval():
    score, label, _ = grouped()
    copied = [np.repeat(part, 6) for part in (score, label)]
    alone = bootstrap.intervals(*copied, ["auroc"], 500, np.random.default_rng(0))["auroc"]
    by_group = bootstrap.intervals(*copied, ["auroc"], 500, np.random.default_rng(0), group=np.repeat(np.arange(48), 6))
    plain = bootstrap.intervals(score, label, ["auroc"], 500, np.random.default_rng(0))["auroc"]
    width = [high - low for low, high in (alone, by_group["auroc"], plain)]
    assert width[0] < 0.6 * width[1]
    assert width[1] == pytest.approx(width[2], rel=0.15)  # copies add nothing


def test_resamples_without_a_class_are_left_out():
    score, label, group = np.arange(4.0), np.array([1, 1, 0, 1]), np.array([0, 0, 0, 1])  # one group has the normal row
    values = bootstrap.resample(score, label, ["auroc"], 100, np.random.default_rng(0), group)["auroc"]
    assert 0 < len(values) < 100 and np.isfinite(values).all()


def test_metrics_by_kind_and_by_group_are_stored_and_found_again(tmp_path):
    score, label, group = grouped()
    kind = np.where(label == 1, np.where(group < 2, "crack", "dent"), "good")
    about = {"test": {"kind": kind.tolist(), "group": group}}
    scores = {
        "calibration": (np.arange(99), np.zeros(99), np.linspace(-2, 1, 99)),
        "test": (np.arange(48), label, score),
    }
    metrics = Metrics(names=["auroc"], false_alarms=0.1, bootstrap=200)
    result = evaluated.evaluate_scores(scores, metrics, 0, [], None, about)
    value = result["threshold"]["value"]
    for name, found in result["by_kind"]["test"].items():
        rows = (label == 0) | (kind == name)
        assert found["auroc"] == pytest.approx(roc_auc_score(label[rows], score[rows]))
        assert found["recall"] == pytest.approx((score[kind == name] > value).mean())
        assert found["anomalies"] == (kind == name).sum()
        low, high = found["interval"]
        assert low <= found["auroc"] <= high
    expected = bootstrap.intervals(score, label, ["auroc"], 200, np.random.default_rng(0), group=group)["auroc"]
    assert result["intervals"]["test"]["auroc"] == list(expected)
    said = [line for line in kinds.in_words(result, "test") if line]
    assert len(said) == 3 and said[1].startswith("  crack (6): AUROC ") and said[1].endswith("found")
    store.write_scores(tmp_path / "scores.parquet", scores, about)
    read = kinds.read(tmp_path)
    assert evaluated.evaluate_scores(store.read_scores(tmp_path), metrics, 0, [], None, read) == result
    store.write_scores(tmp_path / "scores.parquet", scores)
    assert kinds.read(tmp_path) == {}


def test_what_is_known_of_test_rows(folder):
    split = OneClassImages(folder, size=8).load(0)
    assert cell.about(split) == {"test": {"kind": ["crack"] * 3 + ["good"] * 3 + ["zip"] * 3}}
    split.train.y = torch.zeros(len(split.train), dtype=torch.int64)  # then y of a test is the class to predict
    assert cell.about(split) == {}


# --- a classifier on data without labels


def unlabelled(channels: int = 3) -> Split:
    rows = Rows(torch.zeros(4, channels, 12, 12, dtype=torch.uint8), torch.arange(4))
    return Split(
        "one_class", rows, {}, None, torch.zeros(channels, 1, 1), torch.ones(channels, 1, 1), "", classes=("good",)
    )


def test_a_trained_classifier_is_used_without_labels(tmp_path):
    trained = ResNet(depth=10, width=4)
    trained.mean, trained.scale = torch.full((3, 1, 1), 100.0), torch.full((3, 1, 1), 50.0)
    trained.build((3, 12, 12), 7)
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    network = ResNet(depth=10, width=4, weights=tmp_path / "weights.pt")
    network.setup(unlabelled())
    assert network.classes == 7 and not network.trained
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in trained.state_dict().items())
    for options in ({}, {"weights": tmp_path / "weights.pt", "finetune": True}):
        with pytest.raises(UserError, match="no class labels: a classifier cannot be trained"):
            ResNet(depth=10, width=4, **options).setup(unlabelled())
    state = {name: value for name, value in trained.state_dict().items() if not name.startswith("fc.")}
    torch.save(state, tmp_path / "headless.pt")
    with pytest.raises(UserError, match=r"headless.pt has no fc.weight: give a classifier's weights with their head"):
        ResNet(depth=10, width=4, weights=tmp_path / "headless.pt").setup(unlabelled())
    with pytest.raises(UserError, match="weights for 3 channels, the data have 1"):
        ResNet(depth=10, width=4, weights=tmp_path / "weights.pt").setup(unlabelled(1))
