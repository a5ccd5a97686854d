"""alpha such that alpha L_distill = c L_task, measured on 50 batches after a tenth of a training without a teacher."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from outlie import stages
from outlie.batches import Batches
from outlie.detectors.base import Views
from outlie.distillers.base import OWN_WEIGHT
from outlie.distillers.training import Distilling
from outlie.errors import UserError
from outlie.gather import mean_over_ranks, rank_and_world
from outlie.log import log
from outlie.results import store
from outlie.trainer import Options

BATCHES = 50
SHARE = 0.1  # of the student's training, before the weight is measured


def calibrate(module: Distilling, views: Views, seed: int, options: Options, folder: Path, bar: str) -> dict[str, Any]:
    """Set the distiller's weight so that its part is `calibrate` times the student's own loss; found again in `folder`.

    Returns:
        weight, and own_loss and part as they were measured, the part at the weight that was given.
    """
    distiller, path = module.distiller, folder / "weight.json"
    if path.is_file():
        known = json.loads(path.read_text())
        distiller.weight = known["weight"]
        return known
    student = learned_alone(module.student, views, seed, options, folder, bar)
    own_loss, part = measured(module, student, views, seed)
    if not part > 0:
        raise UserError(f"the distiller's part is {part:.4g} on {BATCHES} batches: set distiller.weight")
    distiller.weight *= distiller.calibrate * own_loss / part
    log.info("distil    own loss %.4g, distiller's part %.4g: weight %.4g", own_loss, part, distiller.weight)
    known = {"weight": distiller.weight, "own_loss": own_loss, "part": part}
    if rank_and_world()[0] == 0:
        store.write_json(path, known)
        shutil.rmtree(folder / "alone", ignore_errors=True)
    return known


def learned_alone(student: Any, views: Views, seed: int, options: Options, folder: Path, bar: str) -> Any:
    """A copy of the student after a tenth of its own training."""
    student = copy.deepcopy(student)
    recipe = student.recipe
    short = {"epochs": max(1, round(SHARE * recipe.epochs))}
    if getattr(recipe, "steps", None):
        short["steps"] = max(1, round(SHARE * recipe.steps))
    student.recipe = dataclasses.replace(recipe, **short)
    log.info("distil    the weight is measured: first the student learns alone, a tenth of its training")
    stages.train(student, views, seed, options, folder / "alone", bar)
    return student


@torch.no_grad()
def measured(module: Distilling, student: Any, views: Views, seed: int) -> tuple[float, float]:
    """Mean own loss and mean distiller's part of the student as it is; the module's own student is left as it was."""
    before = {name: value.clone() for name, value in module.student.state_dict().items()}
    device = next(student.parameters()).device
    module.student.load_state_dict(student.state_dict())
    module.to(device).train()
    generator = torch.Generator(device).manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    batches = Batches(views, module.recipe.batch_size, True, lambda: order)
    totals = torch.zeros(2, dtype=torch.float64)
    endless = itertools.chain.from_iterable(iter(batches) for _ in itertools.count())
    for batch in itertools.islice(endless, BATCHES):
        objective, parts = module.terms(batch.map(lambda t: t.to(device)), generator)
        weighted = sum(float(value) for name, value in parts.items() if not name.startswith(OWN_WEIGHT))
        totals += torch.tensor([float(objective), weighted])
    module.student.load_state_dict(before)
    own_loss, part = (float(mean_over_ranks(total.to(device).float())) / BATCHES for total in totals)
    return own_loss, part
