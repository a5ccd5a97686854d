"""`run bench`: finished runs timed side by side, found again; what cannot be measured is said."""

import contextlib
import csv
import json
import shutil

import numpy as np
import polars as pl
import pytest

from outlie.cli import main
from outlie.commands import bench as command

from .conftest import QUICK, only, result_of

FEW = ("batch_sizes=[1,16]", "rounds=2", "seconds=0.02")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on a table with labels, one on it without, and one on another dataset."""
    folder = tmp_path_factory.mktemp("benched")
    rng = np.random.default_rng(0)
    rows = {name: np.r_[rng.normal(size=60), rng.normal(5, 1, 12)] for name in "abcd"}
    pl.DataFrame(rows | {"label": [0] * 60 + [1] * 12}).write_csv(folder / "mine.csv")
    mine = ("dataset=csv", f"dataset.path={folder / 'mine.csv'}")
    with contextlib.chdir(folder):
        for words in ((*mine, "dataset.label=label"), (*mine, "dataset.drop=[label]"), ("dataset=wine",)):
            assert main(["train", *QUICK, "detector=knn", *words]) == 0
    return folder / "outputs"


@pytest.fixture
def outputs(trained, tmp_path):
    """A copy of these runs, for commands that find them in ./outputs."""
    shutil.copytree(trained, tmp_path / "outputs")
    return tmp_path / "outputs"


def bench_of(outputs):
    folder = only(outputs / "bench")
    return folder, json.loads((folder / "bench.json").read_text())


def test_all_runs_side_by_side(run, outputs, monkeypatch):
    done = run("bench", "runs=all", *FEW)
    assert done.code == 0, done.err
    folder, result = bench_of(outputs)
    assert {path.name for path in folder.iterdir()} >= {"bench.json", "bench.csv", "bench.png", "log.txt"}
    assert [one["dataset"] for one in result["runs"]] == ["csv", "csv", "wine"]
    for one in result["runs"]:
        stored = result_of(outputs / "train" / one["run"])
        assert one["metrics"] == stored["metrics"]["test"]
        assert one["parameters"] == stored["cost"]["parameters"] == 0
        assert one["flops_per_row"] == stored["cost"]["flops_per_row"]
        first, last = one["timings"]
        assert (first["batch"], last["batch"]) == (1, 16)
        assert 0 < first["p50_ms"] <= first["p95_ms"] <= first["p99_ms"]
        assert last["rows_per_s"] == pytest.approx(16e3 / last["p50_ms"])
        assert first["calls"] >= 10
    assert [one["metrics"] != {} for one in result["runs"]] == [one["on_front"] for one in result["runs"]]
    assert "no recall" in done.out
    with open(folder / "bench.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    assert result["environment"]["threads"] == 1 and result["environment"]["platform"]
    monkeypatch.setattr(command, "compute", lambda *_: pytest.fail("measured again"))
    again = run("bench", "runs=all", *FEW)
    assert "done already" in again.err and again.out == done.out
    assert "# plan" in run("bench", "runs=all", "dry_run=true").out


def test_what_is_gone_or_unfinished_is_said(run, outputs, trained):
    wine = next((outputs / "train").glob("wine-*"))
    (wine / "result.json").write_text('{"schema": 1, "status": "failed"}')
    labelled = next(one for one in (outputs / "train").glob("csv-*") if result_of(one)["metrics"]["test"])
    (labelled / "model.ckpt").unlink()
    done = run("bench", "runs=all", *FEW)
    assert done.code == 0, done.err
    assert f"left out: {wine.name}: not finished" in done.out
    assert f"left out: {labelled.name}: no checkpoint" in done.out
    _, result = bench_of(outputs)
    assert [one["metrics"] for one in result["runs"]] == [{}]
    csv_file = trained.parent / "mine.csv"
    rows = csv_file.read_text()
    try:
        csv_file.write_text(rows + rows.splitlines()[1] + "\n")
        assert "have changed since the run" in run("bench", f"runs={result['runs'][0]['run']}", "seed=1", *FEW).err
        csv_file.unlink()
        refused = run("bench", f"runs={result['runs'][0]['run']}", "seed=1", *FEW)
        assert refused.code == 2 and "nothing to measure" in refused.err and "mine.csv" in refused.err
    finally:
        csv_file.write_text(rows)


def test_what_cannot_be_asked_is_refused(refused, outputs, run):
    knn = next((outputs / "train").glob("wine-knn-*"))
    cases = {
        ("runs=[wine-knnn]",): "did you mean 'wine-knn",
        (): "runs is missing",
        ("runs=[]",): "names no run",
        ("runs=[nothing.onnx]",): "no file nothing.onnx",
        ("runs=all", "detector=knn"): "detector= is a run's own",
        ("runs=all", "batch_sizes=[0]"): "batch_sizes",
    }
    for words, said in cases.items():
        done = run("bench", *words)
        assert done.code == 2 and said in done.err, (words, done)
    (knn / "result.json").unlink()
    done = run("bench", f"runs={knn.name}")
    assert done.code == 2 and "is not a finished run" in done.err
    assert run("bench", "runs=all", "output_dir=empty").code == 2


def test_an_interrupted_session_leaves_no_result(run, outputs, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.timing, "measure", interrupt)
    done = run("bench", "runs=all", *FEW)
    assert done.code == 130 and "interrupted" in done.err
    assert not list((outputs / "bench").glob("*/bench.json"))
