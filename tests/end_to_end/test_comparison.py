"""`run eval run=RUN detectors=...`: many detectors over one pass; each as `run train` would have it."""

import contextlib
import csv
import json
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from scipy.special import log_softmax, logsumexp

from outlie import cell, features
from outlie.backbones.resnet import ResNet
from outlie.cli import main
from outlie.commands import compare
from outlie.results.checkpoint import load_backbone

from .conftest import QUICK, only, result_of, scores_of
from .test_images import DIGITS, NECO, WIDTH, entries, last_digits, newest

FEW = "dataset.train_rows=40"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished run of NECO on digits, and the comparison of all detectors on it."""
    folder = tmp_path_factory.mktemp("compared")
    with contextlib.chdir(folder):
        assert main(["train", *QUICK, *NECO]) == 0
        run = only(folder / "outputs" / "train")
        before = {path.name for path in (folder / "outputs" / "views").iterdir()}
        assert main(["eval", f"run={run.name}", *QUICK, "detectors=all"]) == 0
        assert {path.name for path in (folder / "outputs" / "views").iterdir()} == before  # no second pass
    return folder / "outputs"


@pytest.fixture
def evaluate(run, outputs):
    """`evaluate("detectors=all")` of the finished run."""
    return lambda *words: run("eval", f"run={outputs.name}", *QUICK, *words)


@pytest.fixture
def folder(tmp_path, outputs):
    """The comparison's folder."""
    return only(tmp_path / "outputs" / "eval")


def of(folder, detector):
    """The folder of a detector in a comparison."""
    (found,) = (path for path in folder.glob(f"{detector}-*") if path.name.rpartition("-")[0] == detector)
    return found


def lines_of(folder):
    with open(folder / "comparison.csv") as file:
        return list(csv.DictReader(file))


def test_all_are_there_and_the_table_holds_their_metrics(outputs, folder):
    names = compare.names_of("all", ("x", "features", "logits", "head", "network"))
    assert len(names) > 20
    assert {"msp", "energy", "neco", "vim", "mahalanobis", "react"} <= set(names)
    lines = lines_of(folder)
    assert [(line["detector"], line["set"]) for line in lines] == [
        (name, place) for place in ("held_out", "mean") for name in names
    ]
    assert {line["protocol"] for line in lines} == {"ood_near"}
    for line in lines[: len(names)]:
        result, scores = result_of(of(folder, line["detector"])), scores_of(of(folder, line["detector"]))
        assert (result["status"], result["error"]) == ("done", None)
        assert result["classifier"] == result_of(outputs)["classifier"]
        told = {name: float(line[name]) for name in result["metrics"]["held_out"]}
        assert told == result["metrics"]["held_out"]
        assert scores.drop("score").equals(scores_of(outputs).drop("score"))
        assert scores["score"].is_finite().all()
    assert (folder / "comparison.png").stat().st_size > 10_000


