"""A run from its command to its folder; what is done is found, what failed is tried again, a seed decides it all."""

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score, roc_curve

from outlie import stages
from outlie.commands import train as command
from outlie.data.sklearn_tables import SklearnTable

from .conftest import only, result_of, scores_of

DIFFUSION = ("detector=diffusion", "detector.epochs=2", "detector.min_steps=0", "detector.steps=5")
FILES = {"config.yaml", "result.json", "scores.parquet", "model.ckpt", "log.txt", "metrics.csv", "summary.png"}
KEYS = {
    "schema", "status", "protocol", "protocols", "dataset", "data_sha256", "detector", "backbone", "seed", "rows",
    "lints", "metrics", "intervals", "counts", "threshold", "findings", "evaluated_with", "published", "latency",
    "cost", "environment", "code_version", "started", "finished", "error",
}  # fmt: skip


@pytest.fixture
def forbid_work(monkeypatch):
    """From its call on neither data nor a detector may be touched."""

    def fail(*_, **__):
        raise AssertionError("computed again")

    def forbid():
        monkeypatch.setattr(command, "compute", fail)
        monkeypatch.setattr(SklearnTable, "load", fail)

    return forbid


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
    assert scores["score"].is_finite().all()
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
    assert threshold["value"] == calibration[int(np.ceil((len(calibration) + 1) * 0.99)) - 1]
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


def test_the_same_command_answers_from_the_store(train, tmp_path, forbid_work):
    first = train(*DIFFUSION)
    folder = only(tmp_path / "outputs" / "train")
    before = times(tmp_path)
    forbid_work()
    again = train(*DIFFUSION)
    assert times(tmp_path) == before
    assert "done already" in again.err
    assert again.out == first.out
    stored = train("--config", str(folder / "config.yaml"))  # a run's config is re-runnable
    assert "done already" in stored.err
    assert stored.out == first.out


def test_force_starts_again(train, tmp_path):
    train(*DIFFUSION)
    before, scores = times(tmp_path), scores_of(only(tmp_path / "outputs" / "train"))
    again = train(*DIFFUSION, "force=true")
    assert "done already" not in again.err
    files = ("weights.ckpt", "scores.parquet", "result.json")
    assert all(now > before[path] for path, now in times(tmp_path).items() if path.name in files)
    assert_frame_equal(scores_of(only(tmp_path / "outputs" / "train")), scores, check_exact=True)


def test_other_metrics_come_from_the_stored_scores(train, tmp_path, forbid_work):
    train("detector=knn")
    folder = only(tmp_path / "outputs" / "train")
    scores, picture = (folder / "scores.parquet").stat().st_mtime_ns, (folder / "summary.png").read_bytes()
    forbid_work()
    names = "metrics.names=[auroc,detection_error]"
    done = train("detector=knn", names, "metrics.false_alarms=0.1", "metrics.bootstrap=20")
    assert only(tmp_path / "outputs" / "train") == folder
    assert (folder / "scores.parquet").stat().st_mtime_ns == scores
    assert (folder / "summary.png").read_bytes() != picture
    result = result_of(folder)
    assert set(result["metrics"]["test"]) == set(result["intervals"]["test"]) == {"auroc", "detection_error"}
    assert result["threshold"]["false_alarms"] == 0.1
    assert "for 10 % false alarms" in done.out
    calibration = np.sort(scores_of(folder).filter(pl.col("split") == "calibration")["score"].to_numpy())
    assert result["threshold"]["value"] == calibration[int(np.ceil((len(calibration) + 1) * 0.9)) - 1]


def test_a_scoring_option_reuses_the_weights(train, tmp_path, monkeypatch):
    train(*DIFFUSION)
    weights = only(tmp_path / "outputs" / "stages") / "weights.ckpt"
    with monkeypatch.context() as patch:
        patch.setattr(stages, "train", lambda *_: pytest.fail("trained again"))
        train(*DIFFUSION, "detector.steps=9")
    assert only(tmp_path / "outputs" / "stages") / "weights.ckpt" == weights
    train(*DIFFUSION, "detector.steps=9", "output_dir=fresh")
    of_five, of_nine = sorted((tmp_path / "outputs" / "train").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert not scores_of(of_five).equals(scores_of(of_nine))
    assert_frame_equal(scores_of(of_nine), scores_of(only(tmp_path / "fresh" / "train")), check_exact=True)
    train(*DIFFUSION, "detector.lr=0.0123")  # not a scoring option
    assert len(list((tmp_path / "outputs" / "stages").iterdir())) == 2


@pytest.mark.parametrize(
    "words", [DIFFUSION, ("detector=dte_c", "detector.epochs=2", "detector.min_steps=0")], ids=["diffusion", "dte_c"]
)
def test_the_same_seed_gives_the_same_scores(words, train, tmp_path):
    for folder, seed in (("one", 3), ("two", 3), ("three", 4)):
        train(*words, f"output_dir={folder}", f"seed={seed}")
        torch.rand(7)  # what ran before does not matter
    one, two, three = (only(tmp_path / name / "train") for name in ("one", "two", "three"))
    assert one.name == two.name
    assert_frame_equal(scores_of(one), scores_of(two), check_exact=True)
    assert not scores_of(one).equals(scores_of(three))


def test_a_failed_run_says_so_and_is_tried_again(run, train, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("the cat sat on the cable")

    with monkeypatch.context() as patch:
        patch.setattr(stages, "score", fail)
        failed = run("train", *DIFFUSION, "trainer.threads=1", "metrics=fast")
    assert failed.code == 1
    assert "RuntimeError: the cat sat on the cable" in failed.err
    folder = only(tmp_path / "outputs" / "train")
    result = result_of(folder)
    assert result["status"] == "failed"
    assert "the cat sat on the cable" in result["error"]
    assert "Traceback" in result["error"]
    shown = run("show", folder.name)
    assert "failed: RuntimeError: the cat sat on the cable" in shown.out
    assert run("eval", f"run={folder.name}").code == 2
    with monkeypatch.context() as patch:
        patch.setattr(stages, "train", lambda *_: pytest.fail("the weights were there"))
        train(*DIFFUSION)
    assert result_of(folder)["status"] == "done"
    assert result_of(folder)["error"] is None


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(run, train, tmp_path):
    done = run("train", *DIFFUSION, "dry_run=true", "trainer.threads=1")
    assert done.code == 0
    assert "train the detector, 2 epochs\n" in done.out
    assert list(tmp_path.iterdir()) == []
    train(*DIFFUSION)
    assert "done already: outputs/train/" in run("train", *DIFFUSION, "dry_run=true").out
    assert "take the weights of outputs/stages/" in run("train", *DIFFUSION, "dry_run=true", "detector.steps=3").out


def times(folder):
    """Every file below, and when it was last changed."""
    return {path: path.stat().st_mtime_ns for path in (folder / "outputs").rglob("*")}
