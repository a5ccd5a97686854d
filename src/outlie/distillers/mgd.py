"""L = alpha / N sum (G(A(F_S) m) - F_T)^2, m = 1 with probability 1 - lambda: masked generative distillation (MGD)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from outlie.distillers.base import Distiller, Seen, align, at_size_of, require_maps
from outlie.distillers.channel_kl import channel_kl
from outlie.distillers.cwd import require_pixels
from outlie.distillers.gdd import generator_of
from outlie.errors import UserError
from outlie.options import NonNegativeFloat, PositiveFloat, PositiveInt


class MGD(Distiller):
    """From a part of the student's positions the whole of the teacher's map is generated, G = conv3 ReLU conv3.

    Args:
        weight: alpha, of a sum over channels and positions: what suits depends on the maps' size, so calibrate it.
        mask: lambda, the share of positions that are hidden, the same for all channels; 0 = none.
        gen_width: channels of A and G, with a 1x1 convolution to the teacher's after them; null = the teacher's own.
        logits: weight of the channel-wise KL of the logits beside it, 3 in the released segmentation; 0 = none.
        temperature: T of the softmax over positions of that KL.
        locations: layers that are compared, as STUDENT:TEACHER or one name for both; [] = the last stage of each.
        calibrate: weight is chosen so that the distiller's part is so many times the student's own loss, measured on 50
            batches after a tenth of a training of its own; 0 = weight is taken as it is.
    """

    paper: ClassVar[str] = "Yang et al., Masked Generative Distillation, ECCV 2022 (arXiv 2205.01529)"

    def __init__(
        self,
        weight: PositiveFloat = 2e-5,
        mask: NonNegativeFloat = 0.75,
        gen_width: PositiveInt | None = None,
        logits: NonNegativeFloat = 0.0,
        temperature: PositiveFloat = 4.0,
        locations: Sequence[str] = (),
        calibrate: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(weight, locations, calibrate)
        self.mask, self.gen_width, self.logits, self.temperature = mask, gen_width, logits, temperature
        if not mask < 1:
            raise UserError(f"mask = {mask} hides every position; set distiller.mask to a share from 0 to below 1")

    def setup(self, student: Seen, teacher: Seen) -> None:
        """Make A and G of each location."""
        require_maps(student, "mgd")
        require_maps(teacher, "mgd")
        if self.logits:
            require_pixels(student, "mgd/logits", "set distiller.logits to 0")
        self.aligns, self.generators = nn.ModuleList(), nn.ModuleList()
        for f_s, f_t in zip(student.maps, teacher.maps):
            width = min(self.gen_width or f_t.shape[1], f_t.shape[1])
            self.aligns.append(align(f_s, f_t[:, :width]))
            self.generators.append(generator_of(width, f_t.shape[1], 2))

    def forward(self, student: Seen, teacher: Seen, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """mgd of each location, and logits where they are asked for."""
        parts: dict[str, Tensor] = {}
        for i, (f_s, f_t) in enumerate(zip(student.maps, teacher.maps)):
            z = self.aligns[i](at_size_of(f_s, f_t))
            shown = torch.rand(len(z), 1, *z.shape[2:], generator=generator, device=z.device) >= self.mask
            parts[f"mgd_{i}"] = self.weight * squared_error(self.generators[i](z * shown), f_t)
        if self.logits:
            logits = at_size_of(student.logits, teacher.logits)
            parts["logits"] = self.logits * channel_kl(logits, teacher.logits, self.temperature)
        return parts


def squared_error(generated_NCHW: Tensor, teacher_NCHW: Tensor) -> Tensor:
    """The sum of squares over channels and positions, mean over samples, in float32; scalar."""
    return (generated_NCHW.float() - teacher_NCHW.float()).square().sum((1, 2, 3)).mean()
