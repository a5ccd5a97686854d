"""A run from its command to its folder; what is done is found, what failed is tried again, the same seed says the same."""

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score, roc_curve

from outlie.commands import train as command
from outlie.data.sklearn_tables import SklearnTable

from .conftest import only, result_of, scores_of

DIFFUSION = ("detector=diffusion", "detector.epochs=2", "detector.steps=5")
FILES = {"config.yaml", "result.json", "scores.parquet", "model.ckpt", "log.txt", "metrics.csv", "summary.png"}
KEYS = {
    "schema", "status", "protocol", "dataset", "data_sha256", "detector", "backbone", "seed", "rows", "lints", "metrics",
    "intervals", "counts", "threshold", "findings", "evaluated_with", "latency", "cost", "environment", "code_version",
    "started", "finished", "error",
}  # fmt: skip


@pytest.fixture
def no_work(monkeypatch):
    """Neither data nor a detector may be touched."""

    def fail(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(command, "compute", fail)
    monkeypatch.setattr(SklearnTable, "load", fail)


@pytest.mark.parametrize(("name", "words"), [("knn", ("detector=knn",)), ("diffusion", DIFFUSION)])
def test_a_run_leaves_a_complete_folder(name, words, train, tmp_path):
    done = train(*words)
    folder = only(tmp_path / "outputs" / "train")
    assert {path.name for path in folder.iterdir()} - {".lock"} == FILES
    assert folder.name.startswith(f"breast_cancer-{name}-")
    result = result_of(folder)
    assert set(result) == KEYS
    assert (result["status"], result["error"], result["latency"]) == ("done", None, None)
    assert (result["protocol"], result["dataset"], result["detector"]) == ("split", "breast_cancer", name)
    assert result["started"] <= result["finished"]
    assert len(result["data_sha256"]) == 64
    trained = name == "diffusion"
    assert len((folder / "metrics.csv").read_text().splitlines()) == (3 if trained else 1)
    assert torch.load(folder / "model.ckpt", weights_only=True)["detector"]
    log = (folder / "log.txt").read_text()
    assert all(line.split(" INFO ")[1] in log for line in log.splitlines())
    assert ("train     2 epochs" in log) == trained
    assert done.out.count(f"{100 * result['metrics']['test']['auroc']:.2f}") == 1
    assert str(folder.relative_to(tmp_path)) in done.out


def test_scores_hold_every_row_and_the_metrics_are_sklearns(train, tmp_path):
    train("detector=knn")
    folder = only(tmp_path / "outputs" / "train")
    result, scores = result_of(folder), scores_of(folder)
    assert scores.columns == ["split", "index", "label", "score"]
    assert scores.null_count().sum_horizontal().item() == 0
    assert np.isfinite(scores["score"]).all()
    sizes = dict(scores.group_by("split").len().iter_rows())
    assert sizes == {name: rows for name, rows in result["rows"].items() if name != "train"}
    assert sum(result["rows"].values()) == 569
    assert scores["index"].n_unique() == len(scores)
    test = scores.filter(pl.col("split") == "test")
    label, score = test["label"].to_numpy(), test["score"].to_numpy()
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    accepted, found, _ = roc_curve(1 - label, -score, drop_intermediate=False)
    flagged = np.isin(np.arange(len(score)), np.argsort(-score, kind="stable")[: label.sum()])
    expected = {
        "auroc": roc_auc_score(label, score),
        "average_precision": average_precision_score(label, score),
        "f1_at_k": f1_score(label, flagged),
        "fpr95_ood_positive": fpr[tpr >= 0.95][0],
        "fpr95_id_positive": accepted[found >= 0.95][0],
        **{f"recall_at_fpr{at:02d}": tpr[fpr <= at / 100].max() for at in (1, 5, 10)},
    }
    assert result["metrics"]["test"] == pytest.approx(expected, abs=1e-12)
    calibration = np.sort(scores.filter(pl.col("split") == "calibration")["score"].to_numpy())
    threshold = result["threshold"]
    assert threshold["value"] == calibration[int(np.ceil(len(calibration) + 1) * 0.99) - 0]
    assert threshold["realised"]["test"]["recall"] == np.mean(score[label == 1] > threshold["value"])
    assert threshold["realised"]["test"]["fpr"] == np.mean(score[label == 0] > threshold["value"])


def test_latency_and_intervals_come_with_the_default_metrics(run, tmp_path):
    done = run("train", "detector=knn", "trainer.threads=1", "metrics.latency_seconds=0.05", "metrics.bootstrap=50")
    assert done.code == 0
    result = result_of(only(tmp_path / "outputs" / "train"))
    latency = result["latency"]
    assert 0 < latency["latency_p50_ms"] <= latency["latency_p95_ms"] <= latency["latency_p99_ms"]
    assert latency["throughput_per_s"] > 0
    for name, (low, high) in result["intervals"]["test"].items():
        assert low <= result["metrics"]["test"][name] <= high
    assert "One row takes" in done.out


def test_the_same_command_answers_from_the_store(train, tmp_path, no_work, monkeypatch):
    with monkeypatch.context() as patch:
        patch.undo()
        first = train(*DIFFUSION)
    folder = only(tmp_path / "outputs" / "train")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs").rglob("*")}
    again = train(*DIFFUSION)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs").rglob("*")} == before
    assert "done already" in again.err
    assert again.out == first.out
    stored = train("--config", str(folder / "config.yaml"))  # a run's config is re-runnable
    assert "done already" in stored.err
    assert stored.out == first.out
