"""The backbone of tables and ready embeddings: rows are their own features."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from outlie.data.split import Split
from outlie.detectors.base import Views, resize_buffers


class Identity(nn.Module):
    """Standardises each row with the mean and scale that the protocol fixed; x = features, an image as one long row."""

    provides: ClassVar[tuple[str, ...]] = ("x", "features")

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(resize_buffers)
        self.register_buffer("mean", torch.empty(0, dtype=torch.float64))
        self.register_buffer("scale", torch.empty(0, dtype=torch.float64))

    def setup(self, split: Split) -> None:
        """Take the protocol's standardisation."""
        self.mean, self.scale = split.mean, split.scale

    def forward(self, x: Tensor) -> Views:
        """(B, ...) raw rows -> Views with (B, D) float64 x and features (float32 where the device has no float64)."""
        z = ((x.to(self.mean) - self.mean) / self.scale).flatten(1)
        return Views(x=z, features=z)
