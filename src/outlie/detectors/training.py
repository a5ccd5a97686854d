"""How a detector wants to be trained: said by the detector, carried out by `lightning.Train`."""

import math
from dataclasses import dataclass
from typing import ClassVar

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
        validation: this share of the rows is held out of training; the weights of the epoch with the lowest
            `validate(views)` on them are kept.
        patience: epochs without a lower one before training stops.
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
    validation: float = 0.0
    patience: int = 0
    shuffle: bool = True
    part_rows: ClassVar[int] = 0  # a pass over all rows is one epoch

    def epochs_of(self, steps_an_epoch: int) -> int:
        """Epochs to train with so many batches in each."""
        return max(self.epochs, math.ceil(self.min_steps / steps_an_epoch))

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Adam with coupled L2 (not AdamW), fused: two thirds of the time of the plain one on a small network."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        return torch.optim.Adam(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=True)

    def ema_at(self, step: int) -> float:
        """Decay of the average at that update."""
        return self.ema

    def lr_at(self, progress: float) -> float:
        """Learning rate after that share of all steps."""
        return self.lr * (0.5 + 0.5 * math.cos(math.pi * progress)) if self.decay_lr else self.lr


@dataclass(frozen=True)
class BurdaRecipe(Recipe):
    """The recipe of the official IWAE code: 3^i epochs at 1e-3 * 10^(-i/7), i = 0 to 7, rows always in the same order.

    Its Adam has beta1 = 0.99 and second moments that start at one, for gradients summed over the batch; ours are means.
    Source: yburda/iwae, optimizers.py and experiments.py; Burda et al., ICLR 2016, section 5.
    """

    stages: int = 8

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Adam whose state is set beforehand."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        adam = torch.optim.Adam(parameters, lr=self.lr, betas=(0.99, 0.999), eps=1e-4 / self.batch_size)
        for p in parameters:
            second = torch.full_like(p, self.batch_size**-2.0)
            adam.state[p] = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": second}
        return adam

    def lr_at(self, progress: float) -> float:
        """The official rates, 10, 7.2, 5.2, 3.7, 2.7, 1.9, 1.4 and 1 times 1e-4, for 1, 3, 9, ... epochs of 3,280."""
        stage = int(math.log(progress * (3**self.stages - 1) + 1 + 1e-9, 3))
        return float(f"{self.lr * 10 ** (-min(stage, self.stages - 1) / (self.stages - 1)):.1e}")
