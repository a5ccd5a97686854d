"""L = T^2 / (N C) sum_nc KL(softmax(F_T / T) || softmax(F_S / T)), over positions, of logits or of features: CWD."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from outlie.distillers.base import Distiller, Seen, at_size_of, require_maps, require_positions
from outlie.distillers.channel_kl import channel_kl
from outlie.errors import UserError
from outlie.options import NonNegativeFloat, PositiveFloat

PAPER = "Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021 (arXiv 2011.13256)"


class CWD(Distiller):
    """Each class's map of logits, as a distribution over positions, is pulled towards the teacher's.

    Args:
        weight: factor of the loss; 3 in the authors' command, at a temperature of 4.
        temperature: T of the softmax over positions.
        locations: layers that are compared: none, the logits are.
        calibrate: weight is chosen so that the distiller's part is so many times the student's own loss, measured on 50
            batches after a tenth of a training of its own; 0 = weight is taken as it is.
    """

    paper: ClassVar[str] = PAPER
    places: ClassVar[str] = "none"

    def __init__(
        self,
        weight: PositiveFloat = 3.0,
        temperature: PositiveFloat = 4.0,
        locations: Sequence[str] = (),
        calibrate: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(weight, locations, calibrate)
        self.temperature = temperature

    def setup(self, student: Seen, teacher: Seen) -> None:
        """Refuse logits without positions."""
        require_pixels(student, "cwd", "distiller=cwd/features compares maps, distiller=hinton one class a sample")

    def forward(self, student: Seen, teacher: Seen, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """cwd, of the logits."""
        logits = at_size_of(student.logits, teacher.logits)
        return {"cwd": self.weight * channel_kl(logits, teacher.logits, self.temperature)}


class CWDFeatures(Distiller):
    """Each channel of a feature map, as a distribution over positions, is pulled towards the teacher's.

    The student's map passes through a 1x1 convolution, batch normalisation and ReLU first.

    Args:
        weight: factor of each location's loss; 35 to 50 in the released logs.
        temperature: T of the softmax over positions.
        locations: layers that are compared, as STUDENT:TEACHER or one name for both; [] = the last stage of each.
        calibrate: weight is chosen so that the distiller's part is so many times the student's own loss, measured on 50
            batches after a tenth of a training of its own; 0 = weight is taken as it is.
    """

    paper: ClassVar[str] = PAPER

    def __init__(
        self,
        weight: PositiveFloat = 50.0,
        temperature: PositiveFloat = 4.0,
        locations: Sequence[str] = (),
        calibrate: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(weight, locations, calibrate)
        self.temperature = temperature

    def setup(self, student: Seen, teacher: Seen) -> None:
        """Make the aligning layers of each location."""
        require_maps(student, "cwd/features")
        require_maps(teacher, "cwd/features")
        require_positions(student, "cwd/features")
        require_positions(teacher, "cwd/features")
        self.aligns = nn.ModuleList(
            nn.Sequential(nn.Conv2d(f_s.shape[1], f_t.shape[1], 1, bias=False), nn.BatchNorm2d(f_t.shape[1]), nn.ReLU())
            for f_s, f_t in zip(student.maps, teacher.maps)
        )

    def forward(self, student: Seen, teacher: Seen, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """cwd of each location."""
        return {
            f"cwd_{i}": self.weight * channel_kl(self.aligns[i](at_size_of(f_s, f_t)), f_t, self.temperature)
            for i, (f_s, f_t) in enumerate(zip(student.maps, teacher.maps))
        }


def require_pixels(seen: Seen, name: str, instead: str) -> None:
    """UserError where the logits are those of whole samples, not of pixels."""
    if seen.logits.ndim != 4:
        raise UserError(
            f"distiller={name} needs a class of every pixel, and this network gives one a sample; {instead}"
        )
