"""A distiller: what a student is pulled towards while it learns; it lives in training only.

A student's loss is `objective + sum of the distiller's parts`. The teacher, the distiller and its helper layers are
thrown away afterwards: the student's network is the one that would have been trained without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from outlie.backbones.dense_heads import at_size
from outlie.errors import UserError

# parts whose weight is an option of their own: `weight` does not count for them, nor is it measured on them
OWN_WEIGHT = ("energy", "soft_labels", "logits", "pixel", "pooled")


@dataclass
class Seen:
    """What a network made of a batch: its logits, and the maps of the layers that a distiller asked for."""

    logits: Tensor  # (B, C), or (B, C, H, W) at the size of the images where every pixel has a class
    maps: list[Tensor]  # of each location, in order: (B, C_l, H_l, W_l), or (B, D) of a network on rows


class Distiller(nn.Module):
    """Terms that are added to a student's loss; subclasses define `forward`, and `setup` where they have helper layers.

    `setup(student, teacher)`                    makes helper layers for maps of these shapes; called once.
    `forward(student, teacher, y, generator)`    name -> scalar, each weighted; the teacher's tensors have no gradient.

    Args:
        weight: factor of the distiller's parts beside the student's own loss.
        locations: layers that are compared, as STUDENT:TEACHER or one name for both; [] = the distiller's own choice.
        calibrate: weight is chosen so that the distiller's part is so many times the student's own loss, measured on 50
            batches after a tenth of a training of its own; 0 = weight is taken as it is.
    """

    paper: ClassVar[str] = ""  # where the method is from
    places: ClassVar[str] = "last"  # which stages are compared by default: none, last, middle or all

    def __init__(self, weight: float, locations: Sequence[str] = (), calibrate: float = 0.0) -> None:
        super().__init__()
        self.weight, self.calibrate = weight, calibrate
        self.locations = tuple(str(name) for name in locations)

    def setup(self, student: Seen, teacher: Seen) -> None:
        """Make helper layers; drawn from torch's global generator, which the caller has seeded."""

    def image(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """What the student sees of its standardised input; the teacher sees all of it."""
        return z

    def forward(self, student: Seen, teacher: Seen, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Name -> weighted scalar of a batch whose labels are `y`, (B,) or (B, H, W)."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward(student, teacher, y, generator)")


def align(student: Tensor, teacher: Tensor) -> nn.Module:
    """A in A(F_S): a 1x1 convolution (a linear layer on rows) to the teacher's channels, identity where they agree."""
    if student.shape[1] == teacher.shape[1]:
        return nn.Identity()
    if student.ndim == 2:
        return nn.Linear(student.shape[1], teacher.shape[1])
    return nn.Conv2d(student.shape[1], teacher.shape[1], 1)


def at_size_of(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """The student's map, resized bilinearly where the teacher's has another height or width; (B, C, H, W)."""
    return student_BCHW if student_BCHW.ndim != 4 else at_size(student_BCHW, teacher_BCHW.shape[2:])


def require_maps(seen: Seen, name: str) -> None:
    """UserError where a location gives no map over positions."""
    for found in seen.maps:
        if found.ndim != 4:
            raise UserError(
                f"distiller={name} compares maps over positions, and a location gives {tuple(found.shape[1:])}; "
                "distiller=hinton or distiller=fitnet compare rows"
            )


def require_positions(seen: Seen, name: str) -> None:
    """UserError where a map has one position: every softmax over it is 1, and nothing is learned."""
    for found in seen.maps:
        if found.shape[2:].numel() == 1:
            raise UserError(
                f"distiller={name} compares distributions over positions, and a layer gives {tuple(found.shape[1:])}: "
                "one position; name an earlier layer, distiller.locations=[...], or use distiller=fitnet"
            )
