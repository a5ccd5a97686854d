"""f_l(x) = ||eps_hat(a_l x + b_l eps, l)||_2: norms of the score over noise levels, and how usual their vector is.

Mahmood et al. 2021 have annealed noise of a score network; this is the harmonised form for any denoiser, of the
specification of DDAE, section 8.6: levels evenly in log-SNR, one noise for all of them.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from outlie.detectors.base import Spec
from outlie.detectors.denoising_loss import denoised_at, times_at
from outlie.detectors.knn import require_neighbours
from outlie.detectors.mixtures import Mixture, mean_and_std
from outlie.detectors.neighbours import nearest_neighbours
from outlie.detectors.on_denoiser import OnDenoiser
from outlie.errors import UserError
from outlie.options import PositiveInt


class MSMA(OnDenoiser):
    """How unusual the norms of the predicted noise are over noise levels, by a mixture or by neighbours.

    Args:
        levels: number of noise levels, one pass each.
        lowest: log-SNR of the noisiest level; the chain of ddpm ends at -10.1.
        highest: log-SNR of the cleanest level.
        head: gmm = -log density of a Gaussian mixture with full covariances; knn = mean distance to k neighbours.
        components: numbers of the mixture's components, of which the least BIC chooses.
        k: neighbours of knn.
        fit_rows: training images to fit on, drawn by the seed; null = all.
    """

    paper: ClassVar[str] = "Mahmood et al., Multiscale Score Matching for Out-of-Distribution Detection, ICLR 2021"
    scoring: ClassVar[tuple[str, ...]] = ("k",)
    mean: Tensor  # (L,)
    std: Tensor  # (L,)
    bank: Tensor  # (N, L), of knn

    def __init__(
        self,
        levels: PositiveInt = 8,
        lowest: float = -10.0,
        highest: float = 5.0,
        head: Literal["gmm", "knn"] = "gmm",
        components: list[PositiveInt] = [2, 4, 6, 8],  # noqa: B006 (a signature is a schema; never changed in place)
        k: PositiveInt = 5,
        fit_rows: PositiveInt | None = 2000,
    ) -> None:
        super().__init__(fit_rows)
        if not lowest < highest:
            raise UserError(f"lowest = {lowest}, highest = {highest}: set detector.lowest below detector.highest")
        self.levels, self.lowest, self.highest = levels, lowest, highest
        self.head, self.components, self.k = head, list(components), k
        for name in ("mean", "std", "bank"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))
        self.mixture = Mixture()

    def setup(self, spec: Spec) -> None:
        """Take the denoiser, and its times of the levels; UserError where one is out of range."""
        super().setup(spec)
        log_snr = torch.linspace(self.lowest, self.highest, self.levels, dtype=torch.float64)
        self.times = times_at(self.network.process, log_snr.tolist())

    def statistics(self, x: Tensor) -> Tensor:
        """||eps_hat||_2 at every level, all with the same noise; (B, L) float64."""
        passes = denoised_at(self.network, x, self.times, self.noise(x))
        return torch.cat([eps.double().flatten(2).norm(dim=2) for _, eps in passes])

    def learn(self, rows: Tensor) -> None:
        """Standardise, then fit the mixture or keep the rows; UserError where there are too few."""
        self.mean, self.std = mean_and_std(rows)
        z_NL = (rows - self.mean) / self.std
        if self.head == "gmm":
            self.mixture.fit(z_NL, self.components, seed=self.seed)
        else:
            require_neighbours(self.k, len(rows))
            self.bank = z_NL

    def judge(self, rows: Tensor) -> Tensor:
        """(B,) -log density, or mean distance."""
        z_BL = (rows - self.mean) / self.std
        if self.head == "gmm":
            return -self.mixture.log_density(z_BL)
        squared_BK, _ = nearest_neighbours(z_BL, self.bank, self.k)
        return squared_BK.sqrt().mean(1)
