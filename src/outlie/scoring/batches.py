"""Batches as the run scores them, whatever the input was; and how far they are."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from outlie.log import log
from outlie.scoring import schema as schemas
from outlie.scoring.inputs import Source
from outlie.scoring.report import UNKNOWN

QUIET_SECONDS = 30.0  # without a bar, a line at most so often
WHOLE = "all"  # the period of rows without one


@dataclass
class Batch:
    """B rows: what the output keeps of them, and the B' of them that can be scored."""

    frame: pl.DataFrame  # row or file, kept columns, period
    x: np.ndarray  # (B', ...) encoded
    errors: np.ndarray  # (B,) why a row cannot be scored, None where it can
    unseen: dict[str, int] = field(default_factory=dict)
    resized: int = 0

    @property
    def good(self) -> np.ndarray:
        """(B,) whether a row can be scored."""
        return can_be(self.errors)


def can_be(errors: np.ndarray) -> np.ndarray:
    """(B,) where no error is said."""
    return np.equal(errors, None)  # pyright: ignore[reportCallIssue, reportArgumentType]


def of_tables(
    source: Source,
    schema: schemas.Schema,
    keeps_gaps: bool,
    keep: Sequence[str],
    month: str | None,
    timestamp: str | None,
    only: Container[int] | None = None,
) -> Iterator[Batch]:
    """Encoded rows of a table; with `only`, those row numbers alone."""
    start = 0
    for frame in source.batches():
        rows = pl.int_range(start, start + len(frame), dtype=pl.Int64, eager=True).alias("row")
        start += len(frame)
        if only is not None:
            chosen = rows.is_in(list(only))  # type: ignore[call-overload]
            frame, rows = frame.filter(chosen), rows.filter(chosen)
        encoded = schemas.encode(schema, frame, keeps_gaps)
        good = can_be(encoded.errors)
        kept = frame.select(rows, *keep, periods(frame, month, timestamp))
        x = encoded.x if good.all() else encoded.x[good]
        yield Batch(kept, x, encoded.errors, encoded.unseen)


def of_images(source: Source, by: str, only: Container[int] | None = None) -> Iterator[Batch]:
    """Images by file name, or by their position in an array."""
    for some in source.batches():
        names = pl.Series(by, some.names).cast(pl.String if by == "file" else pl.Int64)
        frame = pl.DataFrame({by: names, "period": [WHOLE] * len(names)})
        x, errors = some.x, some.errors
        if only is not None and by == "row":
            chosen = np.array([row in only for row in names], dtype=bool)
            frame, x, errors = frame.filter(pl.Series(chosen)), x[chosen], errors[chosen]
        yield Batch(frame, x, errors, resized=some.resized)


def periods(frame: pl.DataFrame, month: str | None, timestamp: str | None) -> pl.Series:
    """(B,) the period of each row: as the column says, or the month of a date; `all` where there is no such column."""
    name = month or timestamp
    if name is None or name not in frame.columns:
        return pl.Series("period", [WHOLE], dtype=pl.String).new_from_index(0, len(frame))
    column = frame[name]
    if timestamp is not None and column.dtype.is_temporal():
        words = column.dt.strftime("%Y-%m")
    else:
        words = column.cast(pl.String).str.strip_chars()
        if timestamp is not None:
            words = words.str.extract(r"^(\d{4}-\d{2})\b", 1)
    return words.fill_null(UNKNOWN).alias("period")


@contextlib.contextmanager
def progress(bar: str, total: Callable[[], int | None]) -> Iterator[Callable[[int], None]]:
    """Counts rows: a bar with rows a second and the time that remains, or, without one, a line now and then."""
    done, started, said = 0, time.monotonic(), time.monotonic()
    shown = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]} rows"),
        TextColumn("{task.fields[rate]} rows/s"), TimeRemainingColumn(), console=Console(stderr=True), transient=True,
        disable=not bar,
    )  # fmt: skip
    n = total()
    task = shown.add_task(bar, total=n, rows="0", rate="-")

    def advance(rows: int) -> None:
        nonlocal done, said
        done += rows
        rate = done / max(1e-9, time.monotonic() - started)
        shown.update(task, completed=done, rows=f"{done:,}" + (f"/{n:,}" if n else ""), rate=f"{rate:,.0f}")
        if not bar and time.monotonic() - said > QUIET_SECONDS:
            log.info("score     %s rows, %s rows/s", f"{done:,}", f"{rate:,.0f}")
            said = time.monotonic()

    with shown:
        yield advance
