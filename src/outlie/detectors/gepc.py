"""||s(x) - g^-1 s(g x)||: how far the score of a flipped image is from the flipped score, against training images.

GEPC, as the specification of DDAE, section 8.6, has it from the repository of Rouzoumka et al. 2026. What it leaves
open is ours: the two levels, that flips act on the noisy image, the mean over flips, what the error is relative to.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from outlie.detectors.base import Spec
from outlie.detectors.denoising_loss import in_parts, noised_at, times_at
from outlie.detectors.mixtures import kernel_log_density, mean_and_std, silverman
from outlie.detectors.on_denoiser import OnDenoiser
from outlie.errors import UserError
from outlie.options import Fraction, PositiveFloat, PositiveInt

FLIPS = ((-1,), (-2,), (-2, -1))  # left-right, upside down, turned by 180 degrees; each is its own inverse
TINY = 1e-12


def disagreement(there_BCHW: Tensor, back_BCHW: Tensor, top: float) -> Tensor:
    """Relative squared error over the worst pixels, and 1 - cosine; (B, 2) float64.

    The error is the mean of ||u - v||^2 over the share `top` of pixels where it is largest, by the mean of ||u||^2 over
    all pixels.
    """
    there, back = there_BCHW.double().flatten(2), back_BCHW.double().flatten(2)
    error_BP = (there - back).square().sum(1)
    worst = error_BP.topk(math.ceil(top * error_BP.shape[1]), 1).values.mean(1)
    relative = worst / there.square().sum(1).mean(1).clamp(min=TINY)
    cosine = torch.cosine_similarity(there.flatten(1), back.flatten(1), dim=1, eps=TINY)
    return torch.stack([relative, 1 - cosine], 1)


class GEPC(OnDenoiser):
    """How little the denoiser's output turns with the image, at few noise levels: a sum of kernel densities.

    A network trained on mirrored images (backbone.flip) answers alike for a mirrored one, ID or not: that flip tells
    little then, and the other two carry the score.

    Args:
        log_snr: noise levels ln(a^2 / b^2), four passes each; ours.
        top: share of the pixels, the worst, that the squared error is of.
        bandwidth: of the kernels, in units of Silverman's rule.
        fit_rows: training images to fit on, drawn by the seed; null = all.
    """

    paper: ClassVar[str] = "Rouzoumka et al., arXiv 2605.11014, 2026 (GEPC, a baseline of its repository)"
    bank: Tensor  # (N, S)
    widths: Tensor  # (S,)
    weights: Tensor  # (S,)

    def __init__(
        self,
        log_snr: list[float] = [1.0, 5.0],  # noqa: B006 (a signature is a schema; never changed in place)
        top: Fraction = 0.3,
        bandwidth: PositiveFloat = 1.0,
        fit_rows: PositiveInt | None = 2000,
    ) -> None:
        super().__init__(fit_rows)
        self.log_snr, self.top, self.bandwidth = list(log_snr), top, bandwidth
        for name in ("bank", "widths", "weights"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    def setup(self, spec: Spec) -> None:
        """Take the denoiser, and its times of the levels; UserError where one is out of range."""
        super().setup(spec)
        self.times = times_at(self.network.process, self.log_snr)

    def statistics(self, x: Tensor) -> Tensor:
        """Of every level: the disagreement (error, 1 - cosine) of the scores, then of x0_hat; (B, 4 L) float64.

        eps_hat stands for the score, -eps_hat / b: both measures are relative.
        """
        L, G = len(self.times), 1 + len(FLIPS)
        noise, found = self.noise(x, L), []
        for part in in_parts(x, G * L):
            noisy, time = noised_at(self.network.process, part, self.times, noise)
            copies = torch.cat([noisy, *(noisy.flip(axes) for axes in FLIPS)])
            outputs = self.network.denoise(copies, time.repeat(G))
            columns = []
            for output in reversed(outputs):  # eps_hat, then x0_hat
                there, *turned = output.chunk(G)
                each = [disagreement(there, back.flip(axes), self.top) for back, axes in zip(turned, FLIPS)]
                columns.append(torch.stack(each).mean(0).unflatten(0, (-1, L)))  # (b, L, 2)
            found.append(torch.cat(columns, 2).flatten(1))
        return torch.cat(found)

    def learn(self, rows: Tensor) -> None:
        """Keep the rows; each column's kernel width, and its weight 1 / CV, CV = deviation / mean.

        Raises:
            UserError: no column varies.
        """
        mean_S, std_S = mean_and_std(rows)
        varies = (rows.amax(0) > rows.amin(0)) & (mean_S > TINY)  # rounding apart, an equivariant network has none
        if not varies.any():
            raise UserError(
                "the denoiser turns with each training image: GEPC has nothing to compare; choose detector=msma"
            )
        self.bank = rows
        self.widths = torch.ones_like(mean_S)
        for s in varies.nonzero().flatten().tolist():  # over columns
            self.widths[s] = self.bandwidth * silverman(rows[:, s : s + 1])[0, 0]
        weights = torch.where(varies, mean_S / std_S, 0.0)
        self.weights = weights / weights.sum()

    def judge(self, rows: Tensor) -> Tensor:
        """(B,) -sum_s w_s log p_s, p_s the kernel density of column s."""
        total = rows.new_zeros(len(rows))
        for s, (weight, width) in enumerate(zip(self.weights, self.widths)):
            column = slice(s, s + 1)
            total = total - weight * kernel_log_density(rows[:, column], self.bank[:, column], width.view(1, 1))
        return total
