"""How a detector wants to be trained: said by the detector, carried out by `lightning.Train`."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Recipe:
    """Adam on shuffled batches for so many epochs.

    Args:
        min_steps: more epochs where `epochs` would give fewer optimiser steps than this: a small table needs them.
        drop_last: leave out an epoch's last, smaller batch (only where there is a full one).
        fewest: a last batch of fewer rows is left out, too.
        decay_lr: cosine decay of the learning rate to 0 over all steps.
        clip_norm: the gradient is scaled down to this norm where it is longer; 0 = never.
        ema: decay of the exponential moving average of the weights that is kept in their place; 0 = none.
    """

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float = 0.0
    min_steps: int = 0
    decay_lr: bool = False
    drop_last: bool = False
    clip_norm: float = 0.0
    ema: float = 0.0
    fewest: int = 2

    def epochs_of(self, steps_an_epoch: int) -> int:
        """Epochs to train with so many batches in each."""
        return max(self.epochs, math.ceil(self.min_steps / steps_an_epoch))

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Adam with coupled L2 (not AdamW), fused: two thirds of the time of the plain one on a small network."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        return torch.optim.Adam(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=True)

    def lr_at(self, progress: float) -> float:
        """Learning rate after that share of all steps."""
        return self.lr * (0.5 + 0.5 * math.cos(math.pi * progress)) if self.decay_lr else self.lr
