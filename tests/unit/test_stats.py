"""Statistics over datasets and seeds against SciPy, the tables of Demsar (2006) and sums done by hand."""

import numpy as np
import pytest
import scipy.stats

from outlie.errors import UserError
from outlie.metrics import stats

# Demsar 2006, table 6 (AUC of C4.5, +m, +cf, +m+cf on 14 datasets), and what section 3.2 says of it; .9751 is printed
# as .975 there, but ranked before the other .975
DEMSAR = """0.763 0.768 0.771 0.798
0.599 0.591 0.590 0.569
0.954 0.971 0.968 0.967
0.628 0.661 0.654 0.657
0.882 0.888 0.886 0.898
0.936 0.931 0.916 0.931
0.661 0.668 0.609 0.685
0.583 0.583 0.563 0.625
0.775 0.838 0.866 0.875
1.000 1.000 1.000 1.000
0.940 0.962 0.965 0.962
0.619 0.666 0.614 0.669
0.972 0.981 0.9751 0.975
0.957 0.978 0.946 0.970"""
AUC = np.array([[float(value) for value in line.split()] for line in DEMSAR.splitlines()])


def test_the_example_of_demsar():
    found = stats.compare(AUC)
    assert found.ranks == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    uncorrected = 12 * 14 / (4 * 5) * ((found.ranks**2).sum() - 4 * 5**2 / 4)  # for ties, as in the paper
    assert uncorrected == pytest.approx(9.28, abs=5e-3) and found.chi2 > uncorrected and found.p < 0.05
    assert stats.ranks(AUC)[9] == pytest.approx([2.5] * 4)
    assert found.critical_difference == pytest.approx(1.25, abs=5e-3)  # at 0.05
    assert stats.nemenyi(4, 14, 0.10) == pytest.approx(1.12, abs=5e-3)


# Demsar 2006, table 5 (a): critical values q of the two-tailed Nemenyi test
@pytest.mark.parametrize(
    ("columns", "at_05", "at_10"),
    [(2, 1.960, 1.645), (3, 2.343, 2.052), (4, 2.569, 2.291), (5, 2.728, 2.459), (6, 2.850, 2.589),
     (7, 2.949, 2.693), (8, 3.031, 2.780), (9, 3.102, 2.855), (10, 3.164, 2.920)],
)  # fmt: skip
def test_critical_values(columns, at_05, at_10):
    rows = 30
    scale = np.sqrt(columns * (columns + 1) / (6 * rows))
    assert stats.nemenyi(columns, rows, 0.05) / scale == pytest.approx(at_05, abs=1.5e-3)
    assert stats.nemenyi(columns, rows, 0.10) / scale == pytest.approx(at_10, abs=1.5e-3)


@pytest.mark.parametrize("higher", [True, False])
def test_ranks_equal_scipys(higher):
    values = np.random.default_rng(0).integers(0, 5, (20, 7)).astype(float)  # many ties
    expected = scipy.stats.rankdata(-values if higher else values, axis=1)
    assert (stats.ranks(values, higher) == expected).all()
    assert stats.average_ranks(values, higher) == pytest.approx(expected.mean(0))


def test_friedman_equals_scipys_and_no_difference_has_p_1():
    values = np.random.default_rng(1).normal(size=(12, 5))
    expected = scipy.stats.friedmanchisquare(*values.T)
    assert stats.friedman(values) == pytest.approx((expected.statistic, expected.pvalue))
    assert stats.friedman(np.ones((4, 3))) == (0, 1)


def test_holm_by_hand():
    # sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04; never falling: .02 .03 .06 .06
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == pytest.approx([1, 1])
    assert stats.holm([]).shape == (0,)


def test_wilcoxon_holm_equals_the_pairs_of_scipy():
    rng = np.random.default_rng(2)
    values = rng.normal([0, 0.1, 2], size=(25, 3))
    p = stats.wilcoxon_holm(values)
    pairs = ((0, 1), (0, 2), (1, 2))
    raw = {pair: float(scipy.stats.wilcoxon(values[:, pair[0]], values[:, pair[1]])[1]) for pair in pairs}  # type: ignore
    smallest, middle, largest = sorted(raw, key=lambda pair: raw[pair])
    assert p[smallest] == pytest.approx(3 * raw[smallest])
    assert p[middle] == pytest.approx(max(3 * raw[smallest], 2 * raw[middle]))
    assert p[largest] == pytest.approx(max(p[middle], raw[largest]))
    assert (p == p.T).all() and (np.diag(p) == 1).all()


def test_equal_columns_are_never_told_apart():
    values = np.random.default_rng(3).normal(size=(10, 3))
    values[:, 1] = values[:, 0]
    assert stats.wilcoxon_holm(values)[0, 1] == 1


def test_cliques_are_the_longest_runs():
    # ranks 1 < 2 < 3 < 4; a-b, b-c alike but not a-c; c-d alike: runs ab, bc, cd
    alike = np.eye(4, dtype=bool)
    for a, b in ((0, 1), (1, 2), (2, 3)):
        alike[a, b] = alike[b, a] = True
    assert stats.cliques([1, 2, 3, 4], alike) == [[0, 1], [1, 2], [2, 3]]
    assert stats.cliques([4, 3, 2, 1], np.ones((4, 4))) == [[3, 2, 1, 0]]  # one run, none inside it again
    assert stats.cliques([1, 2, 3, 4], np.eye(4)) == []


@pytest.mark.parametrize(("sizes", "scales"), [((5, 5), (1.0, 3.0)), ((2, 5), (0.2, 4.0)), ((5, 3), (1.0, 0.1))])
def test_welch_equals_scipys(sizes, scales):
    rng = np.random.default_rng(4)
    ours, theirs = (50 + scale * rng.normal(size=size) for size, scale in zip(sizes, scales, strict=True))
    found = stats.welch((ours.mean(), theirs.mean()), (ours.std(ddof=1), theirs.std(ddof=1)), (len(ours), len(theirs)))
    expected = scipy.stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert found == pytest.approx((expected.low, expected.high), rel=1e-6)


def test_welch_without_scatter_and_with_one_seed():
    assert stats.welch((3.0, 1.0), (0.0, 0.0), (5, 5)) == (2, 2)
    assert stats.welch((3.0, 1.0), (float("nan"), 1.0), (1, 5)) is None


def test_mean_std():
    values = [1.0, 2.0, 4.0]
    assert stats.mean_std(values) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert np.isnan(stats.mean_std([1.0])[1])


@pytest.mark.parametrize("values", [np.ones((5, 2)), np.ones((1, 4)), np.full((3, 3), np.nan)])
def test_too_little_to_compare(values):
    with pytest.raises(UserError, match="columns"):
        stats.compare(values)
