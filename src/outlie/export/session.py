"""An exported run under ONNX Runtime: raw rows in, scores and verdicts out; needs neither torch nor the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlie.errors import UserError

KEY = "outlie"  # of the file's metadata
ROWS_AT_ONCE, IMAGES_AT_ONCE = 1024, 64


class Exported:
    """A model.onnx that `run export` wrote.

    Args:
        path: the file.
        threads: of ONNX Runtime; None = its own choice.

    Raises:
        UserError: no such file, no export of ours, an operator that ONNX Runtime lacks, or ONNX Runtime is missing.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"no file {path}; run export run=RUN makes one")
        runtime = _runtime()
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base
            said = " ".join(str(error).split())
            if "NOT_IMPLEMENTED" in said:
                raise UserError(f"ONNX Runtime cannot run it: {said.rpartition('NOT_IMPLEMENTED : ')[2]}") from error
            raise UserError(
                f"cannot read {path}: {said[:200]}; run export run=RUN force=true makes it again"
            ) from error
        self.info: dict[str, Any] = json.loads(self.session.get_modelmeta().custom_metadata_map.get(KEY, "{}"))
        if not self.info:
            raise UserError(f"{path} was not made by run export: it does not say which columns it takes")
        self.columns: tuple[str, ...] = tuple(self.info["columns"])  # in order; () = images
        self.input_shape: tuple[int, ...] = tuple(self.info["input_shape"])  # of one row
        self.dtype = np.dtype(self.info["dtype"])
        self.threshold: float | None = self.info["threshold"]  # flagged above it; None = the run has none
        self.false_alarms: float | None = self.info["false_alarms"]  # the budget of the threshold
        self.calibration: NDArray[np.float64] | None = (  # scores that p-values are taken against
            None if self.info["calibration"] is None else np.array(self.info["calibration"])
        )

    def score(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """(B,) scores of raw rows (B, D), or of images (B, C, H, W) uint8; higher = more anomalous."""
        return self._run(x, ["score"])[0]

    def judge(self, x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_] | None]:
        """Scores, and which rows are flagged; None where the run has no threshold."""
        if self.threshold is None:
            return self.score(x), None
        score, verdict = self._run(x, ["score", "verdict"])
        return score, verdict

    def _run(self, x: NDArray[Any], outputs: list[str]) -> list[NDArray[Any]]:
        x = np.asarray(x)
        if x.shape[1:] != self.input_shape:
            raise UserError(f"rows of shape {x.shape[1:]}, and {self.path} takes {self.input_shape}")
        if x.dtype != self.dtype:
            if self.dtype == np.uint8:
                raise UserError(f"{self.path} takes images as uint8 (0 to 255), these are {x.dtype}")
            x = x.astype(self.dtype)
        step = ROWS_AT_ONCE if x.ndim == 2 else IMAGES_AT_ONCE
        starts = range(0, max(len(x), 1), step)
        if not len(x):
            return [np.empty(0, np.float64 if name == "score" else np.bool_) for name in outputs]
        parts = [self.session.run(outputs, {"x": np.ascontiguousarray(x[i : i + step])}) for i in starts]
        return [np.concatenate(columns) for columns in zip(*parts)]


def _runtime() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise UserError("ONNX Runtime is missing: pip install 'outlie[export]'") from error
    return onnxruntime
