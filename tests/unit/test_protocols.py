"""Oracles: the published and re-computed kNN cells of DTE's tables, scikit-learn, and the global NumPy RNG."""

import csv
import statistics
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from outlie.data.adbench import ADBench
from outlie.data.protocols import dte_rows, partition, repair_nan, standardisation
from outlie.errors import UserError

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"


def labels(normal: int, anomalies: int) -> np.ndarray:
    """Normal rows first."""
    return np.repeat([0, 1], [normal, anomalies])


def published(name: str) -> list[dict[str, str]]:
    if not (REFERENCE / name).is_file():
        pytest.skip(f"needs {REFERENCE / name}")
    with (REFERENCE / name).open() as lines:
        return list(csv.DictReader(lines))


def neighbour_distances(split, k: int) -> tuple[np.ndarray, np.ndarray]:
    test = split.tests["test"]
    train = ((split.train.x - split.mean) / split.scale).numpy()
    query = ((test.x - split.mean) / split.scale).numpy()
    return NearestNeighbors(n_neighbors=k).fit(train).kneighbors(query)[0], test.label.numpy()


@pytest.mark.parametrize("table_name", ["breastw", "glass", "hepatitis", "lymphography", "vertebral", "wbc", "wine"])
def test_unsup_matches_the_published_cells(adbench_dir, table_name):
    rows = {row["scorer"]: row for row in published("dte_np_knn_k32_unsup_check.csv") if row["dataset"] == table_name}
    found = {"kth_dist_k32": [], "mean_dist_k32": []}
    for seed in range(5):
        distances, y = neighbour_distances(ADBench(table_name, "dte_unsup").load(seed), 32)
        found["kth_dist_k32"].append(100 * roc_auc_score(y, distances[:, -1]))
        found["mean_dist_k32"].append(100 * roc_auc_score(y, distances.mean(1)))
    for scorer, aucs in found.items():
        assert statistics.mean(aucs) == pytest.approx(float(rows[scorer]["published_mean"]), abs=0.0101)
        assert statistics.stdev(aucs) == pytest.approx(float(rows[scorer]["published_std"]), abs=0.0101)
        assert aucs == pytest.approx([float(rows[scorer][f"seed{seed}"]) for seed in range(5)], abs=1e-3)


@pytest.mark.parametrize("table_name", ["cardio", "cardiotocography", "letter", "thyroid", "yeast"])
def test_semi_matches_the_published_knn(adbench_dir, table_name):
    rows = {row["dataset"]: row for row in published("dte_np_published_decomposition_semi.csv")}
    distances, y = neighbour_distances(ADBench(table_name, "dte_semi").load(0), 5)
    assert 100 * roc_auc_score(y, distances[:, -1]) == pytest.approx(
        float(rows[table_name]["published_knn"]), abs=0.0101
    )


def test_semi_is_the_same_for_every_seed_from_1000_rows_on():
    y = labels(1500, 100)
    first, second = (partition("dte_semi", y, len(y), seed) for seed in (0, 1))
    assert np.array_equal(first.train, second.train)
    assert np.array_equal(first.test, second.test)
    assert np.array_equal(first.train, np.arange(750))
    assert np.array_equal(first.test, np.arange(750, 1600))


@pytest.mark.parametrize(("normal", "expected"), [(1001, 500), (1003, 502), (1005, 502), (1007, 504)])
def test_half_of_an_odd_number_is_rounded_to_even(normal, expected):
    y = labels(normal, 10)
    assert len(partition("dte_semi", y, len(y), 0).train) == expected


