"""A U-Net of residual blocks for label maps: an accurate teacher where no pre-trained weights are at hand."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.backbones.dense_heads import at_size
from outlie.backbones.resnet import BasicBlock
from outlie.backbones.segmenter import Segmenter
from outlie.options import NonNegativeFloat, PositiveInt


class Up(nn.Module):
    """A residual block on [a map brought to the size of an earlier one, the earlier one]."""

    def __init__(self, below: int, beside: int, outputs: int) -> None:
        super().__init__()
        self.block = BasicBlock(below + beside, outputs, 1)

    def forward(self, below: Tensor, beside: Tensor) -> Tensor:
        return self.block(torch.cat([at_size(below, beside.shape[2:]), beside], 1))


class Decoder(nn.Module):
    """Three steps up, dropout, a 1x1 convolution."""

    def __init__(self, widths: list[int], classes: int, dropout: float) -> None:
        super().__init__()
        w1, w2, w3, w4 = widths
        self.up3, self.up2, self.up1 = Up(w4, w3, w3), Up(w3, w2, w2), Up(w2, w1, w1)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(w1, classes, 1)

    def forward(self, stages: list[Tensor]) -> Tensor:
        down1, down2, down3, down4 = stages
        return self.classify(self.dropout(self.up1(self.up2(self.up3(down4, down3), down2), down1)))


class SegUNet(Segmenter):
    """Four stages down to a sixteenth of the image and three up to a half, each step beside its own on the way down.

    Args:
        width: channels at half of the image; twice as many with each halving.
        blocks: residual blocks of each stage down.
    """

    paper: ClassVar[str] = "Ronneberger et al., U-Net, MICCAI 2015"

    def __init__(
        self, width: PositiveInt = 48, blocks: PositiveInt = 2, auxiliary: NonNegativeFloat = 0.0, **shared: Any
    ) -> None:
        super().__init__(auxiliary=auxiliary, **shared)
        self.width, self.blocks = width, blocks

    def layers(self, channels: int) -> list[int]:
        """Stem, four stages down, the decoder."""
        widths = [self.width * 2**stage for stage in range(4)]
        self.conv1 = nn.Conv2d(channels, self.width, 5, 2, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(self.width)
        inputs = self.width
        for stage, outputs in enumerate(widths):
            layers = [BasicBlock(inputs, outputs, 1 if stage == 0 else 2)]
            layers += [BasicBlock(outputs, outputs, 1) for _ in range(self.blocks - 1)]
            setattr(self, f"down{stage + 1}", nn.Sequential(*layers))
            inputs = outputs
        self.decoder = Decoder(widths, self.classes, self.dropout)
        return widths

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Down, then up."""
        return ("down1", "down2", "down3", "down4", "decoder.up3", "decoder.up2", "decoder.up1")

    def stages(self, z: Tensor) -> list[Tensor]:
        """The maps on the way down, at 1/2, 1/4, 1/8 and 1/16 of the image."""
        maps = [F.relu(self.bn1(self.conv1(z)))]
        for stage in (1, 2, 3, 4):
            maps.append(getattr(self, f"down{stage}")(maps[-1]))
        return maps[1:]

    def decode(self, stages: list[Tensor]) -> Tensor:
        """Logits at half of the image."""
        return self.decoder(stages)
