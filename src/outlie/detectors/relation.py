"""Relation: -sum_i e_i^power over the edges e_i = max(0, cos(h, h_i)) <p, p_i> above a threshold; i the training rows.

cos <= 1, so an edge above the threshold has <p, p_i> above it. The training rows are kept in blocks of rows that look
alike to the network, and the product of features is computed for the queries that such a block can reach.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from outlie.detectors.base import Detector, Views
from outlie.options import NonNegativeFloat, PositiveFloat

ROWS = 32  # of queries: fewer are compared with the training rows they reach one by one, not by blocks
COLUMNS = 128  # of a block: larger ones reach more queries, smaller ones are slower products
CONFIDENT = 0.9
SLACK = 1 - 1e-4  # on bounds, for rounding


def alike(probability: Tensor) -> Tensor:
    """Row numbers: confident rows by class, the others by their two likeliest classes; (N, C) -> (N,)."""
    classes = probability.shape[1]
    largest_N2, class_N2 = probability.double().topk(min(2, classes), 1)
    pair_N = class_N2.amin(1) * classes + class_N2.amax(1)
    group_N = torch.where(largest_N2[:, 0] > CONFIDENT, class_N2[:, 0] - classes, pair_N)
    return (2 * group_N + largest_N2[:, 0]).argsort()


def sums(x: Tensor, p: Tensor, bank: Tensor, bank_p: Tensor, power: float, threshold: float) -> Tensor:
    """Sum of each row's edges to all of the bank's rows, as `edge_sums`, nothing skipped."""
    edge_BM = (x @ bank.T).mul_(p @ bank_p.T)
    torch.threshold_(edge_BM, threshold, 0.0)  # a negative cosine ends here, too
    return (edge_BM if power == 1 else edge_BM.pow_(power)).sum(1, dtype=torch.float64)


def edge_sums(
    x: Tensor, p: Tensor, bank: Tensor, bank_p: Tensor, power: float = 1.0, threshold: float = 0.03
) -> Tensor:
    """Sum of each row's edges to the bank, features of length 1; (B, D), (B, C), (N, D), (N, C) -> (B,) float64.

    Exact in whatever order the bank is, and fast in that of `alike`.
    """
    out = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    least = threshold * SLACK
    if len(x) < ROWS:
        # <p, p_i> <= sum_c max over these rows of p_c * p_ic
        for near in (bank_p @ p.amax(0) >= least).nonzero()[:, 0].split(16 * COLUMNS):
            out += sums(x, p, bank[near], bank_p[near], power, threshold)
        return out
    blocks = list(zip(bank.split(COLUMNS), bank_p.split(COLUMNS), strict=True))
    highest_KC = torch.stack([block_p.amax(0) for _, block_p in blocks])
    reached_KB = highest_KC @ p.T >= least
    for (block, block_p), reached_B in zip(blocks, reached_KB, strict=True):
        rows = reached_B.nonzero()[:, 0]
        if len(rows):
            out[rows] += sums(x[rows], p[rows], block, block_p, power, threshold)
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
        """Keep the training features at length 1, and the probabilities, in blocks of rows that are alike."""
        bank_p = train.logits.detach().softmax(1)
        order = alike(bank_p)
        self.bank, self.bank_p = F.normalize(train.features.detach()[order]), bank_p[order]

    def score(self, views: Views) -> Tensor:
        """(B,) float64; 0 for a row without edges."""
        x, p = F.normalize(views.features), views.logits.softmax(1)
        return -edge_sums(x, p, self.bank, self.bank_p, self.power, self.threshold)
