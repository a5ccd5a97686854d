"""The mathematics of the ranking metrics, on cumulative counts; leading axes (resamples) are carried along.

All comparisons are between integers, so a rate of exactly 95 % is reached by exactly 95 %; ties are never broken.
"""

from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Counts(NamedTuple):
    """Rows counted down the ranking (score descending, then index ascending), each with a leading 0."""

    tp: NDArray[np.int64]  # (..., n + 1) anomalies among the first i rows
    fp: NDArray[np.int64]  # (..., n + 1) normals among the first i rows
    ends: NDArray[np.int64]  # (T + 1,) the positions 0 and after each group of ties: the points of the ROC curve


def count(score: Array, label: NDArray[np.bool_], weight: NDArray[np.int64] | None = None) -> Counts:
    """Count (n,) rows down the ranking; `weight` (..., n) says how many times each row is there."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    label = label[order]
    weight = np.ones(len(score), dtype=np.int64) if weight is None else weight[..., order]
    zero = np.zeros((*weight.shape[:-1], 1), dtype=np.int64)
    tp = np.concatenate([zero, np.cumsum(weight * label, axis=-1)], axis=-1)
    fp = np.concatenate([zero, np.cumsum(weight * ~label, axis=-1)], axis=-1)
    return Counts(tp, fp, np.append(0, last + 1))


def at_ends(counts: Counts) -> Counts:
    """Keep the ends of tie groups only: what every metric but F1@k looks at."""
    tp, fp, ends = counts
    return Counts(tp[..., ends], fp[..., ends], np.arange(len(ends)))


def swap(counts: Counts) -> Counts:
    """The same ranking read from the other end, with the normals as the positive class."""
    tp, fp, ends = counts
    size = tp.shape[-1] - 1
    return Counts((fp[..., -1:] - fp)[..., ::-1], (tp[..., -1:] - tp)[..., ::-1], (size - ends)[::-1])


def auroc(counts: Counts) -> Array:
    """P(anomaly > normal) + P(equal) / 2: the trapezoid over distinct thresholds, in whole half pairs."""
    tp, fp, _ = at_ends(counts)
    half_pairs = np.sum(np.diff(fp, axis=-1) * (tp[..., 1:] + tp[..., :-1]), axis=-1)
    return half_pairs / (2.0 * tp[..., -1] * fp[..., -1])


def average_precision(counts: Counts) -> Array:
    """Step sum of precision over recall: the prevalence for a constant score."""
    tp, fp, _ = at_ends(counts)
    precision = tp[..., 1:] / np.maximum(tp[..., 1:] + fp[..., 1:], 1)
    return np.sum(np.diff(tp, axis=-1) * precision, axis=-1) / tp[..., -1]


def aupr_trapezoid(counts: Counts) -> Array:
    """Trapezoid under the precision-recall curve from (recall 0, precision 1), as OpenOOD and pytorch-ood."""
    tp, fp, _ = at_ends(counts)
    precision = np.where(tp + fp > 0, tp / np.maximum(tp + fp, 1), 1.0)
    return np.sum(np.diff(tp, axis=-1) * (precision[..., 1:] + precision[..., :-1]) / 2, axis=-1) / tp[..., -1]


def f1_at_k(counts: Counts, k: int | None = None) -> Array:
    """F1 when exactly the k first rows are flagged; k = the number of anomalies by default."""
    tp, fp, _ = counts
    hits = _hits(tp, tp + fp, tp[..., -1:] if k is None else np.full_like(tp[..., -1:], k), whole=True)
    return 2.0 * hits / (tp[..., -1] + (tp[..., -1] if k is None else k))


def f1_at_k_expected(counts: Counts, k: int | None = None) -> Array:
    """F1@k in expectation over a random order of the rows tied at the cut."""
    tp, fp, _ = at_ends(counts)
    hits = _hits(tp, tp + fp, tp[..., -1:] if k is None else np.full_like(tp[..., -1:], k), whole=False)
    return 2.0 * hits / (tp[..., -1] + (tp[..., -1] if k is None else k))


def _hits(tp: NDArray, flagged: NDArray, k: NDArray, whole: bool) -> NDArray:
    # A step that straddles k counts in part: a weighted row has one label (whole), a tie group its share of anomalies.
    after = np.sum(flagged < k, axis=-1, keepdims=True)
    before = np.maximum(after - 1, 0)
    gain, room = _take(tp, after) - _take(tp, before), k - _take(flagged, before)
    step = np.maximum(_take(flagged, after) - _take(flagged, before), 1)
    return (_take(tp, before) + (np.minimum(gain, room) if whole else gain * room / step))[..., 0]


def recall_at_fpr(counts: Counts, fpr: Fraction) -> Array:
    """The highest recall among ROC points whose false-positive rate is at most `fpr`."""
    tp, fp, _ = at_ends(counts)
    allowed = fp * fpr.denominator <= fpr.numerator * fp[..., -1:]
    return (_take(tp, np.sum(allowed, axis=-1, keepdims=True) - 1) / tp[..., -1:])[..., 0]


def fpr_at_tpr(counts: Counts, tpr: Fraction, floor: bool = False) -> Array:
    """False-positive rate at the first ROC point with TPR >= `tpr` (`floor`: with floor(tpr * P) positives)."""
    tp, fp, _ = at_ends(counts)
    positives = tp[..., -1:]
    if floor:
        short = tp < np.maximum(tpr.numerator * positives // tpr.denominator, 1)
    else:
        short = tp * tpr.denominator < tpr.numerator * positives
    return (_take(fp, np.sum(short, axis=-1, keepdims=True)) / fp[..., -1:])[..., 0]


def detection_error(counts: Counts) -> Array:
    """min over thresholds of (missed anomalies + flagged normals) / 2, both as rates."""
    tp, fp, _ = at_ends(counts)
    positives, negatives = tp[..., -1:], fp[..., -1:]
    error = np.min((positives - tp) * negatives + fp * positives, axis=-1)
    return error / (2.0 * positives * negatives)[..., 0]


def _take(values: NDArray, index: NDArray) -> NDArray:
    return np.take_along_axis(values, index, axis=-1)
