"""L = mean (Q(F_S) - Q(F_T))^2, Q(F) = f / ||f||, f = mean_c F^2 over positions: where a network looks (AT)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from outlie.distillers.base import Distiller, Seen, require_maps
from outlie.distillers.hinton import soft_labels
from outlie.log import log
from outlie.options import NonNegativeFloat, PositiveFloat


class Attention(Distiller):
    """Maps of the squared activation are pulled towards the teacher's; channels may differ, nothing is learned beside.

    Args:
        weight: factor of each location's loss; 1000 in RepDistiller.
        soft_labels: weight of Hinton's loss beside it; 0 = none.
        temperature: T of the soft labels.
        locations: layers that are compared, as STUDENT:TEACHER or one name for both; [] = all stages.
        calibrate: weight is chosen so that the distiller's part is so many times the student's own loss, measured on 50
            batches after a tenth of a training of its own; 0 = weight is taken as it is.
    """

    paper: ClassVar[str] = "Zagoruyko & Komodakis, Paying More Attention to Attention, ICLR 2017 (arXiv 1612.03928)"
    places: ClassVar[str] = "all"

    def __init__(
        self,
        weight: PositiveFloat = 1000.0,
        soft_labels: NonNegativeFloat = 0.0,
        temperature: PositiveFloat = 4.0,
        locations: Sequence[str] = (),
        calibrate: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(weight, locations, calibrate)
        self.soft_labels, self.temperature = soft_labels, temperature

    def setup(self, student: Seen, teacher: Seen) -> None:
        """Refuse rows: they have no positions to look at."""
        require_maps(student, "attention")
        require_maps(teacher, "attention")
        for i, (f_s, f_t) in enumerate(zip(student.maps, teacher.maps)):
            if 1 in (f_s.shape[2:].numel(), f_t.shape[2:].numel()):
                log.info("finding   attention_%d compares one position, and is 0: the layer has nowhere to look", i)

    def forward(self, student: Seen, teacher: Seen, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """attention of each location, and soft_labels where they are asked for."""
        parts = {
            f"attention_{i}": self.weight * attention_difference(f_s, f_t)
            for i, (f_s, f_t) in enumerate(zip(student.maps, teacher.maps))
        }
        if self.soft_labels:
            soft = soft_labels(student.logits, teacher.logits, self.temperature, y)
            parts["soft_labels"] = self.soft_labels * soft
        return parts


def attention_difference(student_NCHW: Tensor, teacher_NCHW: Tensor) -> Tensor:
    """Mean over samples and positions of (Q(F_S) - Q(F_T))^2; the larger map is average-pooled to the smaller."""
    size = [min(pair) for pair in zip(student_NCHW.shape[2:], teacher_NCHW.shape[2:])]
    with torch.autocast(student_NCHW.device.type, enabled=False):
        q_s, q_t = (attention(F.adaptive_avg_pool2d(f.float(), size)) for f in (student_NCHW, teacher_NCHW))
        return (q_s - q_t).square().mean()


def attention(f_NCHW: Tensor) -> Tensor:
    """Q(F): the channels' mean square at each position, of Euclidean length 1; (N, H W)."""
    return F.normalize(f_NCHW.square().mean(1).flatten(1), dim=1)
