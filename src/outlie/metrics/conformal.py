"""Split conformal: a threshold from held-out normal rows that keeps a false-alarm budget, whatever the detector.

With n exchangeable calibration scores and k = ceil((n + 1)(1 - alpha)), a new normal row exceeds the k-th smallest with
probability at most 1 - k / (n + 1) <= alpha (Vovk et al., 2005; Papadopoulos et al., 2002). Ties only lower it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv

from outlie.errors import UserError
from outlie.metrics.counts import Array
from outlie.metrics.ranking import exact, finite


@dataclass(frozen=True)
class Threshold:
    """A calibrated threshold: a row is flagged when its score is above `value`."""

    value: float
    false_alarms: float  # the budget that was asked for, a fraction
    n_calibration: int
    guarantee: float  # a new normal row is flagged with at most this probability, on average over calibration sets
    spread: tuple[float, float]  # 95 % of calibration sets of this size have a false-alarm rate in here (no ties)
    warning: str | None  # what to do if the budget cannot be guaranteed


def threshold(calibration_scores: ArrayLike, false_alarms: float) -> Threshold:
    """The lowest threshold that keeps `false_alarms`; if none does, the highest calibration score and a warning."""
    score, alpha = finite(calibration_scores), exact(false_alarms)
    n = len(score)
    if not 0 < alpha < 1:
        raise UserError(f"false_alarms={false_alarms} is not between 0 and 1; 0.01 means 1 % false alarms")
    if n == 0:
        raise UserError(
            "no calibration rows: a threshold needs held-out normal rows; choose a protocol that keeps some"
        )
    k = math.ceil((n + 1) * (1 - alpha))
    warning = None
    if k > n:
        needed = math.ceil(1 / alpha - 1)
        warning = (
            f"{n} calibration rows cannot guarantee {100 * float(alpha):.3g} % false alarms, at best "
            f"{100 / (n + 1):.3g} %: at least {needed} normal rows are needed. The threshold is the highest "
            "calibration score."
        )
        k = n
    low, high = betaincinv(n + 1 - k, k, [0.025, 0.975])
    return Threshold(
        value=float(np.partition(score, k - 1)[k - 1]),
        false_alarms=float(false_alarms),
        n_calibration=n,
        guarantee=(n + 1 - k) / (n + 1),
        spread=(float(low), float(high)),
        warning=warning,
    )


def p_values(calibration_scores: ArrayLike, score: ArrayLike) -> Array:
    """(m,) conformal p-values (1 + #{calibration >= score}) / (n + 1); small = anomalous, never below 1 / (n + 1)."""
    calibration, score = np.sort(finite(calibration_scores)), finite(score)
    if len(calibration) == 0:
        raise UserError("no calibration rows: a p-value needs held-out normal rows")
    at_least = len(calibration) - np.searchsorted(calibration, score, side="left")
    return (1 + at_least) / (len(calibration) + 1)


def realised(value: float, score: ArrayLike, label: ArrayLike) -> dict[str, float | list[float] | None]:
    """False-positive rate and recall of `score > value` with exact 95 % intervals; None for a class that is absent."""
    flagged, anomaly = finite(score) > value, np.asarray(label).astype(bool)
    result: dict[str, float | list[float] | None] = {}
    for name, rows in (("fpr", ~anomaly), ("recall", anomaly)):
        hits, n = int(flagged[rows].sum()), int(rows.sum())
        result[name] = hits / n if n else None
        result[f"{name}_interval"] = list(clopper_pearson(hits, n)) if n else None
    return result


def clopper_pearson(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact confidence interval for a proportion `hits / n` (Clopper and Pearson, 1934)."""
    tail = (1 - level) / 2
    low = float(betaincinv(hits, n - hits + 1, tail)) if hits > 0 else 0.0
    high = float(betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return low, high
