"""ICL: do a row's neighbouring columns go with the rest of the row? Shenkar & Wolf 2022, internal contrastive learning.

A row of D columns has D - k + 1 windows w_i of k columns, each with a complement v_i of D - k;
loss_i = -log softmax_j(<F(v_i), G(w_j)> / tau)[i], score = mean of loss_i over the windows.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.training import Recipe
from outlie.errors import UserError
from outlie.options import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

PAIRS_AT_ONCE = 2**15  # of row and window: their hidden layers take 400 MB


class WindowNorm(nn.BatchNorm1d):
    """Batch normalisation of each window, over rows and hidden units, for some of the windows."""

    def of(self, h_BWH: Tensor, windows: slice) -> Tensor:
        """(B, W, H) -> (B, W, H), the windows being those of the slice."""
        mean, var = self.running_mean, self.running_var
        assert mean is not None and var is not None
        return F.batch_norm(
            h_BWH, mean[windows], var[windows], self.weight[windows], self.bias[windows],
            self.training, self.momentum or 0.0, self.eps,
        )  # fmt: skip


class Encoders(nn.Module):
    """F of the complements and G of the windows; weights are shared by all windows, norms are not."""

    def __init__(self, windows: int, window: int, rest: int, hidden: int) -> None:
        super().__init__()
        quarter, half = max(1, hidden // 4), max(1, hidden // 2)
        self.f = nn.ModuleList([nn.Linear(rest, hidden), nn.Linear(hidden, 2 * hidden), nn.Linear(2 * hidden, hidden)])
        self.g = nn.ModuleList([nn.Linear(window, quarter), nn.Linear(quarter, half), nn.Linear(half, hidden)])
        self.norms = nn.ModuleList([WindowNorm(windows) for _ in range(3)])

    def forward(self, complement_BWR: Tensor, window_BWK: Tensor, windows: slice) -> tuple[Tensor, Tensor]:
        """(B, W, H) twice."""
        norms: Any = self.norms
        first, second, third = norms
        v = first.of(self.f[0](complement_BWR).tanh(), windows)
        v = second.of(F.leaky_relu(self.f[1](v), 0.2), windows)
        v = F.leaky_relu(self.f[2](v), 0.2)
        w = third.of(F.leaky_relu(self.g[0](window_BWK), 0.2), windows)
        w = F.leaky_relu(self.g[1](w), 0.2)
        return v, F.leaky_relu(self.g[2](w), 0.2)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Running statistics stay as they are: what is computed a second time does not count twice."""
        before = [norm.momentum for norm in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0
        try:
            yield
        finally:  # PyTorch leaves by an exception as soon as it has what it needs
            for norm, momentum in zip(self.norms, before):
                norm.momentum = momentum


def published_window(dim: int) -> int:
    """k = 2 up to 40 columns, 10 up to 160, then D - 150, so that there are at most 151 windows."""
    return 2 if dim <= 40 else 10 if dim <= 160 else dim - 150


def contrast(v_BWH: Tensor, w_BWH: Tensor, temperature: float) -> Tensor:
    """-log softmax_j(<v_i, w_j> / tau)[i], both scaled to length 1 over the windows, then over H; (B, W)."""
    v_BWH, w_BWH = (F.normalize(F.normalize(h, dim=1), dim=2) for h in (v_BWH, w_BWH))
    logits_BWW = v_BWH @ w_BWH.mT / temperature
    return logits_BWW.logsumexp(2) - logits_BWW.diagonal(dim1=1, dim2=2)


class ICL(Detector):
    """Internal contrastive learning.

    Args:
        window: k, columns in a window; None = 2 for up to 40 columns, 10 for up to 160, then all but 150 (published).
        hidden: H, width of both representations.
        temperature: tau.
        enough: training ends after an epoch whose mean loss is below this; None = 0.001 for up to 40 columns, then 0.01
            (published); 0 = never.
        epochs: epochs to train.
        min_steps: more epochs where `epochs` would give fewer optimiser steps than this.
        batch_size: rows per optimiser step.
        lr: learning rate of Adam.
    """

    needs: ClassVar[tuple[str, ...]] = ("x",)
    paper: ClassVar[str] = (
        "Shenkar & Wolf, Anomaly Detection for Tabular Data with Internal Contrastive Learning, ICLR 2022"
    )
    columns: Tensor  # (W, D), each window's columns, then its complement's

    def __init__(
        self,
        window: PositiveInt | None = None,
        hidden: PositiveInt = 200,
        temperature: PositiveFloat = 0.1,
        enough: NonNegativeFloat | None = None,
        epochs: PositiveInt = 10,
        min_steps: NonNegativeInt = 500,
        batch_size: PositiveInt = 64,
        lr: PositiveFloat = 1e-3,
    ) -> None:
        super().__init__()
        self.window, self.hidden, self.temperature, self.enough = window, hidden, temperature, enough
        self.recipe = Recipe(epochs, batch_size, lr, min_steps=min_steps)
        self.register_buffer("columns", torch.empty(0, dtype=torch.long), persistent=False)

    def setup(self, spec: Spec) -> None:
        """Choose the windows and build the networks."""
        dim = spec.shapes["x"][0]
        if dim < 3:
            raise UserError(f"icl contrasts two windows and needs at least 3 columns, the data have {dim}; use knn")
        self.k = self.window or published_window(dim)
        if self.k >= dim:
            raise UserError(
                f"window = {self.k} of {dim} columns has no complement; set detector.window to 1..{dim - 1}"
            )
        self.below = (1e-3 if dim <= 40 else 1e-2) if self.enough is None else self.enough
        starts = torch.arange(dim - self.k + 1)[:, None]
        inside = (torch.arange(dim) >= starts) & (torch.arange(dim) < starts + self.k)
        self.columns = inside.logical_not().long().argsort(stable=True, dim=1)
        self.encoders = Encoders(len(starts), self.k, dim - self.k, self.hidden)

    def represent(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """F of all complements, G of all windows: (B, W, H) twice.

        A few windows at a time, and in training their hidden layers are computed once more for the gradient, not kept:
        a step of 799 rows of 512 columns takes 1.4 GB instead of 2.3.
        """

        def some(x_BD: Tensor, windows: slice) -> tuple[Tensor, Tensor]:
            columns = self.columns[windows]
            return self.encoders(x_BD[:, columns[:, self.k :]], x_BD[:, columns[:, : self.k]], windows)

        count = len(self.columns)
        at_once = max(1, PAIRS_AT_ONCE // len(x_BD))
        if at_once >= count:
            return some(x_BD, slice(0, count))
        again: Any = {"use_reentrant": False, "preserve_rng_state": False}
        again["context_fn"] = lambda: (nullcontext(), self.encoders.still())
        parts = [checkpoint(some, x_BD, slice(start, start + at_once), **again) for start in range(0, count, at_once)]
        v, w = zip(*parts)
        return torch.cat(v, 1), torch.cat(w, 1)

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """Mean contrast over rows and windows; nothing is drawn."""
        v_BWH, w_BWH = self.represent(views.x.to(next(self.parameters())))
        return contrast(v_BWH, w_BWH, self.temperature).mean()

    def stop(self, losses: list[float]) -> bool:
        """The windows are told from each other, as released."""
        return losses[-1] < self.below

    def score(self, views: Views) -> Tensor:
        """(B,) contrast, mean over the windows."""
        v_BWH, w_BWH = self.represent(views.x.to(next(self.parameters())))
        parts = zip(v_BWH.split(256), w_BWH.split(256))  # as doubles they take twice the memory
        return torch.cat([contrast(v.double(), w.double(), self.temperature).mean(1) for v, w in parts])
