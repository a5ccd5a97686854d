"""Noise schedules and forward processes, as pure functions on tensors.

Livernoche et al., "On Diffusion Modeling for Anomaly Detection" (ICLR 2024), section 2 of the specification.
"""

import torch
from torch import Tensor


def linear_betas(T: int, first: float = 1e-4, last: float = 1e-2) -> Tensor:
    """beta_i for i = 0..T-1, evenly spaced from `first` to `last` inclusive; (T,) float64."""
    return torch.linspace(first, last, T, dtype=torch.float64)


def alpha_bars(betas: Tensor) -> Tensor:
    """abar_i = prod_{j <= i} (1 - beta_j); (T,)."""
    return torch.cumprod(1 - betas, dim=0)


def diffuse(x: Tensor, noise: Tensor, abar_t: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, the DDPM forward process (with drift).

    Args:
        x: (B, D) clean rows.
        noise: (B, D) standard normal.
        abar_t: (B, 1) abar at each row's time.
    """
    return abar_t.sqrt() * x + (1 - abar_t).sqrt() * noise


def diffuse_without_drift(x: Tensor, noise: Tensor, abar_t: Tensor) -> Tensor:
    """x_t = x_0 + sqrt(1 - abar_t) eps, the DTE forward process: mean kept, variance sigma2_t."""
    return x + (1 - abar_t).sqrt() * noise
