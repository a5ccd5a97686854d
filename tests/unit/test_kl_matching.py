"""KL matching against SciPy's divergence, one row and one template at a time."""

import logging

import mpmath
import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.kl_matching import KLMatching


def logits(n: int, classes: int = 6, scale: float = 2.0, seed: int = 0) -> np.ndarray:
    return scale * np.random.default_rng(seed).normal(size=(n, classes))


def fitted(train: np.ndarray, **options) -> KLMatching:
    detector = KLMatching(**options)
    detector.fit(Views(logits=torch.as_tensor(train)))
    return detector


def scores(detector: KLMatching, rows: np.ndarray) -> np.ndarray:
    return detector.score(Views(logits=torch.as_tensor(rows))).numpy()


def by_definition(train: np.ndarray, rows: np.ndarray) -> list[float]:
    p, q = softmax(train, 1), softmax(rows, 1)
    templates = [p[p.argmax(1) == k].mean(0) for k in range(p.shape[1]) if (p.argmax(1) == k).any()]
    return [min(rel_entr(one, t).sum() for t in templates) for one in q]


@pytest.mark.parametrize("classes", [2, 6, 30])
def test_it_is_the_smallest_divergence_from_a_template(classes):
    train, rows = logits(300, classes), logits(40, classes, scale=3, seed=1)
    expected = by_definition(train, rows)
    np.testing.assert_allclose(scores(fitted(train), rows), expected, rtol=1e-9, atol=1e-13)
    single = scores(fitted(train.astype(np.float32)), rows.astype(np.float32))
    np.testing.assert_allclose(single, expected, rtol=1e-4, atol=1e-6)


def test_templates_do_not_depend_on_how_rows_are_cut(monkeypatch):
    train, rows = logits(100), logits(10, seed=1)
    whole = scores(fitted(train), rows)
    monkeypatch.setattr("outlie.detectors.kl_matching.ROWS_AT_ONCE", 7)
    np.testing.assert_allclose(scores(fitted(train), rows), whole, rtol=1e-12)


def test_a_class_never_predicted_is_left_out_and_said(caplog):
    train, rows = logits(200), logits(30, seed=1)
    train[:, 2] -= 50
    with caplog.at_level(logging.INFO, "outlie"):
        detector = fitted(train)
    assert "1 of 6 classes are never predicted on the 200 fitted rows" in caplog.text
    assert detector.log_templates.shape == (5, 6)
    np.testing.assert_allclose(scores(detector, rows), by_definition(train, rows), rtol=1e-9)


def test_probabilities_that_underflow_are_finite():
    train = np.eye(4).repeat(5, 0) * np.linspace(900, 2000, 20)[:, None]
    rows = np.concatenate([np.eye(4) * 3000, np.eye(4) * -3000, np.zeros((1, 4))])
    result = scores(fitted(train), rows)
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result[:4], 0, atol=1e-300)
    assert (result[4:] > 100).all()


def test_confident_rows_keep_their_differences():
    """Divergences near 1e-20 against arithmetic with 60 digits; t_kk and p_max are 1 in float64."""
    train, rows = np.diag([45.0, 46.0, 47.0]), np.array([[41.0, 0, 0], [43, 1, 0], [0, 52, 0]])
    with mpmath.workdps(60):

        def p(row):
            exps = [mpmath.e ** mpmath.mpf(float(v)) for v in row]
            return [one / sum(exps) for one in exps]

        templates = [p(row) for row in train]
        expected = [
            float(min(sum(a * mpmath.log(a / b) for a, b in zip(p(row), t)) for t in templates)) for row in rows
        ]
    assert max(expected) < 1e-16
    np.testing.assert_allclose(scores(fitted(train), rows), expected, rtol=1e-6)


def test_a_row_alone_scores_as_in_a_batch():
    detector, rows = fitted(logits(300).astype(np.float32)), logits(20, seed=1, scale=5).astype(np.float32)
    alone = [scores(detector, rows[i : i + 1])[0] for i in range(20)]
    np.testing.assert_allclose(alone, scores(detector, rows), rtol=1e-9)


def test_the_split_is_where_it_is_fitted_and_the_state_is_loaded():
    assert KLMatching().fits_on == "calibration"
    assert KLMatching(split="train").fits_on == "train"
    detector, other = fitted(logits(50)), set_up(KLMatching(), Spec({"logits": (6,)}, classes=6))
    other.load_state_dict(detector.state_dict())
    np.testing.assert_array_equal(scores(detector, logits(9)), scores(other, logits(9)))
