"""OpenMax: l'_c = l_c (1 - w_c omega_c), unknown logit = sum (l_c - l'_c); omega_c = Weibull CDF of the distance to c.

Bendale and Boult 2016, as OpenOOD 1.5 runs it: logits as activation vectors, Euclidean distances, weights
w = (alpha + 1 - i) / alpha for the i-th largest logit. Its Weibull library shifts the tail so that the smallest value
becomes 10000 and fits shape and scale by maximum likelihood; so do we, in closed equations and float64.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from outlie.detectors.base import Detector, Views
from outlie.detectors.softmax import class_labels
from outlie.errors import UserError
from outlie.log import log
from outlie.options import PositiveFloat, PositiveInt

ROWS_AT_ONCE = 65_536  # of (rows, C) float64
FEWEST = 3  # correct rows: two are equally far from their mean, which fixes no Weibull


def weibull_shape_and_log_scale(log_x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum likelihood Weibull of each row of exp(log_x): (C, n), bool (C, n) -> shape (C,), log scale (C,).

    The shape k solves E_k[log x] - mean(log x) = 1 / k, E_k weighted by x^k. The left side rises with k, from at least
    R - log(n) / k up to R = max - mean, so 1 / R <= k <= (1 + log n) / R. Rows without spread give NaN or infinity.
    """
    n_C = valid.sum(1).double()
    mean_C = torch.where(valid, log_x, 0).sum(1) / n_C
    reach_C = log_x.masked_fill(~valid, -math.inf).max(1).values - mean_C
    low_C, high_C = 1 / reach_C, (1 + n_C.log()) / reach_C
    for _ in range(60):
        k_C = (low_C + high_C) / 2
        weights_CN = (k_C[:, None] * log_x).masked_fill(~valid, -math.inf).softmax(1)
        rises = (weights_CN * log_x).sum(1) - mean_C > 1 / k_C
        low_C, high_C = torch.where(rises, low_C, k_C), torch.where(rises, k_C, high_C)
    k_C = (low_C + high_C) / 2
    log_mean_power = (k_C[:, None] * log_x).masked_fill(~valid, -math.inf).logsumexp(1) - n_C.log()
    return k_C, log_mean_power / k_C


def largest_of_each_class(values: Tensor, y: Tensor, classes: int, n: int) -> tuple[Tensor, Tensor]:
    """The n largest values of each class, 0 where there are fewer, and which are there; (N,), (N,) -> (C, n) each."""
    order = values.argsort(descending=True, stable=True)
    order = order[y[order].argsort(stable=True)]  # by class, the largest first
    y_sorted = y[order]
    first_C = torch.searchsorted(y_sorted, torch.arange(classes, device=y.device))
    rank = torch.arange(len(y), device=y.device) - first_C[y_sorted]
    kept = rank < n
    tails = torch.zeros(classes, n, dtype=values.dtype, device=values.device)
    valid = torch.zeros(classes, n, dtype=torch.bool, device=values.device)
    tails[y_sorted[kept], rank[kept]] = values[order][kept]
    valid[y_sorted[kept], rank[kept]] = True
    return tails, valid


