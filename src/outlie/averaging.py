"""The moving average of a module's weights: theta' <- d theta' + (1 - d) theta after every optimiser step."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class MovingAverage:
    """A module whose weights and buffers are averages; the first update copies.

    Args:
        module: what is averaged; its weights at the time of each update count.
        decay_at: d of an update, counted from 0.
    """

    def __init__(self, module: nn.Module, decay_at: Callable[[int], float]) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.decay_at, self.updates = decay_at, 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take the module's weights in, all of them in one call."""
        ours, theirs = _tensors(self.module), _tensors(module)
        numbers = [i for i, one in enumerate(ours) if one.is_floating_point()] if self.updates else []
        if numbers:
            decay = self.decay_at(self.updates)
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                [ours[i] for i in numbers], [theirs[i] for i in numbers], 1 - decay
            )
        rest = set(range(len(ours))) - set(numbers)  # all at first; later counters, which have no average
        for i in rest:
            ours[i].copy_(theirs[i])
        self.updates += 1

    def to(self, device: torch.device) -> None:
        """Where the module trains."""
        self.module.to(device)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"updates": self.updates, "module": self.module.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's."""
        self.updates = state["updates"]
        self.module.load_state_dict(state["module"])


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
