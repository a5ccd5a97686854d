"""Scores written as they come, CSV or Parquet: the file is there when it is complete, and not before."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

from outlie.errors import UserError
from outlie.results.store import whole, writing

PART_ROWS = 2**20  # of a part of a Parquet file, held in memory
Write = Callable[[pl.DataFrame], None]


def require_output(path: Path, inputs: list[Path], force: bool) -> None:
    """UserError for a format we do not write, a file that would be lost, or a folder that is not there."""
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise UserError(f"output={path}: allowed: .csv, .parquet")
    if not path.parent.is_dir():
        raise UserError(f"output={path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise UserError(f"output={path} is a folder: name a file in it, {path / 'scores.csv'}")
    if any(path.exists() and one.exists() and path.samefile(one) for one in inputs):
        raise UserError(f"output={path} is the input or the feedback: write to another file")
    if path.exists() and not force:
        raise UserError(f"output={path} is there already: force=true replaces it, or choose another name")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"output={path}: no permission to write in {path.parent}")


@contextlib.contextmanager
def sink(path: Path) -> Iterator[Write]:
    """A function that appends a frame; `path` appears when the block ends well, nothing is left when it does not."""
    with whole(path) as temporary:
        if path.suffix.lower() == ".csv":
            with open(temporary, "wb") as file:
                yield _csv(file)
        else:
            parts = temporary.with_name(f"{temporary.name}.parts")
            try:
                parts.mkdir()
                held: list[pl.DataFrame] = []
                yield lambda frame: _parquet(held, frame, parts, PART_ROWS)
                _parquet(held, None, parts, 0)
                with writing(path):
                    files = sorted(parts.iterdir())
                    pl.scan_parquet(files, glob=False).sink_parquet(temporary, engine="streaming")
            finally:
                shutil.rmtree(parts, ignore_errors=True)


def _csv(file: object) -> Write:
    first = True

    def write(frame: pl.DataFrame) -> None:
        nonlocal first
        frame.write_csv(file, include_header=first)  # type: ignore[call-overload]
        first = False

    return write


def _parquet(held: list[pl.DataFrame], frame: pl.DataFrame | None, parts: Path, at_least: int) -> None:
    if frame is not None:
        held.append(frame)
    if held and sum(map(len, held)) >= at_least:
        pl.concat(held).write_parquet(parts / f"{len(list(parts.iterdir())):08d}.parquet")
        held.clear()
