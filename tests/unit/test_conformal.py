"""Split conformal: exact coverage laws, ties, and calibration sets that are too small."""

import numpy as np
import pytest
from scipy.stats import beta, binomtest, kstest

from outlie.errors import UserError
from outlie.metrics.conformal import clopper_pearson, p_values, realised, threshold


@pytest.mark.parametrize(("n", "alpha", "k"), [(99, 0.01, 99), (100, 0.01, 100), (199, 0.01, 198), (19, 0.05, 19)])
def test_threshold_is_the_kth_smallest(n, alpha, k):
    found = threshold(np.random.default_rng(0).permutation(n) + 1.0, alpha)
    assert found.value == k
    assert found.warning is None
    assert found.guarantee == (n + 1 - k) / (n + 1) <= alpha


def test_realised_false_alarm_rate_follows_the_beta_law():
    # Uniform scores: the false-alarm rate is 1 - (k-th of n) ~ Beta(n + 1 - k, k), with mean 1 - k / (n + 1).
    rng, n, alpha = np.random.default_rng(1), 59, 0.05
    found = [threshold(rng.random(n), alpha) for _ in range(2000)]
    rate = 1 - np.array([f.value for f in found])
    assert kstest(rate, beta(3, 57).cdf).pvalue > 0.01
    assert rate.mean() == pytest.approx(0.05, abs=0.002)
    low, high = found[0].spread
    assert np.mean((rate >= low) & (rate <= high)) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(("n", "needed"), [(1, 99), (30, 99), (98, 99)])
def test_too_few_rows_warn_and_say_how_many_are_needed(n, needed):
    found = threshold(np.arange(n), 0.01)
    assert found.value == n - 1
    assert found.guarantee == pytest.approx(1 / (n + 1))
    assert f"{n} calibration rows cannot guarantee 1 % false alarms" in found.warning
    assert f"at least {needed} normal rows" in found.warning
    assert threshold(np.arange(needed), 0.01).warning is None


def test_ties_only_lower_the_false_alarm_rate():
    calibration = np.repeat([0.0, 1.0], [50, 49])
    found = threshold(calibration, 0.2)
    assert found.value == 1.0
    assert realised(found.value, calibration, np.zeros(99))["fpr"] == 0.0


def test_p_values_by_definition():
    rng = np.random.default_rng(2)
    calibration, score = rng.integers(0, 10, 40).astype(float), rng.integers(-2, 12, 30).astype(float)
    expected = (1 + (calibration >= score[:, None]).sum(1)) / 41
    np.testing.assert_allclose(p_values(calibration, score), expected, rtol=1e-15)
    # A row is flagged by the threshold exactly when its p-value is within the budget.
    found = threshold(calibration, 0.2)
    np.testing.assert_array_equal(score > found.value, p_values(calibration, score) <= 0.2)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (10, 10), (1, 107)])
def test_clopper_pearson_against_scipy(hits, n):
    exact = binomtest(hits, n).proportion_ci(0.95, method="exact")
    assert clopper_pearson(hits, n) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_realised_rates():
    found = realised(2.0, [1, 2, 3, 2.5, 1, 9], [0, 0, 0, 1, 1, 1])
    assert (found["fpr"], found["recall"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert found["fpr_interval"] == pytest.approx(clopper_pearson(1, 3))
    nobody = realised(2.0, [1, 3], [0, 0])
    assert nobody["recall"] is None
    assert nobody["recall_interval"] is None
    assert nobody["fpr"] == 0.5


@pytest.mark.parametrize(
    ("scores", "alpha", "message"),
    [
        ([], 0.01, "no calibration rows"),
        ([1, np.nan], 0.01, "not finite: 1 of 2"),
        ([1, 2], 0.0, "false_alarms=0.0"),
        ([1, 2], 1, "false_alarms=1"),
    ],
)
def test_bad_input_is_named(scores, alpha, message):
    with pytest.raises(UserError, match=message):
        threshold(scores, alpha)
