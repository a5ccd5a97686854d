"""Raw rows to scores: a finished run's backbone and detector, or its export, loaded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outlie import distributed, stages
from outlie.build import build
from outlie.errors import UserError
from outlie.export.session import Exported
from outlie.results import checkpoint
from outlie.trainer import Options

Score = Callable[[np.ndarray], np.ndarray]  # (B, D) float64 or (B, C, H, W) uint8 -> (B,) float64


def of_run(run: Path, now: dict[str, Any], options: Options) -> tuple[Any, Any, Score]:
    """Backbone, detector and their score, on the device of the trainer's options."""
    backbone, detector = (build(now[section], now["allow"]) for section in ("backbone", "detector"))
    checkpoint.load_model(run / "model.ckpt", backbone, detector)
    device = distributed.device(options)
    if options.precision == "64-true" and "network" in backbone.provides:
        backbone.double()  # as its views were computed
    backbone.to(device).eval()
    detector.to(device).eval()
    front = stages.front(backbone, detector.needs)
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(options.precision)

    @torch.no_grad()
    def score(rows: np.ndarray) -> np.ndarray:
        parts = []
        for x in torch.from_numpy(np.require(rows, requirements=["C", "W"])).split(stages.rows_at_once(rows.shape[1:])):
            with torch.autocast(device.type, half, enabled=half is not None and "network" in backbone.provides):
                views = front(x.to(device))
            parts.append(detector.score(views).double().cpu())
        return torch.cat(parts).numpy()

    return backbone, detector, score


def of_export(path: Path, run: Path) -> Score:
    """The score of an exported model, under ONNX Runtime; UserError where it is the export of another run."""
    exported = Exported(path)
    if exported.info["run"] != run.name:
        raise UserError(
            f"{path} is an export of {exported.info['run']}, not of {run.name}: give run={exported.info['run']}"
        )
    return exported.score
