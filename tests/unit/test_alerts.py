"""Verdicts, expected false alarms and drift against SciPy, the definition and simulations."""

from fractions import Fraction

import numpy as np
import polars as pl
import pytest
from scipy import stats

from outlie.errors import UserError
from outlie.metrics import conformal
from outlie.scoring.alerts import budgets, expected_false_alarms
from outlie.scoring.drift import BINS, SMOOTHING, Counts, drift
from outlie.scoring.report import Report, draw, of_alerts, write

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("n", [19, 99, 100, 107, 350])
@pytest.mark.parametrize("ties", [False, True])
def test_verdicts_are_what_the_p_values_say(n, ties):
    calibration = RNG.normal(size=n).round(1 if ties else 12)
    score = np.concatenate([calibration, RNG.normal(0, 2, 500).round(1 if ties else 12)])
    found = budgets(calibration, 0.05, 0.2)
    p, verdict = found.p_values(score), found.verdicts(score).to_numpy()
    np.testing.assert_array_equal(p, conformal.p_values(calibration, score))
    at_least = (calibration[None, :] >= score[:, None]).sum(1)
    for alpha, verdicts in ((Fraction(1, 20), ("flag",)), (Fraction(1, 5), ("flag", "ask"))):
        exact = [Fraction(1 + int(k), n + 1) <= alpha for k in at_least]
        np.testing.assert_array_equal(np.isin(verdict, verdicts), exact)


def test_without_a_second_budget_nothing_is_asked():
    assert set(budgets(RNG.normal(size=99), 0.1, None).verdicts(RNG.normal(size=300))) == {"flag", "pass"}
    with pytest.raises(UserError, match=r"review=0.01 is not above fpr=0.05"):
        budgets(RNG.normal(size=99), 0.05, 0.01)


def test_p_values_of_normal_rows_are_uniform():
    """Over calibration sets, P(p <= j / (n + 1)) = j / (n + 1): 20,000 sets of 19 rows, one new row each."""
    scores = RNG.gumbel(size=(20_000, 20))
    p = np.array([budgets(row[:-1], 0.1, None).p_values(row[-1:])[0] for row in scores[:3000]])
    counts = np.bincount((p * 20).round().astype(int), minlength=21)[1:]
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("n", "fpr", "rows"), [(107, 0.01, 569), (600, 0.05, 30_000)])
def test_expected_false_alarms_are_beta_binomial(n, fpr, rows):
    fixed = conformal.threshold(np.arange(n), fpr)
    mean, low, high = expected_false_alarms(fixed, rows)
    k = int(np.ceil((n + 1) * (1 - fpr)))
    law = stats.betabinom(rows, n + 1 - k, k)
    assert mean == pytest.approx(law.mean())
    assert law.cdf(low - 1) < 0.025 <= law.cdf(low) and law.cdf(high - 1) < 0.975 <= law.cdf(high)
    uniform = np.sort(RNG.random((2000, n)), 1)[:, k - 1]  # the threshold's false-alarm rate is 1 minus this
    alarms = RNG.binomial(rows, 1 - uniform)
    assert 0.93 < np.mean((alarms >= low) & (alarms <= high)) < 0.985  # at least 95 %: a count is discrete


def test_many_rows_take_the_beta_law():
    fixed = conformal.threshold(np.arange(600), 0.05)
    mean, low, high = expected_false_alarms(fixed, 10_000_000)
    np.testing.assert_allclose([low, high], 1e7 * stats.beta(30, 571).ppf([0.025, 0.975]), atol=0.5)
    assert mean == pytest.approx(1e7 * 30 / 601)


@pytest.mark.parametrize("decimals", [12, 1])
@pytest.mark.parametrize("shift", [0.0, 0.3, 5.0])
def test_drift_is_scipys_two_sample_test_from_counts_alone(decimals, shift):
    calibration, new = RNG.normal(size=137).round(decimals), (RNG.normal(size=991) + shift).round(decimals)
    counts = Counts(calibration)
    for part in np.array_split(new, 7):
        counts.add(part)
    found, expected = drift(counts), stats.ks_2samp(calibration, new, method="asymp")
    assert found is not None
    assert found.ks == pytest.approx(expected.statistic, abs=1e-12)
    assert found.ks_p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-300)
    np.testing.assert_array_equal(counts.below, [(new < c).sum() for c in np.sort(calibration)])
    np.testing.assert_array_equal(counts.at_most, [(new <= c).sum() for c in np.sort(calibration)])


