"""A classifier on images, through the command line: trained once for all detectors, resumed, and taken from a file."""

import contextlib
import shutil
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from polars.testing import assert_frame_equal
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from outlie import features, stages
from outlie.backbones.resnet import ResNet
from outlie.cli import main
from outlie.commands import train as command
from outlie.results.checkpoint import load_backbone

from .conftest import QUICK, only, result_of, scores_of

WIDTH = 8
RESNET = (
    "backbone=resnet10/narrow", f"backbone.width={WIDTH}", "backbone.batch_size=32", "backbone.augment=none",
    "backbone.epochs=3",
)  # fmt: skip
DIGITS = ("dataset=digits_ood", *RESNET)  # 95 % accurate after half a second
NECO = (*DIGITS, "detector=neco", "detector.d=7")
FILES = {
    "config.yaml", "result.json", "scores.parquet", "model.ckpt", "log.txt", "metrics.csv",
    "summary.png", "principal.png", "dimensions.png",
}  # fmt: skip
ROWS = {"train": 642, "calibration": 161, "test": 640, "held_out": 157}  # digits 0 to 7, and 8 and 9


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the outputs of a finished `run train` of NECO on digits."""
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder):
        assert main(["train", *QUICK, *NECO]) == 0
    return folder / "outputs"


@pytest.fixture
def forbid(monkeypatch):
    """`forbid("training", "pass")`: from its call on a classifier may not be trained, or rows not pass through it."""

    def call(*what):
        if "training" in what:
            monkeypatch.setattr(stages, "train", lambda *_, **__: pytest.fail("trained again"))
        if "pass" in what:
            monkeypatch.setattr(features, "compute", lambda *_, **__: pytest.fail("another forward pass"))
        if "anything" in what:
            monkeypatch.setattr(command, "compute", lambda *_, **__: pytest.fail("computed again"))

    return call


def entries(tmp_path):
    """The entries of the cache of views, by name."""
    return {path.name for path in (tmp_path / "outputs" / "views").iterdir() if path.is_dir()}


def newest(folder):
    return max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)


def weights_of(stage):
    return torch.load(stage / "weights.ckpt", weights_only=True)["detector"]


def last_digits():
    """(images, labels) of the digits that test, as scikit-learn has them."""
    table: Any = load_digits()
    x = np.rint(table.images[1000:] * (255 / 16)).astype(np.uint8)[:, None]
    return torch.from_numpy(x), table.target[1000:]


def test_the_folder_is_complete_and_each_image_is_scored_once(outputs):
    assert {path.name for path in outputs.iterdir()} - {".lock"} == FILES
    assert outputs.name.startswith("digits_ood-neco-")
    result, scores = result_of(outputs), scores_of(outputs)
    assert (result["status"], result["error"]) == ("done", None)
    assert (result["dataset"], result["protocol"]) == ("digits_ood", "ood")
    assert (result["detector"], result["backbone"]) == ("neco", "resnet10/narrow")
    assert result["protocols"] == {"held_out": "ood_near"}
    assert result["rows"] == ROWS
    assert len((outputs / "metrics.csv").read_text().splitlines()) == 1 + 3  # of the classifier's epochs
    for name in ("summary.png", "principal.png", "dimensions.png"):
        with Image.open(outputs / name) as image:
            image.verify()
    assert scores.columns == ["split", "index", "label", "score"]
    assert scores["score"].is_finite().all()
    assert scores["score"].n_unique() > 900  # NECO tells rows apart
    assert dict(scores.group_by("split").len().iter_rows()) == {name: ROWS[name] for name in ROWS if name != "train"}
    assert scores.select("split", "index").is_unique().all()
    table: Any = load_digits()
    digit = table.target
    by_split = {name: part for (name,), part in scores.group_by("split")}
    known = np.arange(10) < 8
    assert known[digit[:1000][by_split["calibration"]["index"].to_numpy()]].all()
    last = digit[1000:]
    assert by_split["test"]["index"].to_list() == np.flatnonzero(known[last]).tolist()
    assert by_split["held_out"]["index"].to_list() == np.flatnonzero(~known[last]).tolist()
    assert {name: set(part["label"]) for name, part in by_split.items()} == {
        "calibration": {0}, "test": {0}, "held_out": {1}
    }  # fmt: skip


def test_the_metrics_are_sklearns_from_the_stored_scores(outputs):
    result, scores = result_of(outputs), scores_of(outputs).filter(pl.col("split") != "calibration")
    label, score = scores["label"].to_numpy(), scores["score"].to_numpy()
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    accepted, found, _ = roc_curve(1 - label, -score, drop_intermediate=False)
    top = np.argsort(-score, kind="stable")[: label.sum()]
    expected = {
        "auroc": roc_auc_score(label, score),
        "average_precision": average_precision_score(label, score),
        "f1_at_k": label[top].mean(),
        "fpr95_ood_positive": fpr[tpr >= 0.95][0],
        "fpr95_id_positive": accepted[found >= 0.95][0],
        **{f"recall_at_fpr{at:02d}": tpr[fpr <= at / 100].max() for at in (1, 5, 10)},
    }
    assert expected["auroc"] > 0.7
    assert result["metrics"] == {"held_out": pytest.approx(expected, abs=1e-12)}
    assert result["means"] == {"ood_near": pytest.approx(expected, abs=1e-12)}
    normal = scores_of(outputs).filter(pl.col("split") == "calibration")["score"].sort()
    value = result["threshold"]["value"]
    assert value == normal[int(np.ceil((len(normal) + 1) * 0.99)) - 1]
    assert result["threshold"]["realised"]["held_out"]["fpr"] == np.mean(score[label == 0] > value)
    assert result["threshold"]["realised"]["held_out"]["recall"] == np.mean(score[label == 1] > value)


def test_the_accuracy_is_that_of_a_plain_pass_over_the_test_images(outputs):
    network = ResNet(depth=10, width=WIDTH)
    load_backbone(outputs / "model.ckpt", network)
    x, y = last_digits()
    with torch.no_grad():
        right = network(x[y < 8]).logits.argmax(1).numpy() == y[y < 8]
    assert right.mean() > 0.9
    assert result_of(outputs)["classifier"]["accuracy"] == right.mean()


def test_the_same_command_is_found(outputs, train, tmp_path, forbid):
    forbid("training", "pass", "anything")
    again = train(*NECO)
    assert "done already" in again.err
    assert "The classifier gets" in again.out
    assert only(tmp_path / "outputs" / "train") == outputs


def test_another_detector_trains_no_second_classifier_and_makes_no_second_pass(outputs, run, train, tmp_path, forbid):
    stage, views = only(tmp_path / "outputs" / "stages"), entries(tmp_path)
    assert len(views) == 4  # one pass over each part
    assert "take the backbone's weights of outputs/stages/" in run("train", *DIGITS, "detector=vim", "dry_run=true").out
    forbid("training", "pass")
    done = train(*DIGITS, "detector=vim", "detector.d=7")
    assert f"weights in {stage.relative_to(tmp_path)}" in done.err
    assert only(tmp_path / "outputs" / "stages") == stage
    assert entries(tmp_path) == views
    second = newest(tmp_path / "outputs" / "train")
    assert second.name.startswith("digits_ood-vim-")
    assert result_of(second)["classifier"] == result_of(outputs)["classifier"]
    mine, theirs = (torch.load(run / "model.ckpt", weights_only=True)["backbone"] for run in (second, outputs))
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())


def test_force_trains_again_and_ends_the_same(outputs, train, tmp_path):
    stage, before = only(tmp_path / "outputs" / "stages"), scores_of(outputs)
    weights, then = weights_of(stage), (stage / "weights.ckpt").stat().st_mtime_ns
    train(*NECO, "force=true")
    assert (stage / "weights.ckpt").stat().st_mtime_ns > then
    assert all(torch.equal(weights_of(stage)[name], tensor) for name, tensor in weights.items())
    assert_frame_equal(scores_of(outputs), before, check_exact=True)


@pytest.mark.parametrize("other", ["seed=1", "dataset.held_out=[9]", "dataset.train_rows=600", "backbone.lr=0.05"])
def test_what_changes_the_training_trains_another(other, outputs, run, tmp_path):
    first = only(tmp_path / "outputs" / "stages")
    done = run("train", *QUICK, *NECO, other, "dry_run=true")
    assert "train the backbone, 3 epochs" in done.out
    assert str(first.relative_to(tmp_path)) not in done.out
    if other == "seed=1":  # one of them in earnest
        assert run("train", *QUICK, *NECO, other).code == 0
        second = newest(tmp_path / "outputs" / "stages")
        assert second != first
        assert not torch.equal(weights_of(first)["conv1.weight"], weights_of(second)["conv1.weight"])
        assert len(entries(tmp_path)) == 8


def test_other_test_sets_reuse_the_training(train, tmp_path, forbid):
    rng = np.random.default_rng(0)
    for name, level in (("train/dark", 20), ("train/light", 180), ("test/dark", 20), ("test/light", 180),
                        ("grey", 100), ("white", 215)):  # fmt: skip
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for i in range(12):
            Image.fromarray((level + rng.integers(0, 40, (8, 8, 3))).astype(np.uint8)).save(folder / f"{i}.png")
    words = ("dataset=image_folder", "dataset.train=train", "dataset.test=test", "dataset.size=8", "detector=msp",
             *RESNET, "+dataset.ood.grey=grey")  # fmt: skip
    train(*words)
    assert len(entries(tmp_path)) == 4
    forbid("training")
    train(*words, "+dataset.ood.white=white")
    second = newest(tmp_path / "outputs" / "train")
    assert set(result_of(second)["metrics"]) == {"grey", "white"}
    assert len(entries(tmp_path)) == 5  # one pass more, over the new images
    forbid("pass")
    train(*words, "+dataset.ood.white=white", "dataset.near=[grey]")
    third = newest(tmp_path / "outputs" / "train")
    assert result_of(third)["protocols"] == {"grey": "ood_near", "white": "ood_far"}
    assert_frame_equal(scores_of(third), scores_of(second), check_exact=True)
    only(tmp_path / "outputs" / "stages")


def test_weights_of_a_run_train_nothing_and_are_as_accurate(outputs, train, tmp_path, forbid):
    shutil.copy(outputs / "model.ckpt", tmp_path / "moved.ckpt")
    forbid("training")
    train(*NECO, f"backbone.weights={outputs}/model.ckpt")
    folder = newest(tmp_path / "outputs" / "train")
    assert folder != outputs
    result = result_of(folder)
    assert result["classifier"] == pytest.approx(result_of(outputs)["classifier"], abs=1e-12)
    assert_frame_equal(scores_of(folder), scores_of(outputs), check_exact=True)
    assert not [name for name in result["cost"] if name.startswith("backbone_")]
    forbid("anything")
    assert "done already" in train(*NECO, "backbone.weights=moved.ckpt").err  # a file counts by its content


def test_weights_of_other_data_are_trained_on(outputs, train, refused, tmp_path):
    words = (*DIGITS, "dataset.held_out=[9]", "detector=msp", f"backbone.weights={outputs}/model.ckpt")
    message = refused("train", *words)
    assert "weights for 8 classes, the data have 9; backbone.finetune=true trains a new head" in message
    train(*words, "backbone.finetune=true")
    assert result_of(newest(tmp_path / "outputs" / "train"))["classifier"]["accuracy"] > 0.8


def test_weights_that_cannot_be(outputs, refused, tmp_path):
    words = ("train", *NECO)
    message = refused(*words, f"backbone.weights={outputs}/model.ckpt", "backbone.width=16")
    assert "model.ckpt is a checkpoint of another architecture: " in message
    assert "conv1.weight (8, 1, 3, 3) for (16, 1, 3, 3)" in message
    message = refused(*words, f"backbone.weights={outputs}/model.ckpt", "backbone.depth=18")
    assert "model.ckpt is a checkpoint of another architecture: " in message
    whole = (outputs / "model.ckpt").read_bytes()
    for name, content in (("cut.ckpt", whole[:2000]), ("half.ckpt", whole[: len(whole) // 2]), ("empty.ckpt", b"")):
        (tmp_path / name).write_bytes(content)
        assert name in refused(*words, f"backbone.weights={name}")
    assert f"did you mean '{outputs}/model.ckpt'?" in refused(*words, f"backbone.weights={outputs}/modle.ckpt")
