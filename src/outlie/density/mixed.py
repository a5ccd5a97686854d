"""log p(x | z) of levels, and of tables that mix numbers, booleans and levels. Specification of IWAE, section 6.

A mixed table is the sum over columns of the column's own family; the four methods are those of likelihoods.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from outlie.density.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian, StudentT, known, total, wide
from outlie.errors import UserError


def check_levels(x: Tensor, levels: int) -> None:
    """Raise UserError for values that are no integer from 0 to levels - 1."""
    values = x[~x.isnan()]
    wrong = values[(values != values.round()) | (values < 0) | (values > levels - 1)]
    if len(wrong):
        raise UserError(
            f"value {wrong[0]:.4g}, but likelihood categorical takes integers from 0 to {levels - 1}: "
            "set backbone=pixels for images, or detector.likelihood=gaussian"
        )


class Categorical(nn.Module):
    """log f = l_x - logsumexp(l), x one of the levels; `out` holds level 0 of all columns, then level 1, ...

    Args:
        dim: D.
        levels: values 0 .. levels - 1 in every column.
        pixels: x in [0, 1] stands for the level round((levels - 1) x).
    """

    def __init__(self, dim: int, levels: int = 256, pixels: bool = False) -> None:
        super().__init__()
        self.dim, self.levels, self.pixels, self.outputs = dim, levels, pixels, dim * levels

    def log_prob(self, out: Tensor, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """(..., B) nats."""
        logits = self.logits(out)
        code_BD = self._codes(known(x, seen, logits))
        index = code_BD.unsqueeze(-2).expand(*logits.shape[:-2], 1, self.dim)
        # not gather(log_softmax): that keeps a second tensor as large as the logits
        return total(logits.gather(-2, index).squeeze(-2) - logits.logsumexp(-2), seen)

    def logits(self, out: Tensor) -> Tensor:
        """(..., B, levels, D)."""
        return wide(out).unflatten(-1, (self.levels, self.dim))

    def mean(self, out: Tensor) -> Tensor:
        """(..., B, D) expected value."""
        share = self.logits(out).softmax(-2)
        return (share * self._values(share)[:, None]).sum(-2)

    def sample(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """(..., B, D) values."""
        share = self.logits(out).softmax(-2).movedim(-2, -1)  # (..., B, D, levels)
        rows = share.reshape(-1, self.levels).to(generator.device)
        code = torch.multinomial(rows, 1, generator=generator).view(share.shape[:-1])
        return self._values(share)[code.to(share.device)]

    def start(self, x: Tensor) -> Tensor:
        """(levels * D,) log frequencies, every level counted once more than it was seen."""
        seen = ~x.isnan()
        column = torch.arange(self.dim, device=x.device).expand_as(x)
        place = self._codes(torch.where(seen, x, 0.0)) * self.dim + column
        count = torch.bincount(place[seen], minlength=self.outputs).double().view(self.levels, self.dim) + 1
        return (count / count.sum(0)).log().flatten().float()

    def _codes(self, x: Tensor) -> Tensor:
        return ((self.levels - 1) * x if self.pixels else x).round().long()

    def _values(self, like: Tensor) -> Tensor:
        values = torch.arange(self.levels, device=like.device, dtype=like.dtype)
        return values / (self.levels - 1) if self.pixels else values


class Mixed(nn.Module):
    """Numbers, booleans and one-hot levels side by side, in standardised rows (x - mean) / scale.

    A boolean is on where x >= 0, or, in a column that never changed in training, where it has its usual value. The
    level of a block is its column with x >= 0; none = a level that training never saw, which has a logit of its own.

    Args:
        blocks: consecutive runs of columns, ("number", width), ("boolean", width) or ("levels", L) for one text.
        numbers: family of the numbers; `scale`, `sigma` and `floor` are its options.
        scale: of the gaussian.
        sigma: of the gaussian with fixed scale.
        floor: least scale.
    """

    order: Tensor  # (D,) columns, those of one family after those of another
    low: Tensor  # (D,) least and largest value in training rows: what off and on are in the units of x
    high: Tensor

    def __init__(
        self,
        blocks: Sequence[tuple[str, int]],
        numbers: Literal["gaussian", "student_t"] = "student_t",
        scale: Literal["fixed", "feature", "sample"] = "feature",
        sigma: float = 1.0,
        floor: float = 0.05,
    ) -> None:
        super().__init__()
        columns: dict[str, list[int]] = {"number": [], "boolean": []}
        levels: list[list[int]] = []
        self.dim = 0
        for kind, width in blocks:
            run = list(range(self.dim, self.dim + width))
            levels.append(run) if kind == "levels" else columns[kind].extend(run)
            self.dim += width
        families: list[Any] = []
        if n := len(columns["number"]):
            families.append(StudentT(n, floor) if numbers == "student_t" else Gaussian(n, scale, sigma, floor))
        if n := len(columns["boolean"]):
            families.append(Bernoulli(n))
        families += [Categorical(1, len(run) + 1) for run in levels]
        groups = [("number", columns["number"]), ("boolean", columns["boolean"]), *(("levels", run) for run in levels)]
        groups = [(kind, run) for kind, run in groups if run]  # each is one vectorised call
        self.kinds, self.widths = [kind for kind, _ in groups], [len(run) for _, run in groups]
        self.families: Any = nn.ModuleList(families)
        self.parts = [family.outputs for family in families]  # of `out`, group by group
        self.outputs = sum(self.parts)
        order = torch.tensor([column for _, run in groups for column in run])
        self.register_buffer("order", order, persistent=False)  # follows from blocks
        self.register_buffer("low", torch.zeros(self.dim))
        self.register_buffer("high", torch.ones(self.dim))

    def log_prob(self, out: Tensor, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """(..., B) nats; a block of levels is seen where its first column is."""
        log_p = wide(out).new_zeros(out.shape[:-1])
        masks = [None] * len(self.kinds) if seen is None else seen[:, self.order].split(self.widths, 1)
        parts = out.split(self.parts, -1)
        for family, kind, part, values, mask in zip(self.families, self.kinds, parts, self._values(x), masks):
            if kind == "levels" and mask is not None:
                mask = mask[:, :1]
            log_p = log_p + family.log_prob(part, values, mask)
        return log_p

    def mean(self, out: Tensor) -> Tensor:
        """(..., B, D) in the units of x; of a level block, P(level) between the columns' values off and on."""
        parts = zip(self.families, self.kinds, wide(out).split(self.parts, -1))
        return self._rows(
            [part.softmax(-1)[..., :-1] if kind == "levels" else family.mean(part) for family, kind, part in parts]
        )

    def sample(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """(..., B, D) in the units of x."""
        draws = []
        for family, kind, part in zip(self.families, self.kinds, wide(out).split(self.parts, -1)):
            drawn = family.sample(part, generator)
            if kind == "levels":
                drawn = one_hot(drawn.squeeze(-1).long(), family.levels)[..., :-1].to(drawn.dtype)
            draws.append(drawn)
        return self._rows(draws)

    def start(self, x: Tensor) -> Tensor:
        """(outputs,) of the groups' families; also learns what off and on are."""
        some = ~x.isnan().all(0)
        low = torch.where(x.isnan(), torch.inf, x).amin(0)
        high = torch.where(x.isnan(), -torch.inf, x).amax(0)
        self.low = torch.where(some, low, self.low.to(x)).to(self.low)
        self.high = torch.where(some, high, self.high.to(x)).to(self.high)
        return torch.cat([family.start(values) for family, values in zip(self.families, self._values(x))])

    def _values(self, x: Tensor) -> list[Tensor]:
        """What each group's family takes: numbers, booleans as 0 and 1, the level of a block (B, 1); NaN stay."""
        low, high, missing = self.low[self.order].to(x), self.high[self.order].to(x), x[:, self.order].isnan()
        groups = zip(self.kinds, *(t.split(self.widths, -1) for t in (x[:, self.order], low, high, missing)))
        values = []
        for kind, x_, low_, high_, missing_ in groups:
            if kind == "number":
                values.append(x_)
            elif kind == "boolean":
                on = torch.where(low_ < high_, x_ >= 0, (x_ - low_).abs() < 0.5)  # values are 1 / scale >= 1 apart
                values.append(on.to(x.dtype).masked_fill(missing_, torch.nan))
            else:
                on = x_ >= 0
                level = torch.where(on.any(1), on.int().argmax(1), on.shape[1])
                values.append(level.to(x.dtype).masked_fill(missing_[:, 0], torch.nan)[:, None])
        return values

    def _rows(self, groups: list[Tensor]) -> Tensor:
        """Columns in the table's order; shares of on become values between off and on."""
        low, high = self.low[self.order].split(self.widths), self.high[self.order].split(self.widths)
        values = [
            group if kind == "number" else off.to(group) + (on - off).to(group) * group
            for kind, group, off, on in zip(self.kinds, groups, low, high)
        ]
        return torch.cat(values, -1)[..., self.order.argsort()]


Likelihood = Bernoulli | ContinuousBernoulli | Gaussian | StudentT | Categorical | Mixed
