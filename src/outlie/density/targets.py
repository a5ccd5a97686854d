"""Unnormalised densities sum_m weight_m N(z; mean_m, var_m I) to see q_EW on: specification of IWAE, section 2.1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from outlie.density.latent import Normal


@dataclass(frozen=True)
class Mixture:
    """sum_m weight_m N(z; mean_m, exp(log_var_m) I); it plays p(x, z), and log p(x) = log sum_m weight_m."""

    means: tuple[tuple[float, ...], ...]
    log_vars: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def log_total(self) -> float:
        """log of its integral."""
        return math.log(sum(self.weights))

    def log_density(self, z: Tensor) -> Tensor:
        """(..., d) -> (...)."""
        means, log_vars, weights = (z.new_tensor(v) for v in (self.means, self.log_vars, self.weights))
        parts = Normal(means, (log_vars / 2)[:, None].expand_as(means))
        return (weights.log() + parts.log_prob(z[..., None, :])).logsumexp(-1)


# Cremer's plotting code. Its "/100" divides the logarithm: the five modes have variance 1.01, not 0.01.
EIGHT_MODES = Mixture(
    means=((1, 3), (3, 0), (1, 1), (-3, -1), (-1, -3), (2, 2), (-2, -2), (0, 0)),
    log_vars=(0.01,) * 5 + (1.0,) * 3,
    weights=(1.0,) * 8,
)
EIGHT_MODES_Q = Normal(torch.zeros(2, dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64))  # N(0, e I)

# p and q of the one-dimensional picture of q~_IW in the same code: variances e and e^0.5.
ONE_MODE = Mixture(means=((-2.5,),), log_vars=(1.0,), weights=(1.0,))
ONE_MODE_Q = Normal(torch.tensor([4.5], dtype=torch.float64), torch.tensor([0.25], dtype=torch.float64))

# Ours: the author's one-dimensional target with several modes is not known. Standard deviations 1/2; so far apart that
# the normal of the largest ELBO is on one mode, which the importance-weighted one is not.
THREE_MODES = Mixture(means=((-4.0,), (0.0,), (4.5,)), log_vars=(2 * math.log(0.5),) * 3, weights=(0.3, 0.4, 0.3))
