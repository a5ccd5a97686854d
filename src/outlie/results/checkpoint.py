"""model.ckpt: backbone and detector as tensors and plain values, loaded without unpickling anything."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from outlie.build import build
from outlie.detectors.base import Detector, Spec, set_up
from outlie.errors import UserError
from outlie.results import store


def save_model(
    path: Path,
    backbone: nn.Module,
    detector: Detector,
    spec: Spec,
    columns: tuple[str, ...],
    input_shape: tuple[int, ...] = (),
    schema: dict[str, Any] | None = None,
) -> None:
    """model.ckpt: tensors and plain values only, so that it loads with weights_only=True."""
    content = {
        "input_shape": list(input_shape),
        "backbone": backbone.state_dict(),
        "detector": detector.state_dict(),
        "shapes": {name: list(shape) for name, shape in spec.shapes.items()},
        "seed": spec.seed,
        "classes": spec.classes,
        "columns": list(columns),
        "blocks": [list(block) for block in spec.blocks],
        "schema": schema,  # how a new table's columns are encoded; None = numbers, as they are
    }
    with store.whole(path) as temporary:
        torch.save(content, temporary)


def load_model(path: Path, backbone: nn.Module, detector: Detector) -> tuple[str, ...]:
    """Fill backbone and detector with a finished run's state; returns the names of its columns."""
    return tuple(fill(path, backbone, detector)["columns"])


def open_model(run: Path, allow: list[str]) -> tuple[Any, Any, dict[str, Any]]:
    """Backbone and detector of a finished run, with their weights, and the whole checkpoint.

    Args:
        allow: modules that this command line allows; what the stored config allowed then does not count.
    """
    cfg: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    backbone, detector = (build(cfg[name], allow) for name in ("backbone", "detector"))
    return backbone, detector, fill(run / "model.ckpt", backbone, detector)


def fill(path: Path, backbone: Any, detector: Detector) -> dict[str, Any]:
    """Fill backbone and detector with a finished run's state; returns the whole checkpoint."""
    saved = load_backbone(path, backbone)
    shapes = {name: tuple(shape) for name, shape in saved["shapes"].items()}
    blocks = tuple((kind, width) for kind, width in saved.get("blocks", []))  # older checkpoints know none
    set_up(detector, Spec(shapes, saved["seed"], saved["classes"], getattr(backbone, "head", None), backbone, blocks))
    detector.load_state_dict(saved["detector"])
    detector.eval()
    return saved


def load_backbone(path: Path, backbone: Any) -> dict[str, Any]:
    """Fill the backbone of a finished run, its layers made first where it has any; returns the whole checkpoint."""
    saved = load_state(path)
    if hasattr(backbone, "build"):
        backbone.build(tuple(saved["input_shape"]), saved["classes"])
    backbone.load_state_dict(saved["backbone"])
    backbone.eval()
    return saved


def load_state(path: Path) -> dict[str, Any]:
    """A checkpoint, never unpickled; UserError if it is missing or broken."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint {path}; run train with force=true makes it again") from error
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(
            f"cannot read {path} ({type(error).__name__}): truncated or not a checkpoint; force=true makes it again"
        ) from error
