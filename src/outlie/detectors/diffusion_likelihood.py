"""-log p(x) <= L_0 + sum_t w_t ||eps - eps_hat||^2 + L_T in bits/dim: the bound that a diffusion model is trained by.

    VP:  w_t = beta_t / (2 alpha_t (1 - abar_t)), t = 2..T      Ho et al. 2020, eq. (5), (12), sigma_t^2 = beta_t
    VE:  1/2 integral of ||eps - eps_hat||^2 over the log-SNR   Kingma et al. 2021, the limit of many steps

L_0 = -log of N(x0_hat(x_1), b_1^2) in the bin of a pixel's value, 256 of them from -1 to 1; L_T = KL(q(x_T | x) || p).
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from outlie.density.complexity import png_bits
from outlie.detectors.base import Spec
from outlie.detectors.denoising_loss import denoised_at
from outlie.detectors.on_denoiser import OnDenoiser
from outlie.diffusion.processes import VE, VP
from outlie.errors import UserError
from outlie.log import log
from outlie.options import PositiveInt

LEVELS = 256  # of a pixel
SIGMAS = (0.01, 80.0)  # of VE: the first step of DDPM's chain has b = .01, EDM ends at 80


class Plan(NamedTuple):
    """The passes of a bound: the first is of L_0; the sum of `weight` times e over the rest is about sum_t w_t e_t."""

    times: Tensor  # (L,)
    weight: Tensor  # (L - 1,), of each e
    constant: float  # nats a dimension that no network changes


def chain_terms(process: VP) -> tuple[Tensor, float]:
    """w_t of t = 2..T, (T - 1,) float64, and what KL(N(., beta~_t) || N(., beta_t)) has beside the means, summed."""
    abar = process.abar.double().cpu()
    alpha, before, after = abar[2:] / abar[1:-1], abar[1:-1], abar[2:]
    beta = 1 - alpha
    ratio = (1 - before) / (1 - after)  # beta~_t / beta_t
    return beta / (2 * alpha * (1 - after)), float((ratio - 1 - ratio.log()).sum() / 2)


def plan(process: VP | VE, levels: int, generator: torch.Generator) -> Plan:
    """Levels evenly in the weight that they stand for, nearly evenly in log-SNR, one drawn in each share: unbiased.

    A term t is met weight_t / W * (levels - 1) times on average; with levels >= T every term is taken once.

    Raises:
        UserError: fewer than two levels.
    """
    if levels < 2:
        raise UserError(f"levels = {levels}: one is of the pixels' bins, so 2 at least; set detector.levels")
    n = levels - 1
    place = (torch.arange(n, dtype=torch.float64) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
    if isinstance(process, VP):
        weight_T, constant = chain_terms(process)
        if levels >= process.T:
            return Plan(torch.arange(1, process.T + 1), weight_T, constant)
        below = weight_T.cumsum(0)
        step = torch.searchsorted(below, place * below[-1], right=True).clamp(max=len(below) - 1)
        return Plan(torch.cat([torch.ones(1, dtype=torch.int64), step + 2]), (below[-1] / n).expand(n), constant)
    low, high = (math.log(sigma) for sigma in SIGMAS)
    sigmas = torch.cat([torch.tensor([SIGMAS[0]]), (low + (high - low) * place).exp().float()])
    return Plan(sigmas, torch.full((n,), (high - low) / n, dtype=torch.float64), 0.0)  # d logSNR / 2 = d ln sigma


def binned_log_likelihood(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """log (Phi((x + h - m) / s) - Phi((x - h - m) / s)), h = 1 / 255; the bins of -1 and 1 reach to infinity.

    The same shape, float64, finite however far x is from m.
    """
    h, x = 1 / (LEVELS - 1), x.double()
    right, left = (x + h - mean) / std, (x - h - mean) / std
    right, left = right.masked_fill(x > 1 - h, torch.inf), left.masked_fill(x < h - 1, -torch.inf)
    flipped = left > 0  # Phi(r) - Phi(l) = Phi(-l) - Phi(-r): in the lower tail there is no 1 - 1
    upper, lower = torch.where(flipped, -left, right), torch.where(flipped, -right, left)
    top = torch.special.log_ndtr(upper)
    return top + torch.log1p(-(torch.special.log_ndtr(lower) - top).exp())


def prior_kl(process: VP | VE, x: Tensor) -> Tensor:
    """KL(q(x_T | x) || p(x_T)) of the chain's end, p = N(0, I), or N(0, sigma^2 I) of VE; (B,) nats."""
    squared = x.double().flatten(1).square().sum(1)
    if isinstance(process, VE):
        return squared / (2 * SIGMAS[1] ** 2)
    abar = process.abar[-1].double()
    return (abar * squared + x[0].numel() * (-abar - torch.log1p(-abar))) / 2


class DiffusionLikelihood(OnDenoiser):
    """Bits per dimension that the denoiser's bound gives an image, of pixels with 256 values.

    Known to prefer simple images: SVHN over CIFAR-10 after training on the latter. Nothing is fitted.

    Args:
        levels: passes of the bound, the first at the least noise; as many as the chain has steps take every term.
        complexity: subtract the length of the image as PNG, in bits per dimension (Serra et al., ICLR 2020).
        fit_rows: training images whose mean is said in the log, and no more; null = all.
    """

    paper: ClassVar[str] = "Ho et al., Denoising Diffusion Probabilistic Models, NeurIPS 2020"
    scoring: ClassVar[tuple[str, ...]] = ("levels", "complexity")

    def __init__(self, levels: PositiveInt = 20, complexity: bool = False, fit_rows: PositiveInt | None = 64) -> None:
        super().__init__(fit_rows)
        self.levels, self.complexity = levels, complexity

    def setup(self, spec: Spec) -> None:
        """Take the denoiser and plan the levels; UserError where images have no PNG."""
        super().setup(spec)
        channels = spec.shapes["x"][0]
        if self.complexity and channels not in (1, 3):
            raise UserError(f"an image with {channels} channels is no PNG; set detector.complexity=false")
        self.passes = plan(self.network.process, self.levels, torch.Generator().manual_seed(self.seed))

    def statistics(self, x: Tensor) -> Tensor:
        """Bits per dimension, less those of the PNG if asked for; (B, 1) float64."""
        process, (times, weight, constant) = self.network.process, self.passes
        noise = self.noise(x, len(times))
        _, b = process.coefficients(times[:1].to(x.device))
        weight, dim, done, parts = weight.to(x.device), x[0].numel(), 0, []
        for x0, eps in denoised_at(self.network, x, times, noise):
            image = x[done : done + len(x0)]
            done += len(x0)
            decoder = binned_log_likelihood(image, x0[:, 0].double(), float(b)).flatten(1).sum(1)
            error_BL = (noise - eps)[:, 1:].double().square().flatten(2).sum(2)
            parts.append(error_BL @ weight + prior_kl(process, image) - decoder)
        bits = torch.cat(parts) / dim + constant
        bits = bits / math.log(2)
        if self.complexity:
            bits = bits - png_bits((x + 1) / 2, LEVELS).to(x.device) / dim
        return bits[:, None]

    def learn(self, rows: Tensor) -> None:
        """Say what training images take."""
        what = "bits/dim beyond their PNG" if self.complexity else "bits/dim"
        log.info("fit       training images take %.2f %s, of %d", rows.mean(), what, len(rows))

    def judge(self, rows: Tensor) -> Tensor:
        """(B,) the bits."""
        return rows[:, 0]
