"""The user's own table: CSV, Parquet or NPZ."""

from pathlib import Path

import numpy as np

from outlie.data.arrays import hash_arrays, refuse_infinite, require_file
from outlie.data.assemble import assemble, cap_finding
from outlie.data.encode import (
    Categorical,
    Missing,
    check_missing,
    column_kinds,
    gap_findings,
    impute,
    missing_cells,
    numbers_and_texts,
    one_hot,
    schema,
)
from outlie.data.frames import Format, read_frame, require_columns
from outlie.data.labels import COLUMN_NAMES, anomaly_labels
from outlie.data.protocols import Protocol, partition
from outlie.data.split import Split
from outlie.options import Fraction, PositiveInt


class Table:
    """A table of your own, one sample a row; nothing is imputed, encoded or left out unless you say so.

    Args:
        path: The file.
        label: Column (in an npz: array) that says which rows are anomalies; null = no labels, all rows taken as normal.
        positive: Value of the label that means anomaly; null = plain words (1, true, anomaly against 0, false, normal).
        drop: Columns to leave out, such as ids.
        categorical: Text columns: error, one_hot (levels of the training rows) or drop.
        missing: Missing values: error, mean or median (of the training rows), drop_rows, or keep: gaps (NaN) stay, for
            a detector that takes them, such as miwae.
        format: csv, parquet or npz; null = by the file's ending.
        separator: Between the columns of a CSV.
        protocol: How rows are split; split keeps calibration rows, split_validation also labelled rows for a search
            (half of those that test under split); dte_* are those of Livernoche et al. (ICLR 2024).
        duplicate_small: dte_semi, dte_unsup: bootstrap fewer than 1,000 rows to 1,000; this leaks.
        max_rows: Sample larger tables down; null = no cap (50,000 in the dte_* protocols).
        calibration: Protocol split: fraction of the normal rows that fix the threshold.
        test: Protocol split: fraction of the normal rows that test, with all anomalies.
    """

    def __init__(
        self,
        path: Path,
        label: str | None = None,
        positive: str | int | float | bool | None = None,
        drop: list[str] | None = None,
        categorical: Categorical = "error",
        missing: Missing = "error",
        format: Format | None = None,
        separator: str = ",",
        protocol: Protocol = "split",
        duplicate_small: bool = True,
        max_rows: PositiveInt | None = None,
        calibration: Fraction = 0.3,
        test: Fraction = 0.3,
    ):
        self.path = Path(path).expanduser()
        self.label = label
        self.positive = positive
        self.drop = list(drop or ())
        self.categorical: Categorical = categorical
        self.missing: Missing = missing
        self.format: Format | None = format
        self.separator = separator
        self.protocol: Protocol = protocol
        self.duplicate_small = duplicate_small
        self.max_rows = max_rows
        self.calibration = calibration
        self.test = test

    def load(self, seed: int) -> Split:
        """The split of this seed; UserError names the columns and the option for whatever cannot be used as it is."""
        frame = read_frame(require_file(self.path), self.format, self.separator, self.label)
        require_columns(frame, self.drop, "dataset.drop")
        findings: list[str] = []
        if self.label is None:
            y = None
            findings += _unlabelled(frame.columns, self.drop)
        else:
            require_columns(frame, [self.label], "dataset.label")
            y = anomaly_labels(frame[self.label], self.positive)
        features = frame.drop({*self.drop, *([] if self.label is None else [self.label])})
        x, numbers, texts = numbers_and_texts(features, self.categorical)
        refuse_infinite(x, numbers, str(self.path))
        missing_ND = missing_cells(x, texts)
        names = [*numbers, *(text.name for text in texts)]
        check_missing(missing_ND, names, self.missing)
        index = np.arange(len(frame))
        if self.missing == "drop_rows" and missing_ND.any():
            index = np.flatnonzero(~missing_ND.any(1))
            x, texts, y = x[index], [text.gather(index) for text in texts], None if y is None else y[index]
            findings.append(f"{len(frame) - len(index)} of {len(frame)} rows have missing values and are left out")
        elif missing_ND.any() and self.missing != "keep":
            findings.append(f"{int(missing_ND.sum())} missing values are filled from training rows ({self.missing})")

        split_options = {"calibration": self.calibration, "test": self.test}
        parts = partition(self.protocol, y, len(index), seed, self.max_rows, self.duplicate_small, **split_options)
        data_sha256 = hash_arrays(x, *(text.fill_null("").to_numpy().astype(str) for text in texts), y)
        raw, x = x, impute(x, parts.scaled_on, numbers, self.missing)
        levels, level_names, widths = one_hot(texts, len(x), parts.scaled_on, self.missing)
        x, columns = np.hstack([x, levels]), [*numbers, *level_names]
        if keep := self.missing == "keep":
            findings += gap_findings(missing_ND, names, parts.train)
        findings += cap_finding(parts, len(index))
        split = assemble(self.protocol, x, y, parts, data_sha256, columns, index, findings, keep_gaps=keep)
        split.blocks = column_kinds(numbers, features.schema, widths)
        known, starts = {}, np.cumsum([0, *widths])
        for text, start, stop in zip(texts, starts, starts[1:]):
            known[text.name] = [name[len(text.name) + 1 :] for name in level_names[start:stop]]
        split.schema = schema(raw, parts.scaled_on, numbers, features.schema, known, self.missing)
        split.schema |= {"left_out": [*self.drop, *([] if self.label is None else [self.label])]}
        split.schema |= {"separator": self.separator}
        return split


def _unlabelled(columns: list[str], drop: list[str]) -> list[str]:
    findings = [
        "no labels: every row is taken as normal, so the threshold rests on held-out rows that may hold anomalies"
    ]
    for name in columns:
        if name.lower() in COLUMN_NAMES and name not in drop:
            findings.append(f"column '{name}' is used as a feature: if it is the label, dataset.label={name}")
    return findings
