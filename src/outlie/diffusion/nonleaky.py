"""Non-leaky augmentation: out(r) = in(A^-1 (r - t)) with A = stretch rotation scale, and the label that tells A and t.

The network is told the label, so that it does not learn to draw augmented images (Karras et al., StyleGAN2-ADA 2020 and
EDM 2022). Written from the description in the specification of DDAE, section 5.

Conventions. r is in pixels from the image's centre, x to the right, y down. The content is flipped, then scaled, then
rotated, then stretched, then moved. The label's columns, all zero = untouched:

    0, 1  flipped left-right, flipped top-bottom: 0 or 1
    2     log2 of the scale; above 0 enlarges
    3, 4  cos - 1, sin of the rotation; above 0 turns x towards y, clockwise on the screen
    5, 6  (w cos, w sin): 2^w along the axis and 2^-w across it; the axis is in (-pi/2, pi/2], which is every axis once,
          so that w < 0 is seen in column 5
    7, 8  move to the right and down, in units of the image's width and height
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from outlie.errors import UserError

LABELS = 9  # width of a label
SCALE, STRETCH, MOVE = 0.2, 0.2, 0.125  # standard deviations: log2, log2, share of the side

# Low-pass of the symlet with 6 vanishing moments: Daubechies, Ten Lectures on Wavelets, 1992, table 6.3.
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
# The filter is not symmetric: fine sample n stands at pixel (n - DELAY) / 2, exactly for what is linear.
DELAY = sum(n * tap for n, tap in enumerate(SYM6)) / math.sqrt(2)
MARGIN = 4  # pixels around the image, so that the filter is whole wherever a sample is taken


def augmented(x_BCHW: Tensor, p: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The batch, each image with its own random transforms, and (B, 9) labels; see above for their columns.

    Args:
        x_BCHW: images in [-1, 1]; a resampled one may go a little beyond, as nothing is clipped.
        p: probability of each transform but the left-right flip, which half of the images get; EDM's is 0.12.
        generator: one on the CPU draws alike on every device, and lets a GPU go on without waiting.

    Raises:
        UserError: p is no probability.
    """
    label_B9 = draw_labels(len(x_BCHW), p, generator)
    return transformed(x_BCHW, label_B9), label_B9.to(x_BCHW.device)


def draw_labels(batch: int, p: float, generator: torch.Generator) -> Tensor:
    """(B, 9) float32 labels on the generator's device; the number of draws does not depend on p."""
    if not 0 <= p <= 1:
        raise UserError(f"p = {p} is no probability: set the augmentation's p to 0..1 (EDM: 0.12)")
    options = {"generator": generator, "device": generator.device, "dtype": torch.float64}
    scale, stretch, right, down = torch.randn(4, batch, **options)
    mirror, upset, turn, axis, diagonal = torch.rand(5, batch, **options)
    flips, scales, rotates, stretches, moves = (torch.rand(5, batch, **options) < p).double()
    angle = math.pi * (2 * turn - 1) * rotates
    axis = math.pi * (0.5 - axis) * (diagonal < 0.5)
    w = STRETCH * stretch * stretches
    columns = [
        mirror < 0.5,
        (upset < 0.5) * flips,
        SCALE * scale * scales,
        angle.cos() - 1,
        angle.sin(),
        w * axis.cos(),
        w * axis.sin(),
        MOVE * right * moves,
        MOVE * down * moves,
    ]
    return torch.stack([column.float() for column in columns], 1)


def transformed(x_BCHW: Tensor, label_B9: Tensor) -> Tensor:
    """The images as their labels say; flips are exact, and only rows with more than flips are resampled."""
    mirror, upset = (label_B9[:, :2].T != 0).to(x_BCHW.device)[:, :, None, None, None]
    x_BCHW = torch.where(mirror, x_BCHW.flip(3), x_BCHW)
    x_BCHW = torch.where(upset, x_BCHW.flip(2), x_BCHW)
    rows = label_B9[:, 2:].any(1).nonzero()[:, 0]
    if not len(rows):
        return x_BCHW
    inverse = inverse_maps(label_B9[rows]).to(x_BCHW)
    size = torch.tensor(x_BCHW.shape[:1:-1])  # width, height
    move = (label_B9[rows, 7:].cpu() * size).to(x_BCHW)
    rows = rows.to(x_BCHW.device)
    return x_BCHW.index_copy(0, rows, resampled(x_BCHW[rows], inverse, move))


