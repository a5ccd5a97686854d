"""A run as one ONNX graph: raw rows -> standardisation, backbone, detector -> `score` and `verdict`."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from outlie.detectors.pyod import PyOD
from outlie.errors import UserError
from outlie.export.finished import Finished, headline
from outlie.export.session import KEY
from outlie.export.trace import EXAMPLE, traced
from outlie.metrics import cost
from outlie.results import store

LARGEST = 2**31 - 2**24  # bytes of one ONNX file
INSTEAD = "choose another detector, or use the run itself: run score run=RUN needs no export"


def write(path: Path, run: Finished, rows: Tensor, opset: int | None) -> dict[str, Any]:
    """Write the graph with its metadata, which is returned.

    Args:
        rows: (n, ...) raw rows of the run to trace with, n >= 1.
        opset: version of ONNX's operators; None = torch's choice.

    Raises:
        UserError: the score is no graph, an operator is missing in ONNX, or the graph is too large for one file.
    """
    check_installed()
    if isinstance(run.detector, PyOD):
        raise UserError(f"{run.result['detector']} is PyOD's, computed in NumPy: there is no graph of it; {INSTEAD}")
    held = sum(t.numel() * t.element_size() for one in (run.backbone, run.detector) for t in tensors(one))
    if held > LARGEST:
        raise UserError(f"{held / 1e9:.1f} GB of weights and training rows, and an ONNX file holds 2 GB; {INSTEAD}")
    limit = (run.result.get("threshold") or {}).get("value")

    def outputs(x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        score = run.detector.score(run.front(x)).double()
        return score if limit is None else (score, score > limit)

    example = rows[torch.arange(EXAMPLE) % len(rows)]
    said = metadata(run, example)
    try:
        graph = traced(outputs, example)
    except UserError as error:
        raise UserError(f"{run.result['detector']} cannot be exported: {error}; {INSTEAD}") from error
    with quiet():
        program = to_onnx(graph, example, ["score"] if limit is None else ["score", "verdict"], opset, run)
    program.model.metadata_props[KEY] = json.dumps(said)
    program.model.producer_name = "outlie"
    with store.whole(path) as temporary:
        program.save(str(temporary))
    return said


def metadata(run: Finished, example: Tensor) -> dict[str, Any]:
    """What the file says about itself, as plain values."""
    result, fixed = run.result, run.result.get("threshold") or {}
    scores = store.read_scores(run.folder).get("calibration") if fixed else None
    on, metrics = headline(result)
    return {
        "run": run.folder.name,
        **{name: result[name] for name in ("dataset", "protocol", "detector", "backbone", "seed", "data_sha256")},
        "columns": list(run.columns),
        "input_shape": list(example.shape[1:]),
        "dtype": str(example.dtype).removeprefix("torch."),
        "threshold": fixed.get("value"),
        "false_alarms": fixed.get("false_alarms"),
        "guarantee": fixed.get("guarantee"),
        "calibration": None if scores is None else scores[2].tolist(),
        "measured_on": on,
        "metrics": metrics,
        **cost.stored(run.backbone, run.detector),
        "flops_per_row": cost.flops(run.front, run.detector, example[:1]),
        "code_version": store.code_version(),
    }


def to_onnx(graph: fx.GraphModule, example: Tensor, names: list[str], opset: int | None, run: Finished) -> Any:
    """torch.onnx's program; UserError names the operator that it has no translation of."""
    try:
        return torch.onnx.export(
            graph, (example,), dynamo=True, verbose=False, input_names=["x"], output_names=names, opset_version=opset,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        )  # fmt: skip
    except Exception as error:  # whatever torch.onnx raises: its classes are private
        said = " ".join(str(error).split())
        lacking = re.search(r"translating node.*?torch\.ops\.([\w.]+?)\]", said)
        reason = f"ONNX has no operator for {lacking[1]}" if lacking else f"torch.onnx says: {said[:200]}"
        raise UserError(f"{run.result['detector']} cannot be exported: {reason}; {INSTEAD}") from error


def check_installed() -> None:
    """UserError where the packages of the export extra are missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install 'outlie[export]'") from error


def tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the remarks of torch.onnx on packages and versions, which a user can do nothing about."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
