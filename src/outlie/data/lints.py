"""What is suspicious about a split, one sentence each: leaks, duplicates, constant columns, one class only."""

import numpy as np
from torch import Tensor

from outlie.data.split import Rows, Split

NAMED = 5  # columns named before "and more"


def lint(split: Split) -> list[str]:
    """Findings about a split, in words; an empty list if nothing is suspicious."""
    train_hash = row_hashes(split.train)
    findings, together = [], _measured_together(split.tests)
    for name, rows in split.tests.items():
        findings += repeats(row_hashes(rows), train_hash, name, "training")
        findings += [] if name in together else _one_class(rows, name)
        findings += _label_leak(rows, name, split.columns)
    if "validation" in split.tests and "test" in split.tests:
        chose = row_hashes(split.tests["validation"])
        findings += repeats(row_hashes(split.tests["test"]), chose, "test", "validation")
    if split.calibration is not None:
        calibration_hash = row_hashes(split.calibration)
        findings += repeats(calibration_hash, train_hash, "calibration", "training")
        for name, rows in split.tests.items():
            findings += repeats(calibration_hash, row_hashes(rows), "calibration", name)
    findings += _constant(split)
    return findings


def row_hashes(rows: Rows) -> np.ndarray:
    """(n,) uint64: equal rows have equal hashes, different rows different ones (but for a chance of n^2 / 2^64).

    A gap (NaN) equals a gap, and no number.
    """
    x = _table(rows.x)
    hashes = np.zeros(len(x), np.uint64)
    for column in x.T:  # over columns, not rows; + 0.0 makes -0.0 and 0.0 equal
        values = column.astype(np.float64) + 0.0
        values[np.isnan(values)] = np.nan  # NaN has many bit patterns
        hashes = mix(hashes * np.uint64(0x9E3779B97F4A7C15) + mix(values.view(np.uint64)))
    return hashes


def mix(v: np.ndarray) -> np.ndarray:
    """MurmurHash3's 64-bit finaliser: every input bit changes every output bit."""
    v = (v ^ (v >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    v = (v ^ (v >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return v ^ (v >> np.uint64(33))


def _table(x: Tensor) -> np.ndarray:
    return x.detach().cpu().reshape(len(x), -1).numpy()


def repeats(hashes: np.ndarray, others: np.ndarray, name: str, other_name: str, what: str = "rows") -> list[str]:
    """A finding where some of `hashes` are among `others`."""
    count = int(np.isin(hashes, others).sum())
    if not count:
        return []
    share = 100 * count / len(hashes)
    return [f"{count} of {len(hashes)} {name} {what} ({share:.1f} %) are exact copies of {other_name} {what}"]


def _one_class(rows: Rows, name: str) -> list[str]:
    if rows.label is None:
        return [f"{name} rows have no labels: scores are written, ranking metrics are not computed"]
    anomalies = int((rows.label == 1).sum())
    if anomalies == 0:
        return [f"{name} has no anomalies: recall and AUROC are not defined"]
    if anomalies == len(rows):
        return [f"{name} has no normal rows: the false-positive rate and AUROC are not defined"]
    return []


def _measured_together(tests: dict[str, Rows]) -> set[str]:
    """`test`, all normal, and the out-of-distribution sets that an evaluation puts beside it (results/evaluated.py)."""
    far = {name for name, rows in tests.items() if name != "test" and rows.label is not None and bool(rows.label.all())}
    test = tests.get("test")
    return {"test", *far} if far and test is not None and test.label is not None and not test.label.any() else set()


def _label_leak(rows: Rows, name: str, columns: tuple[str, ...]) -> list[str]:
    """A column that has one value on all anomalies and another one on all normal rows, gaps apart, is the label."""
    if rows.label is None or rows.label.min() == rows.label.max():
        return []
    x, is_anomaly = _table(rows.x), rows.label.cpu().numpy() == 1
    (normal, normal_value), (anomaly, anomaly_value) = _one_value(x[~is_anomaly]), _one_value(x[is_anomaly])
    same = normal & anomaly & (normal_value != anomaly_value)
    if not same.any():
        return []
    return [f"{_names(same, columns)} is the label in disguise ({name}): it separates the classes perfectly, drop it"]


def _constant(split: Split) -> list[str]:
    x = _table(split.train.x)
    same, _ = _one_value(x, at_least=1)
    if not same.any():
        return []
    return [f"{int(same.sum())} of {len(same)} columns are constant in training: {_names(same, split.columns)}"]


def _one_value(x: np.ndarray, at_least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """(D,) columns of (n, D) with `at_least` values, all equal, gaps left out; and (D,) that value."""
    low, high = np.fmin.reduce(x, 0), np.fmax.reduce(x, 0)  # NaN where there is none
    enough = len(x) - (np.isnan(x).sum(0) if x.dtype.kind == "f" else 0) >= at_least
    return (low == high) & enough, low


def _names(which: np.ndarray, columns: tuple[str, ...]) -> str:
    where = np.flatnonzero(which)
    named = [columns[j] if j < len(columns) else f"column {j}" for j in where[:NAMED]]
    return ", ".join(named) + (f" and {len(where) - NAMED} more" if len(where) > NAMED else "")
