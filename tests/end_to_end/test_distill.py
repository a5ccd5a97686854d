"""`run distill teacher=RUN`: a student is a run like any other, and what cannot be taught is refused."""

import contextlib
import json
import shutil

import pytest
import torch

from outlie.cli import main
from outlie.results.checkpoint import load_state

from .conftest import QUICK, only, result_of
from .test_images import DIGITS, NECO

FEW = "dataset.train_rows=60"
GDD = ("distiller=gdd", "distiller.locations=[layer2]")
STUDENT = (
    "backbone=resnet10",
    "backbone.width=4",
    "backbone.epochs=2",
    "backbone.batch_size=32",
    "backbone.augment=none",
)
SCORES = ("distiller=scores", "distiller.corrupted=200", "distiller.held_out_rows=50", "detector.steps=20")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """A folder with two finished runs: a classifier with NECO on digits, DDPM on a table."""
    folder = tmp_path_factory.mktemp("taught")
    with contextlib.chdir(folder):
        assert main(["train", *QUICK, *NECO, FEW]) == 0
        assert main(["train", *QUICK, "detector.min_steps=20", "detector.epochs=1"]) == 0
    return folder / "outputs"


@pytest.fixture
def outputs(teachers, tmp_path):
    """The finished runs, in this test's folder."""
    shutil.copytree(teachers, tmp_path / "outputs")
    return tmp_path / "outputs"


@pytest.fixture
def distill(run, outputs):
    """`distill("digits", ...)` of the finished run whose name starts so."""
    return lambda teacher, *words: run("distill", f"teacher={teacher}", *QUICK, *words)


def student_of(outputs):
    return only(outputs / "distill")


def test_a_smaller_network_is_a_run_like_any_other(distill, run, outputs):
    done = distill("digits", *STUDENT, *GDD)
    assert done.code == 0, done.err
    folder = student_of(outputs)
    result = result_of(folder)
    told = result["distillation"]
    assert told["teacher_run"].startswith("digits_ood-neco") and told["distiller"] == "gdd"
    assert told["student"]["parameters"] < told["teacher"]["parameters"]
    assert told["parts"]["gdd_0"] > 0 and told["parts"]["objective"] > 0 and told["signal_to_noise"] > 0
    assert "Student and teacher" in done.out and "layer2 (8, 4, 4) -> layer2 (16, 4, 4)" in done.err
    saved = load_state(folder / "model.ckpt")["backbone"]
    assert saved["conv1.weight"].shape[0] == 4
    assert not [name for name in saved if "distiller" in name or "teacher" in name or "aligns" in name]
    again = run("eval", f"run={folder.name}", *QUICK)
    assert again.code == 0, again.err
    (evaluated,) = (outputs / "eval").iterdir()
    assert result_of(evaluated)["metrics"] == result["metrics"]
    assert run("show", str(folder)).code == 0


def test_the_same_command_finds_it_and_another_distiller_does_not(distill, outputs):
    assert distill("digits", *STUDENT, "distiller=hinton").code == 0
    before = result_of(student_of(outputs))["finished"]
    again = distill("digits", *STUDENT, "distiller=hinton")
    assert again.code == 0 and "done already" in again.err
    assert result_of(student_of(outputs))["finished"] == before
    assert distill("digits", *STUDENT, "distiller=hinton", "distiller.temperature=2").code == 0
    assert len(list((outputs / "distill").iterdir())) == 2


def test_a_dry_run_tells_the_plan(distill, outputs):
    done = distill("digits", *STUDENT, *GDD, "dry_run=true")
    assert done.code == 0 and "distil the backbone" in done.out
    assert not (outputs / "distill").exists()


def test_the_weight_is_measured_once(distill, outputs):
    done = distill("digits", *STUDENT, *GDD, "distiller.calibrate=1")
    assert done.code == 0 and "the weight is measured" in done.err
    (path,) = outputs.glob("stages/*-weight/weight.json")
    known = json.loads(path.read_text())
    assert known["weight"] == pytest.approx(145 * known["own_loss"] / known["part"])
    assert result_of(student_of(outputs))["distillation"]["weight"] == pytest.approx(known["weight"])
    other = distill("digits", *STUDENT, *GDD, "distiller.calibrate=1", "detector=msp")  # the same student
    assert other.code == 0 and "the weight is measured" not in other.err


