"""A student-teacher detector through the command line: one pass of maps, pixels, kinds, groups, pictures, eval."""

import csv
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from outlie import stages
from outlie.backbones.resnet import ResNet
from outlie.detectors.stfpm import STFPM
from outlie.metrics import bootstrap

from .conftest import only, result_of, scores_of

SIDE = 24


def photo(path: Path, seed: int, defect: bool = False) -> None:
    rng = np.random.RandomState(seed)
    pixels = np.kron(rng.randint(90, 130, (6, 6)), np.ones((4, 4))).astype(np.uint8)
    if defect:
        pixels[8:16, 4:12] = 255 * (np.indices((8, 8)).sum(0) % 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def tiles(tmp_path) -> Path:
    """24 normal photos to train on, 12 normal and 2 x 6 defective ones, three of each tile, and a trained ResNet."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[8:16, 4:12] = 255
    groups = {}
    for part, kind, count in (("train", "good", 30), ("test", "good", 12), ("test", "hole", 6), ("test", "burr", 6)):
        for i in range(count):
            name = f"{part}/{kind}/{i:02d}.png"
            photo(tmp_path / "tiles" / name, len(groups), kind != "good")
            groups[name] = f"{part}{kind}{i // 3}"
            if kind != "good":
                truth = tmp_path / f"tiles/ground_truth/{kind}/{i:02d}_mask.png"
                truth.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(truth)
    with open(tmp_path / "tiles/MANIFEST.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("file", "group_id"), *groups.items()])
    torch.manual_seed(0)
    network = ResNet(depth=10, width=8)
    network.mean, network.scale = torch.full((1, 1, 1), 110.0), torch.full((1, 1, 1), 30.0)
    network.build((1, SIDE, SIDE), 4)
    torch.save(network.state_dict(), tmp_path / "teacher.pt")
    return tmp_path


WORDS = (
    "dataset=mvtec", "dataset.path=tiles", f"dataset.size={SIDE}", "dataset.channels=1", "dataset.calibration=0.3",
    "backbone=resnet10", "backbone.width=8", "backbone.weights=teacher.pt", "detector=stfpm", "detector.epochs=12",
    "detector.batch_size=4", "detector.lr=0.2",
)  # fmt: skip


def test_a_run_and_what_is_asked_of_it(tiles, train, run, monkeypatch):
    mapped = []
    localise = STFPM.score_map

    def counted(self, views):
        mapped.append(len(views.x))
        return localise(self, views)

    monkeypatch.setattr(STFPM, "score_map", counted)
    monkeypatch.setattr(stages, "rows_at_once", lambda shape: 7)
    done = train(*WORDS, "metrics.bootstrap=50")
    folder = only(tiles / "outputs/train")
    result, scores = result_of(folder), scores_of(folder)
    # maps are computed once: calibration rows, test rows, and 8 rows together and alone for the lint
    assert sum(mapped) <= 9 + 24 + 2 * 8 + 1
    test = scores.filter(pl.col("split") == "test")
    assert test["kind"].to_list() == ["burr"] * 6 + ["good"] * 12 + ["hole"] * 6
    assert test["group"].n_unique() == 8 and scores.filter(pl.col("split") == "calibration")["kind"].null_count() == 9
    assert result["metrics"]["test"]["auroc"] == roc_auc_score(test["label"], test["score"]) > 0.9
    assert result["pixels"]["test"]["pixel_auroc"] > 0.9 and result["pixels"]["test"]["pro_030"] > 0.7
    assert result["pixels"]["test"]["defects"] == 12
    assert set(result["by_kind"]["test"]) == {"burr", "hole"}
    label, score, group = (test[name].to_numpy() for name in ("label", "score", "group"))
    ends = bootstrap.intervals(score, label, ["auroc"], 50, np.random.default_rng(0), group=group)["auroc"]
    assert result["intervals"]["test"]["auroc"] == list(ends)
    assert (folder / "heatmaps.png").stat().st_size > 10_000
    assert "Pixels: AUROC" in done.out and "  burr (6): AUROC" in done.out and "In use, at the threshold" in done.out
    assert not [name for name in torch.load(folder / "model.ckpt", weights_only=True)["detector"]
                if not name.startswith("student.")]  # fmt: skip

    # other metrics of a finished run: from stored scores, still by kind and by group
    again = run("train", *WORDS, "trainer.threads=1", "metrics=fast", "metrics.bootstrap=60")
    assert again.code == 0 and "done already" in again.err
    after = result_of(folder)
    ends = bootstrap.intervals(score, label, ["auroc"], 60, np.random.default_rng(0), group=group)["auroc"]
    assert after["intervals"]["test"]["auroc"] == list(ends) and after["pixels"] == result["pixels"]
    assert set(after["by_kind"]["test"]) == {"burr", "hole"}

    evaluated = run("eval", f"run={folder}", "trainer.threads=1", "metrics=fast", "metrics.bootstrap=50")
    assert evaluated.code == 0, evaluated.err
    beside = only(tiles / "outputs/eval")
    assert result_of(beside)["pixels"] == result["pixels"] and result_of(beside)["by_kind"] == result["by_kind"]
    assert (beside / "heatmaps.png").exists()


def test_a_defect_without_a_mask_leaves_pixels_out(tiles, train):
    (tiles / "tiles/ground_truth/hole/00_mask.png").unlink()
    done = train(*WORDS, "detector.epochs=1")
    result = result_of(only(tiles / "outputs/train"))
    assert "pixels" not in result and set(result["by_kind"]["test"]) == {"burr", "hole"}
    assert "1 of 12 defects have no mask" in done.out


def test_backbones_that_will_not_do(tiles, refused):
    words = [word for word in WORDS if not word.startswith("backbone")]
    assert "needs network, which backbone 'identity' does not provide" in refused("train", *words, "backbone=identity")
    said = refused("train", *words, "backbone=resnet10")
    assert "no class labels" in said and "weights" in said
