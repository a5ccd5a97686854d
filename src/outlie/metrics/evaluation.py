"""Scores and labels of one test set to metrics with intervals, ready for result.json."""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from outlie.metrics import bootstrap, ranking
from outlie.options import Fraction, NonNegativeInt, PositiveFloat

MetricName = Literal[
    "auroc",
    "average_precision",
    "average_precision_id_positive",
    "aupr_trapezoid_ood_positive",
    "aupr_trapezoid_id_positive",
    "f1_at_k",
    "fpr95_ood_positive",
    "fpr95_id_positive",
    "recall_at_fpr01",
    "recall_at_fpr05",
    "recall_at_fpr10",
    "detection_error",
]

DEFAULT: list[MetricName] = [
    "auroc",
    "average_precision",
    "f1_at_k",
    "fpr95_ood_positive",
    "fpr95_id_positive",
    "recall_at_fpr01",
    "recall_at_fpr05",
    "recall_at_fpr10",
]

FEW = 10  # with fewer rows of a class than this a bootstrap interval says little


class Metrics:
    """What to measure.

    Args:
        names: ranking metrics, computed on every test set
        false_alarms: budget for the calibrated threshold, as a fraction: 0.01 = 1 % of normal rows
        bootstrap: resamples for the 95 % intervals; 0 = no intervals
        latency: whether to time the scoring of one row and of a large batch
        latency_seconds: about how long to time each of the two
    """

    def __init__(
        self,
        names: list[MetricName] = DEFAULT,
        false_alarms: Fraction = 0.01,
        bootstrap: NonNegativeInt = 1000,
        latency: bool = True,
        latency_seconds: PositiveFloat = 1.0,
    ) -> None:
        self.names = list(names)
        self.false_alarms = false_alarms
        self.bootstrap = bootstrap
        self.latency = latency
        self.latency_seconds = latency_seconds


def evaluate(
    score: ArrayLike, label: ArrayLike, metrics: Metrics, seed: int = 0, group: ArrayLike | None = None
) -> dict[str, Any]:
    """`metrics` {key: value}, `intervals` {key: [low, high]}, `counts` {normal, anomalies}, `findings` [sentence].

    Rows of one `group` are no independent samples: intervals resample groups then.
    With one class only every metric is None and a finding says why; scores that are not finite raise UserError.
    """
    score, label = ranking.finite(score), np.asarray(label)
    anomalies = int(np.count_nonzero(label))
    normal = len(label) - anomalies
    result: dict[str, Any] = {
        "metrics": dict.fromkeys(metrics.names),
        "intervals": {},
        "counts": {"normal": normal, "anomalies": anomalies},
        "findings": [],
    }
    if min(normal, anomalies) == 0:
        result["findings"].append(f"metrics are undefined with {ranking.one_class(anomalies, normal)}")
        return result
    counts = ranking.ranked(score, label)
    result["metrics"] = {name: float(ranking.METRICS[name](counts)) for name in metrics.names}
    if metrics.bootstrap:
        generator = np.random.default_rng(seed)
        intervals = bootstrap.intervals(score, label, metrics.names, metrics.bootstrap, generator, group=group)
        result["intervals"] = {name: list(pair) for name, pair in intervals.items()}
        if min(normal, anomalies) < FEW:
            few = f"{anomalies} anomalies" if anomalies <= normal else f"{normal} normal rows"
            result["findings"].append(f"only {few} in the test set: the intervals are narrower than they should be")
    if "recall_at_fpr01" in metrics.names and normal < 100:
        result["findings"].append(
            f"only {normal} normal rows in the test set: recall at 1 % false alarms is recall at no false alarm"
        )
    return result
