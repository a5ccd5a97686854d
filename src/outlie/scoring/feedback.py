"""What people said about rows: labels by row or file name, and what of them may move a threshold.

A conformal threshold needs normal rows that are exchangeable with new normal rows. Reviewed alarms are not: they were
looked at because their scores are high, and adding them to the calibration set would raise the threshold whenever the
detector works as promised. So only audited rows, drawn irrespective of their scores (column `audit`), and found normal
join the calibration scores; with them a new normal row is flagged with probability at most fpr, as before, for a
larger n. Labels of other rows are counted in the report, and move nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from scipy import stats

from outlie.data.arrays import require_file
from outlie.data.frames import EMPTY_WORDS, read_frame
from outlie.errors import UserError, unknown
from outlie.scoring.schema import NAMED

DOUBT = 0.01  # p-value below which audited scores are said to differ from the calibration scores
WORDS = {"1": 1, "1.0": 1, "true": 1, "anomaly": 1, "0": 0, "0.0": 0, "false": 0, "normal": 0}


@dataclass(frozen=True)
class Feedback:
    """Reviewed rows; `score` where the file has it: it is then an output of `run score` that people added to."""

    by: Literal["row", "file"]
    frame: pl.DataFrame  # by, label (1 = anomaly, 0 = normal, null = not reviewed), audit, maybe score, verdict, period

    @property
    def has_scores(self) -> bool:
        """Whether the file brings the scores of its rows."""
        return "score" in self.frame.columns

    @property
    def reviewed(self) -> int:
        """How many rows have a label."""
        return len(self.frame) - self.frame["label"].null_count()


def read(path: Path, by: Literal["row", "file"], period: str | None) -> Feedback:
    """A CSV or Parquet with `row` or `file`, `label` and, optionally, `audit`, `score`, `verdict`, `period`.

    Args:
        by: what names a row of the input.
        period: month= or timestamp=, a column that may be there.

    Raises:
        UserError: no such columns, labels other than 0 and 1, a row that is named twice.
    """
    frame = read_frame(require_file(path, "feedback"), None, ",", None)
    if by not in frame.columns and "score" in frame.columns:
        frame = frame.with_row_index(by)
    for name in (by, "label"):
        if name not in frame.columns:
            raise UserError(f"feedback={path}: {unknown('column', name, frame.columns)}; it needs {by} and label")
    if by == "row" and not frame["row"].dtype.is_integer():
        raise UserError(f"feedback={path}: column row is {frame['row'].dtype}, expected the row numbers of the output")
    key = pl.col(by).cast(pl.Int64 if by == "row" else pl.String)
    if (twice := frame.filter(pl.col(by).is_duplicated())[by].unique().sort()).len():
        named = ", ".join(map(str, twice.head(NAMED)))
        raise UserError(f"feedback={path} names {twice.len()} {by}s twice ({named}): one verdict each")
    audit = _flags(frame, "audit", path).fill_null(0) == 1 if "audit" in frame.columns else pl.Series([False])
    wanted = [name for name in ("score", "verdict", period) if name and name in frame.columns]
    kept = frame.select(key, *wanted).with_columns(_flags(frame, "label", path))
    if not (kept["label"].is_not_null()).any():
        raise UserError(f"feedback={path}: no row has a label; write 1 (anomaly) or 0 (normal) where somebody looked")
    kept = kept.with_columns(audit.alias("audit") if len(audit) == len(kept) else pl.lit(False).alias("audit"))
    if "score" in kept.columns:
        if not kept["score"].dtype.is_float():
            raise UserError(f"feedback={path}: column score is {kept['score'].dtype}, expected numbers")
        kept = kept.filter(pl.col("score").is_finite())
    return Feedback(by, kept)


def _flags(frame: pl.DataFrame, name: str, path: Path) -> pl.Series:
    words = frame[name].cast(pl.String).str.strip_chars().str.to_lowercase()
    words = words.set(words.is_in([word.lower() for word in EMPTY_WORDS]), None)
    found = words.replace_strict(WORDS, default=None, return_dtype=pl.Int8)
    if (wrong := words.filter(found.is_null() & words.is_not_null())).len():
        raise UserError(f"feedback={path}: column {name} has '{wrong[0]}', allowed: 1, 0 or nothing")
    return found.alias(name)


@dataclass(frozen=True)
class Recalibrated:
    """Calibration scores after the audit, and what is to be said about them."""

    calibration: np.ndarray
    audited: int  # normal rows that joined
    notes: list[str]


def recalibrate(
    calibration: np.ndarray, audited: np.ndarray, reviewed: int, how: Literal["extend", "replace"]
) -> Recalibrated:
    """Audited normal scores beside the calibration scores, or in their place.

    Args:
        audited: scores of rows that were drawn irrespective of their scores and found normal.
        reviewed: how many rows have a label.
        how: extend is exact where all of them are alike; replace trusts the audited rows alone.

    Raises:
        UserError: `replace` without audited rows.
    """
    if not len(audited):
        if how == "replace":
            raise UserError("recalibrate=replace needs audited normal rows: mark them audit=1 in the feedback file")
        return Recalibrated(calibration, 0, [
            f"none of the {reviewed} reviewed rows is a normal one that was drawn at random (audit=1): thresholds stay "
            "as they were, because rows that were looked at for their scores say nothing about the others"
        ])  # fmt: skip
    if how == "replace":
        said = f"thresholds rest on {len(audited)} audited normal rows alone"
        return Recalibrated(audited, len(audited), [said])
    notes = [f"thresholds rest on {len(calibration)} calibration rows and {len(audited)} audited normal rows"]
    test = stats.ks_2samp(calibration, audited, method="asymp")
    if float(test.pvalue) < DOUBT:  # pyright: ignore[reportAttributeAccessIssue]
        notes.append(
            f"audited normal rows do not score like the calibration rows (KS p = {test.pvalue:.2g}): the guarantee "  # pyright: ignore[reportAttributeAccessIssue]
            "does not hold for both; recalibrate=replace takes the audited rows alone"
        )
    return Recalibrated(np.concatenate([calibration, audited]), len(audited), notes)
