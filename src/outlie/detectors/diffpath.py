"""DiffPath: -log density of sums of eps_s and d_s = (eps_{s+1} - eps_s) S along the path from an image to noise.

The path is DDIM's forward in time, x_{s+1} = a_{s+1} x0_hat + b_{s+1} eps_s over S levels, x_1 = the image itself.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from outlie.detectors.base import Spec
from outlie.detectors.mixtures import Kernels, Mixture, mean_and_std
from outlie.detectors.on_denoiser import OnDenoiser
from outlie.diffusion.image_samplers import Denoises, ddim_step
from outlie.diffusion.plms import falling_times
from outlie.errors import UserError
from outlie.log import log
from outlie.options import PositiveFloat, PositiveInt

ROWS_A_COMPONENT = 20  # of a mixture, at least (ours)


def path_sums(network: Denoises, x: Tensor, times: list[float]) -> Tensor:
    """Sums over steps and pixels of eps, eps^2, eps^3, d, d^2, d^3 along the path; (B, 6) float64.

    Args:
        network: denoises; x0_hat is clipped to [-1, 1], and eps recomputed from it.
        x: (B, C, H, W) in [-1, 1].
        times: of rising noise.
    """
    time_S = torch.stack([network.process.checked(time) for time in times]).to(x.device)
    a, b = (coefficient.tolist() for coefficient in network.process.coefficients(time_S))
    of_eps, of_change = x.new_zeros(2, len(x), 3, dtype=torch.float64)
    before = None
    for s, time in enumerate(time_S):
        x0, eps = network.denoise(x, time)
        clipped = x0.clamp(-1, 1)
        # only where it was clipped: at small noise x - a x0 has few digits left
        eps = torch.where(x0 == clipped, eps, (x - a[s] * clipped) / b[s])
        of_eps = of_eps + _powers(eps)
        if before is not None:
            of_change = of_change + _powers((eps - before) * len(times))
        if s + 1 < len(times):
            x, before = ddim_step(clipped, eps, a[s + 1], b[s + 1]), eps
    return torch.cat([of_eps, of_change], 1)


def _powers(values: Tensor) -> Tensor:
    """Sums over pixels of the powers 1, 2, 3; (B, 3) float64."""
    wide = values.flatten(1).double()
    return torch.stack([wide.sum(1), wide.square().sum(1), wide.pow(3).sum(1)], 1)


class DiffPath(OnDenoiser):
    """Density of statistics of the path from an image to noise; one network serves any in-distribution set.

    Where released numbers are to be met: the network is of learned variance with 4,000 cosine steps, trained on CelebA
    at 32 pixels or ImageNet at 64, and the mixture is fitted on every training image. If only one of two sets was
    enlarged to the network's size, the score sees that: bring both to the smaller size first.

    Args:
        statistic: six_d = sums of the powers 1 to 3 of eps and d, standardised, under a Gaussian mixture; one_d =
            sqrt(sum d^2) under Gaussian kernels.
        steps: S, levels of the path and network evaluations: DDIM's times for a ddpm, EDM's sigmas for an edm (ours).
        components: numbers of components of the mixture, chosen by the likelihood of rows left out, as is the kind of
            covariance; no more than a twentieth of the training images.
        bandwidth: of the kernels, in units of the statistic; published: 5, for 32 x 32 x 3; null = Silverman's rule.
        fit_rows: training images looked at, ten evaluations each: as few as 100 components can do with, whose choice
            then takes 35 CPU seconds; null = all, as published.
    """

    paper: ClassVar[str] = (
        "Heng et al., Out-of-Distribution Detection with a Single Unconditional Diffusion Model, NeurIPS 2024"
    )
    mean: Tensor  # (6,)
    std: Tensor  # (6,)

    def __init__(
        self,
        statistic: Literal["six_d", "one_d"] = "six_d",
        steps: PositiveInt = 10,
        components: list[PositiveInt] = [50, 100],  # noqa: B006 (a signature is a schema; never changed in place)
        bandwidth: PositiveFloat | None = None,
        fit_rows: PositiveInt | None = 2000,
    ) -> None:
        super().__init__(fit_rows)
        if steps < 2:
            raise UserError("steps = 1: a path's changes need 2 or more; set detector.steps")
        self.statistic, self.steps, self.components, self.bandwidth = statistic, steps, tuple(components), bandwidth
        self.times: list[float] = []
        self.density = Mixture() if statistic == "six_d" else Kernels()
        self.register_buffer("mean", torch.empty(0, dtype=torch.float64))
        self.register_buffer("std", torch.empty(0, dtype=torch.float64))

    def setup(self, spec: Spec) -> None:
        """Take the denoiser, lay out the path."""
        super().setup(spec)
        self.times = falling_times(self.network.process, self.steps)[::-1]

    def statistics(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, 6), or (B, 1)."""
        sums = path_sums(self.network, x, self.times)
        return sums if self.statistic == "six_d" else sums[:, 4:5].sqrt()

    def learn(self, rows: Tensor) -> None:
        """(N, 6) or (N, 1) statistics of training images."""
        if isinstance(self.density, Kernels):
            self.density.fit(rows, self.bandwidth)
            return
        self.mean, self.std = mean_and_std(rows)
        most = max(1, len(rows) // ROWS_A_COMPONENT)
        if self.components and max(self.components) > most:
            log.info("finding   DiffPath: %d training images, so at most %d components", len(rows), most)
        choices = sorted({min(k, most) for k in self.components})
        kinds = ("full", "tied", "diag", "spherical")
        self.density.fit((rows - self.mean) / self.std, choices, kinds, by="cv", seed=self.seed)

    def judge(self, rows: Tensor) -> Tensor:
        """-log density; (B,) float64."""
        x = rows if isinstance(self.density, Kernels) else (rows - self.mean) / self.std
        return -self.density.log_density(x)
