"""L = -1/N sum softmax(z_T) log softmax(z_S) + beta / (N M^2) sum_ij (a_ij(F_S) - a_ij(F_T))^2, a of M cells: SKD."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from outlie.distillers.base import Distiller, Seen, at_size_of, require_maps
from outlie.options import Fraction, NonNegativeFloat, PositiveFloat


class SKD(Distiller):
    """Structured distillation: soft labels of every pixel, and how alike any two regions of a map are.

    Its third term, a critic on the logits, is left out: a critic needs an optimiser of its own.

    Args:
        weight: factor of both terms.
        pixel: of the cross-entropy to the teacher's soft labels, mean over samples; the authors' 10 is of the sum over
            a batch of 8.
            It is large beside a step of 0.1: set calibrate=1 there.
        pair: of the similarities of regions; 0.5 in the authors' script.
        cell: side of a region, as a share of the map's side; 0.5 makes 2 x 2 regions of a map of even sides.
        locations: layers that are compared, as STUDENT:TEACHER or one name for both; [] = the last stage of each.
        calibrate: weight is chosen so that the distiller's part is so many times the student's own loss, measured on 50
            batches after a tenth of a training of its own; 0 = weight is taken as it is.
    """

    paper: ClassVar[str] = (
        "Liu et al., Structured Knowledge Distillation for Dense Prediction, CVPR 2019 (arXiv 1903.04197)"
    )

    def __init__(
        self,
        weight: PositiveFloat = 1.0,
        pixel: NonNegativeFloat = 80.0,
        pair: NonNegativeFloat = 0.5,
        cell: Fraction = 0.5,
        locations: Sequence[str] = (),
        calibrate: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(weight, locations, calibrate)
        self.pixel, self.pair, self.cell = pixel, pair, cell

    def setup(self, student: Seen, teacher: Seen) -> None:
        """Refuse rows: they have no regions."""
        require_maps(student, "skd")
        require_maps(teacher, "skd")

    def forward(self, student: Seen, teacher: Seen, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """skd_pixel, and skd_pair of each location."""
        pixel = soft_cross_entropy(student.logits, teacher.logits)
        return {"skd_pixel": self.weight * self.pixel * pixel} | {
            f"skd_pair_{i}": self.weight * self.pair * pair_difference(at_size_of(f_s, f_t), f_t, self.cell)
            for i, (f_s, f_t) in enumerate(zip(student.maps, teacher.maps))
        }


def soft_cross_entropy(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """-sum_c softmax(z_T) log softmax(z_S), mean over samples and pixels, in float32; scalar."""
    with torch.autocast(student_BC.device.type, enabled=False):
        log_q = at_size_of(student_BC.float(), teacher_BC).log_softmax(1)
        return -(teacher_BC.float().softmax(1) * log_q).sum(1).mean()


def pair_difference(student_NCHW: Tensor, teacher_NCHW: Tensor, cell: float) -> Tensor:
    """Mean over samples and pairs of regions of the squared difference of their cosine similarities; scalar."""
    with torch.autocast(student_NCHW.device.type, enabled=False):
        return (similarities(student_NCHW.float(), cell) - similarities(teacher_NCHW.float(), cell)).square().mean()


def similarities(f_NCHW: Tensor, cell: float) -> Tensor:
    """Cosine similarity of every two regions, each the maximum over its positions; (N, M, M)."""
    side = [max(1, int(cell * length)) for length in f_NCHW.shape[2:]]
    f_NCM = F.max_pool2d(f_NCHW, side, ceil_mode=True).flatten(2)
    f_NCM = f_NCM / (f_NCM.norm(dim=1, keepdim=True).detach() + 1e-8)  # no gradient through the norm, as released
    return f_NCM.mT @ f_NCM
