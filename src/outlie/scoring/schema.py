"""The columns that a run was trained on: new tables are checked against them and encoded as the training rows were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from outlie.build import build
from outlie.errors import UserError, nearest
from outlie.log import log

TRUTH = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}
NAMED = 8  # columns or rows that a message names at most


@dataclass
class Encoded:
    """A batch of B rows as the backbone takes them, and which of them cannot be scored."""

    x: np.ndarray  # (B, D) float64
    errors: np.ndarray  # (B,) why a row cannot be scored, None where it can
    unseen: dict[str, int] = field(default_factory=dict)  # text column -> cells with a level training never had


@dataclass(frozen=True)
class Schema:
    """Columns in the order of training: numbers (booleans among them), then the known levels of each text."""

    numbers: tuple[str, ...]
    booleans: tuple[str, ...] = ()
    levels: dict[str, list[str]] = field(default_factory=dict)
    missing: str = "error"  # the dataset's option: error, mean, median, drop_rows, keep
    fill: np.ndarray | None = None  # (D,) for the numbers, under mean and median
    left_out: tuple[str, ...] = ()  # columns of the training file that are no features: label and dropped ones
    separator: str = ","

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that a file must have."""
        return (*self.numbers, *self.levels)

    @property
    def encoded(self) -> tuple[str, ...]:
        """Names of the encoded columns, as the run's checkpoint has them."""
        return (*self.numbers, *(f"{name}={level}" for name, known in self.levels.items() for level in known))


def of_run(saved: dict[str, Any], now: dict[str, Any], trained: dict[str, Any]) -> Schema:
    """The schema of a table's run: from its checkpoint, or, for a run that kept none, from its data read again.

    Args:
        saved: model.ckpt.
        now: the run's config.
        trained: its result.json.

    Raises:
        UserError: no schema was kept, and the data are gone or not those of the training.
    """
    stored = saved.get("schema")
    if stored is None and now["dataset"]["_target_"] == "outlie.data.tabular.Table":
        stored = _read_again(now, trained)
    if stored is None:
        return Schema(tuple(saved["columns"]))
    fill = None if stored["fill"] is None else np.array(stored["fill"], dtype=np.float64)
    return Schema(
        tuple(stored["numbers"]), tuple(stored["booleans"]), stored["levels"], stored["missing"], fill,
        tuple(stored["left_out"]), stored["separator"],
    )  # fmt: skip


def _read_again(now: dict[str, Any], trained: dict[str, Any]) -> dict[str, Any] | None:
    path = now["dataset"]["path"]
    again = "run train force=true --config RUN/config.yaml makes a run that keeps them"
    try:
        split = build(now["dataset"], now["allow"]).load(now["seed"])
    except UserError as error:
        raise UserError(
            f"the run kept no schema of its columns, and its data cannot be read ({error}): {again}"
        ) from error
    if split.data_sha256 != trained["data_sha256"]:
        raise UserError(f"the run kept no schema of its columns, and {path} is not what it was: {again}")
    log.info("schema    the run kept none: read from %s", path)
    return split.schema


def check(schema: Schema, present: Sequence[str], used: Sequence[str], where: str) -> list[str]:
    """Notes on columns of a file that nobody asked for; `used` are those of keep=, timestamp= and the like.

    Raises:
        UserError: columns that are missing, each with the column that was probably renamed; or keep= names none.
    """
    extra = [name for name in present if name not in schema.columns]
    if lost := [name for name in schema.columns if name not in present]:
        said = []
        for name in lost[:NAMED]:
            guess = nearest(name, [one for one in extra if one not in used])
            said.append(f"{name} (renamed to '{guess}'?)" if guess else name)
        more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
        raise UserError(
            f"{where} lacks {len(lost)} of the {len(schema.columns)} columns that the run was trained on: "
            f"{', '.join(said)}{more}; give them the names they had"
        )
    if absent := [name for name in used if name not in present]:
        guess = nearest(absent[0], present)
        hint = f" (did you mean '{guess}'?)" if guess else ""
        raise UserError(f"{where} has no column '{absent[0]}'{hint}, which keep=, month= or timestamp= names")
    ignored = [name for name in extra if name not in used and name not in schema.left_out]
    if not ignored:
        return []
    more = f" and {len(ignored) - NAMED} more" if len(ignored) > NAMED else ""
    return [f"{len(ignored)} columns are ignored, training had none of that name: {', '.join(ignored[:NAMED])}{more}"]


