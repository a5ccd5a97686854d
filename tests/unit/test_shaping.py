"""Activation shaping against NumPy and loops over rows and weights, written from the papers' definitions."""

import logging

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import nn

from outlie.detectors import shaping
from outlie.detectors.base import Detector, Spec, Views, set_up
from outlie.detectors.shaping import ASH, DICE, SCALE, VRA, ReAct, largest, percentiles
from outlie.errors import UserError

DIM, CLASSES = 20, 4
RNG = np.random.default_rng(0)
TRAIN = np.maximum(RNG.normal(size=(90, DIM)) + 0.5, 0).astype(np.float32)
TEST = np.maximum(2 * RNG.normal(size=(30, DIM)), 0).astype(np.float32)
SIGNED = RNG.normal(size=(30, DIM)).astype(np.float32)
EVERY = [ReAct, VRA, DICE, *(lambda v=v: ASH(variant=v) for v in "pbs"), SCALE]


def head(bias: bool = True, dim: int = DIM) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(dim, CLASSES, bias=bias)


def new(detector: Detector, linear: nn.Linear) -> Detector:
    return set_up(detector, Spec({"features": (linear.in_features,)}, classes=CLASSES, head=linear))


def fitted(detector: Detector, train=TRAIN, linear: nn.Linear | None = None) -> Detector:
    detector = new(detector, linear or head())
    if hasattr(detector, "fit"):
        detector.fit(Views(features=torch.as_tensor(train)))
    return detector


def scores(detector: Detector, rows) -> np.ndarray:
    return detector.score(Views(features=torch.as_tensor(np.asarray(rows)))).numpy()


def energies(rows, linear: nn.Linear | None = None) -> np.ndarray:
    linear = linear or head()
    weight, bias = linear.weight.detach().double().numpy(), linear.bias
    bias = np.zeros(CLASSES) if bias is None else bias.detach().double().numpy()
    return np.array([-logsumexp([w @ row + b for w, b in zip(weight, bias)]) for row in np.asarray(rows, float)])


# --- clipping


def test_percentiles_are_numpys():
    for n in (1, 2, 7, 90):
        values = RNG.normal(size=(n, 3)).astype(np.float32)
        ours = percentiles(torch.as_tensor(values), 10, 50, 99.9)
        np.testing.assert_allclose(ours, np.percentile(values.astype(float), [10, 50, 99.9]), rtol=1e-12)


def test_percentiles_of_very_many_values_take_every_few_rows(monkeypatch, caplog):
    monkeypatch.setattr(shaping, "VALUES_AT_MOST", 3 * 40)
    values = RNG.normal(size=(90, 3))
    with caplog.at_level(logging.INFO, "outlie"):
        (ours,) = percentiles(torch.as_tensor(values), 70)
    assert ours == pytest.approx(np.percentile(values[::3], 70))
    assert "from one row in 3" in caplog.text


def test_react_clips_from_above_only():
    for rows in (TEST, SIGNED):
        expected = energies(np.minimum(rows, np.percentile(TRAIN.astype(float), 90)))
        np.testing.assert_allclose(scores(fitted(ReAct()), rows), expected, rtol=1e-9)
    clip = np.percentile(TRAIN.astype(float), 99)
    np.testing.assert_allclose(scores(fitted(ReAct(99.0)), TEST), energies(np.minimum(TEST, clip)), rtol=1e-9)


def test_vra_clips_on_both_sides_or_zeroes_below():
    low, high = np.percentile(TRAIN.astype(float) - 1, [30, 80])
    expected = energies(np.clip(SIGNED, low, high))
    np.testing.assert_allclose(scores(fitted(VRA(30.0, 80.0), TRAIN - 1), SIGNED), expected, rtol=1e-6)
    zeroed = np.array([[min(h, high) if h >= low else 0 for h in row] for row in SIGNED])
    ours = scores(fitted(VRA(30.0, 80.0, below="zero"), TRAIN - 1), SIGNED)
    np.testing.assert_allclose(ours, energies(zeroed), rtol=1e-6)
    assert not np.allclose(ours, expected)


@pytest.mark.parametrize("method", [ReAct, VRA])
def test_the_split_is_where_it_is_fitted(method):
    assert method().fits_on == "calibration"
    assert method(split="train").fits_on == "train"
    assert DICE().fits_on == "train"


# --- pruned weights


@pytest.mark.parametrize("percentile", [50.0, 90.0])
def test_dice_keeps_the_weights_that_contribute_most(percentile):
    linear = head()
    weight, mean = linear.weight.detach().double().numpy(), TRAIN.astype(float).mean(0)
    threshold = np.percentile(mean * weight, percentile)
    expected = []
    for row in TEST:
        logits = [
            sum(weight[c, d] * row[d] for d in range(DIM) if mean[d] * weight[c, d] > threshold) + linear.bias[c].item()
            for c in range(CLASSES)
        ]
        expected.append(-logsumexp(logits))
    np.testing.assert_allclose(scores(fitted(DICE(percentile), linear=linear), TEST), expected, rtol=1e-9)


def test_dice_drops_weights_that_equal_the_threshold():
    linear = head(bias=False)
    nn.init.ones_(linear.weight)
    detector = fitted(DICE(), np.ones((3, DIM), np.float32), linear)
    np.testing.assert_allclose(scores(detector, TEST), -np.log(CLASSES))  # every logit 0


