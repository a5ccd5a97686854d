"""One truncated pass at fixed noise: phi(x) = [mean, std over the pixels] of an encoder's and a decoder's block.

Rouzoumka et al. 2026, canonical feature snapshots; the specification of DDAE, section 8.5. The blocks are chosen on
training images alone: largest variance between images over variance within an image, between draws of the noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from outlie.backbones.denoiser import pool
from outlie.detectors.base import Spec, Views
from outlie.detectors.denoising_loss import times_at
from outlie.detectors.knn import require_neighbours
from outlie.detectors.mahalanobis import whitener
from outlie.detectors.mixtures import Mixture, mean_and_std
from outlie.detectors.neighbours import nearest_neighbours
from outlie.detectors.on_denoiser import OnDenoiser
from outlie.errors import UserError, unknown
from outlie.gather import gather_shares, rank_and_world, share
from outlie.log import log
from outlie.options import PositiveInt

CHOICE_ROWS = 64  # training images that the choice of blocks looks at
CANDIDATES = 4  # blocks of a region that are compared


def candidates(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Blocks to choose from, of each region, at most four; ours where the specification names U-Nets only.

    encoder: without its coarsest maps, from coarse to fine; decoder: without its finest, from fine to coarse; of equal
    size the later block first. A transformer has one size, which is kept; its halves are the regions.

    Args:
        sizes: block -> number of pixels of its maps, in order of execution.
    """
    names = [name for name in sizes if name != "middle"]
    regions = {
        "encoder": [name for name in names if name.startswith("down")],
        "decoder": [name for name in names if name.startswith("out")],
    }
    if not all(regions.values()):
        half = len(names) // 2
        regions = {"encoder": names[:half] or names, "decoder": names[half:]}
    found = {}
    for region, blocks in regions.items():
        pixels = [sizes[name] for name in blocks]
        without = min(pixels, default=0) if region == "encoder" else max(pixels, default=0)
        kept = [name for name in blocks if sizes[name] != without] or blocks
        sign = 1 if region == "encoder" else -1
        order = [(sign * sizes[name], -names.index(name), name) for name in kept]
        found[region] = [name for _, _, name in sorted(order)[:CANDIDATES]]
    return found


def separation(draws_BRS: Tensor) -> float:
    """V_between / V_within of B images in R draws of noise, each summed over the S features; V_between where R = 1.

    V_between = variance over images of the mean of the draws; V_within = mean over images of the variance over draws.
    """
    between = draws_BRS.mean(1).var(0, correction=0).sum()
    within = draws_BRS.var(1, correction=0).mean(0).sum()
    return float(between if draws_BRS.shape[1] == 1 else between / within.clamp(min=1e-300))


