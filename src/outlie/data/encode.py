"""Numbers from a frame: text and missing values, refused, handled or kept; what is fitted, is on training rows."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Literal

import numpy as np
import polars as pl

from outlie.data.arrays import count_by_column
from outlie.errors import UserError

Missing = Literal["error", "mean", "median", "drop_rows", "keep"]
Categorical = Literal["error", "one_hot", "drop"]
MAX_LEVELS = 256  # more distinct texts are names or ids, not categories


def numbers_and_texts(frame: pl.DataFrame, categorical: Categorical) -> tuple[np.ndarray, list[str], list[pl.Series]]:
    """Numbers (n, D) float64 with NaN for missing, their names, and text columns to encode (none unless `one_hot`).

    Raises:
        UserError: text columns under `error`, or columns that are neither numbers nor text.
    """
    # a column without any value has no type: it is left to check_missing
    frame = frame.with_columns(pl.lit(None).alias(name) for name in frame.columns if frame[name].is_null().all())
    kinds = frame.schema.items()
    numbers = [name for name, dtype in kinds if dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)]
    texts = [name for name, dtype in kinds if dtype in (pl.String, pl.Categorical, pl.Enum)]
    if other := [name for name in frame.columns if name not in {*numbers, *texts}]:
        named = ", ".join(f"{name} ({frame.schema[name]})" for name in other)
        raise UserError(f"columns that are neither numbers nor text: {named}; leave them out: {drop_option(other)}")
    if texts and categorical == "error":
        named = ", ".join(f"{name} (such as '{frame[name].drop_nulls().head(1).item()}')" for name in texts[:8])
        raise UserError(
            f"{len(texts)} columns are text, not numbers: {named}; "
            "dataset.categorical=one_hot encodes them, dataset.categorical=drop leaves them out"
        )
    if not numbers and not (texts and categorical == "one_hot"):
        raise UserError(
            f"no feature column is left of {len(frame.columns)}: drop fewer, or dataset.categorical=one_hot"
        )
    x = np.empty((len(frame), len(numbers)))
    for j, name in enumerate(numbers):
        x[:, j] = frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
    return x, numbers, [frame[name].cast(pl.String) for name in texts if categorical == "one_hot"]


def missing_cells(x: np.ndarray, texts: Sequence[pl.Series]) -> np.ndarray:
    """(n, D) where a cell has no value, numbers first."""
    return np.column_stack([np.isnan(x), *(text.is_null().to_numpy() for text in texts)])


def check_missing(missing_ND: np.ndarray, columns: Sequence[str], missing: Missing) -> None:
    """UserError for a column without any value, and for any missing value under `error`; `keep` takes everything."""
    if missing == "keep":
        return
    if empty := [columns[int(j)] for j in np.flatnonzero(missing_ND.all(0))]:
        raise UserError(f"columns without any value: {', '.join(empty)}; leave them out: {drop_option(empty)}")
    if missing == "error" and missing_ND.any():
        raise UserError(
            f"missing values (NaN) in {count_by_column(missing_ND, columns)}: dataset.missing=mean or =median fills "
            f"them from training rows, dataset.missing=drop_rows leaves {int(missing_ND.any(1).sum())} rows out, "
            "dataset.missing=keep leaves gaps to a detector that takes them, such as miwae"
        )


def gap_findings(missing_ND: np.ndarray, columns: Sequence[str], train: np.ndarray) -> list[str]:
    """What a user who keeps missing values as gaps should know about them, rows `train` being those learnt from."""
    if not (count := int(missing_ND.sum())):
        return []
    share, where = 100 * count / missing_ND.size, int(missing_ND.any(0).sum())
    findings = [f"{count} missing values ({share:.1f} %) in {where} columns are kept as gaps"]
    if empty_rows := int(missing_ND.all(1).sum()):
        findings.append(f"{empty_rows} of {len(missing_ND)} rows have no value at all, and are kept")
    for j in np.flatnonzero(missing_ND[train].all(0)):
        findings.append(f"column {columns[int(j)]} has no value in training rows: nothing is learnt about it")
    return findings


def impute(x: np.ndarray, fitted_on: np.ndarray, columns: Sequence[str], missing: Missing) -> np.ndarray:
    """NaN -> mean or median of the column over the rows `fitted_on`, or NaN under `keep`; (n, D) -> (n, D)."""
    bad = np.isnan(x)
    if missing == "keep" or not bad.any():
        return x
    if empty := [columns[int(j)] for j in np.flatnonzero(bad[fitted_on].all(0))]:
        raise UserError(
            f"columns without a value in training: {', '.join(empty)}; leave them out: {drop_option(empty)}"
        )
    return np.where(bad, fill_values(x[fitted_on], missing), x)


def fill_values(x: np.ndarray, missing: Missing) -> np.ndarray:
    """(D,) mean, or median, of the values that are there in each column of (n, D)."""
    return (np.nanmedian if missing == "median" else np.nanmean)(x, 0)


def schema(
    x: np.ndarray,
    fitted_on: np.ndarray,
    numbers: Sequence[str],
    types: Mapping[str, pl.DataType],
    levels: Mapping[str, Sequence[str]],
    missing: Missing,
) -> dict[str, Any]:
    """What encodes a new row as those of x (n, D) are, in plain values; `levels` are those of each text column."""
    fill = missing in ("mean", "median")
    return {
        "numbers": list(numbers),
        "booleans": [name for name in numbers if types[name] == pl.Boolean],
        "levels": {name: list(known) for name, known in levels.items()},
        "missing": missing,
        "fill": fill_values(x[fitted_on], missing).tolist() if fill else None,
    }


def one_hot(
    texts: Sequence[pl.Series], n: int, fitted_on: np.ndarray, missing: Missing
) -> tuple[np.ndarray, list[str], list[int]]:
    """(n, L) indicators of the levels seen in `fitted_on`, their names, and how many each text has.

    A new level is all zeros, and so is a missing text; under `keep` a missing text is NaN.
    """
    blocks, names, widths = [np.empty((n, 0))], [], []
    for column in texts:
        levels = column.gather(fitted_on).drop_nulls().unique().sort()
        if len(levels) > MAX_LEVELS:
            raise UserError(
                f"column {column.name} has {len(levels)} different texts, at most {MAX_LEVELS} are encoded: it looks "
                f"like a name or an id; leave it out: {drop_option([column.name])}"
            )
        block = (column.fill_null("").to_numpy()[:, None] == levels.to_numpy()[None, :]).astype(np.float64)
        if missing == "keep":
            block[column.is_null().to_numpy()] = np.nan
        blocks.append(block)
        names += [f"{column.name}={level}" for level in levels]
        widths.append(len(levels))
    return np.hstack(blocks), names, widths


def column_kinds(
    numbers: Sequence[str], types: Mapping[str, pl.DataType], levels: Sequence[int]
) -> tuple[tuple[str, int], ...]:
    """Runs of columns of one kind, in order: numbers and booleans as they come, then the levels of each text."""
    kinds = ["boolean" if types[name] == pl.Boolean else "number" for name in numbers]
    runs = [(kind, len(list(run))) for kind, run in groupby(kinds)]
    return (*runs, *(("levels", width) for width in levels if width))


def drop_option(columns: Sequence[str]) -> str:
    """`dataset.drop=[a,b]`."""
    return f"dataset.drop=[{','.join(columns)}]"
