import warnings

import numpy as np
import torch

from outlie.data.assemble import assemble
from outlie.data.lints import lint, row_hashes
from outlie.data.protocols import partition
from outlie.data.split import Rows, Split


def rows(x: np.ndarray, label: np.ndarray | None = None) -> Rows:
    labels = None if label is None else torch.as_tensor(label, dtype=torch.int64)
    return Rows(torch.from_numpy(x), torch.arange(len(x)), labels)


def split(
    train: np.ndarray, test: np.ndarray, label: np.ndarray | None, calibration: np.ndarray | None = None
) -> Split:
    d = train.shape[1]
    held_out = None if calibration is None else rows(calibration)
    columns = tuple(f"c{j}" for j in range(d))
    return Split(
        "split", rows(train), {"test": rows(test, label)}, held_out, torch.zeros(d), torch.ones(d), "", columns
    )


RNG = np.random.RandomState(0)
TRAIN, TEST, HELD_OUT = RNG.randn(50, 4), RNG.randn(20, 4), RNG.randn(10, 4)
MIXED = np.arange(20) % 2


def test_a_clean_split_has_no_findings():
    assert lint(split(TRAIN, TEST, MIXED, HELD_OUT)) == []


def test_copies_between_train_and_test_are_counted():
    test = np.concatenate([TEST[:15], TRAIN[:5]])
    assert lint(split(TRAIN, test, MIXED)) == ["5 of 20 test rows (25.0 %) are exact copies of training rows"]


def test_calibration_rows_in_test_and_in_training():
    findings = lint(split(TRAIN, TEST, MIXED, np.concatenate([TEST[:3], TRAIN[:1]])))
    assert "1 of 4 calibration rows (25.0 %) are exact copies of training rows" in findings
    assert "3 of 4 calibration rows (75.0 %) are exact copies of test rows" in findings


def test_constant_columns_are_named():
    train = TRAIN.copy()
    train[:, 2] = 7
    assert lint(split(train, TEST, MIXED)) == ["1 of 4 columns are constant in training: c2"]


def test_a_column_that_is_the_label_is_named():
    test = TEST.copy()
    test[:, 1] = 3 - 2 * MIXED
    (finding,) = lint(split(TRAIN, test, MIXED))
    assert finding.startswith("c1 is the label in disguise")


def test_one_class_only_and_no_labels():
    assert "no anomalies" in lint(split(TRAIN, TEST, np.zeros(20)))[0]
    assert "no normal rows" in lint(split(TRAIN, TEST, np.ones(20)))[0]
    assert "no labels" in lint(split(TRAIN, TEST, None))[0]


def test_row_hashes_tell_rows_apart_as_unique_does():
    x = np.random.RandomState(1).randint(0, 4, (20_000, 6)).astype(float)
    assert len(np.unique(row_hashes(rows(x)))) == len(np.unique(x, axis=0))
    grid = np.stack(np.meshgrid(np.arange(300.0), np.arange(300.0)), -1).reshape(-1, 2)
    assert len(np.unique(row_hashes(rows(grid)))) == 90_000


def with_gaps(x: np.ndarray, share: float = 0.4) -> np.ndarray:
    return np.where(np.random.RandomState(5).rand(*x.shape) < share, np.nan, x)


def test_rows_with_the_same_gaps_are_the_same():
    x = with_gaps(np.random.RandomState(1).randint(0, 3, (5000, 4)).astype(float))
    as_text = {tuple(map(str, row)) for row in x.tolist()}
    assert len(np.unique(row_hashes(rows(x)))) == len(as_text)
    other_bits = np.array([[0x7FF8 << 48], [0xFFF8 << 48], [(0x7FF8 << 48) + 1]], np.uint64).view(np.float64)
    assert np.isnan(other_bits).all() and len(set(row_hashes(rows(other_bits)))) == 1
    assert row_hashes(rows(np.array([[np.nan]])))[0] not in row_hashes(rows(np.array([[0.0], [1.0], [np.inf]])))


def test_gaps_are_no_values():
    train, test = with_gaps(TRAIN), with_gaps(TEST)
    train[:, 2] = np.where(np.arange(50) % 3, np.nan, 7)
    train[:, 3] = np.nan  # nothing is known of it: not constant
    test[:, 1] = np.where(np.arange(20) < 8, 3 - 2 * MIXED, np.nan)
    test[:, 0] = np.where(np.arange(20) < 2, 3 - 2 * MIXED, np.nan)  # one value of each class shows nothing
    train[4, :2] = test[4, :2]
    test[4] = train[4]
    known = {tuple(map(str, row)) for row in train.tolist()}
    copies = sum(tuple(map(str, row)) in known for row in test.tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copied, leak, constant = lint(split(train, test, MIXED))
    assert copied == f"{copies} of 20 test rows ({5 * copies}.0 %) are exact copies of training rows"
    assert leak == "c1 is the label in disguise (test): it separates the classes perfectly, drop it"
    assert constant == "1 of 4 columns are constant in training: c2"


def test_minus_zero_is_zero_and_images_are_rows():
    assert row_hashes(rows(np.array([[0.0]])))[0] == row_hashes(rows(np.array([[-0.0]])))[0]
    images = rows(np.zeros((3, 1, 2, 2), np.uint8))
    assert len(set(row_hashes(images))) == 1


def test_duplication_below_1000_rows_is_reported():
    y = np.repeat([0, 1], [100, 20])
    x = np.random.RandomState(2).randn(120, 3)
    found = assemble("dte_semi", x, y, partition("dte_semi", y, 120, 0), "").findings
    assert any("exact copies of training rows" in finding for finding in found)
    clean = assemble("dte_semi_noleak", x, y, partition("dte_semi_noleak", y, 120, 0), "").findings
    assert clean == []
