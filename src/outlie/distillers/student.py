"""A backbone trained by a teacher: the stage of `run distill` that stands where a backbone's own training would."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from outlie import stages
from outlie.build import build
from outlie.data.split import Split
from outlie.detectors.base import Views
from outlie.distillers.base import Distiller
from outlie.distillers.calibrate import calibrate
from outlie.distillers.training import Distilling
from outlie.errors import UserError
from outlie.lightning import Told
from outlie.log import log
from outlie.results import checkpoint, store
from outlie.trainer import Options


def distilled(
    cfg: dict[str, Any], backbone: Any, split: Split, rows: Views, options: Options, bar: str, on_epoch: Told
) -> dict[str, Any]:
    """Train the backbone, set up and not yet trained, by its objective and the distiller; what that cost.

    Raises:
        UserError: a backbone without training, a teacher of another input or task, a layer that does not exist.
    """
    distiller: Distiller = build(cfg["distiller"], list(cfg["allow"]))
    if hasattr(backbone, "trained") and not backbone.trained:
        raise UserError("the student has weights given, so there is nothing to distil: set backbone.weights=null")
    teacher = teacher_backbone(Path(cfg["teacher"]), split, list(cfg["allow"]))
    for whose, network in (("student", backbone), ("teacher", teacher)):
        if not hasattr(network, "objective"):
            raise UserError(
                f"distiller={cfg['choices']['distiller']} compares networks, and the {whose}'s backbone is "
                f"{type(network).__name__}, which learns no classes; distiller=scores distils a detector's scores"
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg["seed"])
        module = Distilling(backbone, teacher, distiller, split.train.x[torch.arange(2)])
    folder = store.backbone_folder(cfg)
    told: dict[str, Any] = {"helper_parameters": sum(p.numel() for p in distiller.parameters())}
    if distiller.calibrate:
        weighed = folder.with_name(f"{folder.name}-weight")
        if cfg["force"]:
            shutil.rmtree(weighed, ignore_errors=True)
        told |= calibrate(module, rows, cfg["seed"], options, weighed, bar)
    spent = stages.trained(module, rows, cfg["seed"], options, folder, bar, on_epoch, cfg["force"])
    if module.sums:  # of this training, not of one that was found
        parts = module.means()
        log.info("distil    %s", ", ".join(f"{name} {value:.4g}" for name, value in parts.items()))
        told |= {"parts": parts, "weight": distiller.weight}
        if (signal := getattr(distiller, "signal", None)) is not None:
            told["signal_to_noise"] = float(signal)
        store.write_json(folder / "distilled.json", told)
    return spent


def teacher_backbone(run: Path, split: Split, allow: list[str]) -> Any:
    """The backbone of a finished run, with its weights; UserError where it takes other rows than these."""
    if (result := store.read_result(run)) is None or result["status"] != "done":
        raise UserError(f"teacher {run} is not a finished run; run train --config {run / 'config.yaml'} finishes it")
    cfg: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    teacher = build(cfg["backbone"], allow)  # of this command line: a stored config allows nothing
    saved = checkpoint.load_backbone(run / "model.ckpt", teacher)
    if tuple(saved["input_shape"]) != tuple(split.train.x.shape[1:]):
        raise UserError(
            f"teacher {run.name} takes rows of shape {tuple(saved['input_shape'])}, these data have "
            f"{tuple(split.train.x.shape[1:])}: keep its dataset"
        )
    return teacher