def inverse_maps(label_B9: Tensor) -> Tensor:
    """A^-1 = scale^-1 rotation^-1 stretch^-1 of each label; (B, 2, 2) float64."""
    scale, cos, sin, along, across = label_B9.double().T[2:7]
    cos = cos + 1
    unrotated = torch.stack([cos, sin, -sin, cos], 1).view(-1, 2, 2) * torch.exp2(-scale)[:, None, None]
    # exp(ln2 w (2 a a' - 1)) = cosh(ln2 w) + sinh(ln2 w) (2 a a' - 1) for the axis a; w -> -w inverts
    square = along**2 + across**2
    w = torch.where(along < 0, -1, 1) * square.sqrt() * math.log(2)
    least = square.clamp(min=1e-300)  # 0 / 1e-300 = 0 where there is no stretch
    cos2, sin2 = (along**2 - across**2) / least, 2 * along * across / least
    reflection = torch.stack([cos2, sin2, sin2, -cos2], 1).view(-1, 2, 2)
    unstretched = w.cosh()[:, None, None] * torch.eye(2).to(w) - w.sinh()[:, None, None] * reflection
    return unrotated @ unstretched


def resampled(x_BCHW: Tensor, inverse_B22: Tensor, move_B2: Tensor) -> Tensor:
    """out(r) = in(inverse (r - move)), mirrored at the borders, on a grid twice as fine; move in pixels (x, y).

    With the orthonormal filter h, up is y[n] = sum_k x[k] h[n - 2k] and down is x[k] = sum_n y[n] h[n - 2k]: together
    the identity, so that what is lost is lost by the bilinear samples in between alone.
    """
    B, C, H, W = x_BCHW.shape

    def fine(pixels: int) -> Tensor:  # where the fine samples stand that `down` needs, in pixels
        count = 2 * pixels + len(SYM6) - 2
        return (torch.arange(count, device=x_BCHW.device, dtype=x_BCHW.dtype) - DELAY) / 2

    with torch.autocast(x_BCHW.device.type, enabled=False):  # else the filter would round images to bf16
        h = torch.tensor(SYM6, device=x_BCHW.device, dtype=x_BCHW.dtype).view(1, 1, -1, 1)
        rows, columns = (mirrored(torch.arange(-MARGIN, n + MARGIN, device=h.device), n) for n in (H, W))
        y = x_BCHW[:, :, rows[:, None], columns].reshape(B * C, 1, len(rows), len(columns))
        y = F.conv_transpose2d(F.conv_transpose2d(y, h, stride=(2, 1)), h.mT, stride=(1, 2))
        y = y.view(B, C, *y.shape[2:])

        middle = torch.tensor([W - 1, H - 1], device=h.device, dtype=h.dtype) / 2
        r_hw2 = torch.stack(torch.meshgrid(fine(W), fine(H), indexing="xy"), -1) - middle
        from_Bhw2 = r_hw2 - move_B2[:, None, None]
        # no matrix product: those may be TF32, which is a thirtieth of a pixel
        from_Bhw2 = (inverse_B22[:, None, None] * from_Bhw2[..., None, :]).sum(-1) + middle
        grid = [  # -1..1 over the fine samples, as grid_sample counts
            2 * (2 * (mirrored(from_Bhw2[..., i], n) + MARGIN) + DELAY) / (y.shape[3 - i] - 1) - 1
            for i, n in enumerate((W, H))
        ]
        y = F.grid_sample(y, torch.stack(grid, -1), mode="bilinear", align_corners=True)
        y = y.view(B * C, 1, *y.shape[2:])
        return F.conv2d(F.conv2d(y, h, stride=(2, 1)), h.mT, stride=(1, 2)).view(B, C, H, W)


def mirrored(position: Tensor, size: int) -> Tensor:
    """Positions on a line of `size` pixels, reflected at the centres of its ends: -1 -> 1, size -> size - 2."""
    last = size - 1
    return (last - (position.remainder(max(2 * last, 1)) - last).abs()).clamp(min=0)
