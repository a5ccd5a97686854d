"""Three verdicts from two false-alarm budgets: flag (p <= fpr), ask a person (p <= review), pass.

Conformal p-value p(s) = (1 + #{calibration >= s}) / (n + 1), and p(s) <= alpha exactly where s is above the threshold
of metrics/conformal.py. The number of false alarms among N normal rows is beta-binomial: the calibration set is random
too (Vovk, Conditional validity of inductive conformal predictors, ACML 2012).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import stats

from outlie.errors import UserError
from outlie.metrics.conformal import Threshold, threshold

VERDICTS = ("pass", "ask", "flag")
EXACT_ROWS = 100_000  # beyond, the binomial part of the spread is lost in that of the calibration set


@dataclass(frozen=True)
class Budgets:
    """Calibration scores, sorted, and the thresholds of both budgets."""

    calibration: np.ndarray  # (n,)
    flag: Threshold
    ask: Threshold | None

    def p_values(self, score: np.ndarray) -> np.ndarray:
        """(B,) conformal p-values."""
        n = len(self.calibration)
        return (1 + n - np.searchsorted(self.calibration, score, side="left")) / (n + 1)

    def verdicts(self, score: np.ndarray) -> pl.Series:
        """(B,) flag, ask or pass."""
        level = (score > self.flag.value).astype(np.int64)
        level = 2 * level if self.ask is None else np.where(level == 1, 2, score > self.ask.value)
        return pl.Series("verdict", VERDICTS).gather(pl.Series(level))


def budgets(calibration: np.ndarray, fpr: float, review: float | None) -> Budgets:
    """Both thresholds; UserError where the budgets are none, or `review` is not the larger."""
    if review is not None and review <= fpr:
        raise UserError(f"review={review} is not above fpr={fpr}: rows are asked about before they are flagged")
    ask = None if review is None else threshold(calibration, review)
    return Budgets(np.sort(calibration), threshold(calibration, fpr), ask)


def expected_false_alarms(fixed: Threshold, rows: int) -> tuple[float, int, int]:
    """Mean and 95 % interval of the false alarms if all rows were normal, exchangeable with the calibration rows."""
    above = round(fixed.guarantee * (fixed.n_calibration + 1))  # n + 1 - k
    a, b = above, fixed.n_calibration + 1 - above
    if rows > EXACT_ROWS:
        low, high = rows * stats.beta.ppf([0.025, 0.975], a, b)
    else:
        cumulative = np.cumsum(stats.betabinom.pmf(np.arange(rows + 1), rows, a, b))
        low, high = np.searchsorted(cumulative, [0.025, 0.975])
    return rows * fixed.guarantee, round(float(low)), round(float(high))
