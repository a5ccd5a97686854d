"""G linear classifiers as one: logits[g] = features[g] W[g] + b[g], trained by one Adam on the sum of their losses.

Adam and the gradient of a sum work number by number, so every head moves as if it were trained alone, by the recipe of
DDAE (its specification, section 7.1): cross-entropy, no weight decay, a cosine to 0 that steps once an epoch.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.errors import UserError

BATCH = 128  # rows of a step; published
ROWS = 4096  # rows whose logits are held at once

Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]  # epoch -> (features (G, B, C), labels (B,))


class Heads(nn.Module):
    """G classifiers of features that are padded with zeros to one width; the weights of padding never move.

    Args:
        widths: of each head's features, without the padding.
        classes: numbers that each head puts out.
        generator: of the CPU; weights start as nn.Linear's, uniform within 1 / sqrt(width).
    """

    def __init__(self, widths: Sequence[int], classes: int, generator: torch.Generator) -> None:
        super().__init__()
        bound_G = torch.tensor(widths, dtype=torch.float32).rsqrt()[:, None, None]
        weight = torch.rand(len(widths), max(widths), classes, generator=generator)
        bias = torch.rand(len(widths), 1, classes, generator=generator)
        self.weight = nn.Parameter((2 * weight - 1) * bound_G)
        self.bias = nn.Parameter((2 * bias - 1) * bound_G)

    def forward(self, features_GBC: Tensor) -> Tensor:
        """(G, B, C) -> logits (G, B, classes)."""
        return torch.baddbmm(self.bias, features_GBC, self.weight)

    def loss(self, features_GBC: Tensor, y_B: Tensor) -> Tensor:
        """Sum over the heads of their mean cross-entropy; scalar."""
        logits_GBK = self(features_GBC)
        return F.cross_entropy(logits_GBK.flatten(0, 1), y_B.repeat(len(logits_GBK)), reduction="sum") / len(y_B)

    @torch.no_grad()
    def accuracy(self, features_GNC: Tensor, y_N: Tensor) -> Tensor:
        """Share of the rows that each head puts into the right class; (G,) float64."""
        right = [(self(part).argmax(2) == y).sum(1) for part, y in zip(features_GNC.split(ROWS, 1), y_N.split(ROWS))]
        return torch.stack(right).sum(0).double() / len(y_N)


def train(heads: Heads, batches: Batches, epochs: int, lr: float) -> list[float]:
    """Train all heads; the loss of every epoch, averaged over heads and steps.

    Raises:
        UserError: a loss that is not finite.
    """
    optimizer = torch.optim.Adam(heads.parameters(), lr=lr, fused=True)
    losses = []
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = cosine(lr, epoch, epochs)
        steps = []
        for features_GBC, y_B in batches(epoch):
            loss = heads.loss(features_GBC, y_B)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            steps.append(loss.detach())  # stays on the device: asking for a number would wait for it
        losses.append(float(torch.stack(steps).mean()) / len(heads.weight))
        if not math.isfinite(losses[-1]):
            raise UserError(f"the loss of the probes became {losses[-1]} in epoch {epoch}; lower lr")
    return losses


def cosine(lr: float, epoch: int, epochs: int) -> float:
    """lr (1 + cos(pi epoch / epochs)) / 2."""
    return lr * (1 + math.cos(math.pi * epoch / epochs)) / 2


def standardisation(features_GNC: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale of each feature over the rows, (G, 1, C) each; scale 1 where it is constant, as padding is."""
    scale, mean = torch.std_mean(features_GNC, 1, correction=0, keepdim=True)
    return mean, torch.where(scale > 1e-6 * mean.abs(), scale, 1.0)


def stratified(y_N: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Row numbers that train and row numbers held out, the latter `share` of each class and at least one; ascending.

    Raises:
        UserError: a class with a single row.
    """
    counts = torch.bincount(y_N)
    if (counts == 1).any():
        raise UserError(f"class {int((counts == 1).int().argmax())} has one image: two are needed; raise rows")
    order = torch.randperm(len(y_N), generator=generator)
    order = order[y_N[order].argsort(stable=True)]  # class after class, at random within it
    place = torch.arange(len(y_N)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    taken = (share * counts).round().clamp(min=1).minimum(counts - 1).repeat_interleave(counts)
    return order[place >= taken].sort().values, order[place < taken].sort().values