class OpenMax(Detector):
    """Log odds of the unknown class, log P(unknown) / (1 - P(unknown)): OpenMax's ranking without ties at 0 and 1.

    A class with fewer than three correctly classified rows, or with all of them equally far from their mean, takes
    nothing from its logit (omega = 0), and a finding says so.

    Args:
        tail: number of largest distances of each class that its Weibull is fitted to; pytorch-ood uses 25.
        alpha: number of largest logits that are revised; all where there are fewer classes. pytorch-ood uses 10.
        margin: distance from the Weibull's origin to the smallest value of the tail; libmr's is 10000.
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    posthoc: ClassVar[bool] = True
    paper: ClassVar[str] = "Bendale and Boult, Towards Open Set Deep Networks, CVPR 2016"
    scoring: ClassVar[tuple[str, ...]] = ("alpha",)
    means: Tensor  # (C, C), one row a class
    smallest: Tensor  # (C,) of each tail
    shape: Tensor  # (C,), 0 = class without a Weibull
    log_scale: Tensor  # (C,), of distance / margin

    def __init__(self, tail: PositiveInt = 20, alpha: PositiveInt = 3, margin: PositiveFloat = 10_000.0) -> None:
        super().__init__()
        if tail < FEWEST:
            raise UserError(f"tail = {tail} distances fix no Weibull; set detector.tail to {FEWEST} or more")
        self.tail, self.alpha, self.margin = tail, alpha, margin
        for name in ("means", "smallest", "shape", "log_scale"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    def fit(self, train: Views) -> None:
        """Mean logits of each class, and the Weibull of the largest distances to it, over correctly classified rows."""
        y, classes = class_labels(train), train.logits.shape[1]
        correct = (train.logits.argmax(1) == y).nonzero()[:, 0]
        y = y[correct]
        means_CC = torch.zeros(classes, classes, dtype=torch.float64, device=y.device)
        for rows in correct.split(ROWS_AT_ONCE):
            means_CC.index_add_(0, train.y[rows], train.logits[rows].double())
        means_CC = means_CC / y.bincount(minlength=classes).clamp(min=1)[:, None]
        distance = [
            torch.linalg.vector_norm(train.logits[rows].double() - means_CC[train.y[rows]], dim=1)
            for rows in correct.split(ROWS_AT_ONCE)
        ]
        tails, valid = largest_of_each_class(torch.cat(distance), y, classes, self.tail)
        smallest = tails.masked_fill(~valid, math.inf).min(1).values
        usable = (valid.sum(1) >= FEWEST) & (tails[:, 0] - smallest > 1e-9 * tails[:, 0])
        self._report(usable)
        smallest = smallest.masked_fill(~usable, 0)
        log_x = ((tails - smallest[:, None]).clamp(min=0) / self.margin).log1p()
        shape, log_scale = weibull_shape_and_log_scale(log_x, valid)
        self.means, self.smallest = means_CC, smallest
        self.shape, self.log_scale = shape.masked_fill(~usable, 0), log_scale.masked_fill(~usable, 0)

    def score(self, views: Views) -> Tensor:
        """(B,) log odds of unknown, float64."""
        logits_BC = views.logits.double()
        revised = min(self.alpha, logits_BC.shape[1])
        top = logits_BC.topk(revised, 1)
        omega_BA = torch.stack([self._omega(logits_BC, index) for index in top.indices.unbind(1)], 1)
        weights_A = torch.arange(revised, 0, -1, dtype=torch.float64, device=logits_BC.device) / revised
        taken_BA = weights_A * omega_BA * top.values
        known_BC = logits_BC.scatter(1, top.indices, top.values - taken_BA)
        return taken_BA.sum(1) - known_BC.logsumexp(1)

    def _omega(self, logits_BC: Tensor, index: Tensor) -> Tensor:
        """Weibull CDF 1 - exp(-(x / scale)^shape), x = distance - smallest + margin; 0 for a class without one."""
        distance = torch.linalg.vector_norm(logits_BC - self.means[index], dim=1)
        x = (distance - self.smallest[index]) / self.margin
        shape = self.shape[index]
        log_power = shape * (x.clamp(min=-1).log1p() - self.log_scale[index])
        return torch.where(shape > 0, -torch.expm1(-log_power.exp()), 0)

    def _report(self, usable: Tensor) -> None:
        missing = (~usable).nonzero()[:, 0].tolist()
        if len(missing) == len(usable):
            raise UserError(f"OpenMax: no class has {FEWEST} correctly classified training rows; train the backbone")
        if missing:
            shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            log.info(
                f"finding   OpenMax: {len(missing)} of {len(usable)} classes have too few correctly classified rows "
                f"for a Weibull, their logits stay as they are: {shown}"
            )
