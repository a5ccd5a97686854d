"""EfficientAD: map = (N(mean_c (t - s)^2) + N(mean_c (a - s')^2)) / 2.

t is a PDN, s and s' are a student's halves, a is an auto-encoder. N is linear: the 90 % quantile of held-out normal
images becomes 0, the 99.5 % quantile 0.1. The student follows t on normal patches only (a hard loss, and a penalty on
photos of anything); a is what t looks like as a whole.
"""

import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from outlie.backbones.weights import load_weights, match
from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.patch_networks import PDN_BORDER, PDN_STRIDE, AutoEncoder, pdn, pdn_side
from outlie.detectors.photos import drawn, jittered, pool_of, read_photos, some_grey
from outlie.detectors.student_teacher import VALIDATED, AdamRecipe, at_size, teacher_maps, teacher_of
from outlie.errors import UserError
from outlie.gather import gather_shares, rank_and_world, share
from outlie.log import log
from outlie.options import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

LEVELS = (2, 3)  # stages of the backbone that a PDN teacher is taught
SMALLEST = 36  # pixels that give one output position
QUANTILES = (0.9, 0.995)
GREY = 0.3  # share of the photos that are made grey


def hardest_mean(values: Tensor, quantile: float = 0.999) -> Tensor:
    """Mean of the values at or above that quantile (linear between ranks); scalar."""
    flat = values.flatten()
    return flat.topk(len(flat) - math.ceil(quantile * (len(flat) - 1)), sorted=False).values.mean()


def channel_pooled(maps_BCHW: Tensor, channels: int) -> Tensor:
    """Neighbouring channels averaged to so many; (B, C, H, W) -> (B, channels, H, W)."""
    rows = maps_BCHW.flatten(2).transpose(1, 2)
    return F.adaptive_avg_pool1d(rows, channels).transpose(1, 2).unflatten(2, maps_BCHW.shape[2:])


