"""Sweeps: every cell as it would be alone, nothing computed twice, and whatever is killed costs its own cell only."""

import contextlib
import csv
import fcntl
import json
import os
import random
import resource
import signal
import subprocess
import threading
import time
from pathlib import Path

import polars as pl
import pytest

from outlie.sweeps import local

from .conftest import QUICK, start

SWEEP = ("train", "-m", "detector=knn,dte_np", "dataset=wine,breast_cancer", "seed=range(2)", *QUICK)
LIMIT_S = 240


def results(folder: Path) -> dict[str, dict]:
    """Name -> result.json of every run that has a whole one."""
    found = {}
    for path in folder.glob("outputs/train/*/result.json"):
        with contextlib.suppress(ValueError):
            found[path.parent.name] = json.loads(path.read_text())
    return found


def workers(parent: int) -> list[int]:
    """Process numbers of a sweep's workers."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]


def test_cells_are_what_single_runs_are_and_are_found_again(run, train, tmp_path):
    done = run(*SWEEP, "launcher.jobs=2")
    assert done.code == 0, done.err
    assert "8 cells: 0 found, 8 computed, 0 failed" in done.out
    assert "±" in done.out and "wine" in done.out
    first = results(tmp_path)
    assert len(first) == 8
    again = run(*SWEEP)
    assert "8 cells: 8 found, 0 computed, 0 failed" in again.out
    assert results(tmp_path) == first
    rows = list(csv.DictReader(next((tmp_path / "outputs/sweep").glob("*/cells.csv")).open()))
    assert len(rows) == 8 and {row["status"] for row in rows} == {"found"}

    alone = train("detector=dte_np", "dataset=wine", "seed=1", "output_dir=outputs/alone")
    assert alone.code == 0
    folder = next((tmp_path / "outputs/alone/train").iterdir())
    swept = pl.read_parquet(tmp_path / "outputs/train" / folder.name / "scores.parquet")
    assert swept.equals(pl.read_parquet(folder / "scores.parquet"))
    assert (folder / "summary.png").exists()
    here = tmp_path / "outputs/train" / folder.name
    assert not (here / "summary.png").exists()  # nobody has asked for it
    train("detector=dte_np", "dataset=wine", "seed=1")
    assert (here / "summary.png").exists()


def test_a_failure_is_told_stops_nothing_and_is_tried_again(run, tmp_path):
    narrow = tmp_path / "narrow.csv"  # two columns: too few for dte_ig
    rows = [f"{i % 7},{i % 5},{int(i > 50)}" for i in range(60)]
    narrow.write_text("\n".join(["a,b,label", *rows]))
    words = ("sweep", "detector=dte_ig,knn", "dataset=csv", f"dataset.path={narrow}", "dataset.label=label", *QUICK)
    done = run(*words, "launcher.jobs=1")
    assert done.code == 1
    assert "failed    csv dte_ig seed 0: " in done.err and "at least 3 features" in done.err
    assert "2 cells: 0 found, 1 computed, 1 failed" in done.out and "at least 3 features" in done.out
    assert {one["status"] for one in results(tmp_path).values()} == {"done", "failed"}
    assert "2 cells: 1 found, 0 computed, 1 failed" in run(*words).out  # tried again


def test_truncated_results_are_computed_again_and_other_schemas_refused(run, tmp_path):
    words = ("sweep", "detector=knn,dte_np", "seed=range(2)", "launcher.jobs=1", *QUICK)
    assert run(*words).code == 0
    cut, newer, *_ = sorted((tmp_path / "outputs/train").iterdir())
    text = (cut / "result.json").read_text()
    (cut / "result.json").write_text(text[: len(text) // 2])
    (newer / "result.json").write_text((newer / "result.json").read_text().replace('"schema": 1', '"schema": 99'))
    done = run(*words)
    assert done.code == 1
    assert "4 cells: 2 found, 1 computed, 1 failed" in done.out
    assert "has schema 99, this outlie reads 1" in done.err
    assert json.loads((cut / "result.json").read_text())["status"] == "done"


def test_a_cell_that_another_process_is_at_is_waited_for(run, tmp_path):
    words = ("sweep", "detector=knn", "seed=range(2)", "launcher.jobs=1", *QUICK)
    plan = run(*words, "dry_run=true").out
    assert plan.startswith("# 2 cells, 0 done already; launcher=local")
    folder = tmp_path / plan.splitlines()[1].rpartition(" ")[2]
    folder.mkdir(parents=True)
    held = open(folder / ".lock", "w")  # noqa: SIM115
    fcntl.flock(held, fcntl.LOCK_EX)
    threading.Timer(8, held.close).start()
    assert "2 cells: 0 found, 2 computed, 0 failed" in run(*words).out


def test_the_sweep_killed_at_random_ends_as_an_undisturbed_one(run, tmp_path):
    words = ("train", "-m", "detector=knn,dte_np,ecod", "seed=range(6)", "launcher.jobs=2", *QUICK)
    chance = random.Random(0)
    seen: dict[str, str] = {}
    for wanted in (2, 8):  # results that are there before the kill
        process = start(*words, cwd=tmp_path)
        deadline = time.monotonic() + LIMIT_S
        while len(results(tmp_path)) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(chance.random() / 10)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        now = {name: one["started"] for name, one in results(tmp_path).items()}
        assert seen.items() <= now.items()
        seen = now
    done = run(*words)
    assert done.code == 0, done.err
    ended = results(tmp_path)
    assert len(ended) == 18 and all(one["status"] == "done" for one in ended.values())
    assert seen.items() <= {name: one["started"] for name, one in ended.items()}.items()  # nothing twice
    run(*words, "output_dir=outputs/quiet")
    for name in ended:
        one, other = (
            pl.read_parquet(tmp_path / folder / "train" / name / "scores.parquet")
            for folder in ("outputs", "outputs/quiet")
        )
        assert one.equals(other)


def test_a_killed_worker_costs_its_cell_only(tmp_path):
    words = ("train", "-m", "detector=diffusion,knn", "seed=range(2)", "launcher.jobs=1", *QUICK)
    process = start(*words, cwd=tmp_path)
    deadline = time.monotonic() + LIMIT_S
    while not list(tmp_path.glob("outputs/stages/ddpm-*")) and time.monotonic() < deadline:  # it trains
        time.sleep(0.05)
    for worker in workers(process.pid):
        os.kill(worker, signal.SIGKILL)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert "ended by signal 9" in err
    assert "4 cells: 0 found, 3 computed, 1 failed" in out


def test_workers_end_with_their_parent(tmp_path):
    process = start("sweep", "detector=diffusion", "seed=range(2)", "launcher.jobs=1", *QUICK, cwd=tmp_path)
    deadline = time.monotonic() + LIMIT_S
    while not list(tmp_path.glob("outputs/stages/ddpm-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = workers(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert children
    while time.monotonic() < deadline and any(Path(f"/proc/{child}/stat").exists() for child in children):
        time.sleep(0.1)
    assert not any(Path(f"/proc/{child}/stat").exists() for child in children)


def test_seeds_trained_as_one_are_what_they_are_alone(run, tmp_path):
    words = ("sweep", "detector=dte_c", "detector.epochs=2", "detector.min_steps=0", "seed=range(3)", *QUICK)
    done = run(*words, "launcher.jobs=1", "launcher.batch_seeds=true")
    assert "3 cells: 0 found, 3 computed, 0 failed" in done.out
    assert run(*words, "launcher.jobs=1", "output_dir=outputs/apart").code == 0
    spent = [one["cost"]["train_cpu_s"] for one in results(tmp_path).values()]
    assert len(spent) == 3 and len(set(spent)) == 1  # each its share of one training
    for folder in (tmp_path / "outputs/train").iterdir():
        apart = pl.read_parquet(tmp_path / "outputs/apart/train" / folder.name / "scores.parquet")
        assert pl.read_parquet(folder / "scores.parquet")["score"].to_list() == pytest.approx(
            apart["score"].to_list(), rel=1e-5
        )


def test_a_full_disk_fails_cells_in_words(run):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, before[1]))  # workers inherit it
    try:
        done = run("sweep", "detector=knn", "seed=range(2)", "launcher.jobs=1", *QUICK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.code == 1
    assert done.err.count("failed    ") == 2
    assert "free space or choose another output_dir=" in done.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("launcher=locl",), "did you mean 'local'"),
        (("launcher.jobs=0",), "launcher.jobs=0"),
        (("launcher.jbos=2",), "did you mean 'launcher.jobs'"),
        (("detectr=knn,lof",), "did you mean 'detector'"),
        (("seed=range(3,3)",), "empty range"),
    ],
)
def test_mistakes_before_anything_is_computed(refused, words, says):
    assert says in refused("sweep", *words)


def test_only_runs_are_swept(refused):
    assert "run eval takes no -m" in refused("eval", "-m", "run=1,2")


def test_a_worker_that_dies_while_it_waits_is_replaced():
    process = local.Process(threads=1, device=None)
    first = process._process.pid
    os.kill(first, signal.SIGKILL)
    assert process.answer() is None  # it had no cell that could be lost
    assert process._process.pid != first and process._process.poll() is None
    process.end()
