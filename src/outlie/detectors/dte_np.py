"""DTE-NP, diffusion time estimation without a network: how much noise would take a training row here?

With training row x_0 and noise variance v, p(v | x) is InverseGamma(a = D/2 - 1, b = ||x - x_0||^2 / 2) under a flat
prior; averaging over the K nearest rows makes it robust. Livernoche et al. 2024.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from outlie.detectors.base import Detector, Views
from outlie.detectors.knn import require_neighbours
from outlie.detectors.neighbours import log_sum_exp_kernel, nearest_neighbours
from outlie.diffusion.schedules import alpha_bars, linear_betas
from outlie.options import PositiveInt


def time_log_posterior(squared: Tensor, dim: int, variances: Tensor) -> Tensor:
    """log p(t | x) up to a constant: -D/2 log sigma2_t - r^2 / (2 sigma2_t); (B,), (T,) -> (B, T)."""
    return -dim / 2 * variances.log() - squared[:, None] / (2 * variances)


class DTENP(Detector):
    """Noise time at the K nearest training rows, in closed form.

    Args:
        k: number of neighbours; the published tables use 5 (dte_semi) and 32 (dte_unsup).
        scorer: mean_dist (the published column), mean_sq_dist, kth_dist; mode = mean_sq_dist / D, the peak of the
            inverse gamma; grid_argmax (the released code) and grid_mean over the times of p(t | x) at the mean squared
            distance; exact_argmax and exact_mean over all training rows instead of the K nearest.
        T: length of the time grid of the grid and exact scorers.
    """

    needs: ClassVar[tuple[str, ...]] = ("features",)
    paper: ClassVar[str] = "Livernoche et al., On Diffusion Modeling for Anomaly Detection, ICLR 2024 (DTE-NP)"
    scoring: ClassVar[tuple[str, ...]] = ("k", "scorer", "T")
    bank: Tensor

    def __init__(
        self,
        k: PositiveInt = 5,
        scorer: Literal[
            "mean_dist", "mean_sq_dist", "kth_dist", "mode", "grid_argmax", "grid_mean", "exact_argmax", "exact_mean"
        ] = "mean_dist",
        T: PositiveInt = 300,
    ) -> None:
        super().__init__()
        self.k, self.scorer, self.T = k, scorer, T
        self.register_buffer("bank", torch.empty(0))

    def fit(self, train: Views) -> None:
        """Keep the training features."""
        if not self.scorer.startswith("exact"):  # those use every row
            require_neighbours(self.k, len(train))
        self.bank = train.features.detach()

    def score(self, views: Views) -> Tensor:
        """(B,) distance or time, whichever the scorer says."""
        x_BD, dim = views.features, self.bank.shape[1]
        if self.scorer.startswith("exact"):
            variances = self._variances(x_BD)
            kernel_BT = log_sum_exp_kernel(x_BD, self.bank, variances)
            return self._time(kernel_BT - dim / 2 * variances.log())
        squared_BK, _ = nearest_neighbours(x_BD, self.bank, self.k)
        mean_squared = squared_BK.mean(1)
        match self.scorer:
            case "mean_dist":
                return squared_BK.sqrt().mean(1)
            case "kth_dist":
                return squared_BK[:, -1].sqrt()
            case "mean_sq_dist":
                return mean_squared
            case "mode":  # b / (a + 1) = r^2 / D
                return mean_squared / dim
            case _:
                return self._time(time_log_posterior(mean_squared, dim, self._variances(x_BD)))

    def denoise(self, x: Tensor, rate: float = 0.5, steps: int = 100) -> Tensor:
        """Follow the gradient of the mode, (2 / (D K)) sum_k (x - x_k): a mean shift to the K neighbours; (B, D).

        Args:
            x: (B, D) standardised rows.
            rate: share of the way to the neighbours' mean that each step goes.
            steps: number of steps.
        """
        for _ in range(steps):
            _, index_BK = nearest_neighbours(x, self.bank, self.k)
            x = x - rate * (x - self.bank[index_BK].mean(1))
        return x

    def _variances(self, like: Tensor) -> Tensor:
        return (1 - alpha_bars(linear_betas(self.T))).to(like)

    def _time(self, log_posterior_BT: Tensor) -> Tensor:
        if self.scorer.endswith("argmax"):
            return log_posterior_BT.argmax(1).to(log_posterior_BT.dtype)
        times = torch.arange(self.T, dtype=log_posterior_BT.dtype, device=log_posterior_BT.device)
        return log_posterior_BT.softmax(1) @ times
