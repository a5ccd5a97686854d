"""The U-Nets of DDPM and DDPM++ as backbones."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import nn

from outlie.backbones.denoiser import Denoiser
from outlie.diffusion import unet
from outlie.errors import UserError
from outlie.options import NonNegativeInt, PositiveInt


class UNet(Denoiser):
    """A U-Net trained by denoising; at its defaults the one of DDPM, 35.7 million parameters on CIFAR-10.

    Args:
        base: channels of the finest level.
        multipliers: channels of each level, in units of base; the size halves from one to the next.
        depth: blocks of each level on the way in; one more on the way out.
        attention: levels with attention, the finest is 0; published: 16 x 16, level 1 of 32 x 32.
        resample: conv = DDPM; residual = DDPM++.
        channels_per_head: of the attention; null = one head, as published.
    """

    paper: ClassVar[str] = (
        "Xiang et al., Denoising Diffusion Autoencoders are Unified Self-supervised Learners, ICCV 2023"
    )

    def __init__(
        self,
        base: PositiveInt = 128,
        multipliers: Sequence[PositiveInt] = (1, 2, 2, 2),
        depth: PositiveInt = 2,
        attention: Sequence[NonNegativeInt] = (1,),
        resample: Literal["conv", "residual"] = "conv",
        channels_per_head: PositiveInt | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if base % 8:
            raise UserError(f"base = {base}: must be a multiple of 8, the groups of the last norm; set backbone.base")
        if not multipliers:
            raise UserError("multipliers = []: a U-Net has a level at least; set backbone.multipliers")
        if wrong := [level for level in attention if level >= len(multipliers)]:
            raise UserError(f"attention = {list(attention)}: there is no level {wrong[0]} of {len(multipliers)}")
        for multiplier in multipliers if channels_per_head else ():
            if base * multiplier % (channels_per_head or 1):
                raise UserError(f"channels_per_head = {channels_per_head} does not divide {base * multiplier} channels")
        self.base, self.multipliers, self.depth = base, tuple(multipliers), depth
        self.attention, self.resample, self.channels_per_head = tuple(attention), resample, channels_per_head

    def make(self, shape: tuple[int, ...], labels: int) -> nn.Module:
        """The network for images of that shape."""
        return unet.UNet(
            shape[0], self.base, self.multipliers, self.depth, self.attention, self.resample, self.dropout,
            self.channels_per_head, labels,
        )  # fmt: skip
