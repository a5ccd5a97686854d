"""Detectors compared over datasets, and two means compared over seeds (Demsar 2006, JMLR 7; Welch 1947).

Arrays are (rows R, columns C): datasets by detectors. SciPy is imported where it is needed: it takes a second.
"""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from outlie.errors import UserError

Array = NDArray[np.float64]


class Comparison(NamedTuple):
    """All columns over all rows."""

    ranks: Array  # (C,) average ranks, 1 = best
    chi2: float  # Friedman's statistic
    p: float  # that all columns are alike
    p_holm: Array  # (C, C) of each pair, Wilcoxon's signed-rank test with Holm's correction
    critical_difference: float  # of average ranks, Nemenyi


def compare(values: ArrayLike, higher: bool = True, level: float = 0.05) -> Comparison:
    """Friedman, Wilcoxon-Holm and Nemenyi of (R, C) numbers; UserError for fewer than 3 columns or 2 rows."""
    values_RC = _matrix(values)
    R, C = values_RC.shape
    if C < 3 or R < 2:
        raise UserError(f"ranks are compared for at least 3 columns and 2 rows, here are {C} columns and {R} rows")
    chi2, p = friedman(values_RC)
    ranks = average_ranks(values_RC, higher)
    return Comparison(ranks, chi2, p, wilcoxon_holm(values_RC), nemenyi(C, R, level))


def ranks(values: ArrayLike, higher: bool = True) -> Array:
    """(R, C) ranks within each row, 1 = best; equal numbers share the mean of their ranks."""
    values_RC = _matrix(values)
    scores = -values_RC if higher else values_RC
    below = (scores[:, None, :] < scores[:, :, None]).sum(2)  # (R, C): better ones of each
    equal = (scores[:, None, :] == scores[:, :, None]).sum(2)  # itself among them
    return below + (equal + 1) / 2


def average_ranks(values: ArrayLike, higher: bool = True) -> Array:
    """(C,) mean over rows of the ranks within each row."""
    return ranks(values, higher).mean(0)


def friedman(values: ArrayLike) -> tuple[float, float]:
    """Friedman's chi-squared with the correction for ties, and p; (0, 1) where every row is one tie."""
    from scipy.stats import friedmanchisquare

    values_RC = _matrix(values)
    if (values_RC == values_RC[:, :1]).all():
        return 0.0, 1.0
    found = friedmanchisquare(*values_RC.T)
    return float(found.statistic), float(found.pvalue)


def wilcoxon_holm(values: ArrayLike) -> Array:
    """(C, C) p of each pair of columns, two-sided, with Holm's correction over all pairs; 1 on the diagonal.

    Differences of zero are ranked and then dropped (Pratt 1959): leaving them out first makes two detectors that agree
    on most rows look different.
    """
    from scipy.stats import wilcoxon

    values_RC = _matrix(values)
    C = values_RC.shape[1]
    pairs = [(a, b) for a in range(C) for b in range(a + 1, C)]
    raw = []
    for a, b in pairs:
        difference = values_RC[:, a] - values_RC[:, b]
        raw.append(float(wilcoxon(difference, zero_method="pratt")[1]) if difference.any() else 1.0)  # type: ignore[arg-type]
    corrected = np.eye(C)
    for (a, b), p in zip(pairs, holm(raw), strict=True):
        corrected[a, b] = corrected[b, a] = p
    return corrected


def holm(p: ArrayLike) -> Array:
    """Holm's step-down correction: the i-th smallest of m times m - i + 1, never below the one before, at most 1."""
    p_M = np.asarray(p, np.float64)
    order = np.argsort(p_M, kind="stable")
    steps = p_M[order] * np.arange(len(p_M), 0, -1)
    corrected = np.empty_like(p_M)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(p_M) else steps
    return corrected


def nemenyi(columns: int, rows: int, level: float = 0.05) -> float:
    """CD = q_level / sqrt 2 sqrt(C (C + 1) / (6 R)): average ranks that far apart differ (Demsar 2006, eq. 11 f)."""
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - level, columns, np.inf)) / sqrt(2)
    return q * sqrt(columns * (columns + 1) / (6 * rows))


def cliques(ranks_C: ArrayLike, alike: ArrayLike) -> list[list[int]]:
    """The largest runs of columns, in the order of ranks, of which all pairs are alike; single columns are left out.

    Args:
        ranks_C: (C,) average ranks
        alike: (C, C) true where a pair could not be told apart
    """
    order = [int(c) for c in np.argsort(np.asarray(ranks_C), kind="stable")]
    same = np.asarray(alike, bool)
    found: list[list[int]] = []
    for start in range(len(order)):
        end = start + 1
        while end < len(order) and all(same[order[end], one] for one in order[start:end]):
            end += 1
        if end - start > 1 and (not found or order[end - 1] != found[-1][-1]):
            found.append(order[start:end])
    return found


def welch(
    mean: tuple[float, float], std: tuple[float, float], seeds: tuple[int, int], level: float = 0.95
) -> tuple[float, float] | None:
    """Interval of mean[0] - mean[1] with unequal variances (Welch-Satterthwaite); std with ddof 1.

    None where a side has a single seed: nobody knows how far it scatters. Two sides that do not scatter have an
    interval of width zero.
    """
    from scipy.special import stdtrit  # a fifth of what scipy.stats takes

    if min(seeds) < 2:
        return None
    a, b = std[0] ** 2 / seeds[0], std[1] ** 2 / seeds[1]
    difference, spread = mean[0] - mean[1], sqrt(a + b)
    if spread == 0:
        return difference, difference
    freedom = (a + b) ** 2 / (a**2 / (seeds[0] - 1) + b**2 / (seeds[1] - 1))
    reach = float(stdtrit(freedom, (1 + level) / 2)) * spread
    return difference - reach, difference + reach


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (ddof 1; nan of one value)."""
    m = sum(values) / len(values)
    return m, sqrt(sum((value - m) ** 2 for value in values) / (len(values) - 1)) if len(values) > 1 else float("nan")


def _matrix(values: ArrayLike) -> Array:
    values_RC = np.asarray(values, np.float64)
    if values_RC.ndim != 2 or not np.isfinite(values_RC).all():
        raise UserError("ranks need a finite number of every column in every row: leave rows or columns out")
    return values_RC
