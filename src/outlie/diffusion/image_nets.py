"""Networks of the first paper's detectors on pixels: a U-Net with linear attention, and a ResNet that tells the time.

Both take and give flat rows, (B, D) with D = C H W, so that the detectors for tables stand on them as they are.
Structure and sizes: Livernoche et al., ICLR 2024, section 7 of the specification.
"""

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.backbones.resnet import ResNet
from outlie.diffusion.unet import sinusoid

GROUPS = 8
HEADS, HEAD_WIDTH = 4, 32
MULTIPLES = (1, 2, 4, 8)  # of the base width, one a level
SMALLEST = 2 ** (len(MULTIPLES) - 1)  # sides are halved three times
USES = 21  # level l has 4^l weights on 4^-l of the pixels, so a weight is used pixels * 4 / (1 + 4 + 16 + 64) times


def norm_conv(inside: int, outside: int) -> nn.Sequential:
    """GN(conv3(x)) in 8 groups."""
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1), nn.GroupNorm(GROUPS, outside))


class Residual(nn.Module):
    """shortcut(x) + SiLU(GN(conv(SiLU(GN(conv(x))) + W emb)))."""

    def __init__(self, inside: int, outside: int, emb: int) -> None:
        super().__init__()
        self.first, self.second = norm_conv(inside, outside), norm_conv(outside, outside)
        self.shift = nn.Linear(emb, outside) if emb else None
        self.shortcut = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, C, H, W) and (B or 1, emb) after its SiLU -> (B, C', H, W)."""
        h = F.silu(self.first(x))
        if self.shift is not None:
            h = h + self.shift(emb)[:, :, None, None]
        return self.shortcut(x) + F.silu(self.second(h))


class Attention(nn.Module):
    """x + W softmax(q k^T / sqrt(d)) v over all pixels, four heads of 32, on x normalised as one group."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.qkv = nn.Linear(channels, 3 * HEADS * HEAD_WIDTH, bias=False)
        self.out = nn.Linear(HEADS * HEAD_WIDTH, channels)
        self.after: nn.Module = nn.Identity()

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each (B, heads, N, d) for N pixels -> the same."""
        return F.scaled_dot_product_attention(q, k, v)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        B, C, H, W = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(B, H * W, C)  # a view where memory is channels_last
        q, k, v = self.qkv(tokens).view(B, H * W, 3, HEADS, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        mixed = self.mix(q, k, v).transpose(1, 2).reshape(B, H, W, HEADS * HEAD_WIDTH)
        return x + self.after(self.out(mixed).permute(0, 3, 1, 2))


class LinearAttention(Attention):
    """x + GN(W softmax_d(q) (softmax_N(k)^T v) / sqrt(d)): linear in the number of pixels N. Shen et al., WACV 2021."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.after = nn.GroupNorm(1, channels)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each (B, heads, N, d) for N pixels -> the same."""
        context = k.softmax(-2).transpose(-2, -1) @ v  # (B, heads, d, d)
        return q.softmax(-1) @ (context * HEAD_WIDTH**-0.5)


class Level(nn.Module):
    """Two residual blocks and linear attention at one resolution."""

    def __init__(self, inside: int, outside: int, emb: int) -> None:
        super().__init__()
        self.first, self.second = Residual(inside, outside, emb), Residual(outside, outside, emb)
        self.attention = LinearAttention(outside)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, C, H, W) and (B or 1, emb) -> (B, C', H, W)."""
        return self.attention(self.second(self.first(x, emb), emb))


class PixelUNet(nn.Module):
    """eps_theta(x_t, t) for images; 8.07 M parameters at 32 x 32 pixels, three channels and base 32.

    Sides that are no multiple of 8 are filled up with zeros inside (published: such images fail).

    Args:
        shape: (C, H, W) of an image.
        base: channels at full resolution, a multiple of 8.
    """

    def __init__(self, shape: tuple[int, ...], base: int) -> None:
        super().__init__()
        self.shape, self.base = shape, base
        emb, first = 4 * base, base // 3 * 2
        widths = [base * multiple for multiple in MULTIPLES]
        below = list(pairwise(widths))[::-1]  # (here, one level down), from the bottom up
        self.time = nn.Sequential(nn.Linear(base, emb), nn.GELU(), nn.Linear(emb, emb))
        self.stem = nn.Conv2d(shape[0], first, 7, padding=3)
        self.down = nn.ModuleList(Level(i, o, emb) for i, o in zip([first, *widths], widths))
        self.shrink = nn.ModuleList(nn.Conv2d(width, width, 4, 2, padding=1) for width in widths[:-1])
        self.middle_1, self.middle_2 = Residual(widths[-1], widths[-1], emb), Residual(widths[-1], widths[-1], emb)
        self.attention = Attention(widths[-1])
        self.up = nn.ModuleList(Level(2 * deeper, here, emb) for here, deeper in below)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(here, here, 4, 2, padding=1) for here, _ in below)
        self.last, self.head = Residual(base, base, 0), nn.Conv2d(base, shape[0], 1)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def embed_time(self, t: Tensor) -> Tensor:
        """(B,) time indices -> (B, 4 base), what every block makes its shift of."""
        return F.silu(self.time(sinusoid(t, self.base)))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, D) noisy flat images and (B or 1, 4 base) from `embed_time` -> (B, D) predicted noise."""
        _, H, W = self.shape
        h = self.stem(F.pad(x.unflatten(1, self.shape), (0, -W % SMALLEST, 0, -H % SMALLEST)))
        skips = []
        for level, shrink in zip(self.down, [*self.shrink, nn.Identity()]):
            skips.append(level(h, emb))
            h = shrink(skips[-1])
        h = self.middle_2(self.attention(self.middle_1(h, emb)), emb)
        for level, grow in zip(self.up, self.grow):  # the first level's map is not used again, as published
            h = grow(level(torch.cat([h, skips.pop()], 1), emb))
        return self.head(self.last(h, emb))[:, :, :H, :W].flatten(1)


class TimeResNet(nn.Module):
    """A ResNet from scratch with a class for each share of the noise levels: torchvision's, with 23.5 M weights at 50.

    Args:
        shape: (C, H, W) of an image.
        outputs: number of classes.
        depth: layers.
        width: channels of the first stage.
        stem: cifar = 3x3, stride 1; imagenet = 7x7 and a pooling, each of stride 2.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int,
        depth: Literal[10, 18, 34, 50],
        width: int,
        stem: Literal["auto", "cifar", "imagenet"],
    ) -> None:
        super().__init__()
        self.shape = shape
        self.resnet = ResNet(depth, width, stem)
        self.resnet.build(shape, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) flat images -> (B, K) logits."""
        return self.resnet.logits(self.resnet.embed(x.unflatten(1, self.shape)))
