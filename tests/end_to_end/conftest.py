"""Whole commands, in this process unless another one is the point; each test works in an empty folder of its own."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest

from outlie.cli import main

QUICK = ("trainer.threads=1", "metrics=fast")


class Done(NamedTuple):
    """What a command left on the screen."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys, tmp_path, monkeypatch) -> Callable[..., Done]:
    """`run("train", "detector=knn")` in this process, in an empty folder, without a terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: str) -> Done:
        capsys.readouterr()
        code = main(list(words))
        done = Done(code, *capsys.readouterr())
        assert "Traceback" not in done.err
        return done

    return call


@pytest.fixture
def train(run) -> Callable[..., Done]:
    """A quick `run train` that must end well."""

    def call(*words: str) -> Done:
        done = run("train", *QUICK, *words)
        assert done.code == 0, done.err
        return done

    return call


@pytest.fixture
def refused(run) -> Callable[..., str]:
    """A quick command that must be refused as the user's mistake; its message."""

    def call(*words: str) -> str:
        done = run(*words, *QUICK)
        assert done.code == 2, done
        message = done.err[done.err.index("error: ") :]
        assert f"\n{done.err}".count("\nerror: ") == 1
        return message

    return call


@pytest.fixture
def table(tmp_path) -> Callable[..., Path]:
    """Write a csv: normal rows around 0, anomalies around 5, four columns a to d and a label."""

    def write(name: str = "mine.csv", normal: int = 60, anomalies: int = 12, seed: int = 0, **columns: Any) -> Path:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(normal + anomalies, 4))
        x[normal:] += 5
        label = np.repeat([0, 1], [normal, anomalies])
        frame = pl.DataFrame({**{key: x[:, j] for j, key in enumerate("abcd")}, "label": label})
        frame = frame.with_columns(**{key: pl.Series(values) for key, values in columns.items()})
        path = tmp_path / name
        (frame.write_parquet if path.suffix == ".parquet" else frame.write_csv)(path)
        return path

    return write


@pytest.fixture
def outputs(trained, tmp_path):
    """A copy of what the module's `trained` left, in the folder of this test's commands; the finished run's folder."""
    shutil.copytree(trained, tmp_path / "outputs")
    return only(tmp_path / "outputs" / "train")


def wait_for_checkpoint(process: subprocess.Popen[str], folder: Path, limit_s: float) -> None:
    """Until a training in `folder` has left a checkpoint; the process that trains must be alive."""
    deadline = time.monotonic() + limit_s
    while not list((folder / "outputs" / "stages").glob("*/training.ckpt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def only(folder: Path) -> Path:
    """The one visible entry of a folder."""
    (found,) = (path for path in folder.iterdir() if not path.name.startswith("."))
    return found


def result_of(folder: Path) -> dict[str, Any]:
    """A run's result.json."""
    return json.loads((folder / "result.json").read_text())


def scores_of(folder: Path) -> pl.DataFrame:
    """A run's scores.parquet."""
    return pl.read_parquet(folder / "scores.parquet")


def start(*words: str, cwd: Path) -> subprocess.Popen[str]:
    """The command as a process of its own, with no terminal and nothing on stdin."""
    return subprocess.Popen(
        [sys.executable, "-m", "outlie.cli", *words], cwd=cwd, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