@pytest.mark.parametrize(("n", "max_rows"), [(200, 50_000), (3000, 50_000), (3000, 1200), (700, 800)])
def test_draws_are_those_of_the_global_rng(n, max_rows):
    y = np.random.RandomState(9).permutation(labels(n - n // 5, n // 5))
    parts = partition("dte_unsup", y, n, seed=3, max_rows=max_rows)
    np.random.seed(3)
    rows = np.arange(n)
    if n < 1000:
        np.random.seed(3)
        rows = np.random.choice(np.arange(n), 1000, replace=True)
    if len(rows) > max_rows:
        np.random.seed(3)
        rows = rows[np.random.choice(np.arange(len(rows)), max_rows, replace=False)]
    np.random.permutation(int(y[rows].sum()))  # what a choice of none costs
    expected = rows[np.random.choice(np.arange(len(rows)), len(rows), replace=True)]
    assert np.array_equal(parts.train, expected)
    assert np.array_equal(parts.test, rows)


def test_the_global_rng_is_left_alone():
    np.random.seed(5)
    expected = np.random.RandomState(5).rand()
    y = labels(500, 20)
    for protocol in ("dte_semi", "dte_unsup", "dte_semi_noleak", "split"):
        partition(protocol, y, len(y), 0)
    assert np.random.rand() == expected


def test_duplication_and_cap():
    assert len(dte_rows(300, 0, 50_000, True)[0]) == 1000
    shuffled = [dte_rows(300, seed, 50_000, False)[0] for seed in (0, 1)]
    assert all(sorted(rows) == list(range(300)) for rows in shuffled)  # no repeats, and no order of the file
    assert not np.array_equal(*shuffled) and not np.array_equal(shuffled[0], np.arange(300))
    assert np.array_equal(dte_rows(1000, 0, 50_000, False)[0], np.arange(1000))  # nothing to duplicate: as published
    capped = dte_rows(3000, 0, 1000, True)[0]
    assert len(set(capped)) == 1000


def test_noleak_has_no_row_twice_and_none_on_both_sides():
    y = labels(200, 30)
    parts = partition("dte_semi_noleak", y, len(y), 0)
    everything = np.concatenate([parts.train, parts.test])
    assert sorted(everything) == list(range(230))
    assert not set(parts.train) & set(partition("dte_semi_noleak", y, len(y), 0).test)
    leaky = partition("dte_semi", y, len(y), 0)
    assert set(leaky.train) & set(leaky.test)


def test_split_fractions_and_anomalies():
    y = np.random.RandomState(0).permutation(labels(1000, 50))
    parts = partition("split", y, len(y), 0)
    assert parts.calibration is not None
    assert [len(parts.train), len(parts.calibration), len(parts.test)] == [400, 300, 350]
    assert y[parts.train].sum() == 0
    assert y[parts.calibration].sum() == 0
    assert y[parts.test].sum() == 50
    assert sorted(np.concatenate([parts.train, parts.calibration, parts.test])) == list(range(1050))
    again, other = partition("split", y, len(y), 0), partition("split", y, len(y), 1)
    assert np.array_equal(parts.train, again.train)
    assert not np.array_equal(parts.train, other.train)


def test_split_without_labels_takes_every_row_as_normal():
    parts = partition("split", None, 100, 0)
    assert parts.calibration is not None
    assert [len(parts.train), len(parts.calibration), len(parts.test)] == [40, 30, 30]


def test_split_cap():
    parts = partition("split", labels(900, 100), 1000, 0, max_rows=200)
    assert parts.calibration is not None
    assert len(parts.train) + len(parts.calibration) + len(parts.test) == 200


@pytest.mark.parametrize(
    ("protocol", "y", "options", "says"),
    [
        ("dte_semy", labels(50, 5), {}, "did you mean 'dte_semi'"),
        ("dte_semi", None, {}, "dataset.label="),
        ("split", labels(0, 20), {}, "0 training rows"),
        ("split", labels(3, 20), {}, "1 training rows, at least 2"),
        ("split", labels(50, 5), {"calibration": 0.5, "test": 0.5}, "together below 1"),
        ("dte_semi", labels(0, 20), {}, "0 training rows"),
        ("dte_semi", labels(1, 9), {"duplicate_small": False}, "0 training rows"),
        ("dte_unsup", labels(1, 0), {"duplicate_small": False}, "1 training rows"),
    ],
)
def test_bad_requests(protocol, y, options, says):
    n = 55 if y is None else len(y)
    with pytest.raises(UserError, match=says):
        partition(protocol, y, n, 0, **options)


def test_standardisation_is_scikit_learns():
    rng = np.random.RandomState(0)
    x = rng.randn(500, 6) * [1, 1e-3, 1e6, 5, 1, 1] + [0, 1, -1e6, 1e3, 0, 0]
    x[:, 4], x[:, 5] = 0.1, 0.0  # 0.1 is not exact: its variance is rounding error
    scaler = StandardScaler().fit(x)
    mean, scale = standardisation(x)
    np.testing.assert_allclose(mean, scaler.mean_, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(scale, scaler.scale_, rtol=1e-12)
    assert scale[4] == scale[5] == 1


def test_standardisation_leaves_nan_out_as_scikit_learn_does():
    x = np.random.RandomState(1).randn(100, 3)
    x[::7, 1] = np.nan
    scaler = StandardScaler().fit(x)
    mean, scale = standardisation(x)
    np.testing.assert_allclose(mean, scaler.mean_, rtol=1e-12)
    np.testing.assert_allclose(scale, scaler.scale_, rtol=1e-12)
    x[:, 2] = np.nan
    assert standardisation(x)[0][2] == 0
    assert standardisation(x)[1][2] == 1


def test_nan_become_column_means():
    x = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]])
    assert repair_nan(x)[:, 0].tolist() == [1, 3, 2]
    assert np.isnan(repair_nan(x)[:, 1]).all()
