"""A student's scores beside its teacher's: correlations, paired intervals, and the whole of it on two small runs."""

import contextlib
import csv
import io
import json

import numpy as np
import pytest
import yaml
from rich.console import Console
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from outlie import cell
from outlie.cli import main
from outlie.results import agreement

DIGITS = (
    "dataset=digits_ood", "backbone=resnet10/narrow", "backbone.batch_size=32", "backbone.augment=none",
    "backbone.epochs=1", "dataset.train_rows=200", "detector=msp",
)  # fmt: skip
QUICK = ("trainer.threads=1", "metrics=fast", "metrics.bootstrap=50")


def scores(seed: int, noise: float, n: int = 80) -> dict:
    """Scores of an ID set and of two OOD sets; two calls differ by noise."""
    rng, own = np.random.default_rng(0), np.random.default_rng(seed)
    found = {}
    for name, label, level, size in (("test", 0, 0, n), ("near", 1, 0.7, n // 2), ("far", 1, 2, n // 4)):
        score = rng.normal(level, 1, size).round(1) + noise * own.normal(size=size)
        found[name] = (np.arange(size), np.full(size, label), score)
    return found | {"calibration": (np.arange(9), np.zeros(9, int), rng.normal(size=9))}


def test_each_number_is_scipys_and_scikit_learns():
    student, teacher = scores(1, 0.8), scores(2, 0.0)  # the teacher's have ties
    found = agreement.agreement(student, teacher, 0, 0)
    assert set(found) == {"near", "far"}
    for name, line in found.items():
        label = np.repeat([0, 1], [80, len(student[name][2])])
        both = [np.concatenate([one["test"][2], one[name][2]]) for one in (student, teacher)]
        aurocs = [roc_auc_score(label, score) for score in both]
        assert line["spearman_id"] == pytest.approx(spearmanr(student["test"][2], teacher["test"][2])[0])
        assert line["spearman_ood"] == pytest.approx(spearmanr(student[name][2], teacher[name][2])[0])
        assert [line["auroc_student"], line["auroc_teacher"]] == pytest.approx(aurocs)
        assert line["delta_auroc"] == pytest.approx(aurocs[0] - aurocs[1])
        assert (line["rows_id"], line["rows_ood"], line["delta_low"]) == (80, len(student[name][2]), None)


def test_rows_meet_by_their_index_not_by_their_place():
    student, teacher = scores(1, 0.5), scores(2, 0.5)
    expected = agreement.agreement(student, teacher, 0, 0)
    order = np.random.default_rng(3).permutation(80)
    shuffled = teacher | {"test": tuple(column[order] for column in teacher["test"])}
    assert agreement.agreement(student, shuffled, 0, 0) == expected
    more = (np.arange(100, 120), np.ones(20, int), np.full(20, 9.0))  # rows that the student did not score
    beside = teacher | {"far": tuple(np.concatenate(pair) for pair in zip(more, teacher["far"]))}
    assert agreement.agreement(student, beside, 0, 0) == expected


def test_a_set_of_both_classes_and_one_without_labels():
    label = np.tile([0, 1], 20)
    score = np.random.default_rng(0).normal(size=40) + label
    mixed = {"test": (np.arange(40), label, score), "new": (np.arange(5), None, np.zeros(5))}
    found = agreement.agreement(mixed, mixed, 20, 0)
    assert set(found) == {"test"}
    line = found["test"]
    assert (line["spearman_id"], line["spearman_ood"], line["delta_auroc"]) == (pytest.approx(1), pytest.approx(1), 0)
    assert (line["delta_low"], line["delta_high"]) == (0, 0)  # paired: equals never differ


def test_a_constant_score_has_no_correlation():
    assert agreement.spearman(np.ones(5), np.arange(5.0)) is None
    assert agreement.spearman(np.ones(1), np.ones(1)) is None
    assert agreement.spearman(np.arange(5.0), -np.arange(5.0)) == pytest.approx(-1)


def test_differences_are_of_the_same_rows_drawn():
    """Against a loop that draws rows of each class and counts, in both scores, the pairs in order."""
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], [60, 30])
    teacher = rng.normal(size=90) + label
    student = teacher + 0.3 * rng.normal(size=90)
    ours = agreement.paired_differences(label, student, teacher, 2000, 0)
    loop = []
    for _ in range(2000):
        normal, anomalous = rng.integers(0, 60, 60), rng.integers(60, 90, 30)
        above = [(score[anomalous, None] > score[normal]).mean() for score in (student, teacher)]  # no ties here
        loop.append(above[0] - above[1])
    assert ours.std() == pytest.approx(np.std(loop), rel=0.08)
    assert ours.mean() == pytest.approx(np.mean(loop), abs=3 * np.std(loop) / 40)
    alone = [agreement.bootstrap.resample(s, label, ["auroc"], 2000, rng)["auroc"] for s in (student, teacher)]
    assert ours.std() < 0.5 * (alone[0] - alone[1]).std()  # unpaired ones would be far wider


