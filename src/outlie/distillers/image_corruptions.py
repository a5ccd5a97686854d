"""Images spoilt on purpose, in five strengths: pasted, blended, blurred, noisy, of other contrast."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# (the chosen images in 0..255 float, other images, strength 0..4, draws) -> images
Corruption = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]


def paste(x_BCHW: Tensor, other_BCHW: Tensor, strength_B: Tensor, generator: torch.Generator) -> Tensor:
    """A rectangle of another image, an eighth to three quarters of the side, at a random place (CutPaste)."""
    b, _, h, w = x_BCHW.shape
    share = torch.tensor([0.125, 0.25, 0.375, 0.5, 0.75])[strength_B]
    box_h, box_w = (share * h).clamp(min=1), (share * w).clamp(min=1)
    top = torch.rand(b, generator=generator) * (h - box_h)
    left = torch.rand(b, generator=generator) * (w - box_w)
    rows, columns = torch.arange(h)[None, :, None], torch.arange(w)[None, None, :]
    inside = (rows >= top[:, None, None]) & (rows < (top + box_h)[:, None, None])
    inside = inside & (columns >= left[:, None, None]) & (columns < (left + box_w)[:, None, None])
    shifted = other_BCHW.roll((h // 3, w // 3), (2, 3))  # a like image would fit where it is cut out
    return torch.where(inside[:, None], shifted, x_BCHW)


def blend(x_BCHW: Tensor, other_BCHW: Tensor, strength_B: Tensor, generator: torch.Generator) -> Tensor:
    """Patches of smooth noise let another image through, a fifth of it to all."""
    b, _, h, w = x_BCHW.shape
    coarse = torch.randn(b, 1, 4, 4, generator=generator)
    mask = (F.interpolate(coarse, (h, w), mode="bicubic", align_corners=False) > 0).float()
    alpha = torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0])[strength_B].view(-1, 1, 1, 1)
    return x_BCHW + alpha * mask * (other_BCHW - x_BCHW)


def blur(x_BCHW: Tensor, other_BCHW: Tensor, strength_B: Tensor, generator: torch.Generator) -> Tensor:
    """Binomial blur (1 4 6 4 1) / 16 in both directions, once to sixteen times."""
    c = x_BCHW.shape[1]
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (row[:, None] * row[None, :]).expand(c, 1, 5, 5)
    out, blurred = x_BCHW, x_BCHW
    for times in range(1, 17):
        blurred = F.conv2d(F.pad(blurred, (2, 2, 2, 2), mode="replicate"), kernel, groups=c)
        now = torch.tensor([1, 2, 4, 8, 16])[strength_B] == times
        out = torch.where(now.view(-1, 1, 1, 1), blurred, out)
    return out


def noise(x_BCHW: Tensor, other_BCHW: Tensor, strength_B: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise of 5 to 80 grey levels."""
    sigma = torch.tensor([5.0, 10.0, 20.0, 40.0, 80.0])[strength_B].view(-1, 1, 1, 1)
    return x_BCHW + sigma * torch.randn(x_BCHW.shape, generator=generator)


def contrast(x_BCHW: Tensor, other_BCHW: Tensor, strength_B: Tensor, generator: torch.Generator) -> Tensor:
    """Grey levels around their mean times 0.2 to 2, or inverted."""
    factor = torch.tensor([0.5, 0.2, 1.5, 2.0, -1.0])[strength_B].view(-1, 1, 1, 1)
    mean = x_BCHW.mean((1, 2, 3), keepdim=True)
    middle = torch.where(factor < 0, torch.full_like(mean, 127.5), mean)
    return middle + factor * (x_BCHW - middle)


def turn(x_BCHW: Tensor, other_BCHW: Tensor, strength_B: Tensor, generator: torch.Generator) -> Tensor:
    """Rotated by 15 to 180 degrees to either side, black around."""
    angle = torch.tensor([15.0, 30.0, 60.0, 90.0, 180.0])[strength_B].deg2rad()
    angle = angle * torch.where(torch.rand(len(angle), generator=generator) < 0.5, -1.0, 1.0)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(theta, list(x_BCHW.shape), align_corners=False)
    return F.grid_sample(x_BCHW, grid, align_corners=False)


KINDS: dict[str, Corruption] = {
    "paste": paste, "blend": blend, "blur": blur, "pixel_noise": noise, "contrast": contrast, "turn": turn
}  # fmt: skip
HELD_OUT = ("paste",)


def spoilt(x: Tensor, foreign: Tensor, kinds: list[str], n: int, generator: torch.Generator) -> Tensor:
    """n images in equal parts of each kind, each in a random strength.

    Args:
        x: (N, C, H, W) uint8 training images.
        foreign: (M, C, H, W) uint8 images that are pasted and blended in; the training images where there are none.

    Returns:
        (n, C, H, W) uint8.
    """
    parts = []
    for i, kind in enumerate(kinds):
        m = n // len(kinds) + (i < n % len(kinds))
        rows = x[torch.randint(len(x), (m,), generator=generator)].float()
        other = foreign[torch.randint(len(foreign), (m,), generator=generator)].float()
        strength = torch.randint(5, (m,), generator=generator)
        parts.append(KINDS[kind](rows, other, strength, generator).round().clamp(0, 255).byte())
    return torch.cat(parts)
