"""Rows of a table spoilt on purpose, in five strengths: what anomalies may look like, without having seen one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Corruption = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]  # (all rows, the chosen, strength 0..4, draws)


def noise(x_ND: Tensor, rows_MD: Tensor, strength_M1: Tensor, generator: torch.Generator) -> Tensor:
    """x + s eps, s = 0.1 to 2 standard deviations."""
    s = torch.tensor([0.1, 0.25, 0.5, 1.0, 2.0])[strength_M1]
    return rows_MD + s * torch.randn(rows_MD.shape, generator=generator)


def columns(x_ND: Tensor, rows_MD: Tensor, strength_M1: Tensor, generator: torch.Generator) -> Tensor:
    """A share of the columns takes its values from other rows: the dependence between columns is broken."""
    other = torch.randint(len(x_ND), rows_MD.shape, generator=generator)
    return torch.where(_hit(rows_MD, strength_M1, generator), x_ND.gather(0, other), rows_MD)


def uniform(x_ND: Tensor, rows_MD: Tensor, strength_M1: Tensor, generator: torch.Generator) -> Tensor:
    """A share of the columns is uniform over its range, widened by a tenth on either side."""
    low, high = x_ND.amin(0), x_ND.amax(0)
    drawn = low + (high - low) * (1.2 * torch.rand(rows_MD.shape, generator=generator) - 0.1)
    return torch.where(_hit(rows_MD, strength_M1, generator), drawn, rows_MD)


def stretch(x_ND: Tensor, rows_MD: Tensor, strength_M1: Tensor, generator: torch.Generator) -> Tensor:
    """The row moves away from the mean, to 1.25 to 5 times its distance."""
    return rows_MD * torch.tensor([1.25, 1.5, 2.0, 3.0, 5.0])[strength_M1]


def line(x_ND: Tensor, rows_MD: Tensor, strength_M1: Tensor, generator: torch.Generator) -> Tensor:
    """A point on the line through two rows: between them, or beyond."""
    other = x_ND[torch.randint(len(x_ND), (len(rows_MD),), generator=generator)]
    return rows_MD + torch.tensor([0.25, 0.5, -0.5, 1.5, 3.0])[strength_M1] * (other - rows_MD)


def spikes(x_ND: Tensor, rows_MD: Tensor, strength_M1: Tensor, generator: torch.Generator) -> Tensor:
    """One column to half of them leave by 0.5 to 30 deviations, also those that never vary in training."""
    dim = rows_MD.shape[1]
    share = torch.tensor([1.0, 1.5, 2.0, dim / 4, dim / 2])[strength_M1] / dim
    hit = torch.rand(rows_MD.shape, generator=generator) < share
    size = 0.5 * 60 ** torch.rand(len(rows_MD), 1, generator=generator)
    return rows_MD + hit * size * torch.randn(rows_MD.shape, generator=generator)


KINDS: dict[str, Corruption] = {
    "noise": noise, "columns": columns, "uniform": uniform, "stretch": stretch, "line": line, "spikes": spikes
}  # fmt: skip
HELD_OUT = ("line",)


def _hit(rows_MD: Tensor, strength_M1: Tensor, generator: torch.Generator) -> Tensor:
    """(M, D) which entries are replaced: a tenth of the columns to all of them, by strength."""
    share = torch.tensor([0.1, 0.25, 0.5, 0.75, 1.0])[strength_M1]
    return torch.rand(rows_MD.shape, generator=generator) < share


def spoilt(x_ND: Tensor, kinds: list[str], n: int, generator: torch.Generator) -> Tensor:
    """n rows in equal parts of each kind, each in a random strength; (n, D) float32, standardised as x is."""
    parts = []
    for i, kind in enumerate(kinds):
        m = n // len(kinds) + (i < n % len(kinds))
        rows = x_ND[torch.randint(len(x_ND), (m,), generator=generator)]
        parts.append(KINDS[kind](x_ND, rows, torch.randint(5, (m, 1), generator=generator), generator))
    return torch.cat(parts)
