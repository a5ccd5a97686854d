"""Means and covariances of (N, D) features: sums over rows, in float64, a chunk at a time, each rank its share.

Covariances take two passes, the mean first: sum h h^T - N m m^T would lose what collapsed features have left.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from outlie.errors import UserError
from outlie.gather import rank_and_world, share

CHUNK_BYTES = 8 * 2**20  # of one chunk in float64; larger ones leave the cache


def total(features_ND: Tensor, summed: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Sum of summed(rows, chunk) over chunks: each row is on one rank, the result on every rank.

    Args:
        features_ND: may be memory-mapped; a chunk is read when it is due, and never written to.
        summed: from row numbers (B,) and a float64 copy of their features (B, D) to a sum over those rows.
    """
    n, dim = features_ND.shape
    chunks = share(n).split(max(1, CHUNK_BYTES // (8 * max(dim, 1))))
    result = summed(chunks[0], features_ND[chunks[0]].double())
    for rows in chunks[1:]:
        result += summed(rows, features_ND[rows].double())
    if rank_and_world()[1] > 1:
        dist.all_reduce(result)
    return result


def mean(features_ND: Tensor) -> Tensor:
    """(D,) float64; raises UserError without rows, or where a column holds NaN or Inf."""
    if not len(features_ND):
        raise UserError("no rows to fit on; the split is empty")
    mean_D = total(features_ND, lambda _, h_BD: h_BD.sum(0)) / len(features_ND)
    return _finite(mean_D)


def covariance(features_ND: Tensor, origin_D: Tensor) -> Tensor:
    """(1/N) sum (h - o)(h - o)^T, (D, D): the covariance if `origin_D` is the mean."""

    def summed(_: Tensor, h_BD: Tensor) -> Tensor:
        h_BD -= origin_D
        return h_BD.T @ h_BD

    return total(features_ND, summed) / len(features_ND)


def std(covariance_DD: Tensor, mean_D: Tensor, n: int) -> Tensor:
    """(D,) population standard deviation, 1 where a column is constant up to rounding (scikit-learn's rule)."""
    variance_D, eps = covariance_DD.diagonal(), torch.finfo(torch.float64).eps
    constant_D = variance_D <= n * eps * variance_D + (n * mean_D * eps) ** 2
    return torch.where(constant_D, 1.0, variance_D.sqrt())


def class_means(features_ND: Tensor, y_N: Tensor | None, classes: int | None = None) -> tuple[Tensor, Tensor]:
    """mu_c and the share N_c / N of each class; (C, D), (C,).

    Args:
        features_ND: training rows.
        y_N: their class labels, 0 to C - 1.
        classes: C; None = one more than the largest label.

    Raises:
        UserError: no labels, a label out of range, a class without rows, features that are not finite.
    """
    counts_C = _class_counts(len(features_ND), y_N, classes)
    assert y_N is not None

    def summed(rows_B: Tensor, h_BD: Tensor) -> Tensor:
        return h_BD.new_zeros(len(counts_C), h_BD.shape[1]).index_add_(0, y_N[rows_B], h_BD)

    means_CD = total(features_ND, summed) / counts_C[:, None]
    _finite(means_CD.sum(0))
    return means_CD, counts_C / len(features_ND)


def within_class_covariance(features_ND: Tensor, y_N: Tensor, means_CD: Tensor) -> Tensor:
    """(1/N) sum (h - mu_y)(h - mu_y)^T, (D, D)."""

    def summed(rows_B: Tensor, h_BD: Tensor) -> Tensor:
        h_BD -= means_CD[y_N[rows_B]]
        return h_BD.T @ h_BD

    return total(features_ND, summed) / len(features_ND)


def between_class_covariance(means_CD: Tensor, share_C: Tensor) -> Tensor:
    """sum_c (N_c / N)(mu_c - m)(mu_c - m)^T with m the mean of all rows: what `within` lacks to the total, (D, D)."""
    centred_CD = means_CD - share_C @ means_CD
    return centred_CD.T @ (share_C[:, None] * centred_CD)


def _class_counts(n: int, y_N: Tensor | None, classes: int | None) -> Tensor:
    if y_N is None:
        raise UserError("the training rows have no class labels; choose a dataset with classes, or detector=pca or knn")
    if len(y_N) != n:
        raise UserError(f"{n} rows of features but {len(y_N)} class labels; each row has one of each")
    if not n:
        raise UserError("no rows to fit on; the split is empty")
    low, high = int(y_N.min()), int(y_N.max())
    classes = classes or high + 1
    if low < 0 or high >= classes:
        raise UserError(
            f"class label {low if low < 0 else high} is out of range: labels go from 0 to {classes - 1}; "
            "map the data's labels to these"
        )
    counts_C = torch.bincount(y_N, minlength=classes)
    if not counts_C.all():
        empty = (counts_C == 0).nonzero().flatten().tolist()
        names = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
        raise UserError(
            f"{len(empty)} of {classes} classes have no training rows (class {names}), and so no mean; "
            "give each class rows, or train on its classes alone"
        )
    return counts_C.double()


def _finite(mean_D: Tensor) -> Tensor:
    if not mean_D.isfinite().all():
        columns = int((~mean_D.isfinite()).sum())
        raise UserError(
            f"{columns} of {mean_D.numel()} feature columns hold NaN or Inf; look for a diverged training of the "
            "backbone, or for extreme values in the data"
        )
    return mean_D
