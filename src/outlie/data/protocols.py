"""Protocols: which rows train, calibrate and test, and which fix the standardisation.

A protocol is a pure function from labels and a seed to row numbers (a Partition). The dte_* ones replay the released
code of Livernoche et al. (ICLR 2024) to the last random number: a RandomState of our own gives the stream that
`np.random.seed` gives there, and the global RNG is never touched.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from outlie.errors import UserError, unknown

Protocol = Literal["dte_semi", "dte_unsup", "dte_semi_noleak", "split", "split_validation"]
DTE_ROWS = 1000  # fewer are bootstrapped to so many (ADBench's duplication rule)
DTE_MAX_ROWS = 50_000


@dataclass(frozen=True)
class Partition:
    """Row numbers of the source; a row may come more than once where the protocol draws with replacement."""

    train: np.ndarray
    test: np.ndarray
    scaled_on: np.ndarray  # rows that fix mean, scale and whatever else is fitted before the detector
    calibration: np.ndarray | None = None
    validation: np.ndarray | None = None  # labelled rows for choosing settings


def partition(
    protocol: Protocol,
    y: np.ndarray | None,
    n: int,
    seed: int,
    max_rows: int | None = None,
    duplicate_small: bool = True,
    calibration: float = 0.3,
    test: float = 0.3,
) -> Partition:
    """The rows of each part under a protocol by name.

    Args:
        y: (n,) 0 = normal, 1 = anomaly; None = unknown, allowed in `split` only.
        max_rows: Cap on rows; None = 50,000 in the dte_* protocols, no cap in `split` and `split_validation`.
        duplicate_small: dte_semi and dte_unsup: bootstrap fewer than 1,000 rows to 1,000.
        calibration: `split`, `split_validation`: fraction of the normal rows.
        test: `split`: fraction of the normal rows; `split_validation`: half of them validates, the other half tests.

    Raises:
        UserError: unknown protocol, no labels where they are needed, or too few rows.
    """
    if protocol not in get_args(Protocol):
        raise UserError(unknown("protocol", protocol, get_args(Protocol)) + "; choose with dataset.protocol=")
    if protocol == "split":
        parts = random_split(y, n, seed, max_rows, calibration, test)
    elif y is None:
        raise UserError(f"protocol {protocol} needs labels: name them with dataset.label=, or dataset.protocol=split")
    elif protocol == "split_validation":
        parts = split_validation(y, n, seed, max_rows, calibration, test)
    else:
        duplicate = duplicate_small and protocol != "dte_semi_noleak"
        rows, rng = dte_rows(n, seed, DTE_MAX_ROWS if max_rows is None else max_rows, duplicate)
        parts = dte_unsup(y, rows, rng) if protocol == "dte_unsup" else dte_semi(y, rows)
    _require_rows(protocol, parts)
    if parts.validation is not None:
        _require_both_classes(protocol, y, parts)
    return parts


def dte_rows(n: int, seed: int, max_rows: int, duplicate_small: bool) -> tuple[np.ndarray, np.random.RandomState]:
    """Steps 1-4: the rows in use, and the RNG as it is left. Each draw is preceded by a new seeding."""
    rows = np.arange(n)
    rng = np.random.RandomState(seed)
    if len(rows) < DTE_ROWS:
        # the bootstrap also shuffles: without it, a file in some order would differ by more than the repeats
        rng = np.random.RandomState(seed)
        rows = rng.choice(rows, DTE_ROWS, replace=True) if duplicate_small else rng.permutation(rows)
    if len(rows) > max_rows:
        rng = np.random.RandomState(seed)
        rows = rng.choice(rows, max_rows, replace=False)
    return rows, rng


def dte_semi(y: np.ndarray, rows: np.ndarray) -> Partition:
    """One-class: the first half of the normal rows, in order and not shuffled, trains; the rest and all anomalies test.

    Under dte_semi_noleak `rows` has no repeats, so no row of the source is on both sides; fewer than 1,000 are
    shuffled, as the bootstrap shuffles them. Duplicating each side afterwards would only weigh rows: nothing is.
    """
    normal, anomaly = rows[y[rows] == 0], rows[y[rows] == 1]
    n_train = round(0.5 * len(normal))  # Python rounds half to even, and so does the released code
    train = normal[:n_train]
    return Partition(train=train, test=np.concatenate([normal[n_train:], anomaly]), scaled_on=train)


def dte_unsup(y: np.ndarray, rows: np.ndarray, rng: np.random.RandomState) -> Partition:
    """Contaminated: standardise on all rows, train on a bootstrap of them, test on each once."""
    # The released code draws 0 of the training anomalies here: nothing comes back, but the RNG moves on.
    rng.choice(np.flatnonzero(y[rows] == 1), 0, replace=False)
    train = rows[rng.choice(len(rows), len(rows), replace=True)]
    return Partition(train=train, test=rows, scaled_on=rows)


def random_split(
    y: np.ndarray | None, n: int, seed: int, max_rows: int | None, calibration: float, test: float
) -> Partition:
    """For users' own data: shuffled normal rows into train, calibration and test; every anomaly into test."""
    _require_fractions(calibration, test)
    rng = np.random.RandomState(seed)  # its stream is frozen across NumPy versions, a Generator's is not
    rows = np.arange(n)
    if max_rows is not None and n > max_rows:
        rows = np.sort(rng.choice(rows, max_rows, replace=False))
    is_anomaly = np.zeros(len(rows), bool) if y is None else y[rows] == 1
    normal = rows[~is_anomaly][rng.permutation(np.count_nonzero(~is_anomaly))]
    n_calibration, n_test = round(calibration * len(normal)), round(test * len(normal))
    n_train = len(normal) - n_calibration - n_test
    train, held_out, rest = np.split(normal, [n_train, n_train + n_calibration])
    return Partition(train=train, test=np.concatenate([rest, rows[is_anomaly]]), scaled_on=train, calibration=held_out)


