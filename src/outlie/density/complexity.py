"""Compressed sizes of images and binary versions of grey ones: what goes into a likelihood beside the network."""

from __future__ import annotations

import io

import torch
from torch import Tensor


def png_bits(x: Tensor, levels: int) -> Tensor:
    """(B,) bits of each image as PNG, strongest compression; x (B, 1 or 3, H, W) in [0, 1] with `levels` values."""
    from PIL import Image

    step = 255 // (levels - 1)
    pixels = (x.cpu() * (levels - 1)).round().mul(step).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    sizes = []
    grey = pixels.shape[-1] == 1
    for image in pixels:  # a compressor takes one at a time
        file = io.BytesIO()
        picture = Image.fromarray(image[..., 0] if grey else image)
        (picture.convert("1") if grey and levels == 2 else picture).save(file, "PNG", optimize=True, compress_level=9)
        sizes.append(8 * file.tell())
    return torch.tensor(sizes, dtype=torch.float64)


def binarised(x: Tensor, generator: torch.Generator) -> Tensor:
    """x ~ Bernoulli(x): a new binary image at every presentation."""
    return (torch.rand(x.shape, generator=generator, device=x.device) < x).to(x)


def binarised_alike(x: Tensor, seed: int) -> Tensor:
    """x ~ Bernoulli(x) whose random numbers come from the image itself: the same in any batch, and every time."""
    grey = (x.flatten(1).double() * 255).round().to(torch.int64)
    place = torch.arange(grey.shape[1], device=x.device) * GOLDEN
    own = _mix(grey * GOLDEN + _mix(place + seed)).sum(
        1, keepdim=True
    )  # grey and place must not make up for each other
    uniform = (_mix(_mix(own + place)) >> 10 & (1 << 53) - 1).double() / 2**53
    return (uniform < x.flatten(1)).to(x).view(x.shape)


GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as a signed number


def _mix(v: Tensor) -> Tensor:
    """MurmurHash3's 64-bit finaliser, on signed numbers that wrap around."""
    v = (v ^ (v >> 33 & 0x7FFFFFFF)) * -49064778989728563
    v = (v ^ (v >> 33 & 0x7FFFFFFF)) * -4265267296055464877
    return v ^ (v >> 33 & 0x7FFFFFFF)
