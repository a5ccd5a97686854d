"""Encoders and decoders of the density models: perceptrons for rows, convolutions for images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from outlie.errors import UserError

ACTIVATIONS = {"tanh": nn.Tanh, "silu": nn.SiLU}


def linear(width: int, *outputs: int) -> nn.Linear:
    """One layer for several outputs side by side, each initialised on its own: Glorot uniform, zero bias."""
    layer = nn.Linear(width, sum(outputs))
    for weight in layer.weight.split(list(outputs)):
        nn.init.xavier_uniform_(weight)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(widths: Sequence[int], activation: str, outputs: int | None = None) -> nn.Sequential:
    """Hidden layers of these widths, and a linear one where `outputs` are given."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [linear(before, after), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, *([] if outputs is None else [linear(widths[-1], outputs)]))


def _quarter(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise UserError(f"detector.network=conv takes images, the rows have shape {tuple(shape)}: set backbone=pixels")
    c, h, w = shape
    if h % 4 or w % 4:
        raise UserError(f"detector.network=conv halves the sides twice: {h} x {w} must be multiples of 4; dataset.size")
    return c, h // 4, w // 4


class ConvEncoder(nn.Module):
    """Two convolutions of stride 2, then hidden layers; (B, copies * C, H, W) -> (B, width)."""

    def __init__(self, shape: Sequence[int], hidden: Sequence[int], activation: str, copies: int = 1) -> None:
        super().__init__()
        c, h, w = _quarter(shape)
        act = ACTIVATIONS[activation]
        self.maps = nn.Sequential(
            nn.Conv2d(copies * c, 32, 4, 2, 1), act(), nn.Conv2d(32, 64, 4, 2, 1), act(), nn.Flatten()
        )
        self.width = hidden[-1] if hidden else 64 * h * w
        self.rows = mlp((64 * h * w, *hidden), activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(self.maps(x))


class ConvDecoder(nn.Module):
    """The mirror image: (..., B, d) -> (..., B, per_pixel * C * H * W), one map after the other."""

    def __init__(
        self, shape: Sequence[int], hidden: Sequence[int], latent: int, per_pixel: int, activation: str
    ) -> None:
        super().__init__()
        c, h, w = _quarter(shape)
        act = ACTIVATIONS[activation]
        self.rows = nn.Sequential(*mlp((latent, *hidden[::-1]), activation, 64 * h * w), act())
        self.maps = nn.Sequential(
            nn.Unflatten(1, (64, h, w)),
            nn.ConvTranspose2d(64, 32, 4, 2, 1), act(), nn.ConvTranspose2d(32, c * per_pixel, 4, 2, 1), nn.Flatten(),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        return self.maps(self.rows(z).flatten(0, -2)).view(*z.shape[:-1], -1)

    @property
    def last(self) -> nn.ConvTranspose2d:
        """The layer whose bias is the output's."""
        layer = self.maps[-2]
        assert isinstance(layer, nn.ConvTranspose2d)
        return layer