class CFS(OnDenoiser):
    """How unusual pooled inner maps of the denoiser are, after one pass at little noise.

    Args:
        head: gaussian = mean over features of (phi - mean)^2 / variance, averaged over the blocks; knn = mean distance
            to k neighbours, standardised; mahalanobis = squared, with a Ledoit-Wolf covariance; gmm = -log density of a
            mixture with diagonal covariances.
        hooks: both = a block of the encoder and one of the decoder; decoder = that one alone.
        encoder: name of the encoder's block; null = chosen on training images.
        decoder: name of the decoder's block; null = chosen on training images.
        log_snr: noise level; null = as published, 7 for knn and 5 for the others.
        repeats: noise draws that the choice of blocks compares; at 1, the shipped setting, there is no variance within
            an image, and the variance between images alone decides.
        k: neighbours of knn.
        components: of gmm.
        fit_rows: training images to fit on, drawn by the seed; null = all (published: 8192, and all for knn).
    """

    paper: ClassVar[str] = "Rouzoumka et al., canonical feature snapshots (CFS), arXiv 2605.11014, 2026"
    scoring: ClassVar[tuple[str, ...]] = ("k",)
    blocks: Tensor  # (M,) numbers of the chosen blocks, in the order of the network's names
    widths: Tensor  # (M,) features of each
    mean: Tensor  # (S,)
    std: Tensor  # (S,)
    bank: Tensor  # (N, S), of knn
    whitener: Tensor  # (S, S), of mahalanobis

    def __init__(
        self,
        head: Literal["gaussian", "knn", "mahalanobis", "gmm"] = "gaussian",
        hooks: Literal["both", "decoder"] = "both",
        encoder: str | None = None,
        decoder: str | None = None,
        log_snr: float | None = None,
        repeats: PositiveInt = 4,
        k: PositiveInt = 10,
        components: PositiveInt = 4,
        fit_rows: PositiveInt | None = 2000,
    ) -> None:
        super().__init__(fit_rows)
        if hooks == "decoder" and encoder is not None:
            raise UserError(f"encoder = {encoder}, but hooks=decoder takes none; set detector.hooks=both")
        self.head, self.hooks, self.repeats, self.k, self.components = head, hooks, repeats, k, components
        self.fixed = {"encoder": encoder, "decoder": decoder}
        if hooks == "decoder":
            del self.fixed["encoder"]
        self.log_snr = log_snr if log_snr is not None else 7.0 if head == "knn" else 5.0
        for name in ("blocks", "widths"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64))
        for name in ("mean", "std", "bank", "whitener"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))
        self.mixture = Mixture()
        self._choices: dict[str, list[str]] = {}  # region -> blocks, while fitting
        self._widths: dict[str, int] = {}
        self._draws: list[Tensor] = []  # (B, R, S') of every candidate, of the first images

    def setup(self, spec: Spec) -> None:
        """Take the denoiser; UserError where a block does not exist or the level is out of range."""
        super().setup(spec)
        names = self.network.block_names
        for region, name in self.fixed.items():
            if name is not None and name not in names:
                raise UserError(f"detector.{region}: {unknown('block', name, names)}")
        self.times = times_at(self.network.process, [self.log_snr])

    @property
    def chosen(self) -> list[str]:
        """Names of the blocks whose maps are the features."""
        names = self.network.block_names
        return [names[i] for i in self.blocks.tolist()]

    def statistics(self, x: Tensor) -> Tensor:
        """Features of the chosen blocks, of all candidates while fitting, side by side; (B, S) float64."""
        return self._features(x, self.noise(x))

    def update(self, views: Views) -> None:
        """Take in some training images; the first of them also with other noise, to choose the blocks by."""
        x = views.x
        assert x is not None
        if not self._choices:
            maps = self.network.maps(x[:1], self.times[0].to(x.device), self.network.block_names)
            free = candidates({name: one.shape[-2] * one.shape[-1] for name, one in maps.items()})
            self._choices = {region: [name] if name else free[region] for region, name in self.fixed.items()}
            self._widths = {name: 2 * one.shape[1] for name, one in maps.items()}  # mean and std
        wanted = len(share(CHOICE_ROWS)) - sum(map(len, self._draws))
        if wanted > 0:
            noises = self.noise(x, self.repeats).split(1)
            self._draws.append(torch.stack([self._features(x[:wanted], noise) for noise in noises], 1))
        super().update(views)

    def finish(self) -> None:
        """After the last images: bring those of the choice together, then fit."""
        mine = torch.cat(self._draws) if self._draws else torch.empty(0)
        count = torch.tensor(len(mine), device=mine.device)
        if rank_and_world()[1] > 1:
            dist.all_reduce(count)
        self._draws = [gather_shares(mine, int(count))]
        super().finish()
        self._draws, self._choices = [], {}

    def learn(self, rows: Tensor) -> None:
        """Choose the blocks, then fit the head on their features; UserError where there are too few rows."""
        names = self._wanted()
        columns = dict(zip(names, torch.arange(rows.shape[1]).split([self._widths[name] for name in names])))
        draws = self._draws[0]
        taken = [
            max(blocks, key=lambda name: separation(draws[:, :, columns[name]])) for blocks in self._choices.values()
        ]
        taken = list(dict.fromkeys(taken))
        log.info("fit       features of block %s", " and ".join(taken))
        self.blocks = torch.tensor([self.network.block_names.index(name) for name in taken], device=rows.device)
        self.widths = torch.tensor([self._widths[name] for name in taken], device=rows.device)
        rows = rows[:, torch.cat([columns[name] for name in taken])]
        self.mean, self.std = mean_and_std(rows)
        z_NS = (rows - self.mean) / self.std
        match self.head:
            case "knn":
                require_neighbours(self.k, len(rows))
                self.bank = z_NS
            case "mahalanobis":
                from sklearn.covariance import ledoit_wolf

                covariance, _ = ledoit_wolf(z_NS.cpu().numpy())
                self.whitener = whitener(torch.as_tensor(covariance)).to(rows.device)
            case "gmm":
                self.mixture.fit(z_NS, [self.components], ["diag"], seed=self.seed)
            case _:
                pass

    def judge(self, rows: Tensor) -> Tensor:
        """(B,) by the head."""
        z_BS = (rows - self.mean) / self.std
        match self.head:
            case "knn":
                squared_BK, _ = nearest_neighbours(z_BS, self.bank, self.k)
                return squared_BK.sqrt().mean(1)
            case "mahalanobis":
                return (z_BS @ self.whitener).square().sum(1)
            case "gmm":
                return -self.mixture.log_density(z_BS)
            case _:
                parts = z_BS.square().split(self.widths.tolist(), 1)
                return torch.stack([part.mean(1) for part in parts], 1).mean(1)

    def _wanted(self) -> list[str]:
        free = [name for blocks in self._choices.values() for name in blocks]
        return list(dict.fromkeys(free)) or self.chosen

    def _features(self, x: Tensor, noise: Tensor) -> Tensor:
        time = self.times[0].to(x.device)
        maps = self.network.maps(self.network.process.noised(x, time, noise), time, self._wanted())
        return torch.cat([pool(one, "mean_std").double() for one in maps.values()], 1)
