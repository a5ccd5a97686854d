"""L = mean (cos(F_S, mu_S) - cos(F_T, mu_T))^2, mu = mean feature of the pixel's class in the image: IFVD."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from outlie.distillers.base import Distiller, Seen, at_size_of, require_maps
from outlie.distillers.cwd import require_pixels
from outlie.distillers.hinton import IGNORED, labels_at, mean_of_counted
from outlie.distillers.skd import soft_cross_entropy
from outlie.options import NonNegativeFloat, PositiveFloat


class IFVD(Distiller):
    """Intra-class feature variation: how near each pixel is to its class, in the student as in the teacher.

    The critic of the authors' recipe is left out: a critic needs an optimiser of its own.

    Args:
        weight: factor of each location's loss; 200 in the authors' script.
        pixel: weight of the cross-entropy to the teacher's soft labels beside it, mean over samples; 80 is the authors'
            10 of the sum over a batch of 8; 0 = none.
        locations: layers that are compared, as STUDENT:TEACHER or one name for both; [] = the last stage of each.
        calibrate: weight is chosen so that the distiller's part is so many times the student's own loss, measured on 50
            batches after a tenth of a training of its own; 0 = weight is taken as it is.
    """

    paper: ClassVar[str] = (
        "Wang et al., Intra-class Feature Variation Distillation for Semantic Segmentation, ECCV 2020"
    )

    def __init__(
        self,
        weight: PositiveFloat = 200.0,
        pixel: NonNegativeFloat = 0.0,
        locations: Sequence[str] = (),
        calibrate: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(weight, locations, calibrate)
        self.pixel = pixel

    def setup(self, student: Seen, teacher: Seen) -> None:
        """Refuse rows and whole-image classes: variation is that of pixels of one class."""
        require_maps(student, "ifvd")
        require_maps(teacher, "ifvd")
        require_pixels(student, "ifvd", "distiller=fitnet and distiller=gdd do without")

    def forward(self, student: Seen, teacher: Seen, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """ifvd of each location, and pixel where it is asked for."""
        classes = student.logits.shape[1]
        parts = {
            f"ifvd_{i}": self.weight * variation_difference(at_size_of(f_s, f_t), f_t, y, classes)
            for i, (f_s, f_t) in enumerate(zip(student.maps, teacher.maps))
        }
        if self.pixel:
            parts["pixel"] = self.pixel * soft_cross_entropy(student.logits, teacher.logits)
        return parts


def variation_difference(student_NCHW: Tensor, teacher_NCHW: Tensor, y_NHW: Tensor, classes: int) -> Tensor:
    """Mean over the pixels that count of the squared difference of the two maps of `to_centroid`; scalar."""
    labels = labels_at(y_NHW, teacher_NCHW)
    with torch.autocast(student_NCHW.device.type, enabled=False):
        cos_s, cos_t = (to_centroid(f.float(), labels, classes) for f in (student_NCHW, teacher_NCHW))
        return mean_of_counted((cos_s - cos_t).square(), labels)


def to_centroid(f_NCHW: Tensor, y_NHW: Tensor, classes: int) -> Tensor:
    """Cosine of each feature and the mean of its class in the image, 0 where the label is 255; (N, H, W)."""
    labels = y_NHW.flatten(1).masked_fill(y_NHW.flatten(1) == IGNORED, classes)
    member_NPK = F.one_hot(labels, classes + 1)[..., :classes].to(f_NCHW)  # zeros where the pixel does not count
    f_NCP = f_NCHW.flatten(2)
    centroid_NCK = f_NCP @ member_NPK / member_NPK.sum(1, keepdim=True).clamp(min=1)
    return F.cosine_similarity(f_NCP, centroid_NCK @ member_NPK.mT, dim=1).view_as(y_NHW)