def test_the_scores_of_logits_are_their_definitions(outputs, folder):
    network = ResNet(depth=10, width=WIDTH)
    load_backbone(outputs / "model.ckpt", network)
    x, y = last_digits()
    with torch.no_grad():
        logits: Any = network(x).logits.double().numpy()
    expected = {
        "msp": -log_softmax(logits, 1).max(1),
        "max_logit": -logits.max(1),
        "energy": -np.asarray(logsumexp(logits, 1)),
    }
    for name, values in expected.items():
        scores = scores_of(of(folder, name))
        for split, rows in (("test", y < 8), ("held_out", y >= 8)):
            found = scores.filter(pl.col("split") == split).sort("index")["score"]
            np.testing.assert_allclose(found, values[rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mahalanobis", "vim", "react"])  # the last one is fitted on calibration rows
def test_each_is_what_run_train_gives(name, outputs, folder, train, tmp_path):
    train(*DIGITS, f"detector={name}")
    alone = newest(tmp_path / "outputs" / "train")
    assert result_of(alone)["detector"] == name
    assert_frame_equal(scores_of(of(folder, name)), scores_of(alone), rel_tol=1e-9)
    assert result_of(of(folder, name))["metrics"] == result_of(alone)["metrics"]
    assert result_of(of(folder, name))["threshold"] == result_of(alone)["threshold"]


def test_what_is_done_is_found(evaluate, folder, monkeypatch):
    monkeypatch.setattr(cell, "load", lambda *_: pytest.fail("loaded the data again"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("scores.parquet")}
    table = (folder / "comparison.csv").read_text()
    again = evaluate("detectors=all")
    assert again.code == 0
    assert "done already" in again.err
    assert f"{len(before)} detectors on digits_ood" in again.out
    assert (folder / "comparison.csv").read_text() == table
    some = evaluate("detectors=[vim,neco]")  # a part of them, in the order that is asked for
    assert "2 detectors on digits_ood" in some.out
    assert [line["detector"] for line in lines_of(folder)] == ["vim", "neco", "vim", "neco"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("scores.parquet")} == before


def test_other_metrics_come_from_the_stored_scores(evaluate, folder, monkeypatch):
    monkeypatch.setattr(cell, "load", lambda *_: pytest.fail("loaded the data again"))
    done = evaluate("detectors=[msp,vim]", "metrics.names=[fpr95_id_positive]")  # without the AUROC that is drawn
    assert done.code == 0, done.err
    assert set(lines_of(folder)[0]) == {"detector", "protocol", "set", "fpr95_id_positive"}
    assert "Warning" not in done.err


def test_those_that_need_the_network(evaluate, folder, tmp_path):
    before = entries(tmp_path)
    done = evaluate("detectors=network")
    assert done.code == 0, done.err
    names = {line["detector"] for line in lines_of(folder)}
    assert {"gram", "odin", "rankfeat"} <= names
    assert all(result_of(of(folder, name))["status"] == "done" for name in names)
    assert entries(tmp_path) == before


def test_one_that_fails_is_reported_and_stops_no_other(run, train, tmp_path):
    train(*DIGITS, FEW, "detector=msp")
    name = only(tmp_path / "outputs" / "train").name
    words = ("eval", f"run={name}", *QUICK, "detectors=[deep_knn,msp,energy]")  # deep_knn takes 50 neighbours of 40
    done = run(*words)
    assert done.code == 1
    reason = "k = 50 neighbours, but only 40 training rows"
    assert f"failed: deep_knn: {reason}" in " ".join(done.out.split())
    assert "2 detectors on digits_ood" in done.out
    folder = only(tmp_path / "outputs" / "eval")
    assert {line["detector"] for line in lines_of(folder)} == {"msp", "energy"}
    failed = result_of(of(folder, "deep_knn"))
    assert failed["status"] == "failed"
    assert reason in failed["error"]
    assert not (of(folder, "deep_knn") / "scores.parquet").exists()
    then = (of(folder, "msp") / "result.json").stat().st_mtime_ns
    again = run(*words)  # only what failed is tried again
    assert again.code == 1
    assert "1/1      deep_knn" in again.err
    assert (of(folder, "msp") / "result.json").stat().st_mtime_ns == then
    alone = run(*words[:-1], "detectors=deep_knn")  # nothing to draw
    assert alone.code == 1
    assert f"failed: deep_knn: {reason}" in " ".join(alone.out.split())
    assert "Warning" not in alone.err
    assert lines_of(folder) == []


def test_names_that_are_wrong(outputs, refused):
    words = ("eval", f"run={outputs.name}")
    assert "unknown detector 'nekko' (did you mean 'neco'?)" in refused(*words, "detectors=[msp,nekko]")
    assert "did you mean 'network'?" in refused(*words, "detectors=netwrok")
    assert "detectors=[] names no detector" in refused(*words, "detectors=[]")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("seed=4", "seed"),
        ("backbone.width=16", "backbone.width"),
        ("detector.d=3", "detector.d"),
        ("dataset.held_out=[9]", "keep the run's dataset"),
        ("dataset.train_rows=100", "keep the run's dataset"),
    ],
)
def test_what_would_need_another_training_is_refused(override, named, outputs, refused):
    assert named in refused("eval", f"run={outputs.name}", "detectors=[msp,neco]", override)


def test_explanations_are_of_tables(outputs, refused, tmp_path):
    words = ("eval", f"run={outputs.name}", "explain=true")
    assert "it needs backbone=identity" in refused(*words)
    assert "leave detectors= or explain= away" in refused(*words, "detectors=[msp]")


def test_a_run_on_a_table_has_no_classifier(train, run, refused, tmp_path):
    train("detector=knn")
    name = only(tmp_path / "outputs" / "train").name
    message = refused("eval", f"run={name}", "detectors=vim")
    assert (
        "detector 'vim' needs logits, head, which the run's backbone does not provide (it has x, features)" in message
    )
    assert "backbone=resnet18" in message
    assert run("eval", f"run={name}", *QUICK, "detectors=[knn,deep_knn]").code == 0
    alone = scores_of(only(tmp_path / "outputs" / "train"))
    assert_frame_equal(scores_of(of(only(tmp_path / "outputs" / "eval"), "knn")), alone, rel_tol=1e-9)


@pytest.mark.parametrize("damaged", ["features.bin", "manifest.json"])
def test_a_view_that_was_cut_short_is_computed_again(damaged, evaluate, folder, tmp_path, monkeypatch):
    before = scores_of(of(folder, "vim"))
    views = entries(tmp_path)
    file = sorted((tmp_path / "outputs" / "views").glob(f"*/{damaged}"))[0]
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    passes, compute = [], features.compute
    monkeypatch.setattr(features, "compute", lambda *words: (passes.append(1), compute(*words))[1])
    done = evaluate("detectors=[vim]", "force=true")
    assert done.code == 0, done.err
    assert len(passes) == 1  # the other entries are whole
    assert entries(tmp_path) == views
    assert len(file.read_bytes()) == len(whole)
    if damaged == "manifest.json":
        assert json.loads(file.read_text()) == json.loads(whole)
    else:
        assert file.read_bytes() == whole
    assert_frame_equal(scores_of(of(folder, "vim")), before, check_exact=True)


def test_a_dry_run_writes_nothing(evaluate, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs").rglob("*")}
    done = evaluate("detectors=[vim,gram]", "dry_run=true", "seed=0")
    assert done.code == 0
    assert "then vim, gram" in done.out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs").rglob("*")} == before
