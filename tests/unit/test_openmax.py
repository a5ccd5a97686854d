"""OpenMax against SciPy's Weibull fit and a loop over rows and classes written from the definition."""

import logging

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import weibull_min

from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.openmax import OpenMax, largest_of_each_class, weibull_shape_and_log_scale
from outlie.errors import UserError


def rows(n: int = 400, classes: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a fair classifier, and labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=n)
    return 3 * np.eye(classes)[y] + rng.normal(size=(n, classes)), y


def fitted(logits, y, **options) -> OpenMax:
    detector = OpenMax(**options)
    detector.fit(Views(logits=torch.as_tensor(logits), y=torch.as_tensor(y)))
    return detector


def scores(detector: OpenMax, logits) -> np.ndarray:
    return detector.score(Views(logits=torch.as_tensor(np.asarray(logits)))).numpy()


@pytest.mark.parametrize("spread", [0.01, 0.3, 2.0])
def test_the_weibull_is_scipys(spread):
    rng = np.random.default_rng(2)
    x = np.exp(spread * rng.normal(size=(4, 20)))
    valid = np.ones((4, 20), bool)
    valid[1, 12:] = False
    shape, log_scale = weibull_shape_and_log_scale(torch.as_tensor(np.log(x)), torch.as_tensor(valid))
    for i in range(4):
        k, _, scale = weibull_min.fit(x[i][valid[i]], floc=0)
        assert shape[i].item() == pytest.approx(k, rel=1e-4)
        assert log_scale[i].item() == pytest.approx(np.log(scale), abs=1e-4)  # how far SciPy's search goes


def test_the_weibull_is_the_likeliest_at_the_margin_of_libmr():
    """At 10000 SciPy's own search does not converge: its density says that every neighbour is less likely."""
    x = 10_000 + np.random.default_rng(3).exponential(size=20)
    shape, log_scale = weibull_shape_and_log_scale(
        torch.as_tensor(np.log(x))[None], torch.ones(1, 20, dtype=torch.bool)
    )
    k, scale = shape.item(), np.exp(log_scale.item())

    def likelihood(a: float, b: float) -> float:
        return weibull_min.logpdf(x, k * a, scale=10_000 + (scale - 10_000) * b).sum()

    best = likelihood(1, 1)
    assert all(likelihood(a, b) < best for a in (0.99, 1, 1.01) for b in (0.99, 1, 1.01) if (a, b) != (1, 1))


def test_the_largest_of_each_class():
    rng = np.random.default_rng(0)
    values, y = rng.random(60), rng.integers(4, size=60)
    y[y == 2] = 3
    tails, valid = largest_of_each_class(torch.as_tensor(values), torch.as_tensor(y), 5, 16)
    for c in range(5):
        expected = sorted(values[y == c])[::-1][:16]
        np.testing.assert_array_equal(tails[c][valid[c]], expected)
        assert valid[c].sum() == len(expected)


def by_definition(logits, y, test, tail: int, alpha: int, margin: float) -> list[float]:
    """log P(unknown) / (1 - P(unknown)), Weibulls by SciPy."""
    classes = logits.shape[1]
    weibulls, means = [], []
    for c in range(classes):
        mine = logits[(y == c) & (logits.argmax(1) == c)]
        means.append(mine.mean(0))
        distances = np.sort([np.linalg.norm(row - means[c]) for row in mine])[-tail:]
        k, _, scale = weibull_min.fit(distances - distances[0] + margin, floc=0)
        weibulls.append((k, scale, distances[0]))
    result = []
    for row in test:
        revised, taken = row.copy(), 0.0
        for i, c in enumerate(np.argsort(row)[::-1][:alpha], 1):
            k, scale, smallest = weibulls[c]
            omega = weibull_min.cdf(np.linalg.norm(row - means[c]) - smallest + margin, k, scale=scale)
            revised[c] = row[c] * (1 - omega * (alpha + 1 - i) / alpha)
            taken += row[c] - revised[c]
        result.append(taken - logsumexp(revised))
    return result


@pytest.mark.parametrize(("tail", "alpha", "margin"), [(20, 3, 1.0), (8, 1, 0.5), (10_000, 5, 2.0)])
def test_it_is_the_definition(tail, alpha, margin):
    logits, y = rows()
    test = np.concatenate([rows(30, seed=1)[0], 2 * np.random.default_rng(4).normal(size=(30, 5))])
    expected = by_definition(logits, y, test, tail, alpha, margin)
    ours = scores(fitted(logits, y, tail=tail, alpha=alpha, margin=margin), test)
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)  # SciPy's Weibulls are searched for
    assert np.std(expected) > 0.5


def test_more_logits_to_revise_than_classes_are_all_of_them():
    logits, y = rows()
    np.testing.assert_array_equal(
        scores(fitted(logits, y, alpha=9), logits), scores(fitted(logits, y, alpha=5), logits)
    )


def test_fit_does_not_depend_on_how_rows_are_cut(monkeypatch):
    logits, y = rows()
    whole = scores(fitted(logits, y), logits[:20])
    monkeypatch.setattr("outlie.detectors.openmax.ROWS_AT_ONCE", 7)
    np.testing.assert_allclose(scores(fitted(logits, y), logits[:20]), whole, rtol=1e-9)


def test_a_class_without_correct_rows_takes_nothing_and_is_said(caplog):
    logits, y = rows()
    logits[y == 3, 3] = -20  # never right
    few = np.flatnonzero((y == 4) & (logits.argmax(1) == 4))[2:]
    logits[few, 4] = -20  # right twice
    with caplog.at_level(logging.INFO, "outlie"):
        detector = fitted(logits, y, alpha=1)
    assert "2 of 5 classes" in caplog.text and "3, 4" in caplog.text
    far = 50 * np.eye(5)
    result = scores(detector, far)
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result[3:], -logsumexp(far[3:], 1), rtol=1e-12)  # nothing taken: unknown logit 0
    np.testing.assert_allclose(result[:3], 50 - np.log(5), rtol=1e-6)  # all taken


@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_rows_are_finite_and_score_alone_as_in_a_batch(sign):
    logits, y = rows()
    detector = fitted(logits.astype(np.float32), y)
    extreme = np.concatenate([np.zeros((1, 5)), sign * np.full((1, 5), 5.0), sign * 1e4 * np.eye(5), sign * logits[:9]])
    together = scores(detector, extreme)
    assert np.isfinite(together).all()
    alone = [scores(detector, extreme[i : i + 1])[0] for i in range(len(extreme))]
    np.testing.assert_allclose(alone, together, rtol=1e-9)


def test_typical_rows_score_below_far_ones():
    logits, y = rows()
    detector = fitted(logits, y)
    assert np.median(scores(detector, rows(100, seed=7)[0])) < scores(detector, [[3, 3, 3, 3, 3.0]])[0]


def test_bad_input_is_a_mistake():
    logits, y = rows(60)
    with pytest.raises(UserError, match=r"set detector\.tail to 3"):
        OpenMax(tail=2)
    with pytest.raises(UserError, match="no class has 3 correctly classified"):
        fitted(logits, (logits.argmax(1) + 1) % 5)
    with pytest.raises(UserError, match="have no logit; allowed are 0 to 4"):
        fitted(logits, y + 1)


def test_the_state_is_loaded():
    logits, y = rows()
    detector, other = fitted(logits, y), set_up(OpenMax(), Spec({"logits": (5,)}, classes=5))
    other.load_state_dict(detector.state_dict())
    np.testing.assert_array_equal(scores(detector, logits), scores(other, logits))
