"""The backbone of density models of images: pixels as they are."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from outlie.data.split import Split
from outlie.detectors.base import Views
from outlie.errors import UserError


class Pixels(nn.Module):
    """x = u / 255 of 8-bit images, neither standardised nor flattened."""

    provides: ClassVar[tuple[str, ...]] = ("x",)

    def setup(self, split: Split) -> None:
        """Nothing to take from the data; UserError where they are no 8-bit images."""
        shape, dtype = tuple(split.train.x.shape[1:]), split.train.x.dtype
        if len(shape) != 3 or dtype != torch.uint8:
            kind = str(dtype).removeprefix("torch.")
            raise UserError(
                f"backbone pixels takes images, (C, H, W) of uint8; these rows have shape {shape} of {kind}; "
                "set backbone=identity"
            )

    def forward(self, x: Tensor) -> Views:
        """(B, C, H, W) uint8 -> Views with x (B, C, H, W) float32 in [0, 1]."""
        return Views(x=x.to(torch.float32) / 255)
