"""Random crops, flips and mixtures of a whole batch at once: index arithmetic, no loop over samples.

Every draw comes from `generator`, which lives on the batch's device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ATTEMPTS = 10  # draws of a box before the centre is taken, as torchvision does


def pad_crop(x_BCHW: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """out[b, c, i, j] = padded[b, c, i + dy_b, j + dx_b], dy, dx uniform in 0..2 padding; black around the image."""
    batch, _, height, width = x_BCHW.shape
    padded = F.pad(x_BCHW, (padding,) * 4)
    dy_B, dx_B = torch.randint(2 * padding + 1, (2, batch), generator=generator, device=x_BCHW.device)
    rows_BH = dy_B[:, None] + torch.arange(height, device=x_BCHW.device)
    columns_BW = dx_B[:, None] + torch.arange(width, device=x_BCHW.device)
    sample_B = torch.arange(batch, device=x_BCHW.device)
    cropped_BHWC = padded[sample_B[:, None, None], :, rows_BH[:, :, None], columns_BW[:, None, :]]
    return cropped_BHWC.permute(0, 3, 1, 2)  # channels_last, as convolutions want it


def flip(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror left and right with probability 1/2; (B, C, H, W)."""
    coin_B = torch.rand(len(x_BCHW), generator=generator, device=x_BCHW.device) < 0.5
    return torch.where(coin_B[:, None, None, None], x_BCHW.flip(3), x_BCHW)


def random_boxes(
    batch: int, height: int, width: int, smallest: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes with area uniform in smallest..1 of the image and log aspect uniform in log 3/4..log 4/3.

    Returns:
        top, left, height, width, each (B,) int64; the centre, at most 4:3, where no draw of ten fits.
    """
    device = generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device, dtype=torch.float64)

    area = (smallest + (1 - smallest) * uniform(ATTEMPTS, batch)) * height * width
    aspect = (4 / 3) ** (2 * uniform(ATTEMPTS, batch) - 1)  # width / height
    w, h = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(0, keepdim=True)
    fits_B = fits.any(0)
    # else the largest box whose aspect is allowed
    h_B = torch.where(fits_B, h.gather(0, first)[0], min(height, round(width * 4 / 3)))
    w_B = torch.where(fits_B, w.gather(0, first)[0], min(width, round(height * 4 / 3)))
    down_B, right_B = height - h_B, width - w_B  # how far it can be moved
    place = uniform(2, batch)
    top_B = torch.where(fits_B, (place[0] * (down_B + 1)).long(), down_B // 2)
    left_B = torch.where(fits_B, (place[1] * (right_B + 1)).long(), right_B // 2)
    return top_B, left_B, h_B, w_B


def crop_and_resize(x_BCHW: Tensor, boxes: tuple[Tensor, Tensor, Tensor, Tensor], size: tuple[int, int]) -> Tensor:
    """Each sample's own box, resized bilinearly (no antialiasing); (B, C, *size) uint8."""
    _, _, height, width = x_BCHW.shape
    top_B, left_B, h_B, w_B = boxes

    def centres(start_B: Tensor, length_B: Tensor, pixels: int, whole: int) -> Tensor:
        # pixel i of the output looks at start + (i + 1/2) length / pixels - 1/2, never beyond the box
        step = (torch.arange(pixels, device=x_BCHW.device, dtype=torch.float64) + 0.5) / pixels
        within = (step * length_B[:, None] - 0.5).clamp(min=0).minimum(length_B[:, None] - 1.0)
        return (2 * (start_B[:, None] + within) + 1) / whole - 1  # -1..1 over the image, as grid_sample counts

    y_BH = centres(top_B, h_B, size[0], height)
    x_BW = centres(left_B, w_B, size[1], width)
    grid = torch.stack(torch.broadcast_tensors(x_BW[:, None, :], y_BH[:, :, None]), 3).float()
    out = F.grid_sample(x_BCHW.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return out.round().clamp(0, 255).byte()


def resized_crop(x_BCHW: Tensor, size: tuple[int, int], smallest: float, generator: torch.Generator) -> Tensor:
    """A random box of each image resized to `size` (Szegedy et al. 2015); (B, C, *size) uint8.

    Args:
        x_BCHW: uint8 images.
        size: height and width of the result.
        smallest: smallest area of the box, as a share of the image.
        generator: on the batch's device.
    """
    batch, _, height, width = x_BCHW.shape
    return crop_and_resize(x_BCHW, random_boxes(batch, height, width, smallest, generator), size)


def mixup(z: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """lambda z + (1 - lambda) z[partner], lambda ~ Beta(alpha, alpha), one a batch (Zhang et al., ICLR 2018).

    Returns:
        the mixed batch, partner (B,) int64, lambda () of z's type.
    """
    shape = torch.full((2,), alpha, dtype=torch.float64, device=z.device)
    # torch's Beta knows no generator
    gamma = torch._standard_gamma(shape, generator=generator)  # pyright: ignore[reportPrivateImportUsage]
    share = (gamma[0] / gamma.sum()).nan_to_num(0.5).to(z.dtype)  # both underflow for alpha < 0.01
    partner = torch.randperm(len(z), generator=generator, device=z.device)
    return share * z + (1 - share) * z[partner], partner, share