def rendered(found: dict, lacking: tuple[str, ...] = ()) -> str:
    out = io.StringIO()
    agreement.render(found, "outputs/train/teacher", lacking, Console(file=out, width=200, highlight=False))  # pyright: ignore[reportArgumentType]
    return out.getvalue()


def test_the_table_has_the_smallest_loss_first_and_names_what_is_missing():
    good, bad = agreement.agreement(scores(1, 0.1), scores(2, 0.0), 30, 0), agreement.agreement(scores(1, 5.0), scores(2, 0.0), 30, 0)  # fmt: skip  # noqa: E501
    said = rendered({"vim": bad, "msp": good}, ("gram",))
    lines = [line.split() for line in said.splitlines()]
    first = next(i for i, line in enumerate(lines) if line[:1] == ["msp"])
    assert first < next(i for i, line in enumerate(lines) if line[:1] == ["vim"])
    assert lines[first][1:5] == [
        f"{good['near']['spearman_id']:.3f}", f"{good['near']['spearman_ood']:.3f}",
        f"{100 * good['near']['auroc_student']:.2f}", f"{100 * good['near']['auroc_teacher']:.2f}",
    ]  # fmt: skip
    assert f"({100 * good['far']['delta_low']:+.2f} to {100 * good['far']['delta_high']:+.2f})" in said
    assert "without the teacher's score: gram" in said and "None" not in said and "nan" not in said


def test_many_sets_are_one_mean():
    found = agreement.agreement(scores(1, 0.5), scores(2, 0.0), 20, 0)
    three = found | {"third": found["near"] | {"spearman_ood": None, "delta_auroc": 0.5}}
    said = rendered({"msp": three})
    assert "mean of 3 sets" in said and "agreement.csv has each set" in said
    expected = (found["near"]["delta_auroc"] + found["far"]["delta_auroc"] + 0.5) / 3
    assert agreement.mean(three, "delta_auroc") == pytest.approx(expected)
    assert f"{100 * expected:+.2f}" in said


