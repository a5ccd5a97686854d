"""Explanations: gradients against finite differences, denoising against a feature that was moved."""

import math

import numpy as np
import pytest
import torch

from outlie.detectors.base import Detector, Spec, Views, set_up
from outlie.detectors.dte import DTEC
from outlie.detectors.dte_np import DTENP
from outlie.detectors.ecod import ECOD
from outlie.detectors.knn import KNN
from outlie.errors import UserError
from outlie.explain import denoised_difference, explain, score_gradient


def both(x: torch.Tensor) -> Views:
    return Views(x=x, features=x)


def rows(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fitted(detector: Detector) -> Detector:
    detector.fit(both(rows(60, 0)))
    return detector


def differences(detector: Detector, x: torch.Tensor, step: float) -> np.ndarray:
    moves = step * torch.eye(4, dtype=x.dtype)
    with torch.no_grad():
        change = [detector.score(both(x + move)) - detector.score(both(x - move)) for move in moves]
    return torch.stack(change, 1).abs().numpy() / (2 * step)


@pytest.mark.parametrize("detector", [KNN(k=3), KNN(aggregate="mean_sq"), DTENP(scorer="mode")])
def test_gradient_is_the_finite_difference(detector):
    x = rows(6, 1)
    np.testing.assert_allclose(score_gradient(fitted(detector), both(x)), differences(detector, x, 1e-6), rtol=1e-4)
    assert not x.requires_grad


def test_gradient_of_a_network_is_the_finite_difference():
    detector = DTEC(hidden=[16, 16])
    set_up(detector, Spec({"x": (4,)}))
    detector.double().eval()
    x = rows(6, 1)
    np.testing.assert_allclose(score_gradient(detector, both(x)), differences(detector, x, 1e-6), rtol=1e-3, atol=1e-6)
    with torch.inference_mode(False), torch.no_grad():  # a caller without gradients gets them all the same
        assert score_gradient(detector, both(x)).shape == (6, 4)


def test_moved_feature_stands_out_where_the_detector_denoises():
    x = 0.2 * rows(5, 1)
    x[:, 2] += 8
    difference = denoised_difference(fitted(DTENP()), both(x))
    assert difference.shape == (5, 4) and not difference.requires_grad
    assert (difference.abs().argmax(1) == 2).all()
    assert (difference[:, 2] > 4).all()  # upwards


def test_denoising_goes_before_the_gradient():
    x = rows(3, 1)
    name, by_denoising = explain(fitted(DTENP()), both(x))
    assert name == "x minus its denoised image"
    torch.testing.assert_close(by_denoising, denoised_difference(fitted(DTENP()), both(x)))
    name, by_gradient = explain(fitted(KNN()), both(x))
    assert name == "gradient of the score"
    torch.testing.assert_close(by_gradient, score_gradient(fitted(KNN()), both(x)))


def test_a_score_without_gradient_is_a_mistake():
    with pytest.raises(UserError, match="ECOD"):
        explain(fitted(ECOD()), both(rows(3, 1)))


def test_gradient_of_a_training_row_is_finite():
    # distance 0: the square root has no derivative there
    gradient = score_gradient(fitted(KNN(k=1)), both(rows(60, 0)[:3]))
    assert all(math.isfinite(value) for value in gradient.flatten().tolist())
