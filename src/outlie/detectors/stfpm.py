"""STFPM: loss = sum_l mean_ij ||t_l / ||t_l|| - s_l / ||s_l|| ||^2; map = the product over levels of that distance.

Student and teacher are the same network; s learns to follow t on normal images, and fails elsewhere.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.student_teacher import (
    SGDRecipe,
    at_size,
    mean_over,
    squared_distance,
    stage_maps,
    student_of,
    teacher_maps,
    teacher_of,
    uses,
)
from outlie.options import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class STFPM(Detector):
    """Student-teacher feature pyramid matching: the student is the backbone's architecture from random weights.

    The released code's loss; the paper and anomalib halve it. Published with an ImageNet ResNet-18 at 256 pixels.

    Args:
        levels: stages whose maps are compared, from 1 (published: 1, 2, 3, at strides 4, 8, 16).
        epochs: epochs to train.
        batch_size: images per optimiser step.
        lr: learning rate of SGD.
        momentum: of SGD.
        weight_decay: coupled L2.
        validation: share of the training images held out; the weights of the epoch with the lowest loss there are kept.
        patience: epochs without a lower one before training stops; 0 = never.
    """

    needs: ClassVar[tuple[str, ...]] = ("x", "network")
    paper: ClassVar[str] = "Wang et al., Student-Teacher Feature Pyramid Matching for Anomaly Detection, BMVC 2021"
    images: ClassVar[bool] = True
    raw: ClassVar[bool] = True
    student: Any

    def __init__(
        self,
        levels: list[PositiveInt] = [1, 2, 3],  # noqa: B006 (a signature is a schema; never changed in place)
        epochs: PositiveInt = 100,
        batch_size: PositiveInt = 32,
        lr: PositiveFloat = 0.4,
        momentum: NonNegativeFloat = 0.9,
        weight_decay: NonNegativeFloat = 1e-4,
        validation: Fraction = 0.2,
        patience: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.recipe = SGDRecipe(
            epochs, batch_size, lr, weight_decay, validation=validation, patience=patience, momentum=momentum
        )
        self._teacher: list[Any] = []  # in a list: its weights are not this detector's

    def setup(self, spec: Spec) -> None:
        """Make the student; UserError where the backbone has no such stages."""
        self._teacher = [teacher_of("STFPM", spec, self.levels)]
        self.student, self.samples = student_of(spec.network, self.levels), uses(spec)

    def distances(self, z: Tensor) -> list[Tensor]:
        """Squared distance of each level, (B, H_l, W_l)."""
        teacher = teacher_maps(self._teacher[0], z, self.levels)
        return [squared_distance(s, t) for s, t in zip(stage_maps(self.student, z, self.levels), teacher)]

    def objective(self, x: Tensor) -> Tensor:
        """Sum over levels of the mean squared distance, of raw images; scalar."""
        z = self._teacher[0].to(x.device).standardise(x)
        return torch.stack([distance_BHW.mean() for distance_BHW in self.distances(z)]).sum()

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """The objective on a batch of raw images; scalar."""
        return self.objective(views.x)

    def validate(self, views: Views) -> Tensor:
        """Its mean over held-out images; scalar."""
        return mean_over(views, self.objective)

    def score_map(self, views: Views) -> Tensor:
        """(B, H, W) product of the levels' distances, put to the first level's size and then to the image's."""
        first, *rest = self.distances(views.x)
        for distance_BHW in rest:
            first = first * at_size(distance_BHW, first.shape[1:])
        return at_size(first, views.x.shape[2:])

    def score(self, views: Views) -> Tensor:
        """(B,) largest value of the map."""
        return self.score_of(self.score_map(views))
