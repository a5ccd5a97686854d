"""From stored scores to a result: with and without a threshold, labels, a second class."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from outlie.metrics.evaluation import Metrics
from outlie.results.evaluated import evaluate_scores

METRICS = Metrics(names=["auroc", "average_precision"], false_alarms=0.1, bootstrap=20)


def scores(name: str = "test", **extra) -> dict:
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], [60, 20])
    return {name: (np.arange(80), label, rng.normal(size=80) + label)} | extra


def calibration(n: int) -> tuple:
    return np.arange(n), np.zeros(n, np.int64), np.linspace(0, 1, n)


def test_without_calibration_rows_there_is_no_threshold():
    one = scores()
    result = evaluate_scores(one, METRICS, 0, ["a lint"])
    _, label, score = one["test"]
    assert result["threshold"] is None
    assert result["metrics"]["test"] == pytest.approx(
        {"auroc": roc_auc_score(label, score), "average_precision": average_precision_score(label, score)}
    )
    assert set(result["intervals"]["test"]) == {"auroc", "average_precision"}
    assert result["counts"]["test"] == {"normal": 60, "anomalies": 20}
    assert result["findings"][0] == "a lint"
    assert result["evaluated_with"] == {"names": METRICS.names, "false_alarms": 0.1, "bootstrap": 20}


def test_the_threshold_is_of_the_calibration_rows_and_told_for_every_test():
    one = scores(calibration=calibration(99), far=(np.arange(2), np.array([0, 1]), np.array([0.0, 5.0])))
    result = evaluate_scores(one, METRICS, 0, [])
    value = result["threshold"]["value"]
    assert value == pytest.approx(np.linspace(0, 1, 99)[89])  # the ceil(100 * 0.9) = 90th smallest
    assert "calibration" not in result["metrics"]
    assert set(result["threshold"]["realised"]) == {"test", "far"}
    _, label, score = one["test"]
    realised = result["threshold"]["realised"]["test"]
    assert realised["fpr"] == np.mean(score[label == 0] > value)
    assert realised["recall"] == np.mean(score[label == 1] > value)
    assert result["threshold"]["realised"]["far"]["fpr"] == 0 and result["threshold"]["realised"]["far"]["recall"] == 1
    assert not any("calibration rows" in finding for finding in result["findings"])


def test_too_few_calibration_rows_are_a_finding():
    result = evaluate_scores(scores(calibration=calibration(5)), METRICS, 0, [])
    assert result["threshold"]["value"] == 1.0  # the highest there is
    assert any("5 calibration rows cannot guarantee 10 %" in finding for finding in result["findings"])


def test_rows_without_labels_are_counted_and_named():
    one = scores(mine=(np.arange(3), None, np.array([1.0, 2.0, 3.0])), calibration=calibration(99))
    result = evaluate_scores(one, METRICS, 0, [])
    assert result["counts"]["mine"] == {"rows": 3}
    assert result["metrics"]["mine"] == {} and result["intervals"]["mine"] == {}
    assert "mine" not in result["threshold"]["realised"]
    assert "mine has no labels: scores only, no metrics" in result["findings"]
    assert result["metrics"]["test"]["auroc"] > 0.5


@pytest.mark.parametrize(("value", "missing", "there"), [(0, "recall", "fpr"), (1, "fpr", "recall")])
def test_one_class_only_has_no_metrics_but_a_realised_rate(value, missing, there):
    one = {"test": (np.arange(4), np.full(4, value), np.array([0.0, 0.5, 0.95, 2.0])), "calibration": calibration(99)}
    result = evaluate_scores(one, METRICS, 0, [])
    assert result["metrics"]["test"] == {"auroc": None, "average_precision": None}
    assert any(finding.startswith("test: metrics are undefined") for finding in result["findings"])
    realised = result["threshold"]["realised"]["test"]
    assert realised[missing] is None and realised[there] == 0.5


def test_the_same_seed_gives_the_same_intervals():
    first, again, other = (evaluate_scores(scores(), METRICS, seed, [])["intervals"] for seed in (0, 0, 1))
    assert first == again != other
