"""`run probe run=RUN`: probes on a tiny denoiser, found again, refused where there is nothing to probe."""

import contextlib
import csv
import json
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from outlie.cli import main
from outlie.commands import probe as command
from outlie.commands import sample as sampling
from outlie.data.sklearn_tables import SklearnTable
from outlie.errors import UserError

from .conftest import QUICK, only, result_of

UNET = (
    "dataset=digits_ood", "backbone=unet", "backbone.base=8", "backbone.multipliers=[1,2]", "backbone.depth=1",
    "backbone.attention=[1]", "backbone.images=640", "backbone.batch_size=64", "backbone.lr=2e-3",
    "backbone.warmup_images=0", "backbone.ema=0", "detector=knn",
)  # fmt: skip
FEW = ("rows=120", "test_rows=60", "log_snr=[9.21,5]", "min_steps=300", "draws=1", "trainer.threads=1")
FILES = {"config.yaml", "result.json", "grid.csv", "probe.png", "log.txt"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished run on a tiny U-Net, and the probes on it."""
    folder = tmp_path_factory.mktemp("probed")
    with contextlib.chdir(folder):
        assert main(["train", *QUICK, *UNET]) == 0
        assert main(["probe", f"run={only(folder / 'outputs' / 'train').name}", *FEW]) == 0
    return folder / "outputs"


@pytest.fixture
def probe(run, outputs):
    """`probe(...)` of the finished run, in an empty folder with its outputs."""
    return lambda *words: run("probe", f"run={outputs.name}", *FEW, *words)


def test_what_is_stored(outputs, tmp_path):
    folder = only(tmp_path / "outputs" / "probe")
    assert {path.name for path in folder.iterdir() if path.name != ".lock"} == FILES
    result = result_of(folder)
    assert (result["status"], result["dataset"], result["backbone"]) == ("done", "digits_ood", "unet")
    assert result["run"] == f"outputs/train/{outputs.name}"
    assert result["rows"] == {"train": 108, "held_out": 12, "test": 60, "contrast": 120}
    assert result["cost"]["nfe"] == 2 * (120 + 120 + 108 + 60)  # plain twice, mirrored, test; two levels
    with open(folder / "grid.csv") as file:
        lines = list(csv.DictReader(file))
    assert [(line["block"], line["t"]) for line in lines] == [(f"out_{i}", t) for i in range(1, 5) for t in ("1", "22")]
    assert [line["width"] for line in lines] == ["16"] * 4 + ["8"] * 4
    held_out = [float(line["held_out_accuracy"]) for line in lines]
    chosen = lines[held_out.index(max(held_out))]
    assert result["chosen"] == {
        "block": chosen["block"], "log_snr": float(chosen["log_snr"]), "t": int(chosen["t"]),
    }  # fmt: skip
    assert result["accuracy"] == float(chosen["test_accuracy"])
    assert result["accuracy_test_selected"] == max(float(line["test_accuracy"]) for line in lines)
    assert result["accuracy_test_selected"] > 0.3  # of eight classes
    assert max(float(line["train_accuracy"]) for line in lines) > 0.5
    for line in lines:
        assert 0 < float(line["alignment"]) < 4
        assert -4 <= float(line["uniformity"]) < 0
    blocks = [float(line["alignment"]) for line in lines]
    assert all(more > less for less, more in zip(blocks[::2], blocks[1::2]))  # more noise sets pairs further apart


def test_found_again_and_started_again(probe, outputs, tmp_path):
    folder = only(tmp_path / "outputs" / "probe")
    before = result_of(folder)
    again = probe()
    assert "done already" in again.err
    assert f"accuracy on 60 test images {100 * before['accuracy']:.2f} %" in again.out
    assert before["use"] in again.out
    planned = probe("dry_run=true")
    assert "done already: outputs/probe" in planned.out
    assert "features of all blocks" in probe("dry_run=true", "draws=2").out
    forced = probe("force=true")
    assert "done already" not in forced.err
    assert result_of(folder)["grid"] == before["grid"]  # every draw is the seed's
    stored = folder / "config.yaml"
    stored.write_text(stored.read_text().replace("force: true", "force: false"))
    assert main(["probe", "--config", str(stored)]) == 0
    assert only(tmp_path / "outputs" / "probe") == folder


def test_the_features_that_were_chosen_are_those_of_the_next_run(run, outputs, tmp_path):
    told = result_of(only(tmp_path / "outputs" / "probe"))
    words = shlex.split(told["use"])[1:]
    stages = {path.name for path in (tmp_path / "outputs" / "stages").iterdir()}
    assert run(*words).code == 0
    assert {path.name for path in (tmp_path / "outputs" / "stages").iterdir()} == stages  # nothing was trained
    configs = [path.read_text() for path in (tmp_path / "outputs" / "train").glob("*/config.yaml")]
    assert sum(f"- {told['chosen']['block']}\n" in text for text in configs) == 1


def test_as_published(probe, tmp_path):
    done = probe("augment=crop_flip", "epochs=2", "blocks=[out_2]", "log_snr=[6]")
    assert done.code == 0, done.err
    (folder,) = (p for p in (tmp_path / "outputs" / "probe").iterdir() if len(result_of(p)["grid"]) == 1)
    result = result_of(folder)
    assert result["cost"]["nfe"] == 120 + 120 + 60 + 2 * 108
    assert len(result["losses"]) == 2
    assert result["chosen"] == {"block": "out_2", "log_snr": 6.0, "t": 12}
    assert result["accuracy"] == result["accuracy_test_selected"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("blocks=[out_9]", "unknown block 'out_9'"),
        ("log_snr=[20]", "log_snr = 20.0: t = 1 to 1000 reach"),
        ("log_snr=[loud]", "expected a list, each item a number"),
        ("augment=flip", "expected"),
        ("rows=9", "has one image"),
        ("backbone.base=16", "backbone.base would need another training"),
        ("dataset=fashion_ood", "keep its dataset"),
        ("held_out=1", "between 0 and 1"),
        ("sigma=3", "unknown group or key 'sigma'"),
    ],
)
def test_refused(word, said, refused, outputs):
    assert said in refused("probe", f"run={outputs.name}", word)


def test_a_run_without_a_denoiser(train, refused, tmp_path):
    train("detector=knn")
    message = refused("probe", f"run={only(tmp_path / 'outputs' / 'train').name}")
    assert "run probe needs a denoiser" in message
    assert "backbone=unet" in message


def test_the_class_is_read_from_noisy_images(probe, tmp_path):
    assert probe("noisy=true", "epochs=2", "blocks=[out_2]").code == 0
    (folder,) = [path.parent for path in (tmp_path / "outputs" / "probe").glob("*/noisy.png")]
    assert result_of(folder)["noisy"]["train_rows"] == 120
    with open(folder / "noisy.csv") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["t"]) for line in lines] == list(range(1, 1000, 50))


def test_samples(run, outputs, refused, tmp_path):
    words = ("sample", f"run={outputs.name}", "n=20", "steps=5", "trainer.threads=1")
    assert run(*words).code == 0
    folder = only(tmp_path / "outputs" / "sample")
    assert {"samples.png", "samples.npz", "result.json"} <= {path.name for path in folder.iterdir()}
    result = result_of(folder)
    assert result["cost"]["nfe"] == 5 and result["rows"] == {"samples": 20, "real": 20}
    assert result["metrics"]["frechet_ddae"] > result["metrics"]["frechet_ddae_real_to_real"] > 0
    with np.load(folder / "samples.npz") as file:
        assert file["x"].shape == (20, 1, 8, 8) and file["x"].dtype == np.uint8
    assert "done already" in run(*words).err
    assert "no such file" in refused("sample", f"run={outputs.name}", "n=2", "steps=2", "inception=nowhere.pth")
    assert "steps" in refused("sample", f"run={outputs.name}", "steps=2000")


def test_fid_is_that_of_torchmetrics_with_the_weights_given(monkeypatch, tmp_path):
    class Stub:
        def __init__(self, feature_extractor_weights_path):
            self.path, self.seen = feature_extractor_weights_path, {True: [], False: []}

        def to(self, device):
            return self

        def update(self, images, real):
            self.seen[real].append(images)

        def compute(self):
            assert [tuple(torch.cat(self.seen[kind]).shape) for kind in (True, False)] == [(70, 3, 8, 8), (80, 3, 8, 8)]
            return torch.tensor(12.5)

    (tmp_path / "w.pth").touch()
    monkeypatch.setattr("torchmetrics.image.fid.FrechetInceptionDistance", Stub)
    x = torch.zeros(80, 1, 8, 8, dtype=torch.uint8)
    assert sampling.fid(x, x[:70], tmp_path / "w.pth", torch.device("cpu")) == 12.5


def test_a_run_that_is_not_finished(refused, outputs):
    (outputs / "result.json").write_text(json.dumps({"schema": 1, "status": "failed"}))
    assert "is not a finished run" in refused("probe", f"run={outputs.name}")
    shutil.rmtree(outputs)
    assert "unknown run" in refused("probe", f"run={outputs.name}")


def test_rows_without_classes():
    split = SklearnTable("wine").load(0)
    with pytest.raises(UserError, match="dataset wine has no class labels"):
        command.refuse_unlabelled(split, "wine")
    labelled = replace(split, train=replace(split.train, y=split.train.label))
    with pytest.raises(UserError, match="no class labels"):
        command.refuse_unlabelled(labelled, "wine")