def test_the_stability_index_by_its_definition():
    calibration, new = RNG.normal(size=200), RNG.normal(0.5, 1, 700)
    edges = np.quantile(calibration, np.arange(1, BINS) / BINS, method="inverted_cdf")
    old, now = (
        np.array([((x > a) & (x <= b)).sum() for a, b in zip([-np.inf, *edges], [*edges, np.inf])]) + SMOOTHING
        for x in (calibration, new)
    )
    p, q = old / old.sum(), now / now.sum()
    counts = Counts(calibration)
    counts.add(new)
    found = drift(counts)
    assert found is not None and found.psi == pytest.approx(float(np.sum((q - p) * np.log(q / p))))
    same = Counts(calibration)
    same.add(calibration)
    stable = drift(same)
    assert stable is not None and stable.psi == pytest.approx(0) and stable.ks == 0
    assert drift(Counts(calibration)) is None


def frame(**columns) -> pl.DataFrame:
    return pl.DataFrame(columns, schema_overrides={"label": pl.Int8})


def test_a_report_counts_over_batches_and_periods(tmp_path):
    report = Report(np.arange(10.0))
    verdict = ["ask", "flag", "pass", "flag", "flag", "pass"]
    rows = frame(period=["06", "06", "05", "06", "05", "06"], score=[9.0, 20, 3, 30, 8, 1], verdict=verdict,
                 label=[1, 1, None, 0, None, None])  # fmt: skip
    report.add("input", rows.head(4))
    report.add("input", rows.tail(2))
    may, june = report.rows()
    assert (may["period"], may["rows"], may["flag"], may["flag_reviewed"], may["precision"]) == ("05", 2, 1, 0, None)
    assert (june["rows"], june["flag"], june["flag_right"], june["ask_right"], june["anomalies"]) == (4, 2, 1, 1, 2)
    assert june["false_alarm_rate"] == 1 / 2  # one false alarm, two rows that nobody found anomalous
    assert june["ks"] == pytest.approx(stats.ks_2samp(np.arange(10), [9, 20, 30, 1]).statistic)
    write(report.rows(), tmp_path / "report.csv")
    draw(report.rows(), 0.01, tmp_path / "alerts.png")
    assert pl.read_csv(tmp_path / "report.csv")["psi"].null_count() == 0
    assert (tmp_path / "alerts.png").stat().st_size > 10_000


def test_intervals_are_clopper_and_pearsons():
    count = {"rows": 1000, "anomalies": 40, "flag": 50, "flag_reviewed": 50, "flag_right": 38}
    found = of_alerts(count)
    precision = stats.binomtest(38, 50).proportion_ci(method="exact")
    rate = stats.binomtest(12, 960).proportion_ci(method="exact")
    assert (found["precision_low"], found["precision_high"]) == pytest.approx((precision.low, precision.high))
    assert (found["false_alarm_rate_low"], found["false_alarm_rate_high"]) == pytest.approx((rate.low, rate.high))
    assert found["false_alarm_rate"] == 12 / 960


def test_flags_that_nobody_reviewed_widen_the_rate_and_leave_no_single_number():
    count = {"rows": 1000, "anomalies": 40, "flag": 70, "flag_reviewed": 50, "flag_right": 38}
    found = of_alerts(count)
    low = stats.binomtest(12, 960).proportion_ci(method="exact").low
    high = stats.binomtest(32, 960).proportion_ci(method="exact").high
    assert (found["false_alarm_rate_low"], found["false_alarm_rate_high"]) == pytest.approx((low, high))
    assert found["false_alarm_rate"] is None
    unseen = {"rows": 9, "anomalies": 0, "flag": 1, "flag_reviewed": 0, "flag_right": 0}
    assert of_alerts(unseen)["false_alarm_rate_low"] is None
