"""Raw images beside a batch: photos of anything from a folder, a pool of training images, and colours changed."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from outlie.data.image_files import Transform, decode_all, list_images

MOST = 500  # images that are held


def read_photos(folder: Path, shape: tuple[int, ...], option: str = "detector.photos") -> Tensor:
    """(N, C, H, W) uint8: the centres of up to 500 images, evenly spaced by name, at twice the size (256 of 512)."""
    channels, height, width = shape
    names = list_images(folder, option)
    some = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(MOST, len(names))).round().astype(int))]
    side = max(height, width)
    images = decode_all([folder / name for name in some], Transform(side, channels, 2 * side), some)
    return torch.from_numpy(images)[..., :height, :width].contiguous()


def pool_of(x: Tensor) -> Tensor:
    """Up to 500 rows of raw images, evenly spaced."""
    rows = torch.linspace(0, len(x) - 1, min(MOST, len(x))).round().long().unique()
    return x[rows]


def drawn(images: Tensor, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """So many of the images, at random."""
    rows = torch.randint(len(images), (count,), generator=generator, device=generator.device)
    return images[rows.to(images.device)].to(device)


def grey_of(x_BCHW: Tensor) -> Tensor:
    """Luma; (B, C, H, W) -> (B, 1, H, W)."""
    if x_BCHW.shape[1] != 3:
        return x_BCHW.mean(1, keepdim=True)
    return (x_BCHW * x_BCHW.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def some_grey(x_BCHW: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Each image grey with that probability; float."""
    turned = torch.rand(len(x_BCHW), generator=generator, device=generator.device).to(x_BCHW.device) < share
    x_BCHW = x_BCHW.float()
    return torch.where(turned[:, None, None, None], grey_of(x_BCHW), x_BCHW)


def jittered(x_BCHW: Tensor, generator: torch.Generator, least: float = 0.8, most: float = 1.2) -> Tensor:
    """Brightness, contrast or saturation of each image, one of them, times a factor; float in 0..255."""
    count = len(x_BCHW)
    kind_B = torch.randint(3, (count,), generator=generator, device=generator.device).to(x_BCHW.device)
    factor_B = torch.rand(count, generator=generator, device=generator.device).to(x_BCHW.device)
    kind, factor = (t[:, None, None, None] for t in (kind_B, least + (most - least) * factor_B))
    x_BCHW = x_BCHW.float()
    grey = grey_of(x_BCHW)
    # each is a blend with something: black, the mean grey, the grey image
    other = torch.where(kind == 1, grey.mean((2, 3), keepdim=True), grey * (kind == 2))
    return (factor * x_BCHW + (1 - factor) * other).clamp(0, 255)
