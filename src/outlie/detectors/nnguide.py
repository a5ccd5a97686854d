"""NNGuide: -E * mean of the K largest E_i <h/|h|, h_i/|h_i|> over a bank of training features; E = logsumexp l."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.neighbours import BLOCK_BYTES
from outlie.errors import UserError
from outlie.log import log
from outlie.options import PositiveFloat, PositiveInt


def bank_size(n: int, alpha: float, k: int) -> int:
    """Rows of a bank of a share alpha of n rows: at least k, where there are as many."""
    return min(n, max(round(alpha * n), k))


def mean_of_largest(x: Tensor, bank: Tensor, k: int) -> Tensor:
    """Mean of the k largest inner products of each row with the bank; (B, D), (M, D) -> (B,)."""
    rows = max(1, BLOCK_BYTES // (8 * len(bank)))
    return torch.cat([(part @ bank.T).topk(k, dim=1).values.mean(1) for part in x.split(rows)])


class NNGuide(Detector):
    """Energy, guided by the similarity to the nearest of a few training features.

    The released code takes the first rows of a shuffled loader for its bank, here they are drawn with the run's seed.

    Args:
        k: number of neighbours; lowered to the number of training rows where there are fewer.
        alpha: share of the training rows in the bank, at most 1; the bank has k rows where that is more.
    """

    needs: ClassVar[tuple[str, ...]] = ("features", "logits")
    paper: ClassVar[str] = "Park et al., Nearest Neighbor Guidance for Out-of-Distribution Detection, ICCV 2023"
    posthoc: ClassVar[bool] = True
    bank: Tensor

    def __init__(self, k: PositiveInt = 100, alpha: PositiveFloat = 0.01) -> None:
        super().__init__()
        if alpha > 1:
            raise UserError(f"alpha = {alpha}: a share of the training rows, above 0 and at most 1")
        self.k, self.alpha, self.seed = k, alpha, 0
        self.register_buffer("bank", torch.empty(0))

    def setup(self, spec: Spec) -> None:
        self.seed = spec.seed

    def fit(self, train: Views) -> None:
        """Draw the bank: features of length 1, times their energy."""
        n = len(train)
        size = bank_size(n, self.alpha, self.k)
        if size > round(self.alpha * n):
            log.info(
                "finding   NNGuide: alpha = %g of %d rows is less than k = %d; its bank has %d",
                self.alpha, n, self.k, size,
            )  # fmt: skip
        chosen = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))[:size].sort().values
        some = train.map(lambda t: t[chosen.to(t.device)])
        energy_M = some.logits.double().logsumexp(1)
        self.bank = (F.normalize(some.features.double()) * energy_M[:, None]).to(some.features.dtype)

    def score(self, views: Views) -> Tensor:
        """(B,) float64."""
        similarity_B = mean_of_largest(F.normalize(views.features), self.bank, min(self.k, len(self.bank)))
        return -similarity_B.double() * views.logits.double().logsumexp(1)
