"""A classifier's training: interrupted and resumed, with every option, and with snapshots along the way."""

import contextlib
import csv
import signal

import pytest
import torch
from PIL import Image
from polars.testing import assert_frame_equal

from outlie import features, stages
from outlie.lightning import Train

from .conftest import QUICK, only, result_of, scores_of, start, wait_for_checkpoint
from .test_images import DIGITS, WIDTH, newest, weights_of

LIMIT_S = 280
EPOCHS = 20
SLOW = (
    "dataset=digits_ood", "backbone=resnet10/narrow", f"backbone.width={WIDTH}", f"backbone.epochs={EPOCHS}",
    "backbone.ema=0.9", "backbone.mixup=0.2", "backbone.label_smoothing=0.1", "backbone.snapshots=3",
    "detector=msp", "trainer.checkpoint_seconds=0", *QUICK,
)  # fmt: skip


@pytest.fixture
def killed(tmp_path):
    """Start the slow training in a process of its own and end it by a signal, once it has left a checkpoint."""
    started = []

    def kill(sent):
        process = start("train", *SLOW, cwd=tmp_path)
        started.append(process)
        wait_for_checkpoint(process, tmp_path, LIMIT_S)
        process.send_signal(sent)
        process.communicate(timeout=LIMIT_S)
        return process.returncode

    yield kill
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def test_an_interrupted_training_goes_on_and_ends_with_the_weights_of_one_that_was_not(
    killed, run, tmp_path, monkeypatch
):
    seen, begin = [], Train.on_train_epoch_start
    monkeypatch.setattr(Train, "on_train_epoch_start", lambda self: (seen.append(self.current_epoch), begin(self))[1])
    assert killed(signal.SIGKILL) == -signal.SIGKILL
    stage = only(tmp_path / "outputs" / "stages")
    assert not (stage / "weights.ckpt").exists()
    assert not (only(tmp_path / "outputs" / "train") / "result.json").exists()
    assert run("train", *SLOW).code == 0
    assert 0 < seen[0] < EPOCHS
    assert seen == list(range(seen[0], EPOCHS))
    del seen[:]
    assert run("train", *SLOW, "output_dir=whole").code == 0
    assert seen == list(range(EPOCHS))
    uninterrupted = only(tmp_path / "whole" / "stages")
    mine, theirs = weights_of(stage), weights_of(uninterrupted)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert {path.name for path in stage.iterdir()} == {".lock", "weights.ckpt", "snapshots"}
    runs = [only(tmp_path / name / "train") for name in ("outputs", "whole")]
    for file in ("metrics.csv", "collapse.csv"):
        assert (runs[0] / file).read_text() == (runs[1] / file).read_text()
    assert_frame_equal(scores_of(runs[0]), scores_of(runs[1]), check_exact=True)


def test_snapshots_give_the_curve_of_neural_collapse(train, tmp_path, monkeypatch):
    options = ("backbone.snapshots=3", "backbone.ema=0.9", "backbone.mixup=0.2", "backbone.label_smoothing=0.1")
    train(*DIGITS, *options, "detector=msp")
    folder = only(tmp_path / "outputs" / "train")
    with Image.open(folder / "collapse.png") as image:
        image.verify()
    with open(folder / "collapse.csv") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert [row.pop("epoch") for row in rows] == [1, 2, 3]
    assert rows[0] != rows[1]
    classifier = result_of(folder)["classifier"]
    classifier.pop("accuracy")
    assert rows[2] == pytest.approx(classifier, abs=1e-12)  # the last snapshot is the network that is kept
    stage = only(tmp_path / "outputs" / "stages")
    assert [path.name for path in sorted((stage / "snapshots").iterdir())] == [f"{i:05d}.ckpt" for i in (1, 2, 3)]
    monkeypatch.setattr(stages, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(features, "compute", lambda *_, **__: pytest.fail("another forward pass"))
    train(*DIGITS, *options, "detector=energy")  # the snapshots' views were kept too
    assert (newest(tmp_path / "outputs" / "train") / "collapse.csv").read_text() == (
        folder / "collapse.csv"
    ).read_text()
