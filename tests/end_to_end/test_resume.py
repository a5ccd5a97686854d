"""An interrupted training goes on where it stopped and ends where it would have; two equal commands do not collide."""

import contextlib
import signal

import pytest
from polars.testing import assert_frame_equal

from outlie.lightning import Train

from .conftest import QUICK, only, scores_of, start, wait_for_checkpoint

EPOCHS = 100
LIMIT_S = 280  # a hang ends the test; generous, for machines that are busy
WORDS = (
    "train",
    "detector=dte_c",
    f"detector.epochs={EPOCHS}",
    "detector.min_steps=0",
    "trainer.checkpoint_seconds=0",
    *QUICK,
)


@pytest.fixture
def training(tmp_path):
    """Start the command in a process of its own; hands it over once its training has left a checkpoint."""
    started = []

    def begin(*words):
        process = start(*WORDS, *words, cwd=tmp_path)
        started.append(process)
        wait_for_checkpoint(process, tmp_path, LIMIT_S)
        return process

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()


@pytest.fixture
def epochs_seen(monkeypatch):
    """The epochs that are trained in this process."""
    seen = []
    begin = Train.on_train_epoch_start

    def spy(self):
        seen.append(self.current_epoch)
        begin(self)

    monkeypatch.setattr(Train, "on_train_epoch_start", spy)
    return seen


def goes_on(run, tmp_path, epochs_seen):
    """The same command again trains the epochs that are left, and ends as an uninterrupted run does."""
    done = run(*WORDS)
    assert done.code == 0, done.err
    assert 0 < epochs_seen[0] < EPOCHS
    assert epochs_seen == list(range(epochs_seen[0], EPOCHS))
    folder = only(tmp_path / "outputs" / "train")
    whole = run(*WORDS, "output_dir=whole")
    assert epochs_seen[-EPOCHS:] == list(range(EPOCHS))
    assert whole.code == 0
    uninterrupted = only(tmp_path / "whole" / "train")
    assert_frame_equal(scores_of(folder), scores_of(uninterrupted), check_exact=True)
    curve = (folder / "metrics.csv").read_text()
    assert curve == (uninterrupted / "metrics.csv").read_text()
    assert len(curve.splitlines()) == EPOCHS + 1
    stage = only(tmp_path / "outputs" / "stages")
    assert [path.name for path in stage.iterdir() if path.name != ".lock"] == ["weights.ckpt"]  # nothing is left behind


def test_kill_in_the_middle_of_training_then_the_same_command_goes_on(training, run, tmp_path, epochs_seen):
    process = training()
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (only(tmp_path / "outputs" / "train") / "result.json").exists()
    goes_on(run, tmp_path, epochs_seen)


def test_ctrl_c_keeps_the_state_and_says_so_in_a_line(training, run, tmp_path, epochs_seen):
    process = training()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert out == ""
    data, interrupted = err.splitlines()
    assert data.startswith("data ")
    assert interrupted == "interrupted; the same command goes on where this one stopped"
    log = (only(tmp_path / "outputs" / "train") / "log.txt").read_text()
    assert "interrupted" in log
    goes_on(run, tmp_path, epochs_seen)


def test_two_equal_commands_at_once(training, run, tmp_path):
    long = (
        "detector.epochs=100000",
        "detector.min_steps=0",
    )
    process = training(*long)
    second = run(*WORDS, *long)
    assert second.code == 2
    assert "another process is computing outputs/train/breast_cancer-dte_c-" in second.err
    assert "wait for it, or stop it" in second.err
    scoring = run(*WORDS, *long, "detector.score_by=mode")  # another run that needs the same weights
    assert scoring.code == 2
    assert "another process is computing outputs/stages/dtec-" in scoring.err
    assert process.poll() is None  # the first one goes on
    other = run("train", "detector=knn", *QUICK)
    assert other.code == 0


def test_a_broken_checkpoint_is_named(run, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("stopped here")

    with monkeypatch.context() as patch:
        patch.setattr(Train, "on_fit_end", fail, raising=False)
        assert run(*WORDS, "detector.epochs=2", "detector.min_steps=0").code == 1
    state = only(tmp_path / "outputs" / "stages") / "training.ckpt"
    state.write_bytes(state.read_bytes()[:1000])
    broken = run(*WORDS, "detector.epochs=2", "detector.min_steps=0")
    assert broken.code == 2
    assert str(state.relative_to(tmp_path)) in broken.err
    assert "force=true" in broken.err
    assert run(*WORDS, "detector.epochs=2", "detector.min_steps=0", "force=true").code == 0
