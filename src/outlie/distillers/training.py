"""Loss of a student = its own objective + the distiller's parts; the teacher sees the same augmented batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from outlie.detectors.base import Views
from outlie.distillers.base import Distiller, Seen
from outlie.errors import UserError, unknown
from outlie.log import log

CALIBRATION_BATCHES = 50
CALIBRATION_SHARE = 0.1  # of the student's training, before the weight is measured


class Distilling(nn.Module):
    """A student backbone under training: what `lightning.Train` is given in the place of the backbone.

    The teacher is in a list: none of its tensors is a parameter or in the state. What it is changes with no step: it
    stays in eval mode whatever `train()` says, and runs without a gradient.

    Args:
        student: a backbone with `augmented_views`, `objective` and `stage_names` (Classifier, Segmenter), set up.
        teacher: another one, its weights loaded.
        distiller: what is added to the student's objective.
        sample: (n, C, H, W) raw images, or rows, from which the shapes are taken.
    """

    def __init__(self, student: Any, teacher: Any, distiller: Distiller, sample: Tensor) -> None:
        super().__init__()
        if getattr(student, "mixup", 0):
            raise UserError("backbone.mixup cannot be used here: the labels of a mixed batch are two; set it to 0")
        self.student, self.distiller = student, distiller
        self._teacher = [teacher.eval().requires_grad_(False)]
        self.recipe = student.recipe
        if hasattr(student, "parameter_groups"):  # parts of a network that learn at different rates
            self.parameter_groups = lambda: [
                *student.parameter_groups(), {"params": list(distiller.parameters()), "scale": 1.0}
            ]  # fmt: skip
        self.pairs = locations(distiller, student, teacher)
        self._kept: dict[str, dict[str, Tensor]] = {"student": {}, "teacher": {}}
        for whose, network, names in zip(("student", "teacher"), (student, teacher), zip(*self.pairs)):
            for name in names:
                network.get_submodule(name).register_forward_hook(self._keeping(whose, name))
        with torch.no_grad():
            shown = sample[:2]
            seen = [self._seen(whose, network.eval(), shown) for whose, network in self._networks()]
        logits = [one.logits.shape for one in seen]
        if len(logits[0]) != len(logits[1]) or logits[0][1] != logits[1][1]:
            tasks = ["a class for every pixel" if len(s) == 4 else "a class for a sample" for s in logits]
            raise UserError(
                f"the teacher gives {tasks[1]} of {logits[1][1]} classes, the student {tasks[0]} of {logits[0][1]}: "
                "choose a backbone for the teacher's task, on the teacher's data"
            )
        for pair, mine, its in zip(self.pairs, seen[0].maps, seen[1].maps):
            resized = mine.ndim == 4 and its.ndim == 4 and mine.shape[2:] != its.shape[2:]
            log.info(
                "distil    %s %s -> %s %s%s", pair[0], tuple(mine.shape[1:]), pair[1], tuple(its.shape[1:]),
                ", resized" if resized else "",
            )  # fmt: skip
        distiller.setup(*seen)
        self.sums: dict[str, Tensor] = {}

    def _networks(self) -> tuple[tuple[str, Any], tuple[str, Any]]:
        return ("student", self.student), ("teacher", self._teacher[0])

    def _keeping(self, whose: str, name: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            self._kept[whose][name] = output

        return keep

    def _seen(self, whose: str, network: Any, x: Tensor) -> Seen:
        return self.answer(whose, network.views(network.standardise(x)))

    def answer(self, whose: str, views: Views) -> Seen:
        """The logits of a pass, and the maps that its hooks kept; these are let go."""
        logits = views.logits if views.logits is not None else views.maps
        assert logits is not None
        side = 0 if whose == "student" else 1
        maps = [self._kept[whose][pair[side]] for pair in self.pairs]
        self._kept[whose].clear()
        return Seen(logits, maps)

    def forward(self, x: Tensor) -> Views:
        """The student's views; the teacher's pass is made, too, so that the cost of a step can be counted."""
        self._seen("teacher", self._teacher[0], x)
        return self.student(x)

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """objective + sum of the distiller's parts; scalar."""
        objective, parts = self.terms(views, generator)
        for name, value in {"objective": objective, **parts}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()
        self.sums["steps"] = self.sums.get("steps", torch.zeros((), device=objective.device)) + 1
        return objective + torch.stack(list(parts.values())).sum()

    def terms(self, views: Views, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The student's own loss of an augmented batch, and the distiller's parts."""
        teacher = self._teacher[0]
        views = self.student.augmented_views(views, generator)
        assert views.x is not None and views.y is not None
        if next(teacher.parameters()).device != views.x.device:
            teacher.to(views.x.device)
        z = self.student.standardise(views.x)
        own = self.student.views(self.distiller.image(z, generator))
        objective = self.student.objective(own, views.y)
        student = self.answer("student", own)
        with torch.no_grad():
            taught = self._seen("teacher", teacher, views.x)
        return objective, self.distiller(student, taught, views.y, generator)

    def means(self) -> dict[str, float]:
        """Mean over the steps of this process of each part, weighted as it entered the loss."""
        sums = {name: float(value) for name, value in self.sums.items()}
        steps = sums.pop("steps", 1.0)
        return {name: value / steps for name, value in sums.items()}


def locations(distiller: Distiller, student: Any, teacher: Any) -> list[tuple[str, str]]:
    """(student's layer, teacher's layer) of each comparison; UserError for a layer that does not exist."""
    if distiller.locations:
        pairs = [(one.partition(":")[0], one.partition(":")[2] or one) for one in distiller.locations]
    else:
        mine, its = list(student.stage_names), list(teacher.stage_names)
        if distiller.places == "none":
            return []
        if not mine or not its:
            whose = "student" if not mine else "teacher"
            raise UserError(f"the {whose}'s network has no stages; name layers: distiller.locations=[STUDENT:TEACHER]")
        match distiller.places:
            case "all" if len(mine) != len(its):
                raise UserError(
                    f"the student has {len(mine)} stages, the teacher {len(its)}: which belong together? name them: "
                    f"distiller.locations=[{mine[-1]}:{its[-1]}]; student: {', '.join(mine)}; teacher: {', '.join(its)}"
                )
            case "all":
                pairs = list(zip(mine, its))
            case "middle":
                pairs = [(mine[(len(mine) - 1) // 2], its[(len(its) - 1) // 2])]
            case _:
                pairs = [(mine[-1], its[-1])]
    for whose, network, names in zip(("student", "teacher"), (student, teacher), zip(*pairs)):
        known = [name for name, _ in network.named_modules() if name]
        if wrong := [name for name in names if name not in known]:
            short = [name for name in known if name.count(".") == 0]
            near = unknown(f"layer of the {whose} in distiller.locations", wrong[0], known)
            raise UserError(f"{near.partition(';')[0]}; its first level: {', '.join(short)}")
    return pairs