def test_fitting_and_scoring_leave_the_rows_and_the_head_alone():
    linear = head().double()
    weight, rows = linear.weight.detach().clone(), torch.as_tensor(TEST).double()
    for make in EVERY:
        fitted(make(), torch.as_tensor(TRAIN).double(), linear).score(Views(features=rows))
    assert torch.equal(linear.weight, weight)
    np.testing.assert_array_equal(rows, TEST)


# --- per row


def shaped(row: np.ndarray, variant: str, percentile: float) -> np.ndarray:
    n = len(row)
    k = n - int(np.round(n * percentile / 100))
    order = sorted(range(n), key=lambda i: (-row[i], i))[:k]
    pruned = np.zeros(n)
    pruned[order] = row[order]
    if variant == "p":
        return pruned
    if variant == "b":
        result = np.zeros(n)
        result[order] = row.sum() / k
        return result
    return (pruned if variant == "s" else row) * np.exp(row.sum() / pruned.sum())


@pytest.mark.parametrize("percentile", [10.0, 62.5, 65.0, 90.0])  # 62.5 % of 20 is 12.5: half to even
@pytest.mark.parametrize("variant", ["p", "b", "s", "scale"])
def test_ash_and_scale_are_their_definitions(variant, percentile):
    detector = fitted(SCALE(percentile) if variant == "scale" else ASH(variant, percentile))
    positive = TEST + 0.01
    expected = energies([shaped(row.astype(float), variant, percentile) for row in positive])
    np.testing.assert_allclose(scores(detector, positive), expected, rtol=1e-6)


def test_exactly_k_are_kept_and_among_equals_the_first():
    rows = torch.as_tensor(RNG.integers(0, 4, size=(200, DIM)).astype(np.float32))
    for k in (1, 7, DIM):
        for row, kept in zip(rows, largest(rows, k)):
            expected = sorted(range(DIM), key=lambda i: (-row[i].item(), i))[:k]
            assert kept.nonzero()[:, 0].tolist() == sorted(expected)


@pytest.mark.parametrize("make", [lambda: ASH("s"), SCALE], ids=["ash_s", "scale"])
def test_sums_below_0_are_left_unscaled_and_said_once(make, caplog):
    detector = fitted(make())
    rows = np.concatenate([SIGNED - 1, SIGNED - 9, np.abs(SIGNED)])
    assert (rows[:60].sum(1) < 0).all() and (rows[30:60].max(1) < 0).all()
    with caplog.at_level(logging.INFO, "outlie"):
        together = scores(detector, rows)
        scores(detector, rows)
    assert len(caplog.records) == 1 and "60 of the first 90" in caplog.text
    assert np.isfinite(together).all()
    unscaled = energies(rows) if isinstance(detector, SCALE) else scores(fitted(ASH("p")), rows)
    np.testing.assert_allclose(together[:60], unscaled[:60], rtol=1e-6)
    with caplog.at_level(logging.INFO, "outlie"):
        scores(fitted(make()), np.zeros((2, DIM), np.float32))
    assert len(caplog.records) == 1


def test_no_feature_left_is_a_mistake():
    for detector in (ASH(percentile=98.0), SCALE(percentile=98.0)):
        with pytest.raises(UserError, match=r"keeps 0 of 20 features; set detector\.percentile to 96\.25 or less"):
            new(detector, head())
    new(ASH(percentile=96.25), head())
    rows = 1000 * np.ones((2, 3000), np.float32)
    assert np.isfinite(scores(new(ASH("s", 99.98), head(dim=3000)), rows)).all()  # s1 / s2 = 3000


@pytest.mark.parametrize("make", [ReAct, DICE, lambda percentile: VRA(10.0, percentile)])
def test_percentiles_out_of_range_are_a_mistake(make):
    with pytest.raises(UserError, match="above 0 and below 100"):
        make(100.0)


def test_limits_in_the_wrong_order_are_a_mistake():
    with pytest.raises(UserError, match=r"low = 90\.0 is not below high = 10\.0"):
        VRA(90.0, 10.0)


# --- all of them


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("make", EVERY)
def test_every_kind_of_row_is_finite_and_scores_alone_as_in_a_batch(make, bias):
    detector = fitted(make(), linear=head(bias))
    rows = np.concatenate([TEST, SIGNED, np.zeros((1, DIM), np.float32), np.full((1, DIM), 1e6, np.float32)])
    together = scores(detector, rows)
    assert np.isfinite(together).all() and together.shape == (62,)
    alone = [scores(detector, rows[i : i + 1])[0] for i in range(62)]
    np.testing.assert_allclose(alone, together, rtol=1e-9)
    if not bias and not isinstance(detector, VRA):  # whose lower limit may be above 0
        assert together[60] == pytest.approx(-np.log(CLASSES))  # a row of zeros: every logit 0


@pytest.mark.parametrize("make", EVERY)
def test_the_state_is_loaded_onto_another_head(make):
    detector, other = fitted(make()), new(make(), head(bias=False))
    other.load_state_dict(detector.state_dict())
    np.testing.assert_array_equal(scores(detector, TEST), scores(other, TEST))


@pytest.mark.parametrize("make", EVERY)
def test_negative_logits_keep_the_ranking_of_the_logits(make):
    linear = head(bias=True)
    with torch.no_grad():
        linear.bias -= 1000
    low, usual = scores(fitted(make(), linear=linear), TEST), scores(fitted(make()), TEST)
    np.testing.assert_allclose(low - usual, 1000, rtol=1e-6)
