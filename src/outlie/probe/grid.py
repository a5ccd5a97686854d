"""phi[k, l] = mean over the pixels of block k at x_t = a_l x_0 + b_l eps: all blocks and levels from one pass.

A cell is a block at a noise level, g = k L + l. Features are (G, rows, C), padded with zeros to the widest block: heads
are a small part of the work, one product of all of them is less than one for each width.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from outlie.backbones.augment import flip, pad_crop
from outlie.backbones.denoiser import pool
from outlie.errors import UserError, unknown
from outlie.log import log
from outlie.probe.heads import BATCH, Batches
from outlie.stages import QUIET_SECONDS, rows_at_once

IMAGES = 64  # that draw their noise together, whatever the batch of the network is
PADDING = 4  # pixels of the random crop; published

Advance = Callable[[int], None]  # told of images that are done


class Grid:
    """The cells of a denoiser, and the features of images in all of them.

    Args:
        backbone: a Denoiser, on the device that is to work.
        blocks: names; () = all on the way out, or simply all where a network has no way out.
        log_snr: noise levels.

    Raises:
        UserError: a block that does not exist, a level out of the process's range, two levels that are the same step.
    """

    def __init__(self, backbone: Any, blocks: Sequence[str], log_snr: Sequence[float]) -> None:
        self.backbone, self.device = backbone, backbone.told.device
        self.blocks = self._named(blocks)
        if not log_snr:
            raise UserError("log_snr = []: give a noise level at least, log_snr=[6.0] say")
        self.log_snr = tuple(log_snr)
        self.times = torch.stack([backbone.process.time_at(level) for level in log_snr]).to(self.device)
        told = self.times.tolist()
        for i, one in enumerate(told):
            if one in told[:i]:
                both = f"{self.log_snr[told.index(one)]:g} and {self.log_snr[i]:g}"
                raise UserError(f"log_snr {both} are the same {backbone.process.unit} = {one:g}: give one of them")
        with torch.inference_mode():
            clean = torch.zeros(1, *backbone.shape, device=self.device)
            maps = backbone.maps(clean, self.times[0], self.blocks)
        self.widths = [pool(one, backbone.pool).shape[1] for one in maps.values()]

    def _named(self, asked: Sequence[str]) -> tuple[str, ...]:
        names = self.backbone.block_names
        for name in asked:
            if name not in names:
                raise UserError(unknown("block", name, names))
        wanted = set(asked) or {name for name in names if name.startswith("out_")} or set(names)
        return tuple(name for name in names if name in wanted)

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def cells(self) -> list[tuple[str, float]]:
        """(block, log-SNR) in the order of the features, blocks as executed."""
        return [(block, level) for block in self.blocks for level in self.log_snr]

    @property
    def cell_widths(self) -> list[int]:
        """Features of each cell, without padding."""
        return [width for width in self.widths for _ in self.log_snr]

    @torch.no_grad()
    def features(self, images: Tensor, noise: Tensor) -> Tensor:
        """All cells of some images, by one pass of all levels; (G, B, C) float32.

        Args:
            images: (B, C, H, W) uint8.
            noise: of that shape, the same at all levels.
        """
        x = self.backbone.standardise(images.to(self.device))
        pooled_BLD = self.backbone.pooled(x, self.times, noise.to(self.device), self.blocks)
        out = pooled_BLD.new_zeros(len(self.blocks), len(self.times), len(x), max(self.widths))
        for cells_LBC, block_BLC in zip(out, pooled_BLD.split(self.widths, 2)):
            cells_LBC[:, :, : block_BLC.shape[2]] = block_BLC.transpose(0, 1)
        return out.flatten(0, 1)

    def bank(
        self, images: Any, rows: Tensor, generator: torch.Generator, advance: Advance, mirrored: bool = False
    ) -> Tensor:
        """Features of these rows of the images, each with a noise of its own; (G, N, C) float32.

        Args:
            images: (N', C, H, W) uint8, or what decodes images when it is indexed.
            generator: of the CPU.
            advance: told of images that are done.
            mirrored: left and right.
        """
        bank = torch.empty(len(self), len(rows), max(self.widths), device=self.device)
        done = 0
        for some in rows.split(IMAGES):
            x = images[some].flip(3) if mirrored else images[some]
            for part in self._passes(x, torch.randn(x.shape, generator=generator)):
                bank[:, done : done + part.shape[1]] = part
                done += part.shape[1]
            advance(len(some))
        return bank

    def _passes(self, images: Tensor, noise: Tensor) -> Iterator[Tensor]:
        at_once = max(1, rows_at_once(tuple(images.shape[1:])) // len(self.times))
        for x, eps in zip(images.split(at_once), noise.split(at_once)):
            yield self.features(x, eps)

    def augmented(self, images: Any, rows: Tensor, y_N: Tensor, seed: int, mirror: bool, advance: Advance) -> Batches:
        """Batches of an epoch as DDAE has them: cropped, mirrored and noised anew, by a pass for each.

        Args:
            y_N: labels of these rows.
            mirror: half of the images.
        """

        def epoch_of(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            generator = _generator(seed, epoch)
            for some in torch.randperm(len(rows), generator=generator).split(BATCH):
                x = pad_crop(images[rows[some]], PADDING, generator)
                x = flip(x, generator) if mirror else x
                parts = list(self._passes(x, torch.randn(x.shape, generator=generator)))
                advance(len(some))
                yield torch.cat(parts, 1), y_N[some].to(self.device)

        return epoch_of


def shuffled(features_GNC: Tensor, y_N: Tensor, seed: int) -> Batches:
    """Batches of an epoch from features that are kept."""

    def epoch_of(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for some in torch.randperm(len(y_N), generator=_generator(seed, epoch)).to(y_N.device).split(BATCH):
            yield features_GNC.index_select(1, some), y_N[some]

    return epoch_of


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


@contextlib.contextmanager
def progress(bar: str, what: str, total: int) -> Iterator[Advance]:
    """Counts images: a bar with that title, or, where it is empty, a line now and then."""
    done, said = 0, time.monotonic()
    shown = Progress(
        TextColumn(bar), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} images"), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True, disable=not bar,
    )  # fmt: skip
    task = shown.add_task("", total=total)

    def advance(images: int) -> None:
        nonlocal done, said
        done += images
        shown.update(task, completed=done)
        if not bar and time.monotonic() - said > QUIET_SECONDS:
            log.info("%-9s %d of %d images", what, done, total)
            said = time.monotonic()

    with shown:
        yield advance
