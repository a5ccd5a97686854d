"""Relation: -sum_i e_i^power over the edges e_i = max(0, cos(h, h_i)) <p, p_i> above a threshold; i the training rows.

cos <= 1, so an edge above the threshold has <p, p_i> above it: for the queries of one predicted class that leaves the
training rows that look like this class to the network, and only for them the product of features is computed.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from outlie.detectors.base import Detector, Views
from outlie.options import NonNegativeFloat, PositiveFloat

ROWS, COLUMNS = 256, 2048  # of queries, few enough to be alike, and of the bank, so that a block stays in the cache
SLACK = 1 - 1e-4  # on bounds, for rounding


def by_prediction(probability: Tensor) -> Tensor:
    """(B,) row numbers sorted by predicted class, then by confidence; (B, C) -> (B,)."""
    confidence, predicted = probability.max(1)
    return (2.0 * predicted + confidence).argsort()


def edge_sums(
    x: Tensor, p: Tensor, bank: Tensor, bank_p: Tensor, power: float = 1.0, threshold: float = 0.03
) -> Tensor:
    """Sum of each row's edges to the bank, features of length 1; (B, D), (B, C), (N, D), (N, C) -> (B,) float64."""
    out = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for rows in by_prediction(p).split(ROWS):
        x_BD, p_BC = x[rows], p[rows]
        # <p, p_i> <= sum_c max over these rows of p_c * p_ic
        near = (bank_p @ p_BC.amax(0) >= threshold * SLACK).nonzero()[:, 0]
        for some in near.split(COLUMNS):
            alike_BM = p_BC @ bank_p[some].T
            reached = alike_BM.amax(0) >= threshold * SLACK
            edge_BM = (x_BD @ bank[some[reached]].T).mul_(alike_BM[:, reached])
            torch.threshold_(edge_BM, threshold, 0.0)  # a negative cosine ends here, too
            out[rows] += (edge_BM if power == 1 else edge_BM.pow_(power)).sum(1, dtype=torch.float64)
    return out


class Relation(Detector):
    """Sum of a row's edges to the training rows: the features' cosine times the inner product of the probabilities.

    Every training row is kept; edges are exact, whatever is skipped.

    Args:
        power: exponent of an edge.
        threshold: edges of this or less count nothing.
    """

    needs: ClassVar[tuple[str, ...]] = ("features", "logits")
    paper: ClassVar[str] = "Kim et al., Neural Relation Graph, NeurIPS 2023"
    posthoc: ClassVar[bool] = True
    scoring: ClassVar[tuple[str, ...]] = ("power", "threshold")
    bank: Tensor
    bank_p: Tensor

    def __init__(self, power: PositiveFloat = 1.0, threshold: NonNegativeFloat = 0.03) -> None:
        super().__init__()
        self.power, self.threshold = power, threshold
        self.register_buffer("bank", torch.empty(0))
        self.register_buffer("bank_p", torch.empty(0))

    def fit(self, train: Views) -> None:
        """Keep the training features at length 1, and the probabilities."""
        self.bank, self.bank_p = F.normalize(train.features.detach()), train.logits.detach().softmax(1)

    def score(self, views: Views) -> Tensor:
        """(B,) float64; 0 for a row without edges."""
        x, p = F.normalize(views.features), views.logits.softmax(1)
        return -edge_sums(x, p, self.bank, self.bank_p, self.power, self.threshold)
