"""The picture of a run: written whole, for every kind of result, without pyplot."""

import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure

from outlie.results import plots


def frame(**sets):
    """Rows as in scores.parquet."""
    parts = [
        pl.DataFrame({"split": [name] * len(score), "label": label, "score": score}, strict=False)
        for name, (score, label) in sets.items()
    ]
    return pl.concat(parts)


def sample(seed: int = 0, normal: int = 90, anomalies: int = 30):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(0, 1, normal), rng.normal(3, 1, anomalies)]), np.repeat(
        [0, 1], [normal, anomalies]
    )


RESULT = {
    "detector": "knn",
    "dataset": "csv",
    "protocol": "random",
    "metrics": {"test": {"auroc": 0.9, "f1_at_k": None}},
    "intervals": {"test": {"auroc": [0.8, 0.95]}},
    "threshold": {"value": 2.0, "realised": {"test": {"fpr": 0.0, "recall": 0.8}}},
}


def is_png(path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("log_fpr", [True, False])
def test_one_test_set_with_threshold(tmp_path, log_fpr):
    path = plots.figure(frame(calibration=(np.zeros(5), np.zeros(5, int)), test=sample()), RESULT, tmp_path, log_fpr)
    assert path == tmp_path / "summary.png"
    assert is_png(path)
    assert [p.name for p in tmp_path.iterdir()] == ["summary.png"]


@pytest.mark.parametrize(
    "sets",
    [
        {"near": sample(1), "far": sample(2)},
        {"test": (np.arange(4.0), np.zeros(4, int))},
        {"test": (np.ones(4), np.array([0, 1, 0, 1]))},
        {"test": (np.arange(4.0), [None] * 4)},
        {"test": (np.exp(6 * sample()[0]), sample()[1])},
    ],
    ids=["two sets", "one class", "constant score", "no labels", "heavy tail"],
)
def test_every_kind_of_result(tmp_path, sets):
    bare = {"detector": "knn", "dataset": "csv", "protocol": "dte_semi", "threshold": None}
    assert is_png(plots.figure(frame(**sets), bare, tmp_path))


def test_training_curve_is_found(tmp_path):
    path = tmp_path / "metrics.csv"
    assert plots.training_curve(path) is None
    path.write_text("epoch,train_loss,seconds\n0,2.0,1\n1,,1\n2,nan,1\n3,0.5,1\n")
    x_name, y_name, epoch, loss = plots.training_curve(path)
    assert (x_name, y_name, epoch.tolist(), loss.tolist()) == ("epoch", "train_loss", [0, 3], [2.0, 0.5])
    assert is_png(plots.figure(frame(test=sample()), RESULT, tmp_path))
    path.write_text("epoch,train_loss\n")
    assert plots.training_curve(path) is None
    path.write_text("auroc\n0.9\n")
    assert plots.training_curve(path) is None


def test_the_operating_point_and_the_curve_are_drawn_where_they_are():
    score, label = np.array([1.0, 2, 3, 4]), np.array([0, 1, 0, 1])
    axes = Figure().subplots()
    result = {"threshold": {"realised": {"test": {"fpr": 0.5, "recall": 0.75}}}}
    plots.draw_roc(axes, {"test": (score, label)}, result, log_fpr=False)
    curve, point = axes.lines[:2]
    assert curve.get_xydata().tolist() == [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]]
    assert point.get_xydata().tolist() == [[0.5, 0.75]]


def test_shares_add_up_to_one_for_each_class():
    axes = Figure().subplots()
    plots.draw_scores(axes, {"test": sample()}, RESULT)
    for bars in axes.containers[:2]:
        assert sum(bar.get_height() for bar in bars) == pytest.approx(1)


def test_ood_sets_are_drawn_beside_the_normal_rows():
    scores = frame(
        calibration=(np.arange(3.0), np.zeros(3, int)),
        test=(np.array([0.0, 1, 2]), np.zeros(3, int)),
        svhn=(np.array([3.0, 1.5]), np.ones(2, int)),
        mine=(np.array([7.0]), [None]),
        mixed=(np.array([0.0, 5]), np.array([0, 1])),
    )
    sets = plots.sets_of(scores)
    assert {name: (score.tolist(), label.tolist()) for name, (score, label) in sets.items()} == {
        "mixed": ([0, 5], [0, 1]),
        "svhn": ([0, 1, 2, 3, 1.5], [0, 0, 0, 1, 1]),
    }
    once = {name: score.tolist() for name, (score, _) in plots.each_once(scores).items()}
    assert once == {"test": [0, 1, 2], "svhn": [3, 1.5], "mixed": [0, 5]}  # a histogram counts no row twice
    axes = Figure().subplots()
    plots.draw_roc(axes, sets, {}, log_fpr=False)
    assert [line.get_label() for line in axes.lines] == ["mixed", "svhn", "chance"]
    assert axes.lines[1].get_xydata().tolist() == [[0, 0], [0, 0.5], [1 / 3, 0.5], [1 / 3, 1], [2 / 3, 1], [1, 1]]


def test_a_row_of_unknown_label_is_left_out():
    sets = plots.sets_of(frame(test=(np.arange(4.0), [0, 1, None, 1])))
    assert [part.tolist() for part in sets["test"]] == [[0, 1, 3], [0, 1, 1]]


def test_neither_pyplot_nor_matplotlib_is_imported_by_the_module():
    code = (
        "import outlie.results.plots, outlie.results.summary, outlie.metrics.evaluation, outlie.metrics.conformal, sys"
    )
    code += "; assert not {'matplotlib', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