class EfficientAD(Detector):
    """A patch description network, a student and an auto-encoder, all small and fully convolutional.

    The published teacher is a PDN taught by an ImageNet Wide ResNet-101 on ImageNet. Without its weights (teacher=...)
    one is taught here by the backbone, on the training images and the photos: weak, published numbers do not apply.

    Args:
        size: S or M, the PDN.
        teacher: weights of a PDN of that size, as the public reimplementation stores them; null = one is taught here.
        photos: folder of photos of anything but the product (published: ImageNet), for the penalty and to teach on;
            null = no penalty.
        teacher_steps: optimiser steps of 16 images for a teacher that is taught here.
        min_steps: optimiser steps (more epochs where `epochs` would give fewer).
        epochs: epochs to train at least.
        batch_size: images per optimiser step.
        lr: learning rate of Adam, a tenth of it after 95 % of the steps.
        weight_decay: coupled L2.
        channels: of the teacher's description.
        width: channels of the PDN's first layer (S).
        code: channels of the auto-encoder.
        split: images whose quantiles normalise the maps: calibration (held out, as published), or train.
    """

    needs: ClassVar[tuple[str, ...]] = ("x", "network")
    paper: ClassVar[str] = (
        "Batzner et al., EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level Latencies, WACV 2024"
    )
    images: ClassVar[bool] = True
    raw: ClassVar[bool] = True
    mean: Tensor  # (C, 1, 1) of the teacher's description on training images
    scale: Tensor  # (C, 1, 1)
    quantiles: Tensor  # (2, 2) float64: of the student's and of the auto-encoder's map, the two quantiles

    def __init__(
        self,
        size: Literal["S", "M"] = "S",
        teacher: Path | None = None,
        photos: Path | None = None,
        teacher_steps: PositiveInt = 60_000,
        min_steps: NonNegativeInt = 70_000,
        epochs: PositiveInt = 1,
        batch_size: PositiveInt = 1,
        lr: PositiveFloat = 1e-4,
        weight_decay: NonNegativeFloat = 1e-5,
        channels: PositiveInt = 384,
        width: PositiveInt = 128,
        code: PositiveInt = 64,
        split: Literal["calibration", "train"] = "calibration",
    ) -> None:
        super().__init__()
        self.size, self.channels, self.width, self.code, self.fits_on = size, channels, width, code, split
        self.given, self.folder = (None if path is None else Path(path).expanduser() for path in (teacher, photos))
        self.teacher_steps = teacher_steps
        self.recipe = AdamRecipe(
            epochs, batch_size, lr, weight_decay, min_steps=min_steps, decay_lr=True, drop_at=0.95, fewest=1
        )
        self._network: list[Any] = []  # in a list: its weights are not this detector's
        self._photos: list[Tensor] = []
        self._seen: list[Tensor] = []  # while fitting: (B, 2, P) values of both maps
        for name in ("mean", "scale"):
            self.register_buffer(name, torch.empty(0))
        self.register_buffer("quantiles", torch.empty(0, dtype=torch.float64))

    def setup(self, spec: Spec) -> None:
        """Make the networks for the image's size; UserError where it is too small, or the backbone has no stages."""
        self._network, self.seed, self.shape = [teacher_of("EfficientAD", spec, LEVELS)], spec.seed, spec.shapes["x"]
        channels, *sides = self.shape
        if min(sides) < SMALLEST:
            raise UserError(
                f"EfficientAD needs images of {SMALLEST} pixels or more, these have {min(sides)}; set dataset.size"
            )
        self.teacher = pdn(self.size, channels, self.width, self.channels).requires_grad_(False)
        self.student = pdn(self.size, channels, self.width, 2 * self.channels)
        self.autoencoder = AutoEncoder(channels, (sides[0], sides[1]), self.code, self.channels)
        self.samples = max(1, sides[0] * sides[1] // PDN_STRIDE**2)

    def prepare(self, train: Views) -> None:
        """Load or teach the teacher, and take mean and scale of its description of the training images."""
        device = next(self._network[0].parameters()).device  # the module itself is moved later
        self.to(device)
        pool = pool_of(train.x)
        if self.given is None:
            self.teach(pool, device)
        else:
            match(load_weights(self.given), self.teacher, str(self.given))
        self.mean, self.scale = self.moments(pool, device)

    @torch.no_grad()
    def moments(self, pool: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel of the teacher's description; (C, 1, 1), (C, 1, 1)."""
        described = (self.teacher(self.standardise(some.to(device))).double() for some in pool.split(16))
        sums = torch.stack(
            [torch.stack([d.sum((0, 2, 3)), d.square().sum((0, 2, 3)), d[:, 0].numel() * d.new_ones(d.shape[1])])
             for d in described]
        ).sum(0)  # fmt: skip
        mean, square = sums[0] / sums[2], sums[1] / sums[2]
        scale = (square - mean.square()).clamp(min=1e-12).sqrt()
        return mean.float()[:, None, None], scale.float()[:, None, None]

    def teach(self, pool: Tensor, device: torch.device) -> None:
        """MSE of the PDN to the backbone's maps of the image at twice its size, channels pooled and normalised."""
        images = torch.cat([pool, self.photos]) if self.folder else pool
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            sample = self.target(drawn(images, 64, generator, device))
            mean, scale = sample.mean((0, 2, 3), keepdim=True), sample.std((0, 2, 3), keepdim=True).clamp(min=1e-6)
        weights = [p.requires_grad_() for p in self.teacher.parameters()]
        adam = torch.optim.Adam(weights, 1e-4, weight_decay=1e-5)
        error = torch.zeros(())
        for _ in range(self.teacher_steps):
            x = drawn(images, 16, generator, device)
            target = (self.target(x) - mean) / scale
            error = F.mse_loss(self.teacher(self.standardise(x)), target)
            adam.zero_grad()
            error.backward()
            adam.step()
        self.teacher.requires_grad_(False)
        log.info(
            "teach     a PDN by the backbone, %d steps, squared error %.3g", self.teacher_steps, float(error.detach())
        )

    @torch.no_grad()
    def target(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) at the PDN's positions, which leave out a border of 4 cells of 4 pixels."""
        z = self.standardise(x)
        z = F.interpolate(z, scale_factor=2, mode="bilinear", align_corners=False)
        grid = [side // PDN_STRIDE for side in self.shape[1:]]
        maps = [F.interpolate(one, grid, mode="bilinear", align_corners=False)
                for one in teacher_maps(self._network[0], z, LEVELS)]  # fmt: skip
        top, left = PDN_BORDER, PDN_BORDER
        height, width = (pdn_side(side) for side in self.shape[1:])
        return channel_pooled(torch.cat(maps, 1), self.channels)[..., top : top + height, left : left + width]

    @property
    def photos(self) -> Tensor:
        """(N, C, H, W) uint8, read when they are first asked for: a finished detector does without."""
        if not self._photos:
            assert self.folder is not None
            self._photos.append(read_photos(self.folder, self.shape))
        return self._photos[0]

    def standardise(self, x: Tensor) -> Tensor:
        """Raw images -> the backbone's input."""
        return self._network[0].to(x.device).standardise(x)

    @torch.no_grad()
    def described(self, z: Tensor) -> Tensor:
        """The teacher's description, of mean 0 and variance 1 on training images; (B, C, h, w)."""
        return (self.teacher(z) - self.mean) / self.scale

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """Hard loss + penalty on photos + auto-encoder to teacher + student's second half to auto-encoder; scalar."""
        z, half = self.standardise(views.x), self.channels
        total = hardest_mean((self.described(z) - self.student(z)[:, :half]).square())
        if self.folder:
            photos = some_grey(drawn(self.photos, len(z), generator, z.device), GREY, generator)
            total = total + self.student(self.standardise(photos))[:, :half].square().mean()
        z = self.standardise(jittered(views.x, generator))
        whole = self.autoencoder(z)
        total = total + (self.described(z) - whole).square().mean()
        return total + (whole - self.student(z)[:, half:]).square().mean()

    def maps(self, z: Tensor) -> Tensor:
        """Student's and auto-encoder's map, not normalised; (B, 2, h, w)."""
        student, half = self.student(z), self.channels
        local = (self.described(z) - student[:, :half]).square().mean(1)
        whole = (self.autoencoder(z) - student[:, half:]).square().mean(1)
        return torch.stack([local, whole], 1)

    def fit(self, train: Views) -> None:
        """Every normal image, each rank its share."""
        for rows in share(len(train)).split(VALIDATED):
            self.update(train[rows])
        self.finish()

    def update(self, views: Views) -> None:
        """Take in some normal images; every one comes to one rank, once."""
        self._seen.append(self.maps(views.x).flatten(2))

    def finish(self) -> None:
        """After the last: the quantiles that normalise the maps, over all ranks and pixels."""
        if not self._seen:
            raise UserError("EfficientAD was given no images to normalise its maps with")
        if self.folder is None:
            log.info("finding   EfficientAD: without detector.photos the student is trained without its penalty")
        if self.given is None:
            log.info("finding   EfficientAD: its teacher was taught by the backbone, it is not the published one")
        seen, self._seen = torch.cat(self._seen), []
        if rank_and_world()[1] > 1:
            count = torch.tensor(len(seen), device=seen.device)
            dist.all_reduce(count)
            seen = gather_shares(seen, int(count))
        values = seen.double().transpose(0, 1).flatten(1).cpu().numpy()
        self.quantiles = torch.from_numpy(np.quantile(values, QUANTILES, axis=1).T.copy()).to(self.quantiles.device)

    def score_map(self, views: Views) -> Tensor:
        """(B, H, W) mean of both maps, normalised, put back where they are in the image."""
        low, high = self.quantiles[:, 0, None, None], self.quantiles[:, 1, None, None]
        maps = 0.1 * (self.maps(views.x).double() - low) / (high - low).clamp(min=1e-12)
        return at_size(F.pad(maps.mean(1), [PDN_BORDER] * 4).float(), views.x.shape[2:])

    def score(self, views: Views) -> Tensor:
        """(B,) largest value of the map."""
        return self.score_of(self.score_map(views))
