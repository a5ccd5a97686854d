"""L = mean (A(F_S) - F_T)^2: the teacher's features in the middle as a hint (FitNets)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.distillers.base import Distiller, Seen, align, at_size_of
from outlie.distillers.hinton import soft_labels
from outlie.errors import UserError
from outlie.options import NonNegativeFloat, PositiveFloat


class FitNet(Distiller):
    """The student's features, aligned by a 1x1 convolution, are pulled towards the teacher's; along with its own loss.

    The paper has two stages, hints first; as released since, both losses are learned at once.

    Args:
        weight: factor of each location's mean squared error; 100 in RepDistiller.
        norm: batch normalisation after A.
        soft_labels: weight of Hinton's loss beside it; 0 = none.
        temperature: T of the soft labels.
        locations: layers that are compared, as STUDENT:TEACHER or one name for both; [] = the middle stage of each.
        calibrate: weight is chosen so that the distiller's part is so many times the student's own loss, measured on 50
            batches after a tenth of a training of its own; 0 = weight is taken as it is.
    """

    paper: ClassVar[str] = "Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015 (arXiv 1412.6550)"
    places: ClassVar[str] = "middle"

    def __init__(
        self,
        weight: PositiveFloat = 100.0,
        norm: bool = False,
        soft_labels: NonNegativeFloat = 0.0,
        temperature: PositiveFloat = 4.0,
        locations: Sequence[str] = (),
        calibrate: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(weight, locations, calibrate)
        self.norm, self.soft_labels, self.temperature = norm, soft_labels, temperature

    def setup(self, student: Seen, teacher: Seen) -> None:
        """Make A of each location."""
        self.aligns = nn.ModuleList()
        for f_s, f_t in zip(student.maps, teacher.maps):
            if f_s.ndim != f_t.ndim:
                raise UserError(
                    f"distiller=fitnet compares maps with maps and rows with rows; the student's layer gives "
                    f"{tuple(f_s.shape[1:])}, the teacher's {tuple(f_t.shape[1:])}; set distiller.locations"
                )
            normed = nn.BatchNorm1d if f_t.ndim == 2 else nn.BatchNorm2d
            self.aligns.append(nn.Sequential(align(f_s, f_t), *([normed(f_t.shape[1])] if self.norm else [])))

    def forward(self, student: Seen, teacher: Seen, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """fitnet of each location, and soft_labels where they are asked for."""
        parts = {
            f"fitnet_{i}": self.weight * F.mse_loss(self.aligns[i](at_size_of(f_s, f_t)).float(), f_t.float())
            for i, (f_s, f_t) in enumerate(zip(student.maps, teacher.maps))
        }
        if self.soft_labels:
            soft = soft_labels(student.logits, teacher.logits, self.temperature, y)
            parts["soft_labels"] = self.soft_labels * soft
        return parts
