"""Residual networks, He et al., CVPR 2016: torchvision's names, and a stem for small images."""

from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from outlie.backbones.staged import Staged
from outlie.backbones.weights import pytorch_cifar_names
from outlie.options import PositiveInt

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class BasicBlock(nn.Module):
    """relu(x + bn conv3 relu bn conv3 x), the dilation in the first."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class Bottleneck(nn.Module):
    """relu(x + bn conv1 relu bn conv3 relu bn conv1 x), stride and dilation in the 3x3 as in torchvision."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, dilation: int = 1) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """x itself where the shape stays, else a 1x1 convolution."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(Staged):
    """A ResNet; its checkpoints are torchvision's, or pytorch-cifar's.

    Args:
        depth: layers; 10 has one block a stage.
        width: channels of the first stage.
        stem: cifar = 3x3, stride 1; imagenet = 7x7 and a pooling, each of stride 2; auto = imagenet from 128 pixels up.
    """

    paper: ClassVar[str] = "He et al., Deep Residual Learning for Image Recognition, CVPR 2016"

    def __init__(
        self,
        depth: Literal[10, 18, 34, 50] = 18,
        width: PositiveInt = 64,
        stem: Literal["auto", "cifar", "imagenet"] = "auto",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.depth, self.width, self.stem_kind = depth, width, stem

    def build(self, shape: tuple[int, ...], classes: int) -> None:
        """Make stem, four stages and head."""
        channels, *sides = self.input_shape(shape)
        block = Bottleneck if self.depth >= 50 else BasicBlock
        self.large = self.stem_kind == "imagenet" or (self.stem_kind == "auto" and min(sides) >= 128)
        self.conv1 = nn.Conv2d(
            channels, self.width, **({"kernel_size": 7, "stride": 2, "padding": 3} if self.large
            else {"kernel_size": 3, "padding": 1}), bias=False,
        )  # fmt: skip
        self.bn1 = nn.BatchNorm2d(self.width)
        inputs = self.width
        for stage, blocks in enumerate(BLOCKS[self.depth]):
            width, stride = self.width * 2**stage, 1 if stage == 0 else 2
            layers = []
            for i in range(blocks):
                layers.append(block(inputs, width, stride if i == 0 else 1))
                inputs = width * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(inputs, classes)
        self.initialise()

    @property
    def head(self) -> nn.Linear:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The linear head, under torchvision's name in a checkpoint."""
        return self.fc

    def layers(self) -> list[nn.Module]:
        """The four stages."""
        return [getattr(self, f"layer{stage}") for stage in (1, 2, 3, 4)]

    def stem(self, z: Tensor) -> Tensor:
        """(B, C, H, W) -> input of the first stage."""
        x = F.relu(self.bn1(self.conv1(z)))
        return F.max_pool2d(x, 3, 2, padding=1) if self.large else x

    def pool(self, last_BCHW: Tensor) -> Tensor:
        """Mean over the pixels; (B, D)."""
        return last_BCHW.mean((2, 3))

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """pytorch-cifar's names become torchvision's."""
        return pytorch_cifar_names(state)
