"""z_S ~ z_T: a small network that gives a slow detector's score in one pass; run distill distiller=scores trains it."""

import itertools
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.training import Recipe
from outlie.diffusion.image_nets import GROUPS
from outlie.errors import UserError
from outlie.gather import rank_and_world
from outlie.options import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

TINY = 1e-12  # of a squared error whose logarithm is taken


class ScoreStudent(Detector):
    """One pass in place of hundreds: the score itself, or the teacher's reconstruction and its error, is regressed.

    Args:
        family: score = the score's rank as a normal deviate; reconstruction = what the teacher would take off the
            sample, r(x) = x - R(x), of which the score is the mean square: it follows the teacher far from the data;
            auto = reconstruction where the teacher's score is such an error.
        width: units of each layer; channels at full resolution for images.
        depth: layers; halvings of an image's side.
        members: networks that are averaged.
        guard: standard deviations between the members that are added to the score, where they do not agree on what
            none has seen; 0 = none.
        huber: weight of the Huber loss of z.
        pairwise: weight of log(1 + exp(-difference of a pair)), pairs that the teacher itself confuses left out.
        listwise: weight of KL(softmax(z_T) || softmax(z_S)) over the batch, which looks at its top.
        correlation: weight of 1 - the correlation of soft ranks.
        rebuild: weight of the squared error of r, relative to its size (family = reconstruction).
        steps: optimiser steps.
        batch_size: samples a step.
        lr: learning rate of Adam, falling to 0 as a cosine.
        weight_decay: coupled L2.
    """

    needs: ClassVar[tuple[str, ...]] = ("x",)
    images: ClassVar[bool] = True
    paper: ClassVar[str] = "after Score distillation for anomaly detection, Knowledge-Based Systems 295 (2024) 111842"
    middle: Tensor
    spread: Tensor
    quantiles: Tensor
    rebuilds: Tensor

    def __init__(
        self,
        family: Literal["auto", "score", "reconstruction"] = "auto",
        width: PositiveInt | None = None,
        depth: PositiveInt = 3,
        members: PositiveInt = 1,
        guard: NonNegativeFloat = 0.0,
        huber: NonNegativeFloat = 1.0,
        pairwise: NonNegativeFloat = 1.0,
        listwise: NonNegativeFloat = 0.0,
        correlation: NonNegativeFloat = 0.0,
        rebuild: NonNegativeFloat = 1.0,
        steps: NonNegativeInt = 5000,
        batch_size: PositiveInt = 256,
        lr: PositiveFloat = 2e-3,
        weight_decay: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__()
        if guard and members < 2:
            raise UserError("guard looks at what members disagree about: set detector.members to 2 or more")
        self.family, self.width, self.depth, self.members, self.guard = family, width, depth, members, guard
        self.weights = {"huber": huber, "pairwise": pairwise, "listwise": listwise, "correlation": correlation}
        self.rebuild = rebuild
        self.recipe = Recipe(1, batch_size, lr, weight_decay, min_steps=steps, decay_lr=True, drop_last=True)
        self.register_buffer("middle", torch.zeros(()))  # of the teacher's log errors, or 0
        self.register_buffer("spread", torch.ones(()))
        self.register_buffer("quantiles", torch.empty(0, dtype=torch.float64))  # of the teacher's scores
        self.register_buffer("rebuilds", torch.zeros((), dtype=torch.bool))

    def setup(self, spec: Spec) -> None:
        """Make the networks: on rows, multilayer perceptrons; on images, U-Nets whose code gives the score, too."""
        shape = spec.shapes["x"]
        if len(shape) == 3:
            self.nets = nn.ModuleList(ImageStudent(shape, self.width or 16, self.depth) for _ in range(self.members))
        else:
            self.nets = nn.ModuleList(RowStudent(shape[0], self.width or 256, self.depth) for _ in range(self.members))

    def prepare(self, train: Views) -> None:
        """Take the scale of the teacher's scores; UserError without a teacher."""
        if train.y is None or not train.y.dtype.is_floating_point:
            raise UserError("score_student learns from a finished run: run distill teacher=RUN distiller=scores")
        if self.family == "reconstruction" and train.maps is None:
            raise UserError(
                "family = reconstruction needs a teacher whose score is its reconstruction error (diffusion, "
                "pixel_ddpm); set detector.family=score"
            )
        self.rebuilds = torch.tensor(train.maps is not None and self.family != "score", device=self.rebuilds.device)
        if self.rebuilds:
            z_N = train.y.clamp(min=TINY).log()
            self.middle, self.spread = z_N.mean().float(), z_N.std().clamp(min=1e-6).float()
        self.quantiles = train.y.double().cpu().quantile(self.levels()).to(self.quantiles.device)

    @staticmethod
    def levels() -> Tensor:
        """(1025,) shares of the lessons that lie below each of `quantiles`."""
        return torch.linspace(0, 1, 1025, dtype=torch.float64)

    def targets(self, score_B: Tensor) -> Tensor:
        """z_T: the standardised log of an error, or the rank among the lessons as a normal deviate; (B,)."""
        if self.rebuilds:
            return ((score_B.clamp(min=TINY).log() - self.middle) / self.spread).float()
        above = torch.searchsorted(self.quantiles, score_B.double()).clamp(1, len(self.quantiles) - 1)
        low, high = self.quantiles[above - 1], self.quantiles[above]
        share = (above - 1 + ((score_B - low) / (high - low).clamp(min=TINY)).clamp(0, 1)) / (len(self.quantiles) - 1)
        return torch.special.ndtri(share.clamp(1e-4, 1 - 1e-4)).float()

    def answers(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """z of every member (M, B), and what each would take off the sample (M, B, ...) where they rebuild."""
        x = self.seen(x)
        outputs = [net(x, bool(self.rebuilds)) for net in self.nets]
        if not self.rebuilds:
            return torch.stack(outputs), None
        off = torch.stack(outputs)
        error = off.flatten(2).square().mean(2)
        return (error.clamp(min=TINY).log() - self.middle) / self.spread, off

    @staticmethod
    def seen(x: Tensor) -> Tensor:
        """Rows as float32; 8-bit images in [0, 1]."""
        return x.float() / 255 if x.dtype == torch.uint8 else x.float()

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """huber + pairwise + listwise + correlation of z, rebuild of r, each by its weight; scalar."""
        z_MB, off = self.answers(views.x)
        target_B = self.targets(views.y)
        total = z_MB.new_zeros(())
        for z_B in z_MB:
            total = total + sum(
                weight * LOSSES[name](z_B, target_B, generator) for name, weight in self.weights.items() if weight
            )
        if off is not None and self.rebuild:
            assert views.maps is not None
            x = self.seen(views.x)
            scale = (views.y.mean() / (x - views.maps).square().mean().clamp(min=TINY)).sqrt()  # PixelDDPM's `divide`
            r = (x - views.maps) * scale.float()
            size = r.flatten(1).square().mean(1)
            wrong = (off - r).flatten(2).square().mean(2)
            total = total + self.rebuild * (wrong / (size + 0.01 * size.mean())).mean(1).sum()
        if rank_and_world()[1] > 1:  # DDP wants a gradient of every weight, and one of the heads has none
            total = total + 0.0 * torch.stack([p.sum() for p in self.parameters()]).sum()
        return total / len(z_MB)

    def score(self, views: Views) -> Tensor:
        """(B,) the mean of the members' z, and `guard` times what they disagree about."""
        z_MB, _ = self.answers(views.x)
        if self.members == 1:
            return z_MB[0]
        return z_MB.mean(0) + self.guard * z_MB.std(0)


def huber(z_B: Tensor, target_B: Tensor, generator: torch.Generator) -> Tensor:
    """mean Huber(z_S - z_T), quadratic within 1; scalar."""
    return F.huber_loss(z_B, target_B)


def pairwise(z_B: Tensor, target_B: Tensor, generator: torch.Generator, apart: float = 0.02) -> Tensor:
    """mean log(1 + exp(-4 (z_i - z_j) sign(t_i - t_j))) / 4 over random pairs with |t_i - t_j| > apart; scalar."""
    partner = torch.randperm(len(z_B), generator=generator, device=z_B.device)
    gap, target = z_B - z_B[partner], target_B - target_B[partner]
    far = (target.abs() > apart).float()
    return (F.softplus(-4 * gap * target.sign()) / 4 * far).sum() / far.sum().clamp(min=1)


def listwise(z_B: Tensor, target_B: Tensor, generator: torch.Generator) -> Tensor:
    """KL(softmax(z_T) || softmax(z_S)) over the batch: GDD's loss with samples in the place of positions; scalar."""
    return F.kl_div(z_B.log_softmax(0), target_B.log_softmax(0), reduction="sum", log_target=True)


def correlation(z_B: Tensor, target_B: Tensor, generator: torch.Generator, softness: float = 0.1) -> Tensor:
    """1 - Pearson of soft ranks r_i = sum_j sigmoid((z_i - z_j) / softness); scalar."""
    ranks = [((z[:, None] - z[None, :]) / softness).sigmoid().sum(1) for z in (z_B, target_B)]
    centred = [rank - rank.mean() for rank in ranks]
    return 1 - (centred[0] * centred[1]).sum() / (centred[0].norm() * centred[1].norm()).clamp(min=TINY)


LOSSES: dict[str, Any] = {
    "huber": huber, "pairwise": pairwise, "listwise": listwise, "correlation": correlation
}  # fmt: skip


class RowStudent(nn.Module):
    """ReLU layers on [x / 3, sign(x) log(1 + |x|)]: linear far out, as a teacher of ReLUs is, and fine near 0."""

    def __init__(self, dim: int, width: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 2 * dim
        for _ in range(depth):
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.body = nn.Sequential(*layers)
        self.off, self.z = nn.Linear(width, dim), nn.Linear(width, 1)

    def forward(self, x: Tensor, rebuilds: bool) -> Tensor:
        """(B, D) -> (B, D) what is taken off, or (B,) z."""
        inside = self.body(torch.cat([x / 3, x.sign() * x.abs().log1p()], 1))
        return self.off(inside) if rebuilds else self.z(inside)[:, 0]


class ImageStudent(nn.Module):
    """A U-Net of single convolutions: `depth` halvings, each with twice the channels, and back."""

    def __init__(self, shape: tuple[int, ...], width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.enter = convolution(shape[0], width, 1)
        self.down = nn.ModuleList(convolution(a, b, 2) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(convolution(a + b, a, 1) for a, b in itertools.pairwise(widths))
        self.off, self.z = nn.Conv2d(width, shape[0], 1), nn.Linear(2 * widths[-1], 1)

    def forward(self, x: Tensor, rebuilds: bool) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, C, H, W) what is taken off, or (B,) z."""
        maps = [self.enter(2 * x - 1)]
        for down in self.down:
            maps.append(down(maps[-1]))
        if not rebuilds:
            return self.z(torch.cat([maps[-1].mean((2, 3)), maps[-1].amax((2, 3))], 1))[:, 0]
        out = maps.pop()
        for up in reversed(self.up):  # pyright: ignore[reportArgumentType]
            beside = maps.pop()
            out = up(torch.cat([beside, F.interpolate(out, beside.shape[2:])], 1))
        return self.off(out)


def convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """3x3 convolution, group norm, SiLU: no statistics of a batch, so that a sample's score is its own."""
    groups = GROUPS if outputs % GROUPS == 0 else 1
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.GroupNorm(groups, outputs), nn.SiLU())
