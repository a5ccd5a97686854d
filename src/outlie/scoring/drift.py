"""Have scores moved away from the calibration set? Counts between its sorted scores say so, batch by batch.

Kolmogorov-Smirnov D = sup |F_calibration - F_new|. Between two calibration scores the first is constant and the second
grows, so the supremum is at, or just below, a calibration score: n counts are enough, however many rows there are.
Population stability index = sum over deciles of the calibration scores of (q - p) ln(q / p).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

BINS = 10
SMOOTHING = 0.5  # rows added to every bin of the index, so that an empty one is not infinitely far


class Counts:
    """How many new scores lie below, and at or below, each of n sorted calibration scores."""

    def __init__(self, calibration: np.ndarray) -> None:
        self.calibration = np.sort(calibration)
        self.rows = 0
        self._below = np.zeros(len(calibration) + 1, np.int64)
        self._at_most = np.zeros(len(calibration) + 1, np.int64)

    def add(self, score: np.ndarray) -> None:
        """Count (B,) scores."""
        bins = len(self.calibration) + 1
        self._below += np.bincount(np.searchsorted(self.calibration, score, side="right"), minlength=bins)
        self._at_most += np.bincount(np.searchsorted(self.calibration, score, side="left"), minlength=bins)
        self.rows += len(score)

    @property
    def below(self) -> np.ndarray:
        """(n,) new scores below each calibration score."""
        return self._below.cumsum()[:-1]

    @property
    def at_most(self) -> np.ndarray:
        """(n,) new scores at or below each calibration score."""
        return self._at_most.cumsum()[:-1]


@dataclass(frozen=True)
class Drift:
    """Distance between the scores of some rows and those of the calibration set."""

    ks: float  # largest difference of the two distribution functions
    ks_p: float  # asymptotic p-value of the two-sample test; with many rows every difference is significant
    psi: float  # below 0.1 is commonly called stable, above 0.25 a shift


def drift(counts: Counts) -> Drift | None:
    """Both distances; None where nothing was counted."""
    c, n, m = counts.calibration, len(counts.calibration), counts.rows
    if not m:
        return None
    ours_below, ours_at_most = (np.searchsorted(c, c, side=side) / n for side in ("left", "right"))
    d = float(max(np.abs(ours_below - counts.below / m).max(), np.abs(ours_at_most - counts.at_most / m).max()))
    p = float(np.clip(stats.kstwo.sf(d, max(1, round(n * m / (n + m)))), 0, 1))
    edges = np.unique(c[np.unique([max(0, int(np.ceil(n * j / BINS)) - 1) for j in range(1, BINS)])])
    where = np.searchsorted(c, edges, side="right") - 1
    old = np.diff([0, *(where + 1), n])
    new = np.diff([0, *counts.at_most[where], m])
    q, p_old = (new + SMOOTHING) / (new + SMOOTHING).sum(), (old + SMOOTHING) / (old + SMOOTHING).sum()
    return Drift(d, p, float(((q - p_old) * np.log(q / p_old)).sum()))
