"""k nearest neighbours: the distance from a row to the training rows."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from outlie.detectors.base import Detector, Views
from outlie.detectors.neighbours import nearest_neighbours
from outlie.errors import UserError
from outlie.options import PositiveInt


class KNN(Detector):
    """Distance to the k-th nearest training row.

    Args:
        k: number of neighbours; the published KNN columns use 5 (dte_semi) and 32 (dte_unsup).
        aggregate: kth, or the mean of the k distances, or the mean of their squares.
    """

    needs: ClassVar[tuple[str, ...]] = ("features",)
    paper: ClassVar[str] = "Ramaswamy et al., Efficient Algorithms for Mining Outliers, SIGMOD 2000"
    scoring: ClassVar[tuple[str, ...]] = ("k", "aggregate")
    bank: Tensor

    def __init__(self, k: PositiveInt = 5, aggregate: Literal["kth", "mean", "mean_sq"] = "kth") -> None:
        super().__init__()
        self.k, self.aggregate = k, aggregate
        self.register_buffer("bank", torch.empty(0))

    def fit(self, train: Views) -> None:
        """Keep the training features."""
        require_neighbours(self.k, len(train))
        self.bank = train.features.detach()

    def score(self, views: Views) -> Tensor:
        """(B,) distance to the k-th neighbour, or the mean over the k."""
        squared_BK, _ = nearest_neighbours(views.features, self.bank, self.k)
        match self.aggregate:
            case "kth":
                return squared_BK[:, -1].sqrt()
            case "mean":
                return squared_BK.sqrt().mean(1)
            case _:
                return squared_BK.mean(1)


def require_neighbours(k: int, n: int) -> None:
    """Raise UserError where there are fewer than k training rows."""
    if k > n:
        raise UserError(f"k = {k} neighbours, but only {n} training rows; set detector.k to {n} or less")
