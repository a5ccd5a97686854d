"""Gram: sum over layers of d_l(x) / E[d_l], d_l how far Gram powers leave the range they have on the training rows.

g_p = (F^p (F^p)^T 1)^(1/p), the row sums of a layer's Gram matrix of power p = 1, 2, ..; F is C x HW. With [m, M] the
range of an entry over the training rows that are predicted as the same class, d_l sums (m - g) / |m| where g < m and
(g - M) / |M| where g > M. The paper has all entries of the Gram matrix, its released code the row sums.
"""

from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.rankfeat import require_stages
from outlie.errors import UserError
from outlie.gather import rank_and_world, share
from outlie.log import log
from outlie.options import PositiveInt

ROWS = 64  # of one forward pass, whose maps are all held, one of them in float64
SMALLEST = 1e-6  # bound that is divided by


def gram_powers(maps: Tensor, powers: int) -> Tensor:
    """Signed p-th roots of the row sums of F^p (F^p)^T, p = 1 to `powers`; (B, C, H, W) -> (B, P, C) float32."""
    f = maps.flatten(2).double()  # a tenth power squared leaves float32
    raised, roots = torch.ones_like(f), []
    for p in range(1, powers + 1):
        raised = raised * f
        sums_BC = (raised @ raised.sum(1)[:, :, None])[:, :, 0]
        roots.append(sums_BC.sign() * sums_BC.abs() ** (1 / p))
    return torch.stack(roots, 1).float()


def excess(entries: Tensor, lowest: Tensor) -> Tensor:
    """How far entries lie below their lower bounds, relative to those."""
    return (lowest - entries).clamp(min=0) / lowest.abs().clamp(min=SMALLEST)


class Gram(Detector):
    """Deviation of feature correlations from their range on the training rows of the predicted class; ResNets only.

    E[d_l] is over the training rows, each against the range of the others (leave one out): it needs no rows kept back,
    no second pass, and does not depend on how the rows are divided among ranks. The paper takes validation rows; the
    released code takes test rows and divides by the largest softmax, too. Here the layers are the network's stages.

    Args:
        powers: Gram matrices of the powers 1 to this; the paper goes to 10.
    """

    needs: ClassVar[tuple[str, ...]] = ("x", "logits", "network")
    paper: ClassVar[str] = "Sastry and Oore, Detecting Out-of-Distribution Examples with Gram Matrices, ICML 2020"
    posthoc: ClassVar[bool] = True
    lowest: Tensor  # (C, 2E): per class the lower bounds of all entries g, then of -g
    mean_deviation: Tensor  # (L,)
    widths: Tensor  # (L,) channels of each layer
    extremes: Tensor  # (2, C, 2E) while fitting: the lowest and second lowest so far
    count: Tensor  # (C,) while fitting: rows so far

    def __init__(self, powers: PositiveInt = 5) -> None:
        super().__init__()
        self.powers, self.classes = powers, 0
        self._network: list[Any] = []  # in a list: its weights are not this detector's
        self.register_buffer("lowest", torch.empty(0))
        self.register_buffer("mean_deviation", torch.empty(0, dtype=torch.float64))
        self.register_buffer("widths", torch.empty(0, dtype=torch.int64))
        self.register_buffer("extremes", torch.empty(0), persistent=False)
        self.register_buffer("count", torch.empty(0, dtype=torch.int64), persistent=False)

    def setup(self, spec: Spec) -> None:
        require_stages("Gram", spec)
        self._network, self.classes = [spec.network], spec.classes or 0

    def fit(self, train: Views) -> None:
        """Every training row, each rank its share."""
        self._restart()
        for rows in share(len(train)).split(ROWS):
            self.update(train[rows])
        self.finish()

    def update(self, views: Views) -> None:
        """Take in some training rows; every row comes to one rank, once."""
        for start in range(0, len(views), ROWS):
            part = views[start : start + ROWS]
            entries, predicted = self._entries(part.x), part.logits.argmax(1)
            if not len(self.extremes):
                self.extremes = entries.new_full((2, self.classes, entries.shape[1]), torch.inf)
                self.count = torch.zeros(self.classes, dtype=torch.int64, device=entries.device)
            self.count += torch.bincount(predicted, minlength=self.classes)
            for c in predicted.unique().tolist():
                both = torch.cat([self.extremes[:, c], entries[predicted == c]])
                self.extremes[:, c] = both.topk(2, dim=0, largest=False).values

    def finish(self) -> None:
        """After the last rows: join the ranks' bounds, and find each layer's mean deviation.

        Raises:
            UserError: there is no class that two training rows are predicted as.
        """
        if not len(self.extremes):
            raise UserError("Gram was given no training rows")
        lowest, second = self._over_ranks()
        several = self.count > 1
        if not bool(several.any()):
            raise UserError("no class is predicted for two training rows; Gram needs more training rows")
        # left out, only the row that holds a bound lies outside of the others' range: as far as from the second lowest
        left_out = excess(lowest[several], second[several])
        self.mean_deviation = self._by_layer(left_out).sum(0) / self.count[several].sum()
        never = self.count == 0
        if bool(never.any()):
            log.info(
                "finding   Gram: no training row is predicted as class %s; its range is that of all classes",
                ", ".join(map(str, never.nonzero()[:, 0].tolist())),
            )
        self.lowest = torch.where(never[:, None], lowest.amin(0), lowest)
        self._restart()

    def score(self, views: Views) -> Tensor:
        """(B,) float64."""
        parts = zip(views.x.split(ROWS), views.logits.argmax(1).split(ROWS))
        deviation_BL = torch.cat([self._by_layer(excess(self._entries(x), self.lowest[c])) for x, c in parts])
        return (deviation_BL / self.mean_deviation.clamp(min=1e-7)).sum(1)

    def _entries(self, x: Tensor) -> Tensor:
        """(B, 2E): g of all powers and layers, then -g, so that a range is two lower bounds."""
        layers = [gram_powers(maps, self.powers) for maps in self._network[0].stages(x)]
        if not len(self.widths):
            self.widths = torch.tensor([layer.shape[2] for layer in layers], device=x.device)
        g_BPS = torch.cat(layers, 2)
        return torch.stack([g_BPS, -g_BPS], 1).flatten(1)

    def _by_layer(self, deviation: Tensor) -> Tensor:
        """Sum over both bounds, powers and channels; (B, 2E) -> (B, L) float64."""
        layers = deviation.view(len(deviation), 2 * self.powers, -1).split(self.widths.tolist(), 2)
        return torch.stack([layer.sum((1, 2), dtype=torch.float64) for layer in layers], 1)

    def _over_ranks(self) -> tuple[Tensor, Tensor]:
        """Lowest and second lowest of every entry over all ranks; counts are joined as well."""
        lowest, second = self.extremes
        if rank_and_world()[1] == 1:
            return lowest, second
        dist.all_reduce(self.count)
        least = lowest.clone()
        dist.all_reduce(least, dist.ReduceOp.MIN)
        holders = (lowest == least).to(torch.int32)
        second = torch.where(holders > 0, second, lowest)
        dist.all_reduce(second, dist.ReduceOp.MIN)
        dist.all_reduce(holders)
        return least, torch.where(holders > 1, least, second)

    def _restart(self) -> None:
        self.extremes, self.count = self.extremes.new_empty(0), self.count.new_empty(0)
