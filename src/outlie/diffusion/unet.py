"""F(x, time): the U-Nets of DDPM (Ho et al. 2020) and DDPM++ (Song et al. 2021), as the DDAE code has them.

Blocks are named in the order of execution: down_1.. on the way in, middle, out_1.. on the way out. A block is a
residual block and the attention after it; resampling is none. The specification of DDAE, section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32  # of GroupNorm; narrow networks have one a channel


def sinusoid(time: Tensor, width: int) -> Tensor:
    """[sin(t w_k), cos(t w_k)] with w_k = 10000^(-k / (width/2 - 1)); (B,) -> (B, width)."""
    half = width // 2
    steps = torch.arange(half, device=time.device, dtype=torch.float32) / (half - 1)
    angles = time.float()[:, None] * torch.exp(-math.log(10_000) * steps)
    return torch.cat([angles.sin(), angles.cos()], 1)


def group_norm(channels: int) -> nn.GroupNorm:
    """In at most 32 groups."""
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)


class Residual(nn.Module):
    """shortcut(x) + conv(SiLU(GN(conv(SiLU(GN(x))) + W SiLU(emb)))), resampled between the first SiLU and conv."""

    def __init__(self, inside: int, outside: int, emb: int, dropout: float, resample: str = "") -> None:
        super().__init__()
        self.resample = resample
        self.norm_1, self.conv_1 = group_norm(inside), nn.Conv2d(inside, outside, 3, padding=1)
        self.shift = nn.Linear(emb, outside)
        self.norm_2, self.conv_2 = group_norm(outside), nn.Conv2d(outside, outside, 3, padding=1)
        self.dropout = dropout
        self.shortcut = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, C, H, W) and (B, emb) after its SiLU -> (B, C', H', W')."""
        h = self._resampled(F.silu(self.norm_1(x)))
        h = self.conv_1(h) + self.shift(emb)[:, :, None, None]
        h = F.dropout(F.silu(self.norm_2(h)), self.dropout, self.training)
        return self.shortcut(self._resampled(x)) + self.conv_2(h)

    def _resampled(self, x: Tensor) -> Tensor:
        match self.resample:
            case "down":
                return F.avg_pool2d(x, 2)
            case "up":
                return F.interpolate(x, scale_factor=2.0, mode="nearest")
            case _:
                return x


class Attention(nn.Module):
    """x + W softmax(q k^T / sqrt(d)) v over all pixels; one head of width C unless `channels_per_head` says less."""

    def __init__(self, channels: int, channels_per_head: int | None) -> None:
        super().__init__()
        self.heads = channels // (channels_per_head or channels)
        self.norm, self.qkv = group_norm(channels), nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        B, C, H, W = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(B, H * W, C)  # a view where memory is channels_last
        q, k, v = self.qkv(tokens).view(B, H * W, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, H, W, C)
        return x + self.out(mixed).permute(0, 3, 1, 2)


class Block(nn.Module):
    """A residual block and, at the attention level, the attention after it."""

    def __init__(
        self, inside: int, outside: int, emb: int, dropout: float, attend: bool, channels_per_head: int | None
    ) -> None:
        super().__init__()
        self.residual = Residual(inside, outside, emb, dropout)
        self.attention = Attention(outside, channels_per_head) if attend else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.attention(self.residual(x, emb))


