"""ResNets that keep their maps at an eighth of the image, under pyramid pooling (PSPNet) or an atrous one (DeepLab)."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from outlie.backbones.dense_heads import ASPP, PSP
from outlie.backbones.resnet import BLOCKS, BasicBlock, Bottleneck
from outlie.backbones.segmenter import Segmenter
from outlie.options import PositiveInt

STRIDES, DILATIONS = (1, 2, 1, 1), (1, 1, 2, 4)


class DilatedResNet(Segmenter):
    """A ResNet whose last two stages are dilated in place of strided; the stages have torchvision's names.

    Args:
        depth: layers of the ResNet; 10 has one block a stage.
        width: channels of the first stage; torchvision's have 64.
        head: psp = pyramid pooling; aspp = atrous pyramid.
        channels: of the head.
        pools: positions a side to which psp pools.
        dilations: of aspp's convolutions; 1 = a 1x1 convolution.
    """

    paper: ClassVar[str] = "Zhao et al., Pyramid Scene Parsing Network, CVPR 2017"

    def __init__(
        self,
        depth: Literal[10, 18, 34, 50, 101] = 18,
        width: PositiveInt = 64,
        head: Literal["psp", "aspp"] = "psp",
        channels: PositiveInt = 128,
        pools: Sequence[PositiveInt] = (1, 2, 3, 6),
        dilations: Sequence[PositiveInt] = (1, 12, 24, 36),
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.depth, self.width, self.kind, self.channels = depth, width, head, channels
        self.pools, self.dilations = tuple(pools), tuple(dilations)

    def layers(self, channels: int) -> list[int]:
        """Stem, four stages and head."""
        block = Bottleneck if self.depth >= 50 else BasicBlock
        self.conv1 = nn.Conv2d(channels, self.width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(self.width)
        inputs, widths, before = self.width, [], 1
        for stage, blocks in enumerate((BLOCKS | {101: (3, 4, 23, 3)})[self.depth]):
            layers = []
            for i in range(blocks):  # a stage's first block has the dilation before it, as in torchvision and mmseg
                stride, dilation = (STRIDES[stage], before) if i == 0 else (1, DILATIONS[stage])
                layers.append(block(inputs, self.width * 2**stage, stride, dilation))
                inputs = self.width * 2**stage * block.expansion
            before = DILATIONS[stage]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
            widths.append(inputs)
        if self.kind == "psp":
            self.decoder = PSP(inputs, self.channels, self.classes, self.pools, self.dropout)
        else:
            self.decoder = ASPP(inputs, self.channels, self.classes, self.dilations, self.dropout)
        return widths

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The four stages."""
        return ("layer1", "layer2", "layer3", "layer4")

    def stages(self, z: Tensor) -> list[Tensor]:
        """The map after each stage; the last three at an eighth of the image."""
        maps = [F.max_pool2d(F.relu(self.bn1(self.conv1(z))), 3, 2, padding=1)]
        for name in self.stage_names:
            maps.append(getattr(self, name)(maps[-1]))
        return maps[1:]

    def decode(self, stages: list[Tensor]) -> Tensor:
        """Logits at an eighth of the image."""
        return self.decoder(stages[-1])
