"""What commands on a denoiser's run have in common: the run, finished and of a denoiser, and its backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from outlie import catalog, checks
from outlie.build import build
from outlie.commands.evaluate import finished, same_training
from outlie.errors import UserError
from outlie.results import store
from outlie.trainer import Options


def opened(now: dict[str, Any], command: str) -> tuple[Path, Any, Options]:
    """The run's folder, its backbone, built and not yet filled, and the trainer's options, whose threads are set.

    Raises:
        UserError: the run is not finished, its backbone is no denoiser, or the overrides ask for another training.
    """
    run = Path(now["run"])
    _, then = finished(run)
    same_training(then, now, ())
    if store.training_identity(now)["dataset"] != store.training_identity(then)["dataset"]:
        raise UserError(f"run {command} works with the images of the run's training: keep its dataset")
    backbone = build(now["backbone"], list(now["allow"]))
    if "denoiser" not in backbone.provides:
        would_do = ", ".join(f"backbone={name}" for name in checks.providers(("denoiser",), catalog.roots()))
        raise UserError(
            f"run {command} needs a denoiser, and the backbone of {run.name} is {then['choices']['backbone']}; "
            f"would do: a run with {would_do}"
        )
    options = build(now["trainer"], list(now["allow"]))
    if options.threads:
        torch.set_num_threads(options.threads)
    return run, backbone, options