def test_a_slow_score_becomes_one_pass(distill, run, outputs):
    done = distill("breast", *SCORES)
    assert done.code == 0, done.err
    folder = student_of(outputs)
    told = result_of(folder)["distillation"]
    assert set(told["spearman"]) == {"held_out", "test/normal", "test/anomalies"}
    assert told["reliability"] == told["ceiling"] == 1.0  # a deterministic teacher
    assert told["cascade"][0]["asked"] == 0 and told["cascade"][-1]["asked"] > 0.5
    assert told["agreement"]["test"]["rows_ood"] == 212
    (lessons,) = outputs.glob("stages/lessons-*/lessons.pt")
    made = lessons.stat().st_mtime_ns
    assert distill("breast", *SCORES, "detector.width=16").code == 0  # another student, the same lessons
    assert lessons.stat().st_mtime_ns == made
    again = run("eval", f"run={folder.name}", *QUICK)
    assert again.code == 0, again.err


def test_the_score_can_be_told_by_rank(distill, outputs):
    assert distill("breast", *SCORES, "detector.family=score").code == 0
    saved = load_state(student_of(outputs) / "model.ckpt")["detector"]
    assert not saved["rebuilds"] and len(saved["quantiles"]) == 1025


@pytest.mark.parametrize(
    ("teacher", "words", "message"),
    [
        ("digits", ("distiller=gdd",), "choose a smaller network"),
        ("digits", (*STUDENT, "distiller=gdd", "distiller.locations=[layer7]"), "did you mean 'layer"),
        ("digits", (*STUDENT, "distiller=gdd"), "one position"),
        ("digits", (*STUDENT, "distiller=nonsense"), "unknown distiller 'nonsense'"),
        ("digits", (*STUDENT, *GDD, "distiller.sigme=2"), "did you mean 'distiller.sigma'"),
        ("digits", (*STUDENT, *GDD, "distiller.place=inside", "distiller.gen_layers=1"), "needs a ReLU inside G"),
        ("digits", (*STUDENT, *GDD, "dataset.held_out=[7,8,9]"), "classes"),
        ("digits", (*STUDENT, *GDD, "dataset.size=16"), "takes rows of shape"),
        ("digits", ("distiller=scores", "backbone=resnet10"), "backbone=pixels"),
        ("breast", ("distiller=gdd", "seed=1"), "distiller=scores"),
        ("breast", ("distiller=scores", "distiller.auxiliary=mnist"), "rows of a table"),
        ("breast", ("distiller=scores", "distiller.held_out=[blur]"), "for images"),
        ("breast", ("distiller=scores", "detector=knn"), "score_student"),
        ("nothing", (), "unknown run 'nothing'"),
    ],
)
def test_what_cannot_be_taught_is_refused(teacher, words, message, refused, outputs):
    assert message in refused("distill", f"teacher={teacher}", *words)


def test_train_takes_no_distiller_and_no_student_without_a_teacher(refused, outputs):
    assert "run distill teacher=RUN" in refused("train", "distiller=gdd")
    assert "run distill teacher=RUN" in refused("train", "detector=score_student")
    assert "teacher is missing" in refused("distill")


def test_a_teacher_that_is_not_finished_or_has_lost_its_weights(refused, outputs):
    (digits,) = outputs.glob("train/digits*")
    (digits / "model.ckpt").rename(digits / "gone")
    assert "has no model.ckpt" in refused("distill", f"teacher={digits.name}", *STUDENT)
    (digits / "result.json").unlink()
    assert "is not a finished run" in refused("distill", f"teacher={digits.name}", *STUDENT)


def test_rows_that_the_teacher_may_have_learnt_are_told(distill, outputs):
    assert distill("breast", *SCORES, "seed=1").code == 0  # another split: what was trained on is tested on
    (finding,) = [one for one in result_of(student_of(outputs))["findings"] if "teacher" in one]
    assert "normal rows of test were no test rows of teacher breast_cancer-diffusion" in finding


def test_another_seed_keeps_the_teachers_weights_out_of_the_student(distill, outputs):
    assert distill("digits", *DIGITS[1:], "distiller=hinton", "seed=1").code == 0  # its own size, another start
    (digits,) = outputs.glob("train/digits*")
    taught = load_state(student_of(outputs) / "model.ckpt")["backbone"]["conv1.weight"]
    assert not torch.equal(taught, load_state(digits / "model.ckpt")["backbone"]["conv1.weight"])