@pytest.mark.parametrize(
    "found",
    [
        {"msp": agreement.agreement(scores(1, 0.5), scores(2, 0.0), 20, 0)},
        {"msp": agreement.agreement(scores(1, 0.5), scores(2, 0.0), 0, 0), "vim": {}},
        {"msp": {"test": dict.fromkeys(agreement.COLUMNS)}},
        {},
    ],
    ids=["whole", "no intervals", "one class", "nothing"],
)
def test_everything_is_shown_drawn_and_written(found, tmp_path, recwarn):
    rendered(found)
    agreement.draw(found, tmp_path / "agreement.png")
    agreement.write(tmp_path / "agreement.csv", found)
    assert (tmp_path / "agreement.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with open(tmp_path / "agreement.csv") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(len(sets) for sets in found.values())
    assert not [str(w.message) for w in recwarn if issubclass(w.category, UserWarning)]


# two small runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder where a student (of half the width, another seed) says that the other run was its teacher."""
    folder = tmp_path_factory.mktemp("taught")
    with contextlib.chdir(folder):
        for width, seed in ((8, 0), (4, 1)):
            assert main(["train", *QUICK, *DIGITS, f"backbone.width={width}", f"seed={seed}"]) == 0
    found = sorted((folder / "outputs" / "train").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    teacher, student = (path.name for path in found if not path.name.startswith("."))
    path = folder / "outputs" / "train" / student / "config.yaml"
    stored = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(stored | {"teacher": f"outputs/train/{teacher}"}))
    return folder, teacher, student


def lines_of(folder, run):
    (place,) = (folder / "outputs" / "eval").glob(f"{run}-detectors-*")
    with open(place / "agreement.csv") as file:
        return place, list(csv.DictReader(file))


def evaluate(run: str, *words: str) -> int:
    return main(["eval", f"run={run}", *QUICK, *words])


def test_an_evaluation_of_the_student_scores_the_teacher_too(runs, monkeypatch, capsys):
    import polars as pl

    folder, teacher, student = runs
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    assert evaluate(teacher, "detectors=[msp]") == 0
    (own,) = (folder / "outputs" / "eval").glob(f"{teacher}-detectors-*")
    (msp,) = own.glob("msp-*")
    then = (msp / "result.json").stat().st_mtime_ns
    assert not (own / "agreement.csv").exists()
    capsys.readouterr()
    assert evaluate(student, "detectors=[msp,energy]") == 0
    assert "Agreement with the teacher" in capsys.readouterr().out
    assert (msp / "result.json").stat().st_mtime_ns == then  # found, not computed again
    assert list(own.glob("energy-*/scores.parquet"))  # computed, where `run eval run=TEACHER` finds it
    place, lines = lines_of(folder, student)
    assert {line["detector"] for line in lines} == {"msp", "energy"}
    tables = [pl.read_parquet(next(one.glob("energy-*")) / "scores.parquet") for one in (place, own)]
    both = tables[0].join(tables[1], on=["split", "index", "label"]).filter(pl.col("split") != "calibration")
    line = next(line for line in lines if line["detector"] == "energy")
    for column, kind in (("spearman_id", 0), ("spearman_ood", 1)):
        rows = both.filter(pl.col("label") == kind)
        expected = spearmanr(rows["score"], rows["score_right"])[0]
        assert float(line[column]) == pytest.approx(expected)
        assert int(line["rows_id" if kind == 0 else "rows_ood"]) == len(rows)
    for column, name in (("auroc_student", "score"), ("auroc_teacher", "score_right")):
        assert float(line[column]) == pytest.approx(roc_auc_score(both["label"], both[name]))
    assert float(line["delta_low"]) <= float(line["delta_auroc"]) <= float(line["delta_high"])
    stored = json.loads((next(place.glob("energy-*")) / "result.json").read_text())["agreement"]
    assert stored["teacher"] == f"outputs/train/{teacher}"
    assert stored["sets"]["held_out"]["auroc_student"] == float(line["auroc_student"])
    assert (place / "agreement.png").stat().st_size > 5_000

    monkeypatch.setattr(cell, "load", lambda *_: pytest.fail("loaded the data again"))
    before = (place / "agreement.csv").read_text()
    assert evaluate(student, "detectors=[msp,energy]") == 0  # all is found
    assert (place / "agreement.csv").read_text() == before
    assert evaluate(teacher, "detectors=[energy]") == 0


def test_a_teacher_that_is_gone_leaves_the_comparison_whole(runs, monkeypatch, capsys):
    folder, _, student = runs
    monkeypatch.chdir(folder)
    path = folder / "outputs" / "train" / student / "config.yaml"
    text = path.read_text()
    path.write_text(yaml.safe_dump(yaml.safe_load(text) | {"teacher": "outputs/train/gone-0123456789"}))
    try:
        assert evaluate(student, "detectors=[msp]") == 0
    finally:
        path.write_text(text)
    done = capsys.readouterr()
    assert "no agreement with the teacher outputs/train/gone-0123456789: unknown run" in done.err
    assert "1 detectors on digits_ood" in done.out


def test_a_dry_run_names_the_teacher(runs, monkeypatch, capsys):
    folder, teacher, student = runs
    monkeypatch.chdir(folder)
    assert evaluate(student, "detectors=[msp]", "dry_run=true") == 0
    assert f"the same of its teacher outputs/train/{teacher}" in capsys.readouterr().out
