"""Ranking metrics `f(score, label) -> float`, in float64, by counts: higher score = more anomalous, label 1 = anomaly.

Our own because torchmetrics applies a sigmoid to any score outside [0, 1] and then ties what saturates, and because
"FPR@95TPR" names two quantities: see docs/architecture.md. Fractions throughout, never percents.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from outlie.errors import UserError, unknown
from outlie.metrics import counts as curve
from outlie.metrics.counts import Array, Counts

Positive = Literal["ood", "id"]

NINETY_FIVE = Fraction(95, 100)

# Metric key -> the metric of one ranking, or of many at once (leading axes).
METRICS: dict[str, Callable[[Counts], Array]] = {
    "auroc": curve.auroc,
    "average_precision": curve.average_precision,
    "average_precision_id_positive": lambda c: curve.average_precision(curve.swap(c)),
    "aupr_trapezoid_ood_positive": curve.aupr_trapezoid,
    "aupr_trapezoid_id_positive": lambda c: curve.aupr_trapezoid(curve.swap(c)),
    "f1_at_k": curve.f1_at_k,
    "fpr95_ood_positive": lambda c: curve.fpr_at_tpr(c, NINETY_FIVE),
    "fpr95_id_positive": lambda c: curve.fpr_at_tpr(curve.swap(c), NINETY_FIVE),
    "recall_at_fpr01": lambda c: curve.recall_at_fpr(c, Fraction(1, 100)),
    "recall_at_fpr05": lambda c: curve.recall_at_fpr(c, Fraction(5, 100)),
    "recall_at_fpr10": lambda c: curve.recall_at_fpr(c, Fraction(10, 100)),
    "detection_error": curve.detection_error,
}


def measure(name: str, score: ArrayLike, label: ArrayLike) -> float:
    """The metric with key `name`, e.g. 'fpr95_ood_positive'."""
    if name not in METRICS:
        raise UserError(unknown("metric", name, METRICS))
    return float(METRICS[name](ranked(score, label)))


def auroc(score: ArrayLike, label: ArrayLike) -> float:
    """Probability that an anomaly scores above a normal row, ties counting half."""
    return measure("auroc", score, label)


def average_precision(score: ArrayLike, label: ArrayLike, positive: Positive = "ood") -> float:
    """Step sum of precision over recall, as scikit-learn's; the prevalence for a constant score."""
    return float(curve.average_precision(_oriented(ranked(score, label), positive)))


def aupr_trapezoid(score: ArrayLike, label: ArrayLike, positive: Positive = "ood") -> float:
    """Area under the PR curve by trapezoids: for parity with OpenOOD and pytorch-ood only, it is optimistic."""
    return float(curve.aupr_trapezoid(_oriented(ranked(score, label), positive)))


def f1_at_k(
    score: ArrayLike, label: ArrayLike, k: int | None = None, ties: Literal["stable", "expected"] = "stable"
) -> float:
    """F1 when exactly the k highest scores are flagged; with k = number of anomalies also precision and recall.

    Args:
        k: rows to flag; None = as many as there are anomalies
        ties: 'stable' flags the lower index first, 'expected' averages over all orders of the rows tied at the cut
    """
    one = ranked(score, label)
    if k is not None and not 1 <= k <= one.tp.shape[-1] - 1:
        raise UserError(f"cannot flag k = {k} of {one.tp.shape[-1] - 1} rows; k is between 1 and the number of rows")
    return float(curve.f1_at_k(one, k) if ties == "stable" else curve.f1_at_k_expected(one, k))


def fpr_at_tpr(
    score: ArrayLike,
    label: ArrayLike,
    positive: Positive,
    tpr: Fraction = NINETY_FIVE,
    rule: Literal["reach", "floor", "percentile"] = "reach",
) -> float:
    """False-positive rate when a share `tpr` of the positive class is found; two different quantities by `positive`.

    Args:
        positive: 'ood' = normals flagged when anomalies are found; 'id' = anomalies accepted when normals are accepted
        rule: 'reach' = first ROC point with at least `tpr`; 'floor' = floor(tpr * P) positives (ViM, NECO);
            'percentile' = linear percentile of the positive class, a threshold between samples
    """
    if rule != "percentile":
        return float(curve.fpr_at_tpr(_oriented(ranked(score, label), positive), tpr, floor=rule == "floor"))
    score, label = checked(score, label)
    score, label = (score, label) if positive == "ood" else (-score, ~label)
    return float(np.mean(score[~label] >= np.percentile(score[label], float(100 * (1 - tpr)))))


