"""Images and their label maps, scaled, cropped, mirrored and recoloured together: a whole batch at once.

Scale, crop and mirror are one map of pixel positions, which is separable: u_i = (top + i + 1/2) / scale - 1/2.
Every draw comes from `generator`, which lives on the batch's device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from outlie.data.dense_files import IGNORE

ATTEMPTS = 10  # crops drawn until one class no longer fills it
FULL = 0.75  # share of the labelled pixels that one class may have
COARSE = 16  # positions a side at which that share is measured
LUMA = (0.299, 0.587, 0.114)


def scale_crop_flip(
    x_BCHW: Tensor,
    y_BHW: Tensor,
    scales: tuple[float, float],
    size: tuple[int, int],
    flip: bool,
    fill_C11: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Scaled by a uniform factor, a random part of `size` cut out, mirrored with probability 1/2.

    Args:
        x_BCHW: images, uint8 or float.
        y_BHW: label maps uint8, IGNORE where there is no class.
        scales: smallest and largest factor.
        size: height and width of the part.
        flip: whether to mirror.
        fill_C11: colour around an image that is smaller than the part; its label is IGNORE.
        generator: on the batch's device.

    Returns:
        images (B, C, *size) float32, bilinear; label maps (B, *size) uint8, of the nearest pixel.
    """
    batch, _, height, width = x_BCHW.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=x_BCHW.device, dtype=torch.float64)

    scale_B = scales[0] + (scales[1] - scales[0]) * uniform(batch)
    top_AB, left_AB = (
        _offset(uniform(ATTEMPTS, batch), scale_B * whole, part)
        for whole, part in ((height, size[0]), (width, size[1]))
    )
    first_B = _varied(y_BHW, top_AB, left_AB, scale_B, size)
    top_B, left_B = (offset_AB.gather(0, first_B[None])[0] for offset_AB in (top_AB, left_AB))
    u_BH, v_BW = _positions(top_B, scale_B, size[0]), _positions(left_B, scale_B, size[1])
    if flip:
        v_BW = torch.where(uniform(batch)[:, None] < 0.5, v_BW.flip(1), v_BW)
    inside_BHW = ((u_BH >= -0.5) & (u_BH < height - 0.5))[:, :, None] & ((v_BW >= -0.5) & (v_BW < width - 0.5))[:, None]
    grid = torch.stack(
        torch.broadcast_tensors(((2 * v_BW + 1) / width - 1)[:, None], ((2 * u_BH + 1) / height - 1)[:, :, None]), 3
    ).float()
    x = F.grid_sample(x_BCHW.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    y = torch.where(inside_BHW, _nearest(y_BHW, u_BH, v_BW), IGNORE)
    return torch.where(inside_BHW[:, None], x, fill_C11.float()), y


def _offset(draw_AB: Tensor, whole_B: Tensor, part: int) -> Tensor:
    """Where the part starts in the scaled image: anywhere within it, or, where it is smaller, with all of it inside."""
    room_B = whole_B - part
    return room_B.clamp(max=0) + draw_AB * room_B.abs()


def _positions(start_B: Tensor, scale_B: Tensor, pixels: int) -> Tensor:
    """Coordinates (in pixels of the image, 0 = centre of the first) of the part's pixels; (B, pixels)."""
    i = torch.arange(pixels, device=start_B.device, dtype=torch.float64) + 0.5
    return (start_B[:, None] + i) / scale_B[:, None] - 0.5


def _nearest(y_BHW: Tensor, u_BH: Tensor, v_BW: Tensor) -> Tensor:
    """Labels at the nearest pixels; (B, H', W')."""
    rows = (u_BH + 0.5).floor().long().clamp(0, y_BHW.shape[1] - 1)
    columns = (v_BW + 0.5).floor().long().clamp(0, y_BHW.shape[2] - 1)
    sample = torch.arange(len(y_BHW), device=y_BHW.device)
    return y_BHW[sample[:, None, None], rows[:, :, None], columns[:, None, :]]


def _varied(y_BHW: Tensor, top_AB: Tensor, left_AB: Tensor, scale_B: Tensor, size: tuple[int, int]) -> Tensor:
    """Number of the first attempt in which no class has more than FULL of the labelled pixels, else the last; (B,)."""
    attempts, batch = top_AB.shape
    scale = scale_B.repeat(attempts)
    # positions at every so many pixels of the part
    u, v = (
        _positions(start.flatten(), scale, pixels)[:, torch.linspace(0, pixels - 1, COARSE).round().long()]
        for start, pixels in ((top_AB, size[0]), (left_AB, size[1]))
    )
    labels = _nearest(y_BHW.repeat(attempts, 1, 1), u, v).flatten(1).long()
    counts = torch.zeros(attempts * batch, IGNORE + 1, device=y_BHW.device)
    counts.scatter_add_(1, labels, torch.ones_like(labels, dtype=counts.dtype))
    most, total = counts[:, :IGNORE].max(1).values, counts[:, :IGNORE].sum(1)
    varied_AB = (most <= FULL * total).view(attempts, batch)
    varied_AB[-1] = True
    return varied_AB.int().argmax(0)


def recolour(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness + U(-32, 32), contrast and saturation x U(1/2, 3/2), each with probability 1/2; float in 0..255.

    SSD's photometric distortion without its turn of the hue.
    """
    batch, channels = x_BCHW.shape[:2]
    draw = torch.rand(3, batch, 1, 1, 1, generator=generator, device=x_BCHW.device)
    coin = torch.rand(3, batch, 1, 1, 1, generator=generator, device=x_BCHW.device) < 0.5
    shift = torch.where(coin[0], 64 * draw[0] - 32, 0.0)
    contrast, saturation = (torch.where(coin[i], 0.5 + draw[i], 1.0) for i in (1, 2))
    x = (x_BCHW.float() + shift) * contrast
    if channels == 3:
        grey = (x * torch.tensor(LUMA, device=x.device)[:, None, None]).sum(1, keepdim=True)
        x = grey + saturation * (x - grey)
    return x.clamp(0, 255)
