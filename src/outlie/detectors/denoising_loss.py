"""s(x) = mean_l z_l, z_l the standardised ||eps - eps_hat(a_l x + b_l eps)||^2 / D: the training loss at a few levels.

Ours; the simplest score that a denoiser gives. Also here: how an image is denoised at several levels at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from outlie.detectors.base import Spec
from outlie.detectors.mixtures import mean_and_std
from outlie.detectors.on_denoiser import ROWS, OnDenoiser
from outlie.diffusion.processes import VE, VP
from outlie.errors import UserError
from outlie.options import PositiveInt


def times_at(process: VP | VE, log_snr: Sequence[float]) -> Tensor:
    """The process's times of these log-SNRs; (L,).

    Raises:
        UserError: none are given, or one is out of range.
    """
    if not len(log_snr):
        raise UserError("no noise level: give one at least in detector.log_snr")
    return torch.stack([process.time_at(level).cpu() for level in log_snr])


def in_parts(x: Tensor, copies: int) -> tuple[Tensor, ...]:
    """Images in parts whose `copies` fit a network call."""
    small_on_gpu = x.is_cuda and x.shape[-2] * x.shape[-1] <= 64 * 64
    return x.split(max(1, (8 * ROWS if small_on_gpu else ROWS) // copies))


def noised_at(process: VP | VE, x: Tensor, times_L: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Every image at every level, an image's levels side by side: (B L, C, H, W), and the times (B L,).

    Args:
        x: (B, C, H, W) clean.
        times_L: t or sigma.
        noise: (1 or L, C, H, W), one for all levels or one each.
    """
    B, L = len(x), len(times_L)
    time_BL = times_L.to(x.device).repeat(B)
    return process.noised(x.repeat_interleave(L, 0), time_BL, noise.expand(L, *x.shape[1:]).repeat(B, 1, 1, 1)), time_BL


def denoised_at(network: Any, x: Tensor, times_L: Tensor, noise: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(x0_hat, eps_hat), each (b, L, C, H, W), of the images in parts; one network evaluation an image and level."""
    L = len(times_L)
    for part in in_parts(x, L):
        x0, eps = network.denoise(*noised_at(network.process, part, times_L, noise))
        yield x0.unflatten(0, (-1, L)), eps.unflatten(0, (-1, L))


class DenoisingLoss(OnDenoiser):
    """How badly the noise is predicted, at a few noise levels, against training images.

    Args:
        log_snr: noise levels ln(a^2 / b^2), one pass each.
        fit_rows: training images whose losses give each level's mean and deviation, drawn by the seed; null = all.
    """

    paper: ClassVar[str] = (
        "Ho et al., Denoising Diffusion Probabilistic Models, NeurIPS 2020 (its loss; the score: ours)"
    )
    mean: Tensor  # (L,)
    std: Tensor  # (L,)

    def __init__(
        self,
        log_snr: list[float] = [-4.0, -1.0, 2.0, 5.0],  # noqa: B006 (a signature is a schema; never changed in place)
        fit_rows: PositiveInt | None = 2000,
    ) -> None:
        super().__init__(fit_rows)
        self.log_snr = list(log_snr)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    def setup(self, spec: Spec) -> None:
        """Take the denoiser, and its times of the levels; UserError where one is out of range."""
        super().setup(spec)
        self.times = times_at(self.network.process, self.log_snr)

    def statistics(self, x: Tensor) -> Tensor:
        """||eps - eps_hat||^2 / D at every level, the noise of a level the same for all images; (B, L) float64."""
        noise = self.noise(x, len(self.times))
        passes = denoised_at(self.network, x, self.times, noise)
        return torch.cat([(noise - eps).double().square().flatten(2).mean(2) for _, eps in passes])

    def learn(self, rows: Tensor) -> None:
        """Mean and deviation of each level's loss."""
        self.mean, self.std = mean_and_std(rows)

    def judge(self, rows: Tensor) -> Tensor:
        """(B,) mean over the levels of the standardised loss."""
        return ((rows - self.mean) / self.std).mean(1)