def recall_at_fpr(score: ArrayLike, label: ArrayLike, fpr: float | Fraction) -> float:
    """The highest recall among ROC points with a false-positive rate of at most `fpr`; never interpolated."""
    return float(curve.recall_at_fpr(ranked(score, label), exact(fpr)))


def detection_error(score: ArrayLike, label: ArrayLike) -> float:
    """The least mean of the two error rates over all thresholds."""
    return measure("detection_error", score, label)


def ccr_at_fpr(score: ArrayLike, label: ArrayLike, correct: ArrayLike, fpr: float | Fraction) -> float:
    """Share of ID rows accepted and correctly classified when at most `fpr` of the OOD rows are accepted.

    Args:
        correct: (n,) whether the classifier was right; ignored for OOD rows
    """
    score, label = checked(score, label)
    # The ceil(fpr * n_o)-th lowest outlier score; ID rows strictly below it are accepted (OpenOOD's rule).
    k = max(math.ceil(exact(fpr) * int(label.sum())), 1)
    threshold = np.partition(score[label], k - 1)[k - 1]
    return float(np.mean((score[~label] < threshold) & np.asarray(correct, dtype=bool)[~label]))


def roc(score: ArrayLike, label: ArrayLike) -> tuple[Array, Array, Array]:
    """The ROC curve, for plots: (T+1,) false-positive rate, recall, and threshold (first inf; flag score >= it)."""
    score, label = checked(score, label)
    tp, fp, ends = curve.count(score, label)
    threshold = np.append(np.inf, -np.sort(-score, kind="stable")[ends[1:] - 1])
    return fp[ends] / fp[-1], tp[ends] / tp[-1], threshold


def ranked(score: ArrayLike, label: ArrayLike) -> Counts:
    """Check scores and labels and count them down the ranking."""
    return curve.count(*checked(score, label))


def checked(score: ArrayLike, label: ArrayLike) -> tuple[Array, NDArray[np.bool_]]:
    """Scores as float64 and labels as bool, both (n,); raises UserError unless finite, 0/1 and of both classes."""
    score, label = finite(score), np.asarray(label)
    if score.shape != label.shape:
        raise UserError(f"{score.size} scores but {label.size} labels; each row has one of each")
    if not np.isin(label, (0, 1)).all():
        strange = label[~np.isin(label, (0, 1))][0]
        raise UserError(f"label {strange} is neither 0 (normal) nor 1 (anomaly)")
    label = label.astype(bool)
    if label.all() or not label.any():
        raise UserError(one_class(int(label.sum()), int((~label).sum())))
    return score, label


def finite(score: ArrayLike) -> Array:
    """Scores as a (n,) float64 array; raises UserError with the first rows that are NaN or Inf."""
    score = np.asarray(score, dtype=np.float64)
    if score.ndim != 1:
        raise UserError(f"scores have shape {score.shape}; expected one score for each row")
    bad = np.flatnonzero(~np.isfinite(score))
    if len(bad):
        rows = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise UserError(
            f"the detector's scores are not finite: {len(bad)} of {len(score)} are NaN or Inf (rows {rows}); "
            "look for overflow in the detector, or constant and extreme columns in the data"
        )
    return score


def one_class(anomalies: int, normal: int) -> str:
    """Why a ranking metric is undefined."""
    return f"{anomalies} anomalies and {normal} normal rows: ranking metrics need at least one of each"


def exact(rate: float | Fraction) -> Fraction:
    """The rate that was written: 0.05 is 1/20, not the nearest binary number.

    >>> exact(0.05)
    Fraction(1, 20)
    """
    return rate if isinstance(rate, Fraction) else Fraction(str(float(rate)))


def _oriented(counts: Counts, positive: Positive) -> Counts:
    if positive not in ("ood", "id"):
        raise UserError(unknown("positive class", positive, ["ood", "id"]))
    return counts if positive == "ood" else curve.swap(counts)
