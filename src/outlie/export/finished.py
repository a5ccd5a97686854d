"""A finished run, opened: its result and config, its backbone and detector with their weights, and its own data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outlie import stages
from outlie.build import build
from outlie.commands.evaluate import finished
from outlie.data.split import Split
from outlie.detectors.base import Detector, Views
from outlie.errors import UserError
from outlie.results import checkpoint


@dataclass
class Finished:
    """What `run export` and `run bench` take of a run; on the CPU."""

    folder: Path
    result: dict[str, Any]
    config: dict[str, Any]
    backbone: Any
    detector: Detector
    columns: tuple[str, ...]

    @property
    def front(self) -> Callable[[Tensor], Views]:
        """Raw rows -> what the detector is given."""
        return stages.front(self.backbone, self.detector.needs)

    @torch.no_grad()
    def score(self, x: Tensor) -> Tensor:
        """(B,) float64 scores of raw rows (B, ...)."""
        return self.detector.score(self.front(x)).double()

    def split(self) -> Split:
        """The run's data; UserError where they are gone or are others by now."""
        split = build(self.config["dataset"], self.config["allow"]).load(self.config["seed"])
        if split.data_sha256 != self.result["data_sha256"]:
            raise UserError(f"the data of {self.folder.name} have changed since the run; run train again")
        return split


def opened(folder: Path, allow: Iterable[str] = ()) -> Finished:
    """Load a run; UserError where it is not finished, or its model is gone or broken."""
    result, config = finished(folder)
    config["allow"] = allow = list(allow)  # of this command line: a stored config allows nothing
    backbone, detector, saved = checkpoint.open_model(folder, allow)
    return Finished(folder, result, config, backbone, detector, tuple(saved["columns"]))


def some_rows(split: Split, most: int | None) -> Tensor:
    """(n, ...) raw rows of the test sets, one set after another, at most so many, evenly from each."""
    sets = [rows.x for rows in split.tests.values() if len(rows)]
    share = None if most is None else max(1, most // len(sets))
    return torch.cat([x[torch.arange(len(x) if share is None else min(share, len(x)))] for x in sets])


def headline(result: dict[str, Any]) -> tuple[str | None, dict[str, float | None]]:
    """What the run's recall and AUROC were measured on, and the metrics: test, or a protocol's mean over its sets."""
    metrics = result.get("metrics") or {}
    for name, values in (("test", metrics.get("test")), *(result.get("means") or {}).items(), *metrics.items()):
        if values:
            return name, values
    return None, {}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
