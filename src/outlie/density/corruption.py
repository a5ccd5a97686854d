"""Rows changed on purpose in training: entries replaced by noise, or hidden. Columns of a block change together."""

from __future__ import annotations

import torch
from torch import Tensor


def block_of_column(blocks: tuple[tuple[str, int], ...], dim: int) -> Tensor:
    """(D,) the number of each column's block: those of a one-hot block share one, every other column is its own."""
    numbers: list[int] = []
    for kind, width in blocks or (("number", dim),):
        first = numbers[-1] + 1 if numbers else 0
        numbers += [first] * width if kind == "levels" else list(range(first, first + width))
    return torch.tensor(numbers)


def chosen(x: Tensor, share: float, block_of: Tensor, generator: torch.Generator) -> Tensor:
    """(B, D) true with probability `share`, alike within a block."""
    block_of = block_of.to(x.device)
    blocks = int(block_of[-1]) + 1
    return (torch.rand(len(x), blocks, generator=generator, device=x.device) < share)[:, block_of]


def gaps_at_random(x: Tensor, share: float, block_of: Tensor, generator: torch.Generator) -> Tensor:
    """Hide a share of the values: NaN."""
    hidden = chosen(x.flatten(1), share, block_of, generator).view(x.shape)
    return x.masked_fill(hidden, float("nan"))


def noised(x: Tensor, share: float, block_of: Tensor, generator: torch.Generator) -> Tensor:
    """Replace a share of the entries: pixels by uniform ones, columns by their values in other rows of the batch."""
    flat = x.flatten(1)
    if x.ndim > 2:
        other = torch.rand(flat.shape, generator=generator, device=x.device).to(x)
    else:
        blocks = int(block_of[-1]) + 1
        order = torch.rand(len(x), blocks, generator=generator, device=x.device).argsort(0)
        other = flat.gather(0, order[:, block_of.to(x.device)])
    return torch.where(chosen(flat, share, block_of, generator), other, flat).view(x.shape)
