"""Two processes give what one gives; what goes wrong in one ends both, in time and in a word."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from outlie import batches, cli
from outlie.detectors.base import Views

LIMIT_S = 500  # a hang (gloo waits half an hour) ends a test, not the suite; generous, for machines that are busy
pytestmark = pytest.mark.timeout(2 * LIMIT_S)
SPY = '''
"""As outlie.commands.train, and every rank's weights are kept; where FAIL names a rank, that one breaks."""
import os, sys, torch
from outlie import distributed, stages
from outlie.commands import train
from outlie.errors import UserError

rank, kept, train_ = os.environ["RANK"], os.environ["KEPT"], stages.train

def spy(detector, *words, **options):
    if os.environ.get("FAIL") == rank:
        raise {"user": UserError("a mistake on one rank"), "bug": RuntimeError("a bug on one rank")}[os.environ["HOW"]]
    if os.environ.get("FAIL") == "killed" and rank == "1":
        os.kill(os.getpid(), 9)
    spent = train_(detector, *words, **options)
    torch.save({"weights": detector.state_dict(), "losses": spent["losses"]}, f"{kept}/{rank}.pt")
    return spent

stages.train = spy
sys.exit(distributed.work(train.main))
'''


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outlie.cli", "train", "metrics=fast", "trainer=cpu", *words]
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(),
        text=True,
        timeout=LIMIT_S,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | more


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


@pytest.mark.parametrize("detector", ["knn", "dte_np"])
def test_two_processes_score_as_one(detector, tmp_path):
    alone = ("metrics=fast", "trainer=cpu", "trainer.threads=1", f"output_dir={tmp_path / 'one'}")
    assert cli.main(["train", f"detector={detector}", *alone]) == 0
    done = run(f"detector={detector}", "trainer.devices=2", "output_dir=two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("auroc") == 1  # one rank speaks
    assert done.stderr.count("fit  ") == 1
    assert "Traceback" not in done.stderr
    one, two = (only(tmp_path / processes / "train") for processes in ("one", "two"))
    assert one.name == two.name  # the number of processes is no part of what a run is
    first, second = pl.read_parquet(one / "scores.parquet"), pl.read_parquet(two / "scores.parquet")
    assert first.drop("score").equals(second.drop("score"))
    np.testing.assert_allclose(first["score"], second["score"], rtol=1e-6, atol=1e-6)
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, two)]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["rows"] == results[1]["rows"]


@pytest.fixture
def spied(tmp_path):
    """`spied(...)`: a training by two processes that keep their weights in `kept`."""
    (tmp_path / "spy.py").write_text(SPY)
    (tmp_path / "kept").mkdir()
    start = "import sys, functools\nfrom outlie import cli, distributed\nlaunch = distributed.launch\n"
    start += "distributed.launch = lambda cfg, module, processes: launch(cfg, 'spy', processes)\n"
    start += "sys.exit(cli.main(sys.argv[1:]))"

    def call(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        options = (
            "detector=dte_c",
            "detector.epochs=2",
            "detector.min_steps=0",
            "metrics=fast",
            "trainer=cpu",
            "trainer.devices=2",
        )
        return subprocess.run(
            [sys.executable, "-c", start, "train", *options, *words], cwd=tmp_path, text=True, timeout=LIMIT_S,
            stdin=subprocess.DEVNULL, capture_output=True,
            env=environment(PYTHONPATH=str(tmp_path), KEPT=str(tmp_path / "kept"), **env),
        )  # fmt: skip

    return call


def test_a_trained_detector(spied, tmp_path):
    done = spied("trainer.checkpoint_seconds=0")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("train  ") == 1
    ranks = [torch.load(tmp_path / "kept" / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert ranks[0]["losses"] == ranks[1]["losses"]
    assert len(ranks[0]["losses"]) == 2
    for name, tensor in ranks[0]["weights"].items():
        assert torch.equal(tensor, ranks[1]["weights"][name]), name
    stage = only(tmp_path / "outputs" / "stages")
    weights = torch.load(stage / "weights.ckpt", weights_only=True)["detector"]
    assert all(torch.equal(weights[name], tensor) for name, tensor in ranks[0]["weights"].items())
    result = json.loads((only(tmp_path / "outputs" / "train") / "result.json").read_text())
    assert result["status"] == "done"
    assert all(np.isfinite(value) for value in result["metrics"]["test"].values())
    scores = pl.read_parquet(only(tmp_path / "outputs" / "train") / "scores.parquet")
    assert scores["index"].n_unique() == len(scores) == 107 + 319


@pytest.mark.parametrize(
    ("rank", "how", "code", "word"),
    [
        ("0", "user", 2, "error: a mistake on one rank"),
        ("1", "user", 2, "error: a mistake on one rank"),
        ("1", "bug", 1, "error: RuntimeError: a bug on one rank"),
        ("killed", "", 1, "process 1 of 2 was ended by signal 9"),
    ],
)
def test_one_process_breaks(rank, how, code, word, spied):
    done = spied(FAIL=rank, HOW=how)
    assert done.returncode == code, done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mistake_of_the_user_is_said_once(tmp_path):
    done = run("detector=knn", "detector.k=1000", "trainer.devices=2", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("error: k = 1000 neighbours, but only 143 training rows") == 1
    assert "Traceback" not in done.stderr
    result = json.loads((only(tmp_path / "outputs" / "train") / "result.json").read_text())
    assert result["status"] == "failed"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_process_and_the_state_is_kept(sent, tmp_path):
    options = (
        "detector=dte_c",
        "detector.epochs=100000",
        "detector.min_steps=0",
        "trainer.checkpoint_seconds=0",
        "trainer.devices=2",
    )
    command = [sys.executable, "-m", "outlie.cli", "train", "metrics=fast", "trainer=cpu", *options]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + LIMIT_S
        while not list(tmp_path.glob("outputs/stages/*/training.ckpt")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if sent == signal.SIGINT:
            os.killpg(process.pid, sent)  # as a terminal does
        else:
            process.send_signal(sent)  # as a scheduler does
        _, err = process.communicate(timeout=LIMIT_S)  # all have closed their ends of the pipe
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == (130 if sent == signal.SIGINT else 143)
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 3, err
    assert list(tmp_path.glob("outputs/stages/*/training.ckpt"))


NETWORK = (
    "dataset=digits_ood", "backbone=resnet10/narrow", "backbone.batch_size=30",
    "backbone.augment=none", "backbone.epochs=3",
)  # fmt: skip
COMPARED = ("neco", "vim", "mahalanobis", "gram")  # the last one needs the network itself
ALONE = ("metrics=fast", "trainer=cpu", "trainer.threads=1")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes of digits: a run of Mahalanobis, and a comparison over its network."""
    folder = tmp_path_factory.mktemp("alone")
    with contextlib.chdir(folder):
        assert cli.main(["train", *NETWORK, "detector=mahalanobis", *ALONE]) == 0
        trained = only(folder / "outputs" / "train")
        assert cli.main(["eval", f"run={trained.name}", f"detectors=[{','.join(COMPARED)}]", *ALONE]) == 0
    return folder / "outputs"


def assert_as_one(one: Path, two: Path) -> None:
    """The results of two folders are the same, each image once."""
    first, second = pl.read_parquet(one / "scores.parquet"), pl.read_parquet(two / "scores.parquet")
    assert first.drop("score").equals(second.drop("score"))
    assert len(second) == second.select("split", "index").n_unique() == 161 + 640 + 157
    np.testing.assert_allclose(second["score"], first["score"], rtol=1e-6, atol=1e-6)
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, two)]
    for name in ("rows", "lints", "status", "data_sha256"):
        assert results[0][name] == results[1][name]
    one_set, two_set = (result["metrics"]["held_out"] for result in results)
    assert two_set == pytest.approx(one_set, abs=1e-4)  # a rounding may swap two rows
    if "classifier" in results[0]:
        assert results[0]["classifier"] == pytest.approx(results[1]["classifier"], rel=1e-5)


def test_two_processes_score_a_classifiers_views_as_one(alone, tmp_path):
    shutil.copytree(alone / "stages", tmp_path / "two" / "stages")  # the weights, but no views: two make the pass
    done = run(*NETWORK, "detector=mahalanobis", "trainer.devices=2", "output_dir=two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("classify  ") == done.stdout.count("auroc") == 1  # one rank speaks
    one, two = only(alone / "train"), only(tmp_path / "two" / "train")
    assert one.name == two.name
    assert_as_one(one, two)
    views = {path.name for path in (tmp_path / "two" / "views").iterdir()}
    assert views == {path.name for path in (alone / "views").iterdir()}


def test_two_processes_compare_detectors_as_one(alone, tmp_path):
    words = ("eval", f"run={only(alone / 'train')}", f"detectors=[{','.join(COMPARED)}]", "metrics=fast", "trainer=cpu")
    done = subprocess.run(
        [sys.executable, "-m", "outlie.cli", *words, "trainer.devices=2", "output_dir=two"], cwd=tmp_path,
        env=environment(), text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 detectors on digits_ood") == 1
    one, two = only(alone / "eval"), only(tmp_path / "two" / "eval")
    assert one.name == two.name
    for name in COMPARED:
        (first,), (second,) = one.glob(f"{name}-*"), two.glob(f"{name}-*")
        assert_as_one(first, second)
    tables = [pl.read_csv(folder / "comparison.csv").select("detector", "protocol", "set") for folder in (one, two)]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_has_batch_statistics(world, monkeypatch):
    x = torch.arange(642.0)[:, None]
    for rest in range(2 * world + 1):
        shares = []
        for rank in range(world):
            monkeypatch.setattr(batches, "rank_and_world", lambda rank=rank: (rank, world))
            views = Views(x=x[: 2 * 32 + rest])
            shares += [len(batch) for batch in batches.Batches(views, 32, False, torch.Generator)]
        assert min(shares) >= 2, rest


def test_two_processes_train_a_classifier(tmp_path):
    done = run(*NETWORK, "detector=msp", "trainer.devices=2", "trainer.checkpoint_seconds=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("backbone  ") == 1
    folder = only(tmp_path / "outputs" / "train")
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "done"
    assert result["classifier"]["accuracy"] > 0.8  # one process: 0.95
    scores = pl.read_parquet(folder / "scores.parquet")
    assert len(scores) == scores.select("split", "index").n_unique() == 161 + 640 + 157
    stage = only(tmp_path / "outputs" / "stages")
    assert not (stage / "training.ckpt").exists()
    kept = torch.load(stage / "weights.ckpt", weights_only=True)
    assert len(kept["spent"]["losses"]) == len((folder / "metrics.csv").read_text().splitlines()) - 1 == 3
    assert kept["spent"]["losses"][-1] < kept["spent"]["losses"][0]
    used = torch.load(folder / "model.ckpt", weights_only=True)["backbone"]
    assert all(torch.equal(used[name], tensor) for name, tensor in kept["detector"].items())
    # the scores are those of the stored weights: one process finds the stage, and has them too
    shutil.copytree(tmp_path / "outputs" / "stages", tmp_path / "again" / "stages")
    assert cli.main(["train", *NETWORK, "detector=msp", *ALONE, f"output_dir={tmp_path / 'again'}"]) == 0
    assert_as_one(folder, only(tmp_path / "again" / "train"))


def test_two_processes_train_a_denoiser_and_score_with_it_as_one(tmp_path):
    words = ("experiment=digits_ddae", "backbone.images=3000", "detector=cfs")
    done = run(*words, "trainer.devices=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("backbone  ") == done.stderr.count("fit       642") == 1
    two, stage = only(tmp_path / "outputs" / "train"), only(tmp_path / "outputs" / "stages")
    losses = torch.load(stage / "weights.ckpt", weights_only=True)["spent"]["losses"]
    assert len(losses) == 5 and losses[-1] < losses[0]
    result = json.loads((two / "result.json").read_text())
    assert result["cost"]["nfe"] == 1
    # statistics of both ranks' images, gathered: what one process fits and scores on the same weights
    shutil.copytree(tmp_path / "outputs" / "stages", tmp_path / "one" / "stages")
    assert cli.main(["train", *words, *ALONE, f"output_dir={tmp_path / 'one'}"]) == 0
    assert_as_one(only(tmp_path / "one" / "train"), two)
