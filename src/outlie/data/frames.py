"""A user's table as it is in the file: CSV, Parquet or NPZ to a polars frame; nothing is unpickled."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import polars as pl

from outlie.data.arrays import as_matrix, as_vector, column_names, npz_names, read_npz
from outlie.errors import UserError, unknown

Format = Literal["csv", "parquet", "npz"]
SUFFIXES: dict[str, Format] = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".parquet": "parquet", ".npz": "npz"}
EMPTY_WORDS = ["", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "?"]


def read_frame(path: Path, format: Format | None, separator: str, label: str | None) -> pl.DataFrame:
    """Every column of the file; an npz gives x0, x1, ... from `X` and a column for the array `label`.

    Raises:
        UserError: an unreadable, damaged or empty file.
    """
    if format is None and path.suffix.lower() not in SUFFIXES:
        raise UserError(f"cannot tell what {path} is: dataset.format=csv|parquet|npz")
    format = format or SUFFIXES[path.suffix.lower()]
    if format == "npz":
        return _read_npz(path, label)
    try:
        if format == "parquet":
            frame = pl.read_parquet(path)
        else:  # every row decides on the types, not the first hundred
            frame = pl.read_csv(path, separator=separator, null_values=EMPTY_WORDS, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"cannot read {path} as {format}: {reason}; it may be truncated, or see dataset.format="
        ) from error
    if frame.height == 0:
        raise UserError(f"{path} has no rows: give a table with at least a few")
    return frame


def _read_npz(path: Path, label: str | None) -> pl.DataFrame:
    names = npz_names(path)
    if label is not None and label not in names:
        raise UserError(f"{path}: {unknown('label array', label, names)}; dataset.label=null if there are no labels")
    arrays = read_npz(path, ["X"] if label is None else ["X", label])
    x = as_matrix(arrays[0], f"X of {path}")
    frame = pl.DataFrame(x, schema=list(column_names(x.shape[1])))
    if label is None:
        return frame
    y = as_vector(arrays[1], len(x), f"{label} of {path}")
    return frame.with_columns(pl.Series(label, y))


def require_columns(frame: pl.DataFrame, names: Iterable[str], option: str) -> None:
    """UserError with the nearest match for a column that is not there."""
    for name in names:
        if name not in frame.columns:
            raise UserError(f"{option}: {unknown('column', name, frame.columns)}")
