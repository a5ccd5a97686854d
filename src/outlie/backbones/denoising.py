"""How a denoiser wants to be trained: Adam with a warm-up, an average with a ramp, all lengths in images seen."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn


def ema_decay(step: int, beta: float) -> float:
    """min(beta, 1 - (1 + step)^(-2/3)): 0 at step 0, .9997 at 196,000; the ramp of ema-pytorch.

    The published beta of .9999 is reached after a million steps, which no published training has.
    """
    return min(beta, 1 - (1 + step) ** (-2 / 3))


@dataclass(frozen=True)
class DenoiserRecipe:
    """Adam (0.9, 0.999) at a constant rate after a linear warm-up.

    Lengths are in images seen, so that they stay what they are with another batch size.

    Args:
        images: images seen in training; whole epochs are trained, so rarely a few more.
        warmup_images: images in which the learning rate rises from 0.
        ema: cap of the decay of the moving average of the weights; 0 = none is kept.
    """

    images: int
    batch_size: int
    lr: float
    warmup_images: int
    ema: float
    clip_norm: float
    drop_last: ClassVar[bool] = True
    decay_lr: ClassVar[bool] = True  # `lr_at` is to be asked before every step
    shuffle: ClassVar[bool] = True
    fewest: ClassVar[int] = 2
    validation: ClassVar[float] = 0.0
    # what counts as an epoch: a pass over 50,000 images takes a CPU twenty minutes without a word or a checkpoint
    part_rows: ClassVar[int] = 10_000

    @property
    def epochs(self) -> str:
        """The length in words: epochs are known once the rows are."""
        return f"{self.images:,} images:"

    def epochs_of(self, steps_an_epoch: int) -> int:
        """Epochs to train with so many batches in each."""
        return max(1, math.ceil(self.images / (steps_an_epoch * self.batch_size)))

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Adam, fused."""
        return torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=self.lr, fused=True)

    def lr_at(self, progress: float) -> float:
        """Learning rate after that share of all images; above 0 from the first step."""
        seen = progress * self.images + self.batch_size
        return self.lr * min(1.0, seen / self.warmup_images) if self.warmup_images else self.lr

    def ema_at(self, step: int) -> float:
        """Decay of the average at that update."""
        return ema_decay(step, self.ema)
