"""Rows held out of a training, and the weights that did best on them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from outlie.detectors.base import Views
from outlie.gather import mean_over_ranks


def held_out(n: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers that train and row numbers that validate, the same for the same seed; at least one of each."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    count = min(n - 1, max(1, round(share * n)))
    return order[count:], order[:count]


class Validation:
    """Keeps the weights of the epoch with the lowest loss on the rows `views`, and says when to stop.

    Every rank looks at all rows with the same weights; the mean over ranks makes them agree to the last digit.

    Args:
        patience: epochs without a lower loss before training stops; 0 = never.
    """

    def __init__(self, views: Views, patience: int) -> None:
        self.views, self.patience = views, patience
        self.losses: list[float] = []
        self.best: dict[str, Tensor] = {}

    @torch.no_grad()
    def stops(self, module: Any) -> bool:
        """Look at the weights after an epoch."""
        module.eval()
        self.losses.append(float(mean_over_ranks(module.validate(self.views))))
        module.train()
        losses = [math.inf if math.isnan(loss) else loss for loss in self.losses]  # NaN is never the least of several
        since = len(losses) - 1 - losses.index(min(losses))
        if since == 0 or not self.best:
            self.best = {name: value.detach().clone() for name, value in module.state_dict().items()}
        return 0 < self.patience <= since

    def keep_best(self, module: nn.Module) -> None:
        """Give the module the weights of the best epoch."""
        if self.best:
            module.load_state_dict(self.best)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"losses": self.losses, "best": self.best}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.losses, self.best = list(state["losses"]), state["best"]
