"""Scores from logits against SciPy, arithmetic with 60 digits, and a brute-force search for the temperature."""

import logging

import mpmath
import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp
from scipy.stats import entropy

from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.softmax import GEN, MSP, Energy, MaxLogit, TemperatureScaling, log_probabilities
from outlie.errors import UserError

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(50, 7)) * np.linspace(0.1, 30, 50)[:, None] - 5
EVERY = [MSP(), MaxLogit(), Energy(), Energy(T=3.0), GEN(), GEN(gamma=1.0, M=2)]


def scores(detector, logits) -> np.ndarray:
    return detector.score(Views(logits=torch.as_tensor(np.asarray(logits)))).numpy()


def exact_probabilities(row) -> list:
    exps = [mpmath.e ** mpmath.mpf(float(value)) for value in row]
    return [one / sum(exps) for one in exps]


def test_simple_scores_are_scipys():
    np.testing.assert_allclose(scores(MSP(), LOGITS), -log_softmax(LOGITS, 1).max(1), rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(scores(MaxLogit(), LOGITS), -LOGITS.max(1))
    np.testing.assert_allclose(scores(Energy(), LOGITS), -logsumexp(LOGITS, 1), rtol=1e-12)
    np.testing.assert_allclose(scores(Energy(T=2.5), LOGITS), -2.5 * logsumexp(LOGITS / 2.5, 1), rtol=1e-12)


def test_msp_and_gen_are_exact_however_confident_the_row():
    rows = [[70.0, 0, 0], [90, 0, -1], [90, 89, -1], [5, 5, 5], [0, 0, 600], [1, 2, 3]]
    with mpmath.workdps(400):
        p = [exact_probabilities(row) for row in rows]
        msp = [float(-mpmath.log(max(one))) for one in p]
        gen = {g: [float(sum((q * (1 - q)) ** mpmath.mpf(g) for q in one)) for one in p] for g in (0.1, 2.0)}
    np.testing.assert_allclose(scores(MSP(), rows), msp, rtol=1e-12)
    for gamma, expected in gen.items():
        np.testing.assert_allclose(scores(GEN(gamma=gamma), rows), expected, rtol=1e-12)


def test_confident_rows_do_not_tie():
    gaps = np.linspace(60, 100, 41)  # p_max from 1 - 1e-26 to 1 - 1e-43, all 1 in float64
    rows = np.stack([gaps, np.zeros(41), np.zeros(41)], 1)
    for detector in (MSP(), GEN()):
        assert (np.diff(scores(detector, rows)) < 0).all()
        assert (np.diff(scores(detector, rows.astype(np.float32))) < 0).all()


@pytest.mark.parametrize(("gamma", "m"), [(0.1, 3), (0.5, 7), (2.0, 100), (1.0, 1)])
def test_gen_sums_the_largest_probabilities(gamma, m):
    expected = [sum((p * (1 - p)) ** gamma for p in sorted(row)[::-1][:m]) for row in np.exp(log_softmax(LOGITS, 1))]
    usual = np.diff(np.sort(LOGITS, 1)[:, -2:], axis=1)[:, 0] < 15  # elsewhere 1 - p of the oracle is rounding
    assert usual.sum() > 30
    np.testing.assert_allclose(scores(GEN(gamma=gamma, M=m), LOGITS)[usual], np.array(expected)[usual], rtol=1e-6)


def test_log_probabilities_are_scipys():
    ours = log_probabilities(torch.as_tensor(LOGITS))
    np.testing.assert_allclose(ours, log_softmax(LOGITS, 1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("detector", EVERY, ids=lambda d: type(d).__name__)
def test_extreme_rows_are_finite_and_a_row_alone_scores_as_in_a_batch(detector):
    rows = np.concatenate([LOGITS, np.zeros((1, 7)), np.full((1, 7), -1e4), np.eye(7) * 1e4, np.eye(7) * -1e4])
    together = scores(detector, rows)
    assert np.isfinite(together).all() and together.dtype == np.float64
    np.testing.assert_allclose([scores(detector, rows[i : i + 1])[0] for i in range(len(rows))], together, rtol=1e-12)


@pytest.mark.parametrize("detector", EVERY, ids=lambda d: type(d).__name__)
def test_one_class_is_finite_and_confidence_scores_lower(detector):
    assert np.isfinite(scores(detector, np.array([[3.0], [-2.0]]))).all()
    confident, doubtful = scores(detector, [[8.0, 0, 0], [1, 0.5, 0]])
    assert confident < doubtful


# --- temperature


def labelled(n: int = 400, classes: int = 5, scale: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from softmax(l); the logits handed out are `scale` times too large."""
    rng = np.random.default_rng(1)
    logits = 2 * rng.normal(size=(n, classes))
    y = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    return scale * logits, y


def fitted(logits, y) -> TemperatureScaling:
    detector = TemperatureScaling()
    detector.fit(Views(logits=torch.as_tensor(logits), y=torch.as_tensor(y)))
    return detector


@pytest.mark.parametrize("scale", [0.01, 0.3, 4.0, 100.0])
def test_the_temperature_is_the_minimum_of_the_cross_entropy(scale):
    logits, y = labelled(scale=scale)

    def cross_entropy(log_t: float) -> float:
        return -log_softmax(logits / np.exp(log_t), 1)[np.arange(len(y)), y].mean()

    best = minimize_scalar(cross_entropy, bounds=(-8, 8), method="bounded", options={"xatol": 1e-10})
    assert fitted(logits, y).temperature.item() == pytest.approx(np.exp(best.x), rel=1e-5)
    assert best.x == pytest.approx(np.log(scale), abs=0.2)  # the labels were drawn at T = scale


def test_it_scores_the_softmax_at_that_temperature():
    logits, y = labelled()
    detector = fitted(logits.astype(np.float32), y)
    expected = -log_softmax(logits / detector.temperature.item(), 1).max(1)
    np.testing.assert_allclose(scores(detector, logits), expected, rtol=1e-9)
    assert detector.fits_on == "calibration"
    assert np.corrcoef(scores(detector, logits), [entropy(np.exp(row)) for row in log_softmax(logits, 1)])[0, 1] > 0.5


def test_separable_rows_and_rows_worse_than_chance_stop_at_a_finite_temperature(caplog):
    logits, _ = labelled()
    span = (logits.max(1) - logits.min(1)).max()
    for y, temperature, why in (
        (logits.argmax(1), span / 700, "classified right"),
        (logits.argmin(1), 1000 * span, "no better than by chance"),
    ):
        with caplog.at_level(logging.INFO, "outlie"):
            detector = fitted(logits, y)
        assert detector.temperature.item() == pytest.approx(temperature)
        assert why in caplog.records[-1].message
        result = scores(detector, logits)
        assert np.isfinite(result).all() and (result > 0).all()
        assert len(np.unique(result)) == len(result)
    assert fitted(np.zeros((4, 3)), np.arange(4) % 3).temperature.item() == 1


def test_labels_that_are_missing_or_out_of_range_are_a_mistake():
    logits = torch.zeros(4, 3)
    with pytest.raises(UserError, match="no class labels"):
        TemperatureScaling().fit(Views(logits=logits))
    for wrong in (3, -1):
        y = torch.tensor([0, 1, wrong, 2])
        with pytest.raises(UserError, match=rf"1 class labels such as {wrong} have no logit; allowed are 0 to 2"):
            TemperatureScaling().fit(Views(logits=logits, y=y))


def test_the_temperature_is_saved_and_loaded():
    logits, y = labelled()
    detector, other = fitted(logits, y), set_up(TemperatureScaling(), Spec({"logits": (5,)}, classes=5))
    other.load_state_dict(detector.state_dict())
    np.testing.assert_array_equal(scores(detector, logits), scores(other, logits))
