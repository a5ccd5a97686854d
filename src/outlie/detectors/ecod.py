"""ECOD (Li et al. 2022, arXiv 2201.00382) and COPOD (Li et al. 2020, arXiv 2009.09463): tail probabilities by column.

Both papers leave open how a new row meets the training ECDF. PyOD ranks the training rows and the whole scored batch
together, so a row's score depends on the batch. Here each row is ranked with the training rows alone, which equals
PyOD's `decision_function` called with that one row.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from outlie.detectors.base import Detector, Views


def tails(x: Tensor, sorted_train: Tensor) -> tuple[Tensor, Tensor]:
    """-log of the left and right tail probability of each entry of x (B, D) among itself and sorted_train (D, n)."""
    queries, n = x.T.contiguous(), sorted_train.shape[1]
    at_most = torch.searchsorted(sorted_train, queries, right=True) + 1
    at_least = n - torch.searchsorted(sorted_train, queries) + 1
    return -torch.log(at_most.double() / (n + 1)).T, -torch.log(at_least.double() / (n + 1)).T


def skew_sign(x: Tensor, sorted_train: Tensor) -> Tensor:
    """(B, D) sign of each training column's skewness once the entry of x (B, D) has joined it; 0 if constant."""
    # Pebay 2008, eq. (2.1): the central sums M2, M3 of n values after one more value at distance d from their mean
    n, mean = sorted_train.shape[1], sorted_train.mean(1)
    central = sorted_train - mean[:, None]
    m2, m3, d = (central**2).sum(1), (central**3).sum(1), x - mean
    joined2 = m2 + d**2 * (n / (n + 1))
    joined3 = m3 + d**3 * (n * (n - 1) / (n + 1) ** 2) - 3 * d * m2 / (n + 1)
    rounding = torch.finfo(x.dtype).eps * (mean + d / (n + 1))
    return torch.where(joined2 / (n + 1) <= rounding**2, 0.0, joined3.sign())


class ECOD(Detector):
    """Sum over columns of the larger of the two tails' -log probability."""

    needs: ClassVar[tuple[str, ...]] = ("features",)
    paper: ClassVar[str] = "ECOD, Li et al. 2022, arXiv 2201.00382"

    sorted_train: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sorted_train", torch.empty(0, dtype=torch.float64))

    def fit(self, train: Views) -> None:
        """Sort each column of (n, D) features; kept as (D, n) float64."""
        assert train.features is not None
        self.sorted_train = train.features.detach().double().T.contiguous().sort(1).values

    def score(self, views: Views) -> Tensor:
        """(B,) float64."""
        left, right, by_skew = self._tails(views)
        return torch.maximum(torch.maximum(left, right), by_skew).sum(1)

    def _tails(self, views: Views) -> tuple[Tensor, Tensor, Tensor]:
        assert views.features is not None
        x = views.features.double()
        left, right = tails(x, self.sorted_train)
        sign = skew_sign(x, self.sorted_train)
        return left, right, left * (sign <= 0) + right * (sign >= 0)  # both tails where the skewness is 0


class COPOD(ECOD):
    """Sum over columns of the larger of: the tail on the long side, the mean of both tails."""

    paper: ClassVar[str] = "COPOD, Li et al. 2020, arXiv 2009.09463"

    def score(self, views: Views) -> Tensor:
        """(B,) float64."""
        left, right, by_skew = self._tails(views)
        return torch.maximum(by_skew, (left + right) / 2).sum(1)
