"""How a classifier or a segmenter wants to be trained: optimiser and schedule; `lightning.Train` carries it out."""

import bisect
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from outlie.errors import UserError

Schedule = Literal["cosine", "multistep", "constant", "poly"]
POWER = 0.9  # of the polynomial decay


@dataclass(frozen=True)
class ClassifierRecipe:
    """Gradient descent on shuffled batches for so many epochs, or so many steps.

    Args:
        steps: optimiser steps, in place of epochs; whole epochs are trained, so rarely a few more.
        milestones: shares of the training after which lr is divided by 10 (schedule = multistep).
        warmup: share of the training in which lr rises linearly from 0.
        clip_norm: largest norm of the gradient; 0 = any.
        ema: decay of the moving average of the weights; 0 = none.
        floor: learning rate at the end (schedule = poly).
        decay_lr: whether `lr_at` is to be asked before every step.
    """

    epochs: int = 200
    steps: int | None = None
    batch_size: int = 128
    method: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    milestones: tuple[float, ...] = (1 / 3, 2 / 3)
    warmup: float = 0.0
    clip_norm: float = 0.0
    ema: float = 0.0
    drop_last: bool = False
    decay_lr: bool = True
    floor: float = 0.0
    shuffle: ClassVar[bool] = True
    part_rows: ClassVar[int] = 0  # a pass over all rows is one epoch
    validation: ClassVar[float] = 0.0  # share of the rows held out of training: none

    def __post_init__(self) -> None:
        for name in ("momentum", "warmup", "ema"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise UserError(f"{name} = {value}: allowed are 0 up to, but not, 1; set backbone.{name}")
        if self.nesterov and not self.momentum:
            raise UserError("nesterov = true needs momentum; set backbone.momentum above 0")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise UserError(f"milestones = {list(self.milestones)}: must rise; set backbone.milestones")

    @property
    def fewest(self) -> int:
        """Rows of the smallest batch: the BatchNorm statistics of a few rows would spoil those that are kept."""
        return max(2, self.batch_size // 4)

    def epochs_of(self, steps_an_epoch: int) -> int:
        """Epochs to train with so many batches in each."""
        return self.epochs if self.steps is None else math.ceil(self.steps / steps_an_epoch)

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """SGD with coupled L2, or AdamW, on every parameter, fused; a group's lr is `scale` times the recipe's."""
        parameters: Any = [p for p in module.parameters() if p.requires_grad]
        groups: Any = getattr(module, "parameter_groups", None)  # of a module whose parts learn at different rates
        if groups is not None:
            parameters = [group | {"lr": self.lr * group["scale"]} for group in groups()]
        if self.method == "adamw":
            return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=True)
        return torch.optim.SGD(
            parameters, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov, fused=True
        )

    def ema_at(self, step: int) -> float:
        """Decay of the average at that update."""
        return self.ema

    def lr_at(self, progress: float) -> float:
        """Learning rate after that share of all steps."""
        if progress < self.warmup:
            return self.lr * progress / self.warmup
        match self.schedule:
            case "cosine":
                after = (progress - self.warmup) / (1 - self.warmup)
                return self.lr * (0.5 + 0.5 * math.cos(math.pi * after))
            case "poly":
                return self.floor + (self.lr - self.floor) * (1 - progress) ** POWER
            case "multistep":
                return self.lr * 0.1 ** bisect.bisect_right(self.milestones, progress)
            case _:
                return self.lr
