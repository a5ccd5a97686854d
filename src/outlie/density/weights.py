"""Numbers of importance weights w_i = p(x, z_i) / q(z_i | x), from their logarithms alone: L_k = E log (1/k) sum_i w_i.

`log_w` is (k, B), samples first, or (k,), or (k, ...). Some of it may be -inf (weight 0), even all of a column: the
functions say what they answer then, and it is never NaN. NaN comes out where NaN went in. Specification of IWAE,
sections 5 and 9.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TAIL = 0.2  # share of the largest weights that the Pareto distribution is fitted to
FEWEST = 5  # weights in that tail; with fewer there is no fit
SMALLEST = 1e-300  # of what a weight exceeds the tail's threshold by, as a share of the largest weight


def log_mean_exp(log_w: Tensor, dim: int = 0) -> Tensor:
    """log (1/k) sum_i w_i over `dim`; -inf where every weight is 0."""
    return torch.logsumexp(log_w, dim) - math.log(log_w.shape[dim])


def normalised(log_w: Tensor) -> Tensor:
    """w_i / sum_j w_j, (k, B); 1/k each where every weight is 0, so that they always sum to one."""
    return torch.where(_all_zero(log_w), 0.0, log_w).softmax(0)


def effective_samples(log_w: Tensor) -> Tensor:
    """1 / sum_i wt_i^2 of the normalised weights, from 1 to k, (B,); 0 where every weight is 0."""
    return torch.where(_all_zero(log_w), 0.0, 1 / normalised(log_w).square().sum(0))


def entropy_samples(log_w: Tensor) -> Tensor:
    """exp(-sum_i wt_i log wt_i) of the normalised weights, from 1 to k, (B,); 0 where every weight is 0."""
    return torch.where(_all_zero(log_w), 0.0, torch.special.entr(normalised(log_w)).sum(0).exp())


def bound_curve(log_w: Tensor, sizes: Sequence[int]) -> Tensor:
    """Mean of log (1/k) sum w over disjoint blocks of k samples, unbiased for L_k, for each k in `sizes`; (sizes, B).

    What is left over when k does not divide the number of samples is not used. Raises ValueError for a k that is
    below 1 or above that number. Specification of IWAE, section 9.
    """
    n = len(log_w)
    if any(not 1 <= size <= n for size in sizes):
        raise ValueError(f"blocks of {list(sizes)} samples, but there are {n}; a size is from 1 to {n}")
    blocks = (log_w[: n // size * size].unflatten(0, (-1, size)) for size in sizes)
    return torch.stack([log_mean_exp(block, 1).mean(0) for block in blocks])


def jackknife(log_w: Tensor) -> Tensor:
    """JVI-1 = k L_k - (k - 1) mean_i L_{k-1} without sample i: less biased than L_k, but no bound; (B,).

    -inf where every weight is 0, +inf where a single one is not. Raises ValueError for k < 2. Nowozin, ICLR 2018.
    """
    k = len(log_w)
    if k < 2:
        raise ValueError("the jackknife leaves one sample out: it needs two or more")
    # log(S - w_i) - log S = log(1 - wt_i) loses its digits only where wt_i > 1/2: of the largest weight, summed again.
    largest = torch.zeros_like(log_w, dtype=torch.bool).scatter(0, log_w.argmax(0, keepdim=True), True)
    whole, rest = log_w.logsumexp(0), log_w.masked_fill(largest, -torch.inf).logsumexp(0)
    change = torch.where(largest, rest - whole, torch.log1p(-normalised(log_w).masked_fill(largest, 0.0))).mean(0)
    corrected = log_mean_exp(log_w) - (k - 1) * (change + math.log(k / (k - 1)))
    return torch.where(_all_zero(log_w), -torch.inf, corrected)


def pareto_k(log_w: Tensor, share: float = TAIL) -> Tensor:
    """Shape k of the generalised Pareto distribution of the largest weights, (B,): above 0.7, expect no 1/k law.

    Fitted to what the largest `share` of weights exceed the next one by. Fewer than 5 that do: +inf, nothing vouches
    for the weights. None that does, the largest being equal: -inf, they are bounded. Vehtari et al., Pareto Smoothed
    Importance Sampling, JMLR 2024; the fit is Zhang and Stephens', Technometrics 2009.
    """
    top = math.ceil(share * len(log_w))
    if top >= len(log_w):  # a tail needs a weight below it
        return torch.full(log_w.shape[1:], torch.inf, dtype=log_w.dtype, device=log_w.device)
    largest = log_w.topk(top + 1, 0).values.double()  # descending
    relative = (largest - torch.where(largest[:1] == -torch.inf, 0.0, largest[:1])).exp()  # to the largest: no overflow
    above = relative[:-1] - relative[-1:]
    count = (above > SMALLEST).sum(0)
    bounded = (count == 0) & ~_all_zero(log_w)
    shape = torch.where(count < FEWEST, torch.inf, _generalised_pareto(above, count))
    shape = torch.where(bounded, -torch.inf, shape)
    return torch.where(log_w.isnan().any(0), torch.nan, shape).to(log_w.dtype)


def _generalised_pareto(x: Tensor, count: Tensor) -> Tensor:
    """Shape of the Pareto distribution of the `count` first, positive, rows of x (M, B), in descending order; (B,).

    The shape given b is k(b) = mean_i log(1 - b x_i); b is averaged over a grid by its profile likelihood.
    """
    n, inside = count.double(), x > SMALLEST
    x = torch.where(inside, x, 0.0)
    quartile = (count - (n / 4 + 0.5).long()).clamp(0, len(x) - 1)  # from the top
    scale = 3 * x.gather(0, quartile[None])[0].clamp_min(SMALLEST)
    points = 30 + n.sqrt().floor()  # of the grid; as many as the column's tail is long

    def profile(b: Tensor) -> Tensor:
        return torch.log1p(-b * x).sum(0) / n

    grid, likelihoods = [], []
    for j in range(1, 31 + math.isqrt(len(x))):  # one after the other: (grid, M, B) would not fit into memory
        b = 1 / x[0] + (1 - (points / (j - 0.5)).sqrt()) / scale
        shape = profile(b)
        likelihood = n * ((-b / shape).log() - shape - 1)  # NaN at b = 0 exactly
        grid.append(b)
        likelihoods.append(torch.where((j <= points) & ~likelihood.isnan(), likelihood, -torch.inf))
    b = (torch.stack(likelihoods).softmax(0) * torch.stack(grid)).sum(0)
    return (n * profile(b) + 5) / (n + 10)  # Vehtari's prior: ten observations of 1/2


class RunningWeights:
    """The same numbers of samples that come in chunks, (k_c, ...) each: only a maximum and two sums are kept."""

    def __init__(self) -> None:
        self.samples = 0

    def update(self, log_w: Tensor) -> None:
        """Take in a chunk of log-weights (k_c, ...)."""
        log_w = log_w.double()
        if not len(log_w):
            return
        if not self.samples:
            self._max = torch.full_like(log_w[0], -torch.inf)
            self._sum, self._squares = torch.zeros_like(log_w[0]), torch.zeros_like(log_w[0])
        self.samples += len(log_w)
        larger = torch.maximum(self._max, log_w.amax(0))
        origin = torch.where(larger == -torch.inf, 0.0, larger)  # -inf - -inf is NaN
        kept, relative = (self._max - origin).exp(), (log_w - origin).exp()
        self._sum = self._sum * kept + relative.sum(0)
        self._squares = self._squares * kept.square() + relative.square().sum(0)
        self._max = larger

    def log_mean_exp(self) -> Tensor:
        """log (1/k) sum_i w_i of the k samples so far, (...) float64; -inf where every weight is 0."""
        return self._max + self._sum.log() - math.log(self.samples)

    def effective_samples(self) -> Tensor:
        """(sum w)^2 / sum w^2, (...) float64; 0 where every weight is 0."""
        return torch.where(self._max == -torch.inf, 0.0, self._sum.square() / self._squares)


def _all_zero(log_w: Tensor) -> Tensor:
    return (log_w == -torch.inf).all(0)