class Down(nn.Conv2d):
    """Half the size by a convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2, padding=1)

    def forward(self, input: Tensor, emb: Tensor | None = None) -> Tensor:
        return super().forward(input)


class Up(nn.Conv2d):
    """Twice the size: nearest, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, input: Tensor, emb: Tensor | None = None) -> Tensor:
        return super().forward(F.interpolate(input, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """The network; at (128, (1, 2, 2, 2), 2) it has 35,746,307 parameters, with DDPM++'s resampling 56,524,291.

    Args:
        channels: of the image.
        base: channels of the first level.
        multipliers: channels of each level, in units of `base`; the size halves from one to the next.
        blocks: of each level on the way in; one more on the way out.
        attention: levels with attention, counted from 0, the finest.
        resample: conv (DDPM), or residual: BigGAN's residual blocks (DDPM++).
        dropout: in residual blocks.
        channels_per_head: of the attention; None = one head.
        labels: width of an augmentation label; 0 = none is taken.
    """

    memory_format: ClassVar[torch.memory_format] = torch.channels_last  # convolutions are faster in it

    def __init__(
        self,
        channels: int,
        base: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        resample: str = "conv",
        dropout: float = 0.1,
        channels_per_head: int | None = None,
        labels: int = 0,
    ) -> None:
        super().__init__()
        emb = 4 * base
        self.base, self.multiple = base, 2 ** (len(multipliers) - 1)
        self.label = nn.Linear(labels, base, bias=False) if labels else None
        self.time = nn.Sequential(nn.Linear(base, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.stem = nn.Conv2d(channels, base, 3, padding=1)

        def block(inside: int, outside: int, level: int) -> Block:
            return Block(inside, outside, emb, dropout, level in attention, channels_per_head)

        def resampling(width: int, way: str) -> nn.Module:
            if resample == "residual":
                return Residual(width, width, emb, dropout, way)
            return Down(width) if way == "down" else Up(width)

        inside, skips, last = base, [base], len(multipliers) - 1
        self.down, self.up = nn.ModuleDict(), nn.ModuleDict()  # in order of execution
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.down[f"down_{level * blocks + _ + 1}"] = block(inside, base * multiplier, level)
                inside = base * multiplier
                skips.append(inside)
            if level < last:
                self.down[f"halve_{level + 1}"] = resampling(inside, "down")
                skips.append(inside)
        self.middle = nn.ModuleList(
            [
                Block(inside, inside, emb, dropout, True, channels_per_head),
                Residual(inside, inside, emb, dropout),
            ]
        )
        number = 0
        for level in range(last, -1, -1):
            for _ in range(blocks + 1):
                number += 1
                self.up[f"out_{number}"] = block(inside + skips.pop(), base * multipliers[level], level)
                inside = base * multipliers[level]
            if level:
                self.up[f"double_{level}"] = resampling(inside, "up")
        self.head = nn.Sequential(nn.GroupNorm(8, inside), nn.SiLU(), nn.Conv2d(inside, channels, 3, padding=1))
        self.to(memory_format=self.memory_format)  # pyright: ignore[reportCallIssue]

    @property
    def block_names(self) -> tuple[str, ...]:
        """Names of the blocks whose maps `forward` hands out, in order of execution."""
        named = [*self.down, "middle", *self.up]
        return tuple(name for name in named if not name.startswith(("halve", "double")))

    @property
    def default_block(self) -> str:
        """The published choice, a middle block of the way out: out_6 of 12, out_7 of 15."""
        return f"out_{sum(name.startswith('out') for name in self.up) // 2}"

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        blocks: Collection[str] = (),
        stop: bool = False,
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """F(x, time), (B, C, H, W), and the maps of the named blocks; with `stop` None, ended after the last of them.

        Args:
            x: (B, C, H, W), sizes multiples of `multiple`.
            time: (B,) as the network is told it.
            label: (B, labels) how the image was augmented; None = not at all, as a label of zeros.
        """
        wanted, maps = set(blocks), {}

        def kept(name: str, h: Tensor) -> bool:  # whether that was the last wanted
            if name in wanted:
                maps[name] = h
            return stop and len(maps) == len(wanted)

        emb = sinusoid(time, self.base)
        if self.label is not None and label is not None:
            emb = emb + self.label(label)
        emb = F.silu(self.time(emb))
        h = self.stem(x.contiguous(memory_format=self.memory_format))
        skips = [h]
        for name, module in self.down.items():
            h = module(h, emb)
            skips.append(h)
            if kept(name, h):
                return None, maps
        for module in self.middle:
            h = module(h, emb)
        if kept("middle", h):
            return None, maps
        for name, module in self.up.items():
            named = name.startswith("out")
            h = module(torch.cat([h, skips.pop()], 1) if named else h, emb)
            if named and kept(name, h):
                return None, maps
        return cast(Tensor, self.head(h)), maps
