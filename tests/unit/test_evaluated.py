"""From stored scores to a result: with and without a threshold, labels, a second class."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from outlie.metrics.evaluation import Metrics
from outlie.results.evaluated import beside_id, evaluate_scores, mean_of

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


# out-of-distribution sets, each row stored once


def ood_scores() -> dict:
    rng = np.random.default_rng(0)
    return {
        "calibration": calibration(99),
        "test": (np.arange(60), np.zeros(60, np.int64), rng.normal(size=60)),
        "svhn": (np.arange(20), np.ones(20, np.int64), rng.normal(2, 1, 20)),
        "noise": (np.arange(7), np.ones(7, np.int64), rng.normal(1, 1, 7)),
    }


def test_every_ood_set_is_measured_beside_the_same_normal_rows():
    one = ood_scores()
    result = evaluate_scores(one, METRICS, 0, [])
    assert set(result["metrics"]) == {"svhn", "noise"} == set(result["counts"]) == set(result["threshold"]["realised"])
    for name, n in (("svhn", 20), ("noise", 7)):
        label, score = np.repeat([0, 1], [60, n]), np.concatenate([one["test"][2], one[name][2]])
        assert result["counts"][name] == {"normal": 60, "anomalies": n}
        assert result["metrics"][name]["auroc"] == pytest.approx(roc_auc_score(label, score))
        assert result["metrics"][name]["average_precision"] == pytest.approx(average_precision_score(label, score))
        realised, value = result["threshold"]["realised"][name], result["threshold"]["value"]
        assert realised["fpr"] == np.mean(one["test"][2] > value)
        assert realised["recall"] == np.mean(one[name][2] > value)
    assert len(one["test"][2]) == 60 and len(one["svhn"][2]) == 20  # what is stored is left as it was
    assert "means" not in result


def pair(*labels: int | None) -> tuple:
    known = [label for label in labels if label is not None]
    return (np.array(known) if known else None, np.arange(len(labels), dtype=float))


@pytest.mark.parametrize(
    "alone",
    [
        {"test": pair(0, 0)},
        {"test": pair(0, 1)},
        {"test": pair(None, None), "far": pair(1, 1)},
        {"far": pair(1, 1), "near": pair(1)},
        {"test": pair(0, 1), "far": pair(1, 1)},  # a test set with both classes is nobody's other half
        {"test": pair(0, 0), "mixed": pair(0, 1)},
        {"test": pair(0, 0), "normal": pair(0, 0), "mine": pair(None)},
    ],
    ids=str,
)
def test_nothing_is_put_together_where_no_set_needs_it(alone):
    assert beside_id(alone) is alone


def test_sets_that_are_complete_or_unlabelled_stay_as_they_are():
    tests = {"mine": pair(None, None), "far": pair(1, 1, 1), "test": pair(0, 0), "mixed": pair(0, 1, 1)}
    found = beside_id(tests)
    assert set(found) == {"mine", "mixed", "far"}
    assert found["mine"] is tests["mine"] and found["mixed"] is tests["mixed"]
    label, score = found["far"]
    assert label.tolist() == [0, 0, 1, 1, 1] and score.tolist() == [0, 1, 0, 1, 2]


def test_the_sets_of_a_protocol_have_an_unweighted_mean():
    protocols = {"svhn": "ood_far", "noise": "ood_far", "cifar": "ood_near"}
    one = ood_scores() | {"cifar": (np.arange(3), np.ones(3, np.int64), np.array([0.0, 0.5, 1.0]))}
    result = evaluate_scores(one, METRICS, 0, [], protocols)
    assert list(result["means"]) == ["ood_far", "ood_near"]
    assert result["means"]["ood_near"] == result["metrics"]["cifar"]
    for name in METRICS.names:
        far = [result["metrics"][test][name] for test in ("svhn", "noise")]
        assert result["means"]["ood_far"][name] == pytest.approx((far[0] + far[1]) / 2)  # 20 and 7 rows count alike


def test_a_mean_that_lacks_a_set_is_none():
    assert mean_of([{"auroc": 0.5, "f1": 1.0}, {"auroc": 1.0, "f1": None}]) == {"auroc": 0.75, "f1": None}
    assert mean_of([{"auroc": 0.5}, {}]) == {"auroc": None}
    assert mean_of([]) == {}
