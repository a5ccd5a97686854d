"""What the scores of a diffusion model share: statistics of an image from the denoiser, then a score fitted on them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from outlie.detectors.base import Detector, Spec, Views
from outlie.errors import UserError
from outlie.gather import gather_shares, rank_and_world, share

ROWS = 64  # images of one network call


class OnDenoiser(Detector):
    """Statistics of each image by passes of a denoiser; a subclass defines `statistics`, `learn` and `judge`.

    `statistics(x)`  (B, C, H, W) in [-1, 1] -> (B, S): what the passes tell of an image, each as if it came alone.
    `learn(rows)`    once, with the statistics (N, S) float64 of training images, of every rank.
    `judge(rows)`    statistics (B, S) float64 -> (B,) scores.

    Args:
        fit_rows: training images that are looked at in `fit`, drawn by the seed; null = all.
    """

    needs: ClassVar[tuple[str, ...]] = ("x", "network", "denoiser")
    posthoc: ClassVar[bool] = True
    images: ClassVar[bool] = True

    def __init__(self, fit_rows: int | None) -> None:
        super().__init__()
        self.fit_rows, self.seed = fit_rows, 0
        self._network: list[Any] = []  # in a list: its weights are not this detector's
        self._rows: list[Tensor] = []

    def setup(self, spec: Spec) -> None:
        """Take the denoiser."""
        self._network, self.seed = [spec.network], spec.seed

    @property
    def network(self) -> Any:
        """The denoiser (backbones/denoiser.py)."""
        return self._network[0]

    def noise(self, x: Tensor, draws: int = 1) -> Tensor:
        """(draws, C, H, W) standard normal of the seed, on x's device: the same for every image."""
        generator = torch.Generator().manual_seed(self.seed)  # of the CPU, so that devices agree
        return torch.randn(draws, *x.shape[1:], generator=generator).to(x.device)

    def statistics(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, S)."""
        raise NotImplementedError(f"{type(self).__name__} defines no statistics(x)")

    def learn(self, rows: Tensor) -> None:
        """(N, S) float64 statistics of training images."""
        raise NotImplementedError(f"{type(self).__name__} defines no learn(rows)")

    def judge(self, rows: Tensor) -> Tensor:
        """(B, S) float64 statistics -> (B,) scores."""
        raise NotImplementedError(f"{type(self).__name__} defines no judge(rows)")

    def fit(self, train: Views) -> None:
        """Every training image, each rank its share."""
        self._rows = []
        for rows in share(len(train)).split(ROWS):
            self.update(train[rows])
        self.finish()

    def update(self, views: Views) -> None:
        """Take in some training images; every one comes to one rank, once."""
        self._rows.append(self._all(views.x))

    def finish(self) -> None:
        """After the last images: fit on the statistics of all ranks.

        Raises:
            UserError: no rows, or statistics that are not finite.
        """
        mine = torch.cat(self._rows) if self._rows else torch.empty(0)
        self._rows = []
        count = torch.tensor(len(mine), device=mine.device)
        if rank_and_world()[1] > 1:
            dist.all_reduce(count)
        rows = gather_shares(mine, int(count))
        name = type(self).__name__
        if len(rows) < 2:
            raise UserError(f"{name} was given {len(rows)} training images; it needs 2 or more")
        if wrong := int((~rows.isfinite()).any(1).sum()):
            raise UserError(f"{name}: the network's output is NaN or Inf for {wrong} of {len(rows)} training images")
        self.learn(rows)

    def score(self, views: Views) -> Tensor:
        """(B,) float64."""
        return self.judge(self._all(views.x))

    def _all(self, x: Tensor) -> Tensor:
        return torch.cat([self.statistics(part).double() for part in x.split(ROWS)])