def encode(schema: Schema, frame: pl.DataFrame, keeps_gaps: bool = False) -> Encoded:
    """The rows of a frame whose columns have been checked, encoded as the training rows were.

    Missing values are filled, or stay, as the run's dataset.missing says; where it says error or drop_rows, the row
    has no score. A level that training never had is all zeros, as in the encoder. Infinite values give no score.

    Args:
        keeps_gaps: the detector takes NaN.

    Raises:
        UserError: a column of another kind than in training.
    """
    x_ND = np.empty((len(frame), len(schema.encoded)))
    for j, name in enumerate(schema.numbers):
        x_ND[:, j] = number(frame[name], name in schema.booleans)
    n = len(schema.numbers)
    numbers_ND = x_ND[:, :n]
    gaps_ND, infinite_ND = np.isnan(numbers_ND), np.isinf(numbers_ND)
    bad: list[tuple[str, np.ndarray, str]] = [
        (name, infinite_ND[:, j], "infinite value") for j, name in enumerate(schema.numbers) if infinite_ND[:, j].any()
    ]
    keeps = schema.missing == "keep" and keeps_gaps
    refuses = schema.missing in ("error", "drop_rows") or (schema.missing == "keep" and not keeps_gaps)
    if refuses:
        bad += [(name, gaps_ND[:, j], "missing value") for j, name in enumerate(schema.numbers) if gaps_ND[:, j].any()]
    elif schema.fill is not None and gaps_ND.any():
        x_ND[:, :n] = np.where(gaps_ND, schema.fill, numbers_ND)
    unseen, start = {}, n
    for name, known in schema.levels.items():
        text = _text(frame[name])
        gap, stop = text.is_null().to_numpy(), start + len(known)
        x_ND[:, start:stop] = text.fill_null("").to_numpy()[:, None] == np.array(known, dtype=object)[None, :]
        if keeps:
            x_ND[gap, start:stop] = np.nan
        if refuses and gap.any():
            bad.append((name, gap, "missing value"))
        if count := int((~gap & (np.nan_to_num(x_ND[:, start:stop]).sum(1) == 0)).sum()):
            unseen[name] = count
        start = stop
    errors = np.full(len(frame), None, dtype=object)
    for name, where, what in reversed(bad):  # the first is what is said
        errors[where] = f"{what} in {name}"
    return Encoded(x_ND, errors, unseen)


def number(column: pl.Series, boolean: bool = False) -> np.ndarray:
    """(B,) float64 of a column, NaN where there is no value; UserError where it holds text."""
    if column.dtype == pl.Null:
        return np.full(len(column), np.nan)
    if column.dtype == pl.String and boolean:
        words = column.str.strip_chars().str.to_lowercase()
        found = words.replace_strict(TRUTH, default=None, return_dtype=pl.Float64)
        if (wrong := words.filter(found.is_null() & words.is_not_null())).len():
            raise UserError(retyped(column.name, "true or false", f"'{wrong[0]}'"))
        column = found
    if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
        some = column.drop_nulls().head(1).to_list()
        raise UserError(retyped(column.name, "a number", f"{column.dtype}" + (f" such as '{some[0]}'" if some else "")))
    return column.cast(pl.Float64).fill_null(np.nan).to_numpy()


def _text(column: pl.Series) -> pl.Series:
    if column.dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        return column.cast(pl.String)
    raise UserError(retyped(column.name, "text", f"{column.dtype}"))


def retyped(name: str, trained: str, found: str) -> str:
    """One line for a column of another kind than in training."""
    return f"column {name} was {trained} in training, and is now {found}: correct the file"
