"""DDPM and DTE-C on images as they are: the detectors for tables, on flat pixels, with networks for images.

Livernoche et al. 2024, the released code for images. Rows are pixels / `divide`, flattened; all else is inherited.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.ddpm import DDPM
from outlie.detectors.dte import DTEC
from outlie.diffusion.image_nets import GROUPS, USES, PixelUNet, TimeResNet
from outlie.errors import UserError
from outlie.options import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

PIXELS_AT_ONCE = {"cuda": 2**19}  # of one forward pass in a score: 512 images of 32 x 32; elsewhere an eighth


def image_shape(spec: Spec, detector: Detector) -> tuple[int, ...]:
    """(C, H, W) of an image; UserError where the backbone gives rows."""
    shape = spec.shapes["x"]
    if len(shape) != 3:
        raise UserError(
            f"{type(detector).__name__} takes images, (C, H, W), and this input has shape {shape}; set backbone=pixels"
        )
    return shape


def check_pixels(x: Tensor) -> None:
    """UserError where values lie outside [0, 1]: noise levels are in these units."""
    low, high = (float(v) for v in torch.aminmax(x))
    if not (low >= 0 and high <= 1):  # also where one is NaN
        raise UserError(f"pixels from {low:.4g} to {high:.4g}: allowed are values in [0, 1]; set backbone=pixels")


def parts(rows_BD: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The rows in parts that fit a forward pass: a U-Net's maps of a thousand images fill the memory."""
    pixels = PIXELS_AT_ONCE.get(rows_BD.device.type, 2**16)
    return rows_BD.split(max(1, pixels // (shape[1] * shape[2])))


class PixelDDPM(DDPM):
    """DDPM on pixels: mean squared error after a partial reverse diffusion of the image itself.

    Args:
        divide: pixels in [0, 1] are divided by it (published: 0.5 for CIFAR, 0.25 for MNIST and VisA).
        base: channels at full resolution, a multiple of 8; null = the image's width, rounded up to one (published).
        epochs: most epochs to train.
        min_steps: more epochs where `epochs` would give fewer optimiser steps than this.
    """

    images: ClassVar[bool] = True
    paper: ClassVar[str] = "Livernoche et al., On Diffusion Modeling for Anomaly Detection, ICLR 2024 (DDPM on pixels)"
    net: Any  # a PixelUNet

    def __init__(
        self,
        divide: PositiveFloat = 0.5,
        base: PositiveInt | None = 16,
        epochs: PositiveInt = 2,
        min_steps: NonNegativeInt = 1000,
        **shared: Any,
    ) -> None:
        super().__init__(epochs=epochs, min_steps=min_steps, **shared)
        if base is not None and base % GROUPS:
            up = base + -base % GROUPS
            raise UserError(f"base = {base}: allowed are multiples of {GROUPS}; set detector.base to {up}")
        self.divide, self.base = divide, base

    def setup(self, spec: Spec) -> None:
        """Build the noise predictor for the image's shape; UserError where the input is no image."""
        self.shape, self.seed = image_shape(spec, self), spec.seed
        width = self.shape[-1]
        self.net = PixelUNet(self.shape, self.base or width + -width % GROUPS)
        self.samples = max(1, math.prod(self.shape[1:]) // USES)  # uses of a weight a sample: stages.step_flops

    def prepare(self, train: Views) -> None:
        """UserError where pixels lie outside [0, 1]."""
        check_pixels(train.x)

    def rows(self, x: Tensor) -> Tensor:
        """(B, C, H, W) pixels -> (B, D) rows that are noised."""
        return x.to(self.abar).flatten(1) / self.divide

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """mean (eps_theta(x_t, t) - eps)^2 with t uniform, one per image; scalar."""
        return super().loss(Views(x=self.rows(views.x)), generator)

    def score(self, views: Views) -> Tensor:
        """(B,) by `score_by`, means over the pixels."""
        return torch.cat([DDPM.score(self, Views(x=some)) for some in parts(self.rows(views.x), self.shape)])

    def denoise(self, x: Tensor) -> Tensor:
        """x_0hat in pixels: the end of the deterministic reverse chain; (B, C, H, W)."""
        ends = [DDPM.denoise(self, some) for some in parts(self.rows(x), self.shape)]
        return (torch.cat(ends) * self.divide).unflatten(1, self.shape)


class PixelDTEC(DTEC):
    """DTE-C on pixels: a ResNet without time input tells how much noise an image seems to carry.

    Args:
        divide: pixels in [0, 1] are divided by it (published: 0.5 for CIFAR, 0.25 for MNIST and VisA).
        depth: layers of the ResNet (published: 50).
        width: channels of its first stage (published: 64).
        stem: cifar = 3x3, stride 1; imagenet = 7x7 and a pooling, each of stride 2 (published); auto = imagenet from
            128 pixels up.
        bins: number of classes, equal shares of the T times.
        loss: logits = cross-entropy; double_softmax = cross-entropy of a softmax, which applies another (published).
        score_by: mean or mode of the predicted distribution.
        T: number of noise levels.
        drift: shrink the image as DDPM does (published: no).
        epochs: epochs to train.
        min_steps: more epochs where `epochs` would give fewer optimiser steps than this.
        batch_size: images per optimiser step.
        lr: learning rate of Adam.
        weight_decay: coupled L2.
        decay_lr: cosine decay of the learning rate to 0.
    """

    images: ClassVar[bool] = True
    paper: ClassVar[str] = "Livernoche et al., On Diffusion Modeling for Anomaly Detection, ICLR 2024 (DTE-C on pixels)"

    def __init__(
        self,
        divide: PositiveFloat = 0.5,
        depth: Literal[10, 18, 34, 50] = 10,
        width: PositiveInt = 16,
        stem: Literal["auto", "cifar", "imagenet"] = "auto",
        bins: PositiveInt = 7,
        loss: Literal["logits", "double_softmax"] = "logits",
        score_by: Literal["mean", "mode"] = "mean",
        T: PositiveInt = 400,
        drift: bool = False,
        epochs: PositiveInt = 10,
        min_steps: NonNegativeInt = 1000,
        batch_size: PositiveInt = 64,
        lr: PositiveFloat = 1e-3,
        weight_decay: NonNegativeFloat = 5e-4,
        decay_lr: bool = True,
    ) -> None:
        super().__init__(
            bins, loss, score_by, far=0.0, T=T, drift=drift, epochs=epochs, min_steps=min_steps, batch_size=batch_size,
            lr=lr, weight_decay=weight_decay, decay_lr=decay_lr,
        )  # fmt: skip
        self.divide, self.depth, self.width, self.stem = divide, depth, width, stem

    def setup(self, spec: Spec) -> None:
        """Build the ResNet for the image's shape; UserError where the input is no image."""
        self.shape = image_shape(spec, self)
        self.net = TimeResNet(self.shape, self.outputs, self.depth, self.width, self.stem)
        pixels = math.prod(self.shape[1:]) // (16 if self.net.resnet.large else 1)
        self.samples = max(1, pixels // USES)  # uses of a weight a sample: stages.step_flops

    def prepare(self, train: Views) -> None:
        """UserError where pixels lie outside [0, 1]."""
        check_pixels(train.x)

    def rows(self, x: Tensor) -> Tensor:
        """(B, C, H, W) pixels -> (B, D) rows that are noised."""
        return x.to(self.abar).flatten(1) / self.divide

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """-log p(bin of t | x_t), bin = floor(bins t / T); scalar."""
        return super().loss(Views(x=self.rows(views.x)), generator)

    def score(self, views: Views) -> Tensor:
        """(B,) log E[k] - log E[K-1-k], increasing in the mean class E[k]; or the mode."""
        return torch.cat([DTEC.score(self, Views(x=some)) for some in parts(self.rows(views.x), self.shape)])
