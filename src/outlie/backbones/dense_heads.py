"""From a stage's map to logits at its positions: pyramid pooling, atrous pyramid, fully convolutional."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn_relu(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    """relu bn conv x; the size stays."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def at_size(x_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    """Resized bilinearly, corners not aligned."""
    if tuple(x_BCHW.shape[2:]) == tuple(size):
        return x_BCHW
    return F.interpolate(x_BCHW, tuple(size), mode="bilinear", align_corners=False)


class PSP(nn.Module):
    """W conv3[x, up conv1 pool_s x for each s]: Zhao et al., Pyramid Scene Parsing Network, CVPR 2017."""

    def __init__(self, inputs: int, channels: int, classes: int, pools: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.pools = tuple(pools)
        self.branches = nn.ModuleList(conv_bn_relu(inputs, channels, 1) for _ in self.pools)
        self.bottleneck = conv_bn_relu(inputs + len(self.pools) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [
            at_size(branch(F.adaptive_avg_pool2d(x, pool)), x.shape[2:])
            for branch, pool in zip(self.branches, self.pools, strict=True)
        ]
        return self.classify(self.dropout(self.bottleneck(torch.cat([x, *pooled], 1))))


class ASPP(nn.Module):
    """W conv3[up conv1 mean x, conv_d x for each dilation d]: Chen et al., Rethinking Atrous Convolution, 2017."""

    def __init__(self, inputs: int, channels: int, classes: int, dilations: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.image = conv_bn_relu(inputs, channels, 1)
        self.branches = nn.ModuleList(conv_bn_relu(inputs, channels, 1 if d == 1 else 3, d) for d in dilations)
        self.bottleneck = conv_bn_relu((1 + len(self.branches)) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        image = self.image(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        parts = [image, *(branch(x) for branch in self.branches)]
        return self.classify(self.dropout(self.bottleneck(torch.cat(parts, 1))))


class FCN(nn.Module):
    """W conv3 x, a quarter of the channels between: Long et al., Fully Convolutional Networks, CVPR 2015."""

    def __init__(self, inputs: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.convolve = conv_bn_relu(inputs, max(1, inputs // 4), 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(max(1, inputs // 4), classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.dropout(self.convolve(x)))
