"""How an image is noised: x_t = a x_0 + b eps, with (a, b) of a time; the log-SNR ln(a^2 / b^2) orders all of them.

Times are what a family calls them: t = 1..T of DDPM's chain (variance preserving), sigma > 0 of EDM (exploding).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from outlie.errors import UserError


def spread(values: Tensor, x: Tensor) -> Tensor:
    """One value, or one a row, so that it multiplies (B, C, H, W)."""
    return values.view(-1, *[1] * (x.ndim - 1)) if values.ndim else values


class VP(nn.Module):
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, beta_t linear in t = 1..T; t = 0 is the clean image.

    Ho et al., DDPM, NeurIPS 2020. The specification of DDAE, section 3.1: index 0 is a dummy with beta = 0.
    """

    unit: ClassVar[str] = "t"
    abar: Tensor

    def __init__(self, T: int = 1000, first: float = 1e-4, last: float = 0.02) -> None:
        super().__init__()
        self.T = T
        betas = torch.linspace(first, last, T, dtype=torch.float64)
        abar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).log().cumsum(0).exp()])
        self.register_buffer("abar", abar, persistent=False)

    def coefficients(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) of times 0..T, float32."""
        abar = self.abar[time.long()]
        return abar.sqrt().float(), (1 - abar).sqrt().float()

    def log_snr(self, time: Tensor) -> Tensor:
        """ln(abar / (1 - abar)), float32; infinite at t = 0."""
        abar = self.abar[time.long()]
        return (abar / (1 - abar)).log().float()

    def time_at(self, log_snr: float) -> Tensor:
        """The t whose log-SNR is nearest; 0-d int64.

        Raises:
            UserError: beyond the chain's ends by more than half a step there.
        """
        table = (self.abar[1:] / (1 - self.abar[1:])).log()  # falls with t
        high, low = float(table[0]), float(table[-1])
        if not low - 0.5 <= log_snr <= high + 0.5:
            raise UserError(f"log_snr = {log_snr}: t = 1 to {self.T} reach from {high:.2f} down to {low:.2f}")
        return (table - log_snr).abs().argmin() + 1

    def checked(self, time: float) -> Tensor:
        """A user's t; 0-d int64, UserError where it is no step of the chain."""
        if not (1 <= time <= self.T and time == int(time)):
            raise UserError(f"t = {time}: allowed are the integers 1 to {self.T} (0 is the clean image)")
        return torch.tensor(int(time), device=self.abar.device)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Times of a training batch, uniform on 1..T; (n,) int64."""
        return torch.randint(1, self.T + 1, (n,), generator=generator, device=generator.device)

    def noised(self, x: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        """a x + b eps; x (B, C, H, W), time 0-d or (B,), noise (B or 1, C, H, W)."""
        a, b = self.coefficients(time)
        return spread(a, x) * x + spread(b, x) * noise


class VE(nn.Module):
    """x_sigma = x_0 + sigma eps; in training ln sigma ~ N(-1.2, 1.2^2). Karras et al., EDM, NeurIPS 2022."""

    unit: ClassVar[str] = "sigma"
    sigma_data: ClassVar[float] = 0.5

    def coefficients(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """(1, sigma), float32."""
        return torch.ones_like(time, dtype=torch.float32), time.float()

    def log_snr(self, time: Tensor) -> Tensor:
        """-2 ln sigma, float32."""
        return -2 * time.log().float()

    def time_at(self, log_snr: float) -> Tensor:
        """sigma = exp(-log_snr / 2); 0-d float32."""
        if not abs(log_snr) <= 20:
            raise UserError(f"log_snr = {log_snr}: allowed are -20 to 20")
        return torch.tensor(math.exp(-log_snr / 2))

    def checked(self, time: float) -> Tensor:
        """A user's sigma; 0-d float32, UserError unless it is above 0: the network is told ln sigma."""
        if not 0 < time < math.inf:
            raise UserError(f"sigma = {time}: must be above 0; the smallest of EDM's grid is 0.002")
        return torch.tensor(float(time))

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """sigma of a training batch; (n,)."""
        return (1.2 * torch.randn(n, generator=generator, device=generator.device) - 1.2).exp()

    def noised(self, x: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        """x + sigma eps; x (B, C, H, W), time 0-d or (B,), noise (B or 1, C, H, W)."""
        return x + spread(time.float(), x) * noise

    def preconditioning(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in, c_noise of D(x; s) = c_skip x + c_out F(c_in x, c_noise); EDM, table 1."""
        variance, data = sigma**2, self.sigma_data**2
        root = (variance + data).sqrt()
        return data / (variance + data), sigma * self.sigma_data / root, 1 / root, sigma.log() / 4

    def weight(self, sigma: Tensor) -> Tensor:
        """w(s) = (s^2 + sd^2) / (s sd)^2 = 1 / c_out^2, of the loss w (x_0 - D)^2."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
