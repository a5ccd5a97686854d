"""Uninformed students: map = N(||mean_i s_i - t||^2) + N(mean_i ||s_i - mean_j s_j||^2), mean over patch sizes.

t is a patch network that was taught by the backbone, s_1 .. s_M the same network from other random weights, which
regress t on normal images: where they err or disagree the image is abnormal. N subtracts mean, divides by deviation.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.patch_networks import PATCHES, PatchNet, off_diagonal, patches_of
from outlie.detectors.photos import drawn, pool_of, read_photos
from outlie.detectors.student_teacher import VALIDATED, AdamRecipe, teacher_maps, teacher_of
from outlie.errors import UserError
from outlie.gather import rank_and_world, share
from outlie.log import log
from outlie.options import NonNegativeFloat, PositiveFloat, PositiveInt

PIXELS_AT_ONCE = {"cuda": 2**19}  # of one dense pass, whose maps are as large as the image; elsewhere an eighth
SAMPLED = 4096  # patches that tell mean and deviation


class UninformedStudents(Detector):
    """An ensemble of students regresses a teacher's descriptor of the patch around every pixel.

    The published teacher is taught on ImageNet; here on patches of the training images, and of photos where given.

    Args:
        patches: sides of the patches, of 17, 33 and 65.
        students: how many.
        width: channels of the first layer and of the descriptor.
        photos: folder of photos of anything, whose patches the teacher is taught on as well (published: ImageNet).
        teacher_steps: optimiser steps of 64 patches for each teacher.
        compactness: weight of the squared correlations between components of the descriptor.
        epochs: epochs to train.
        batch_size: images per optimiser step.
        lr: learning rate of Adam.
        weight_decay: coupled L2.
        split: images whose errors and variances are the normal ones: calibration (held out, as published), or train.
    """

    needs: ClassVar[tuple[str, ...]] = ("x", "network")
    paper: ClassVar[str] = "Bergmann et al., Uninformed Students, CVPR 2020"
    images: ClassVar[bool] = True
    raw: ClassVar[bool] = True
    mean: Tensor  # (P, D) of the descriptor of each patch size
    scale: Tensor  # (P, D)
    usual: Tensor  # (P, 2, 2) float64: error and variance, each mean and deviation
    sums: Tensor  # (P, 2, 2) float64 while fitting: of values and of squares

    def __init__(
        self,
        patches: list[PositiveInt] = [17, 33, 65],  # noqa: B006 (a signature is a schema; never changed in place)
        students: PositiveInt = 3,
        width: PositiveInt = 128,
        photos: Path | None = None,
        teacher_steps: PositiveInt = 50_000,
        compactness: NonNegativeFloat = 1.0,
        epochs: PositiveInt = 100,
        batch_size: PositiveInt = 1,
        lr: PositiveFloat = 1e-4,
        weight_decay: NonNegativeFloat = 1e-5,
        split: Literal["calibration", "train"] = "calibration",
    ) -> None:
        super().__init__()
        if not patches or not set(patches) <= set(PATCHES):
            raise UserError(f"patches = {list(patches)}: allowed are some of {list(PATCHES)}; set detector.patches")
        self.patches, self.count, self.width, self.fits_on = tuple(patches), students, width, split
        self.folder = None if photos is None else Path(photos).expanduser()
        self.teacher_steps, self.compactness = teacher_steps, compactness
        self.recipe = AdamRecipe(epochs, batch_size, lr, weight_decay, fewest=1)
        self._network: list[Any] = []  # in a list: its weights are not this detector's
        self._pixels = 0  # while fitting
        for name, dtype in (("mean", None), ("scale", None), ("usual", torch.float64)):
            self.register_buffer(name, torch.empty(0, dtype=dtype))
        self.register_buffer("sums", torch.empty(0, dtype=torch.float64), persistent=False)

    def setup(self, spec: Spec) -> None:
        """Make teachers and students; UserError where an image is smaller than a patch."""
        self._network, self.seed, self.shape = [teacher_of("UninformedStudents", spec, ())], spec.seed, spec.shapes["x"]
        channels, *sides = self.shape
        if max(self.patches) > min(sides):
            raise UserError(
                f"patches of {max(self.patches)} pixels, but images of {min(sides)}; set detector.patches to smaller "
                "ones, or dataset.size"
            )
        self.level = len(self._network[0].stage_names)
        self.teachers = nn.ModuleList(PatchNet(channels, patch, self.width) for patch in self.patches)
        self.teachers.requires_grad_(False)
        self.students = nn.ModuleList(
            nn.ModuleList(PatchNet(channels, patch, self.width) for _ in range(self.count)) for patch in self.patches
        )
        self.samples = sides[0] * sides[1]

    def prepare(self, train: Views) -> None:
        """Teach the teachers, and take mean and deviation of their descriptors of training patches."""
        device = next(self._network[0].parameters()).device  # the module itself is moved later
        self.to(device)
        pool = pool_of(train.x)
        images = pool if self.folder is None else torch.cat([pool, read_photos(self.folder, self.shape)])
        means, scales = [], []
        for teacher in self.teachers:
            generator = torch.Generator().manual_seed(self.seed)
            self.teach(teacher, images, generator, device)
            with torch.no_grad():
                some = (self.cut(pool, teacher, 256, generator, device) for _ in range(SAMPLED // 256))
                found = torch.cat([teacher(z) for z in some])
            means.append(found.mean(0))
            scales.append(found.std(0).clamp(min=1e-6))
        self.mean, self.scale = torch.stack(means), torch.stack(scales)

    def cut(self, images: Tensor, teacher: Any, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """So many standardised patches of random images."""
        x = drawn(images, min(count, 32), generator, device)
        return patches_of(self.standardise(x), teacher.patch, count, generator)

    def teach(self, teacher: Any, images: Tensor, generator: torch.Generator, device: torch.device) -> None:
        """Squared error of a linear read-out to the backbone's features of the patch, which are standardised, and the
        mean squared correlation between components; both means, where the paper has sums.
        """
        features = self.features(self.cut(images, teacher, 256, generator, device))
        mean, scale = features.mean(0), features.std(0).clamp(min=1e-6)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            read_out = nn.Linear(self.width, features.shape[1]).to(device)
        teacher.requires_grad_(True)
        adam = torch.optim.Adam([*teacher.parameters(), *read_out.parameters()], 2e-4, weight_decay=1e-5)
        error, pairs = torch.zeros(()), max(1, self.width * (self.width - 1))
        for _ in range(self.teacher_steps):
            z = self.cut(images, teacher, 64, generator, device)
            descriptor = teacher(z)
            error = F.mse_loss(read_out(descriptor), (self.features(z) - mean) / scale)
            adam.zero_grad()
            (error + self.compactness * off_diagonal(descriptor) / pairs).backward()
            adam.step()
        teacher.requires_grad_(False)
        log.info(
            "teach     patch %d, %d steps, squared error %.3g", teacher.patch, self.teacher_steps, float(error.detach())
        )

    @torch.no_grad()
    def features(self, z: Tensor) -> Tensor:
        """The backbone's last map of each patch, averaged; (B, D)."""
        return teacher_maps(self._network[0], z, (self.level,))[0].mean((2, 3))

    def standardise(self, x: Tensor) -> Tensor:
        """Raw images -> the backbone's input."""
        return self._network[0].to(x.device).standardise(x)

    def described(self, z: Tensor, i: int) -> Tensor:
        """The i-th teacher's descriptors, normalised; (B, D, H, W)."""
        with torch.no_grad():
            dense: Any = self.teachers[i]
            return (dense.dense(z) - self.mean[i, :, None, None]) / self.scale[i, :, None, None]

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """Sum over patch sizes and students of the mean over pixels of ||s - t||^2; scalar."""
        z = self.standardise(views.x)
        errors = []
        for i, ensemble in enumerate(self.students):
            target = self.described(z, i)
            networks: Any = ensemble
            errors += [(student.dense(z) - target).square().sum(1).mean() for student in networks]
        return torch.stack(errors).sum()

    def error_and_variance(self, z: Tensor) -> Tensor:
        """e and v of each patch size, (B, P, 2, H, W)."""
        found = []
        for i, ensemble in enumerate(self.students):
            networks: Any = ensemble
            seen_MBDHW = torch.stack([student.dense(z) for student in networks])
            mean = seen_MBDHW.mean(0)
            error = (mean - self.described(z, i)).square().sum(1)
            found.append(torch.stack([error, (seen_MBDHW - mean).square().sum(2).mean(0)], 1))
        return torch.stack(found, 1).double()

    def parts(self, z: Tensor) -> tuple[Tensor, ...]:
        """Images of one dense pass."""
        return z.split(max(1, PIXELS_AT_ONCE.get(z.device.type, 2**16) // (z.shape[2] * z.shape[3])))

    def fit(self, train: Views) -> None:
        """Every normal image, each rank its share."""
        for rows in share(len(train)).split(VALIDATED):
            self.update(train[rows])
        self.finish()

    def update(self, views: Views) -> None:
        """Take in some normal images; every one comes to one rank, once."""
        if not len(self.sums):
            self.sums = torch.zeros(len(self.patches), 2, 2, dtype=torch.float64, device=views.x.device)
        for z in self.parts(views.x):
            found = self.error_and_variance(z)
            self.sums += torch.stack([found.sum((0, 3, 4)), found.square().sum((0, 3, 4))], 2)
            self._pixels += found[:, 0, 0].numel()

    def finish(self) -> None:
        """After the last: mean and deviation of errors and variances, over all ranks and pixels."""
        if not self._pixels:
            raise UserError("UninformedStudents was given no images to normalise its maps with")
        log.info("finding   UninformedStudents: its teachers were taught by the backbone%s",
                 " on the training images alone (detector.photos)" if self.folder is None else "")  # fmt: skip
        pixels = torch.tensor(float(self._pixels), dtype=torch.float64, device=self.sums.device)
        if rank_and_world()[1] > 1:
            dist.all_reduce(self.sums)
            dist.all_reduce(pixels)
        mean, square = (self.sums / pixels).unbind(2)
        self.usual = torch.stack([mean, (square - mean.square()).clamp(min=1e-24).sqrt()], 2)
        self.sums, self._pixels = self.sums.new_empty(0), 0

    def score_map(self, views: Views) -> Tensor:
        """(B, H, W) float64."""
        mean, deviation = (t[:, :, None, None] for t in self.usual.unbind(2))
        parts = [(self.error_and_variance(z) - mean) / deviation for z in self.parts(views.x)]
        return torch.cat([part.sum(2).mean(1) for part in parts])

    def score(self, views: Views) -> Tensor:
        """(B,) largest value of the map."""
        return self.score_of(self.score_map(views))
