"""L = T^2 KL(softmax(z_T / T) || softmax(z_S / T)), mean over samples or pixels: soft labels (Hinton)"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from outlie.distillers.base import Distiller, Seen, at_size_of
from outlie.options import NonNegativeFloat, PositiveFloat

IGNORED = 255  # the label of a pixel that does not count


class Hinton(Distiller):
    """The student's class probabilities are pulled towards the teacher's, over samples or over the pixels that count.

    Args:
        weight: factor of the soft labels; RepDistiller has 0.1 of the labels' loss and 0.9 of this: 9 beside a whole.
        temperature: T of both softmaxes; the gradient is scaled back by T^2.
        energy: weight of the squared difference of the two networks' energies, each z-scored over the batch: what
            scores of out-of-distribution rows take from the logits' level.
        locations: layers that are compared: none, the logits are.
        calibrate: weight is chosen so that the distiller's part is so many times the student's own loss, measured on 50
            batches after a tenth of a training of its own; 0 = weight is taken as it is.
    """

    paper: ClassVar[str] = "Hinton et al., Distilling the Knowledge in a Neural Network, 2015 (arXiv 1503.02531)"
    places: ClassVar[str] = "none"

    def __init__(
        self,
        weight: PositiveFloat = 1.0,
        temperature: PositiveFloat = 4.0,
        energy: NonNegativeFloat = 0.0,
        locations: Sequence[str] = (),
        calibrate: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(weight, locations, calibrate)
        self.temperature, self.energy = temperature, energy

    def forward(self, student: Seen, teacher: Seen, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """hinton, and energy where it is asked for."""
        parts = {"hinton": self.weight * soft_labels(student.logits, teacher.logits, self.temperature, y)}
        if self.energy:
            parts["energy"] = self.energy * energy_difference(student.logits, teacher.logits, y)
        return parts


def soft_labels(student_BC: Tensor, teacher_BC: Tensor, temperature: float, y: Tensor) -> Tensor:
    """Mean of T^2 KL(teacher || student) over samples, or over pixels of logits (B, C, H, W), in float32; scalar."""
    with torch.autocast(student_BC.device.type, enabled=False):
        log_q = (at_size_of(student_BC.float(), teacher_BC) / temperature).log_softmax(1)
        log_p = (teacher_BC.float() / temperature).log_softmax(1)
        return temperature**2 * mean_of_counted((log_p.exp() * (log_p - log_q)).sum(1), y)


def energy_difference(student_BC: Tensor, teacher_BC: Tensor, y: Tensor) -> Tensor:
    """Mean of (E_S - E_T)^2 with E = -logsumexp(z), each z-scored over the batch's samples or pixels; scalar."""
    with torch.autocast(student_BC.device.type, enabled=False):
        student = -at_size_of(student_BC.float(), teacher_BC).logsumexp(1)
        teacher = -teacher_BC.float().logsumexp(1)
        return mean_of_counted((z_scored(student, y) - z_scored(teacher, y)).square(), y)


def z_scored(values: Tensor, y: Tensor) -> Tensor:
    """(value - mean) / standard deviation of those that count; 0 where all are equal."""
    centred = values - mean_of_counted(values, y)
    return centred * (mean_of_counted(centred.square(), y) + 1e-6).rsqrt()


def mean_of_counted(values: Tensor, y: Tensor) -> Tensor:
    """The mean of (B,), or of the pixels of (B, H, W) whose label is not 255; 0 where there is none."""
    if values.ndim == 1:
        return values.mean()
    counted = labels_at(y, values) != IGNORED
    return (values * counted).sum() / counted.sum().clamp(min=1)


def labels_at(y_BHW: Tensor, like: Tensor) -> Tensor:
    """Labels of pixels at the height and width of `like`, each that of the nearest pixel; (B, H, W) int64."""
    if y_BHW.shape[1:] == like.shape[-2:]:
        return y_BHW
    return F.interpolate(y_BHW[:, None].float(), like.shape[-2:], mode="nearest")[:, 0].long()
