"""Ready embeddings: training and test rows given as files, with out-of-distribution sets by name."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from outlie.data.arrays import (
    as_matrix,
    as_vector,
    binary_labels,
    column_names,
    hash_arrays,
    npz_names,
    read_npy,
    read_npz,
    refuse_infinite,
    refuse_nan,
    require_file,
)
from outlie.data.lints import lint
from outlie.data.protocols import standardisation
from outlie.data.split import Rows, Split
from outlie.errors import UserError
from outlie.options import Fraction


class Embeddings:
    """Features of some network, as npy (features) or npz (`X`; optionally `y` = class, `label` = 1 for an anomaly).

    Without `ood` the test set is `test` with its `label`. With `ood` each file is a test set of its own name, beside
    which the rows of `test` are the in-distribution ones.

    Args:
        train: In-distribution training rows.
        test: In-distribution test rows.
        ood: Name -> file, out-of-distribution rows.
        calibration: Fraction of the training rows that is held out for the threshold.
    """

    scoring: ClassVar[tuple[str, ...]] = ("test", "ood")  # they choose test sets only: other ones train nothing

    def __init__(self, train: Path, test: Path, ood: dict[str, Path] | None = None, calibration: Fraction = 0.1):
        self.train = Path(train)
        self.test = Path(test)
        self.ood = {str(name): Path(path) for name, path in (ood or {}).items()}
        self.calibration = calibration

    def load(self, seed: int) -> Split:
        """The split of this seed (it moves calibration rows only), protocol `given`."""
        train, label, y = _read(self.train, "dataset.train")
        if label is not None and label.any():
            raise UserError(f"{self.train} labels {int(label.sum())} training rows as anomalies: give normal rows only")
        n_calibration = max(1, round(self.calibration * len(train)))
        if len(train) - n_calibration < 2:
            raise UserError(f"{self.train} has {len(train)} rows: at least 3 are needed, 2 to train and 1 to calibrate")
        order = np.random.RandomState(seed).permutation(len(train))
        held_out, used = np.sort(order[:n_calibration]), np.sort(order[n_calibration:])
        test, test_label, test_y = _read(self.test, "dataset.test", width=train.shape[1])
        hashed = [train, y, test, test_label, test_y]
        tests = {}
        for name, path in self.ood.items():
            far, _, _ = _read(path, f"dataset.ood.{name}", width=train.shape[1])
            hashed.append(far)
            tests[name] = _rows(far, np.arange(len(far)), np.ones(len(far), np.int64))
        if tests:
            tests = {"test": _rows(test, np.arange(len(test)), np.zeros(len(test), np.int64), test_y), **tests}
        mean, scale = standardisation(train[used])
        split = Split(
            protocol="given",
            train=_rows(train, used, np.zeros(len(train), np.int64), y, used),
            tests=tests or {"test": _rows(test, np.arange(len(test)), test_label, test_y)},
            calibration=_rows(train, held_out, np.zeros(len(train), np.int64), y, held_out),
            mean=torch.from_numpy(mean),
            scale=torch.from_numpy(scale),
            data_sha256=hash_arrays(*hashed),
            columns=column_names(train.shape[1]),
        )
        split.findings += lint(split)
        return split


def _read(path: Path, option: str, width: int | None = None) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Features (n, D) float64, anomaly labels (n,) or None, classes (n,) or None."""
    path = require_file(path, option)
    label = y = None
    if path.suffix == ".npz":
        names = npz_names(path)
        x = as_matrix(read_npz(path, ["X"])[0], f"X of {path}")
        if "label" in names:
            label = binary_labels(read_npz(path, ["label"])[0], len(x), f"label of {path}")
        if "y" in names:
            y = as_vector(read_npz(path, ["y"])[0], len(x), f"y of {path}")
            if y.dtype.kind not in "iu":
                raise UserError(f"y of {path} has dtype {y.dtype}, allowed: integers 0, 1, ..., one for each class")
            y = y.astype(np.int64)
    else:
        x = as_matrix(read_npy(path), str(path))
    if width is not None and x.shape[1] != width:
        raise UserError(f"{option}={path} has {x.shape[1]} features, dataset.train has {width}: use the same network")
    columns = column_names(x.shape[1])
    refuse_infinite(x, columns, str(path))
    refuse_nan(x, columns, str(path), "remove these rows")
    return x, label, y


def _rows(
    x: np.ndarray,
    index: np.ndarray,
    label: np.ndarray | None,
    y: np.ndarray | None = None,
    where: np.ndarray | slice = slice(None),
) -> Rows:
    return Rows(
        torch.from_numpy(np.ascontiguousarray(x[where])),
        torch.from_numpy(index),
        None if label is None else torch.from_numpy(label[where].astype(np.int64)),
        None if y is None else torch.from_numpy(y[where]),
    )