def split_validation(
    y: np.ndarray, n: int, seed: int, max_rows: int | None, calibration: float, test: float
) -> Partition:
    """`split` for choosing settings: half of its test rows, normal and anomalous, are `validation`, looked at freely.

    The seed moves rows between training and calibration only. Were it to choose the test rows, too, a row that
    validates under one seed would test under another, and a setting chosen over several seeds would have seen all.
    """
    _require_fractions(calibration, test)
    fixed = np.random.RandomState(0)
    rows = np.arange(n)
    if max_rows is not None and n > max_rows:
        rows = np.sort(fixed.choice(rows, max_rows, replace=False))
    is_anomaly = y[rows] == 1
    normal, anomaly = fixed.permutation(rows[~is_anomaly]), fixed.permutation(rows[is_anomaly])
    n_test, n_calibration = round(test * len(normal)), round(calibration * len(normal))
    held, rest = normal[:n_test], np.random.RandomState(seed).permutation(normal[n_test:])
    train, held_out = rest[n_calibration:], rest[:n_calibration]
    return Partition(
        train=train, test=np.concatenate([held[::2], anomaly[::2]]), scaled_on=train, calibration=held_out,
        validation=np.concatenate([held[1::2], anomaly[1::2]]),
    )  # fmt: skip


def _require_fractions(calibration: float, test: float) -> None:
    if not (0 < calibration < 1 and 0 < test < 1 and calibration + test < 1):
        raise UserError(
            f"dataset.calibration={calibration} and dataset.test={test} are fractions of the normal rows: "
            "each above 0, together below 1, the rest trains"
        )


def _require_both_classes(protocol: str, y: np.ndarray | None, parts: Partition) -> None:
    assert y is not None and parts.validation is not None
    for name, rows in (("validation", parts.validation), ("test", parts.test)):
        for label, what in ((0, "normal rows"), (1, "anomalies")):
            if not np.any(y[rows] == label):
                raise UserError(
                    f"protocol {protocol} leaves no {what} for {name}: both halves need both classes; give more rows, "
                    "choose another dataset.test=, or dataset.protocol=split"
                )


def _require_rows(protocol: str, parts: Partition) -> None:
    sizes = {"training": (len(parts.train), 2), "test": (len(parts.test), 1)}
    if parts.calibration is not None:
        sizes["calibration"] = (len(parts.calibration), 1)
    for part, (found, needed) in sizes.items():
        if found < needed:
            raise UserError(
                f"protocol {protocol} leaves {found} {part} rows, at least {needed} needed: give more normal rows "
                "(label 0), or choose other fractions with dataset.calibration= and dataset.test="
            )


def standardisation(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale (ddof 0) of each column of (n, D), as scikit-learn's StandardScaler: 1 for a constant column.

    NaN are left out; a column of NaN only gets mean 0 and scale 1.
    """
    if np.isnan(x).any():
        empty = np.isnan(x).all(0)
        x = np.where(empty, 0.0, x)
        mean, var = np.nanmean(x, 0), np.nanvar(x, 0)
    else:
        mean, var = x.mean(0), x.var(0)
    # Constant = a variance within the rounding error of computing it.
    eps = np.finfo(np.float64).eps
    constant = var <= len(x) * eps * var + (len(x) * mean * eps) ** 2
    return mean, np.where(constant, 1.0, np.sqrt(var))


def repair_nan(x: np.ndarray) -> np.ndarray:
    """NaN -> mean of its column among these rows; a column of NaN only -> NaN stays (the caller knows the centre)."""
    bad = np.isnan(x)
    counts = np.maximum((~bad).sum(0), 1)
    means = np.where(bad.all(0), np.nan, np.where(bad, 0.0, x).sum(0) / counts)
    return np.where(bad, means, x)
