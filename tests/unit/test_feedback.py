"""What feedback may move: the guarantee is simulated, for audited rows and for what would happen with alarms alone."""

import numpy as np
import polars as pl
import pytest

from outlie.errors import UserError
from outlie.scoring import feedback
from outlie.scoring.alerts import budgets
from outlie.scoring.feedback import recalibrate

RNG = np.random.default_rng(0)
FPR = 0.05


def realised(calibrations) -> float:
    """Mean false-alarm rate of thresholds on uniform scores, where it is 1 - threshold."""
    return float(np.mean([1 - budgets(one, FPR, None).flag.value for one in calibrations]))


def test_audited_rows_keep_the_guarantee_and_narrow_it():
    """n calibration and m audited rows: the mean rate is (n + m + 1 - k) / (n + m + 1), its spread that of both."""
    n, m, sets = 59, 140, 600
    scores, audited = RNG.random((sets, n)), RNG.random((sets, m))
    both = [recalibrate(a, b, m, "extend").calibration for a, b in zip(scores, audited)]
    assert len(both[0]) == 199
    assert realised(both) == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 201 / sets))
    old, new = (np.std([budgets(one, FPR, None).flag.value for one in some]) for some in (scores, both))
    assert new < 0.65 * old  # sqrt(60 / 200) = 0.55


def test_replaced_rows_keep_it_after_a_drift_and_the_old_ones_do_not():
    sets = 2000
    scores = RNG.random((sets, 99)) - 0.03  # rows now score higher than the calibration rows did
    audited = RNG.random((sets, 99))
    assert realised(scores) > 0.07
    replaced = [recalibrate(a, b, 99, "replace").calibration for a, b in zip(scores, audited)]
    assert realised(replaced) == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 101 / sets))


def test_false_alarms_alone_would_move_a_right_threshold_and_therefore_move_none():
    """Why reviewed alarms do not join: they are the highest of 2,000 rows, and the rate would fall to a third."""
    score = RNG.random(99)
    value = budgets(score, FPR, None).flag.value
    seen = RNG.random(2000)
    alarms = seen[seen > value]
    assert realised([np.concatenate([score, alarms])]) < 0.4 * realised([score])
    kept = recalibrate(score, np.empty(0), len(alarms), "extend")
    np.testing.assert_array_equal(kept.calibration, score)
    assert "thresholds stay as they were" in kept.notes[0] and "audit=1" in kept.notes[0]


def test_audited_rows_that_score_otherwise_are_said():
    score = RNG.random(200)
    assert len(recalibrate(score, RNG.random(100), 100, "extend").notes) == 1
    assert "recalibrate=replace" in recalibrate(score, RNG.random(100) + 0.5, 100, "extend").notes[1]
    with pytest.raises(UserError, match="audit=1"):
        recalibrate(score, np.empty(0), 3, "replace")


def write(path, **columns) -> None:
    pl.DataFrame(columns).write_csv(path)


def test_labels_and_audits_in_any_plain_words(tmp_path):
    path = tmp_path / "reviewed.csv"
    write(path, row=[4, 7, 9, 2], label=["1", "normal", None, "0"], audit=["true", None, "1", "0"], note=["x"] * 4)
    found = feedback.read(path, "row", None)
    assert found.frame.columns == ["row", "label", "audit"]
    assert found.frame.rows() == [(4, 1, True), (7, 0, False), (9, None, True), (2, 0, False)]
    assert not found.has_scores and found.reviewed == 3


def test_a_reviewed_output_brings_its_scores(tmp_path):
    path = tmp_path / "reviewed.parquet"
    pl.DataFrame({"row": [0, 1, 2], "score": [0.5, None, 2.0], "verdict": ["pass", None, "flag"], "label": [0, None, 1],
                  "when": ["2026-05-01"] * 3}).write_parquet(path)  # fmt: skip
    found = feedback.read(path, "row", "when")
    assert found.has_scores and found.frame["score"].to_list() == [0.5, 2.0]  # rows without a score calibrate nothing
    assert found.frame["when"].to_list() == ["2026-05-01"] * 2 and not found.frame["audit"].any()


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"id": [1], "label": [1]}, "unknown column 'row'"),
        ({"row": [1], "lable": [1]}, "unknown column 'label' .did you mean 'lable'"),
        ({"row": [1], "label": ["maybe"]}, "column label has 'maybe', allowed: 1, 0 or nothing"),
        ({"row": [1], "label": [2]}, "column label has '2'"),
        ({"row": [1], "label": [None]}, "no row has a label"),
        ({"row": [1, 5, 1], "label": [1, 0, 0]}, r"names 1 rows twice \(1\)"),
        ({"row": ["a"], "label": [1]}, "column row is String, expected the row numbers"),
        ({"row": [1], "label": [1], "audit": ["?!"]}, "column audit has"),
        ({"row": [1], "label": [1], "score": ["high"]}, "column score is String"),
    ],
)
def test_files_that_are_no_feedback(tmp_path, columns, says):
    path = tmp_path / "reviewed.csv"
    write(path, **columns)
    with pytest.raises(UserError, match=says):
        feedback.read(path, "row", None)


def test_an_output_of_images_is_read_by_file_name(tmp_path):
    path = tmp_path / "reviewed.csv"
    write(path, file=["a/1.png", "2"], label=[1, 0])
    assert feedback.read(path, "file", None).frame["file"].to_list() == ["a/1.png", "2"]
