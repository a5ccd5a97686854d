"""Networks that see one patch at each position: PDN (EfficientAD), and the nets of uninformed students."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.errors import UserError

SLOPE = 0.005  # of the leaky ReLU
PATCHES = (17, 33, 65)
PDN_STRIDE = 4
PDN_BORDER = 4  # cells of the image that an unpadded PDN has no output for, on each side


def pdn(size: str, channels: int, width: int, outputs: int) -> nn.Sequential:
    """Patch description network, receptive field 33, stride 4, no padding: 256 pixels -> 56; names as released.

    Args:
        size: S, or M with twice the channels and two more 1x1 convolutions.
        channels: of the image.
        width: of the first layer of S, 128 as published.
        outputs: channels of the description.
    """
    if size == "S":
        return nn.Sequential(
            nn.Conv2d(channels, width, 4), nn.ReLU(), nn.AvgPool2d(2, 2),
            nn.Conv2d(width, 2 * width, 4), nn.ReLU(), nn.AvgPool2d(2, 2),
            nn.Conv2d(2 * width, 2 * width, 3), nn.ReLU(),
            nn.Conv2d(2 * width, outputs, 4),
        )  # fmt: skip
    return nn.Sequential(
        nn.Conv2d(channels, 2 * width, 4), nn.ReLU(), nn.AvgPool2d(2, 2),
        nn.Conv2d(2 * width, 4 * width, 4), nn.ReLU(), nn.AvgPool2d(2, 2),
        nn.Conv2d(4 * width, 4 * width, 1), nn.ReLU(),
        nn.Conv2d(4 * width, 4 * width, 3), nn.ReLU(),
        nn.Conv2d(4 * width, outputs, 4), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 1),
    )  # fmt: skip


def pdn_side(side: int) -> int:
    """Output positions along a side of the image: 256 -> 56."""
    for reach, pooled in ((4, True), (4, True), (3, False), (4, False)):
        side = side - reach + 1
        side = side // 2 if pooled else side
    return side


class AutoEncoder(nn.Module):
    """Convolutions to a code of one position, and back up to the PDN's size; six and eight of them at 256 pixels.

    At other sizes there are as many halvings as leave 8 pixels or more, and the sizes on the way up are scaled.

    Args:
        channels: of the image.
        shape: height and width of the image.
        code: channels of the code.
        outputs: channels of the output, which has the PDN's height and width.
    """

    UP = (3, 8, 15, 32, 63, 127)  # sides on the way up at 256 pixels

    def __init__(self, channels: int, shape: tuple[int, int], code: int, outputs: int) -> None:
        super().__init__()
        self.shape, self.final = shape, tuple(pdn_side(side) for side in shape)
        halvings = max(1, min(side.bit_length() - 4 for side in shape))  # 256 -> 5
        layers: list[nn.Module] = []
        inputs = channels
        for i in range(halvings):
            width = max(1, code // 2) if i < 2 else code
            layers += [nn.Conv2d(inputs, width, 4, 2, padding=1), nn.ReLU()]
            inputs = width
        left = (shape[0] >> halvings, shape[1] >> halvings)
        self.encode = nn.Sequential(*layers, nn.Conv2d(inputs, code, left))
        self.steps = nn.ModuleList(nn.Conv2d(code, code, 4, 1, padding=2) for _ in self.UP)
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Sequential(
            nn.Conv2d(code, code, 3, 1, padding=1), nn.ReLU(), nn.Conv2d(code, outputs, 3, 1, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs, PDN's height and width)."""
        out = self.encode(x)
        for up, step in zip(self.UP, self.steps):
            size = [max(1, round(up * side / 256)) for side in self.shape]
            out = F.interpolate(out, size, mode="bilinear", align_corners=False)
            out = self.dropout(F.relu(step(out)))
        return self.last(F.interpolate(out, self.final, mode="bilinear", align_corners=False))


def patch_layers(patch: int, width: int) -> list[tuple[str, int, int]]:
    """(kind, kernel, channels) of the layers for patches of 17, 33 or 65 pixels; the last gives the descriptor."""
    if patch == 17:
        return [("conv", 6, width), ("conv", 5, 2 * width), ("conv", 5, 2 * width), ("conv", 4, width)]
    pool = ("pool", 2, 0)
    if patch == 33:
        return [
            ("conv", 5, width), pool, ("conv", 5, 2 * width), pool, ("conv", 2, 2 * width), ("conv", 4, width),
        ]  # fmt: skip
    if patch == 65:
        return [
            ("conv", 5, width), pool, ("conv", 5, width), pool, ("conv", 5, 2 * width), pool, ("conv", 4, 2 * width),
            ("conv", 1, width),
        ]  # fmt: skip
    raise UserError(f"patch = {patch}: allowed are {', '.join(map(str, PATCHES))}; set detector.patches")


class PatchNet(nn.Module):
    """The descriptor of a patch, and of every patch of an image at once.

    Dense: poolings of stride 1, and twice the dilation after each, give what patch by patch evaluation gives.

    Args:
        channels: of the image.
        patch: 17, 33 or 65.
        width: channels of the first layer and of the descriptor, 128 as published.
    """

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.patch, self.kinds = patch, patch_layers(patch, width)
        self.convs = nn.ModuleList()
        for kind, kernel, outputs in self.kinds:
            if kind == "conv":
                self.convs.append(nn.Conv2d(channels, outputs, kernel))
                channels = outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, patch, patch) -> (B, D)."""
        return self._through(x, dense=False).flatten(1)

    def dense(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H, W): the descriptor of the patch around each pixel, the border replicated."""
        reach, (height, width) = self.patch // 2, x.shape[2:]
        out = self._through(F.pad(x, (reach, reach, reach, reach), mode="replicate"), dense=True)
        return out[..., :height, :width]

    def _through(self, x: Tensor, dense: bool) -> Tensor:
        dilation, convs = 1, iter(self.convs)
        for i, (kind, _, _) in enumerate(self.kinds, 1):
            if kind == "pool":
                # a pool of stride 1 looks at inputs that are `dilation` apart
                x = F.max_pool2d(x, 2, 1 if dense else 2, dilation=dilation)
                dilation *= 2 if dense else 1
                continue
            conv: nn.Conv2d = next(convs)  # type: ignore[assignment]
            x = F.conv2d(x, conv.weight, conv.bias, dilation=dilation)
            x = F.leaky_relu(x, SLOPE) if i < len(self.kinds) else x
        return x


def off_diagonal(descriptor_BD: Tensor) -> Tensor:
    """Sum of squared correlations between different components of a batch of descriptors; scalar."""
    centred = descriptor_BD - descriptor_BD.mean(0)
    unit = centred / centred.norm(dim=0).clamp(min=1e-6)
    correlation_DD = unit.T @ unit
    return correlation_DD.square().sum() - correlation_DD.diagonal().square().sum()


def patches_of(x_BCHW: Tensor, patch: int, count: int, generator: torch.Generator) -> Tensor:
    """So many patches from random places of random images; (count, C, patch, patch)."""
    images, _, height, width = x_BCHW.shape

    def draw(most: int) -> Tensor:
        return torch.randint(most, (count,), generator=generator, device=generator.device).to(x_BCHW.device)

    which, top, left = draw(images), draw(height - patch + 1), draw(width - patch + 1)
    steps = torch.arange(patch, device=x_BCHW.device)
    rows, columns = top[:, None, None] + steps[:, None], left[:, None, None] + steps
    return x_BCHW[which[:, None, None], :, rows, columns].permute(0, 3, 1, 2)
