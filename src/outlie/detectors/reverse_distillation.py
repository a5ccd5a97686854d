"""RD4AD: loss = sum_l 1 - cos(E_l(x), D_l(B(E(x)))); map = the sum over levels of 1 - cos, blurred.

A decoder D rebuilds the teacher's maps from a bottleneck B of all of them; what is abnormal does not fit through.
"""

from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.backbones.resnet import BasicBlock, Bottleneck
from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.student_teacher import (
    AdamRecipe,
    at_size,
    cosine_distance,
    flat_cosine_distance,
    gaussian_blur,
    teacher_maps,
    teacher_of,
    uses,
)
from outlie.errors import UserError
from outlie.options import NonNegativeFloat, PositiveFloat, PositiveInt

LEVELS = 3
BLOCKS = {18: (BasicBlock, 2, (2, 2, 2)), 50: (Bottleneck, 3, (3, 4, 6))}  # block, blocks of B, of D's stages


def conv_bn(inputs: int, outputs: int) -> nn.Module:
    """relu bn conv3 of stride 2."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Upward(nn.Module):
    """The residual block mirrored: 2x2 transposed convolutions of stride 2 double the sides in path and shortcut."""

    def __init__(self, inputs: int, outputs: int, expansion: int) -> None:
        super().__init__()
        narrow = outputs // expansion
        if expansion == 1:
            path = [*up(inputs, outputs), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)]
        else:
            reduced = [nn.Conv2d(inputs, narrow, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()]
            path = [*reduced, *up(narrow, narrow), nn.ReLU(), nn.Conv2d(narrow, outputs, 1, bias=False)]
        self.path = nn.Sequential(*path, nn.BatchNorm2d(outputs))
        self.shortcut = nn.Sequential(*up(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.path(x) + self.shortcut(x))


def up(inputs: int, outputs: int) -> list[nn.Module]:
    """bn of a transposed convolution."""
    return [nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False), nn.BatchNorm2d(outputs)]


def stage(block: type[BasicBlock] | type[Bottleneck], first: nn.Module, channels: int, blocks: int) -> nn.Module:
    """So many blocks, `first` one of them; (.., channels)."""
    rest = [block(channels, channels // block.expansion, 1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


class Reverse(nn.Module):
    """The bottleneck (one-class embedding) and the decoder: maps of three levels in, maps of the same sizes out.

    Args:
        channels: of the teacher's maps, finest first.
        depth: 18 = basic blocks, 50 = bottleneck blocks, as the teacher.
    """

    def __init__(self, channels: tuple[int, ...], depth: int) -> None:
        super().__init__()
        block, embedded, decoded = BLOCKS[depth]
        fine, middle, coarse = channels
        bottom = 2 * coarse
        self.first = nn.Sequential(conv_bn(fine, middle), conv_bn(middle, coarse))
        self.second = conv_bn(middle, coarse)
        self.embed = stage(block, block(3 * coarse, bottom // block.expansion, 2), bottom, embedded)
        self.decode = nn.ModuleList(
            stage(block, Upward(inputs, outputs, block.expansion), outputs, blocks)
            for inputs, outputs, blocks in zip((bottom, coarse, middle), (coarse, middle, fine), decoded)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Finest first, as they came."""
        fine, middle, coarse = maps
        out = self.embed(torch.cat([self.first(fine), self.second(middle), coarse], 1))
        found = []
        for layer, like in zip(self.decode, (coarse, middle, fine)):
            out = layer(out)[..., : like.shape[2], : like.shape[3]]  # sides that are no multiple of two lose the rest
            found.append(out)
        return found[::-1]


