"""Wide residual networks, Zagoruyko and Komodakis, BMVC 2016; names of the PyTorch release that OpenOOD uses."""

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from outlie.backbones.staged import Staged
from outlie.errors import UserError
from outlie.options import NonNegativeFloat, PositiveInt


class WideBlock(nn.Module):
    """x + conv3 dropout relu bn conv3 relu bn x; where the width changes, the shortcut starts after the first relu."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    """Blocks of one width, the first with the stride."""

    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        first = WideBlock(inputs, outputs, stride, dropout)
        rest = [WideBlock(outputs, outputs, 1, dropout) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(Staged):
    """A wide ResNet for small images: 28-10 has 28 layers and ten times the channels of a ResNet.

    Args:
        depth: layers, 6 n + 4.
        widen: factor of the channels 16, 32, 64.
        dropout: between the two convolutions of a block.
    """

    paper: ClassVar[str] = "Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016"

    def __init__(
        self, depth: PositiveInt = 28, widen: PositiveInt = 10, dropout: NonNegativeFloat = 0.0, **shared: Any
    ) -> None:
        super().__init__(**shared)
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"depth = {depth}: allowed are 10, 16, 22, 28, ... (6 n + 4); set backbone.depth")
        if not dropout < 1:
            raise UserError(f"dropout = {dropout}: allowed are 0 up to, but not, 1; set backbone.dropout")
        self.depth, self.widen, self.dropout = depth, widen, dropout

    def build(self, shape: tuple[int, ...], classes: int) -> None:
        """Make stem, three stages and head."""
        blocks, widths = (self.depth - 4) // 6, [16 * self.widen, 32 * self.widen, 64 * self.widen]
        self.conv1 = nn.Conv2d(shape[0], 16, 3, padding=1, bias=False)
        self.block1 = WideStage(blocks, 16, widths[0], 1, self.dropout)
        self.block2 = WideStage(blocks, widths[0], widths[1], 2, self.dropout)
        self.block3 = WideStage(blocks, widths[1], widths[2], 2, self.dropout)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], classes)
        self.initialise()

    @property
    def head(self) -> nn.Linear:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The linear head, under the release's name in a checkpoint."""
        return self.fc

    def layers(self) -> list[nn.Module]:
        """The three stages."""
        return [self.block1, self.block2, self.block3]

    def stem(self, z: Tensor) -> Tensor:
        """(B, C, H, W) -> input of the first stage."""
        return self.conv1(z)

    def pool(self, last_BCHW: Tensor) -> Tensor:
        """Mean over the pixels of relu bn map; (B, D)."""
        return F.relu(self.bn1(last_BCHW)).mean((2, 3))
