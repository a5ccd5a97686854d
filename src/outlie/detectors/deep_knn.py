"""Deep nearest neighbours: || h/|h| - h_k/|h_k| ||, the distance to the k-th nearest training feature on the sphere."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from outlie.detectors.base import Detector, Views
from outlie.detectors.knn import require_neighbours
from outlie.detectors.neighbours import BLOCK_BYTES
from outlie.options import PositiveInt

SPARE = 4  # ranks to each side of the k-th whose order the rounding of a matrix product may have mixed up


def kth_distance(x: Tensor, bank: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th nearest bank row; (B, D), (N, D) -> (B,).

    The matrix product finds the candidates, as in `nearest_neighbours`; exact distances are taken only of those near
    the k-th, as no other is asked for: half the cost at k = 50.
    """
    half_norm_N = bank.square().sum(1) / 2
    low, high = max(0, k - 1 - SPARE), min(len(bank), k + SPARE)
    out = []
    for x_BD in x.split(max(1, BLOCK_BYTES // (8 * len(bank)))):
        closeness_BN = torch.addmm(half_norm_N, x_BD, bank.T, beta=-1)  # x.b - ||b||^2 / 2, larger = nearer
        near_BS = closeness_BN.topk(high, dim=1).indices[:, low:]
        squared_BS = (x_BD[:, None, :] - bank[near_BS]).square().sum(2)
        out.append(squared_BS.kthvalue(k - low, dim=1).values.sqrt())
    return torch.cat(out)


class DeepKNN(Detector):
    """Distance to the k-th nearest training feature, all features of length 1.

    Args:
        k: number of neighbours; the paper uses 50 for CIFAR-10, 200 for CIFAR-100, 1000 for ImageNet.
    """

    needs: ClassVar[tuple[str, ...]] = ("features",)
    paper: ClassVar[str] = "Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors, ICML 2022"
    posthoc: ClassVar[bool] = True
    scoring: ClassVar[tuple[str, ...]] = ("k",)
    bank: Tensor

    def __init__(self, k: PositiveInt = 50) -> None:
        super().__init__()
        self.k = k
        self.register_buffer("bank", torch.empty(0))

    def fit(self, train: Views) -> None:
        """Keep the training features at length 1; a feature of zeros stays one (the released code makes it NaN)."""
        require_neighbours(self.k, len(train))
        self.bank = F.normalize(train.features.detach())

    def score(self, views: Views) -> Tensor:
        """(B,) distance to the k-th neighbour; the released code has its square, which ranks the same."""
        return kth_distance(F.normalize(views.features), self.bank, self.k)