class ReverseDistillation(Detector):
    """RD4AD: a bottleneck and a mirrored decoder, trained on normal images to rebuild the maps of the backbone.

    Published with an ImageNet Wide ResNet-50-2 at 256 pixels. There are no skip connections.

    Args:
        levels: three stages whose maps are rebuilt, finest first (published: 1, 2, 3, at strides 4, 8, 16).
        cosine: flat = of a whole map, as the released code has it, which made the numbers; position = of each position,
            averaged, as the paper writes it.
        depth: blocks of bottleneck and decoder, 18 (basic) or 50 (bottleneck); auto = 50 where the first map has 256
            channels or more.
        sigma: of the Gaussian that blurs the map, in pixels; 0 = none.
        epochs: epochs to train.
        batch_size: images per optimiser step.
        lr: learning rate of Adam, betas 0.5 and 0.999.
    """

    needs: ClassVar[tuple[str, ...]] = ("x", "network")
    paper: ClassVar[str] = "Deng and Li, Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR 2022"
    images: ClassVar[bool] = True
    raw: ClassVar[bool] = True
    scoring: ClassVar[tuple[str, ...]] = ("sigma",)
    student: Reverse

    def __init__(
        self,
        levels: list[PositiveInt] = [1, 2, 3],  # noqa: B006 (a signature is a schema; never changed in place)
        cosine: Literal["flat", "position"] = "flat",
        depth: Literal["auto", 18, 50] = "auto",
        sigma: NonNegativeFloat = 4.0,
        epochs: PositiveInt = 200,
        batch_size: PositiveInt = 16,
        lr: PositiveFloat = 5e-3,
    ) -> None:
        super().__init__()
        if len(levels) != LEVELS or sorted(set(levels)) != list(levels):
            raise UserError(f"levels = {list(levels)}: reverse distillation has three, finest first, as [1, 2, 3]")
        self.levels, self.cosine, self.depth, self.sigma = tuple(levels), cosine, depth, sigma
        self.recipe = AdamRecipe(epochs, batch_size, lr, betas=(0.5, 0.999))
        self._teacher: list[Any] = []  # in a list: its weights are not this detector's

    def setup(self, spec: Spec) -> None:
        """Make bottleneck and decoder for the teacher's maps; UserError where it has no such stages."""
        self._teacher = [teacher_of("RD4AD", spec, self.levels)]
        maps = teacher_maps(self._teacher[0], torch.zeros(1, *spec.shapes["x"]), self.levels)
        sides = [tuple(one.shape[2:]) for one in maps]
        if any(tuple(-(-side // 2) for side in fine) != coarse for fine, coarse in pairwise(sides)):
            raise UserError(
                f"the maps of stages {list(self.levels)} are {sides}: each must halve the sides of the one before; "
                "set detector.levels to three stages that do"
            )
        channels = tuple(one.shape[1] for one in maps)
        depth = self.depth if self.depth != "auto" else 50 if channels[0] >= 256 else 18
        self.student, self.samples = Reverse(channels, depth), uses(spec)

    def pairs(self, z: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(rebuilt, teacher's) map of each level."""
        teacher = teacher_maps(self._teacher[0], z, self.levels)
        return list(zip(self.student(teacher), teacher))

    def objective(self, x: Tensor) -> Tensor:
        """Sum over levels of the mean 1 - cos, of raw images; scalar."""
        distance = flat_cosine_distance if self.cosine == "flat" else cosine_distance
        pairs = self.pairs(self._teacher[0].to(x.device).standardise(x))
        return torch.stack([distance(s, t).mean() for s, t in pairs]).sum()

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """The objective on a batch of raw images; scalar."""
        return self.objective(views.x)

    def score_map(self, views: Views) -> Tensor:
        """(B, H, W) sum over levels of 1 - cos at the image's size, blurred."""
        size = views.x.shape[2:]
        summed = torch.stack([at_size(cosine_distance(s, t), size) for s, t in self.pairs(views.x)]).sum(0)
        return gaussian_blur(summed, self.sigma)

    def score(self, views: Views) -> Tensor:
        """(B,) largest value of the map."""
        return self.score_of(self.score_map(views))
