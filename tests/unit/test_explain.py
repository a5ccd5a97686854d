"""Explanations: gradients against finite differences, denoising against a feature that was moved."""

import math

import numpy as np
import pytest
import torch

from outlie.density import objectives
from outlie.detectors.base import Detector, Spec, Views, set_up
from outlie.detectors.dte import DTEC
from outlie.detectors.dte_np import DTENP
from outlie.detectors.ecod import ECOD
from outlie.detectors.knn import KNN
from outlie.detectors.vae import VAE
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


def density_model(**options) -> VAE:
    detector = VAE(latent=2, draws=20, **options)
    set_up(detector, Spec({"x": (4,)}))
    return detector.double().eval()


SCORES = {
    "neg_iwae": {}, "neg_elbo": {}, "recon_prob": {}, "recon_err": {}, "recon_err_sir": {}, "latent_kl": {},
    "bound_gap": {}, "typicality": {}, "waic": {"members": 2}, "llr": {"background": 0.2},
}  # fmt: skip


@pytest.mark.parametrize("score_by", SCORES)
def test_gradient_of_a_density_models_score_is_the_finite_difference(score_by):
    detector, x = density_model(score_by=score_by, **SCORES[score_by]), rows(6, 1)
    name, gradient = explain(detector, both(x))
    assert name == "gradient of the score"
    np.testing.assert_allclose(gradient, differences(detector, x, 1e-6), rtol=1e-4, atol=1e-7)
    assert all(p.grad is None for p in detector.parameters())


def test_gradient_does_not_depend_on_how_many_samples_are_decoded_at_once(monkeypatch):
    detector, x = density_model(), rows(6, 1)
    at_once = score_gradient(detector, both(x))
    monkeypatch.setattr(objectives, "NUMBERS_AT_ONCE", 7 * detector.model.numbers_a_sample * len(x))
    torch.testing.assert_close(score_gradient(detector, both(x)), at_once, rtol=1e-10, atol=1e-12)


def test_a_score_that_is_the_end_of_an_optimisation_has_no_gradient():
    with pytest.raises(UserError, match="VAE has no gradient"):
        explain(density_model(score_by="regret"), both(rows(1, 1)))


def test_a_density_model_that_takes_gaps_tells_each_values_surprise():
    detector, x = density_model(missing="random", likelihood="gaussian"), rows(6, 1)
    x[2, 1], x[3] = math.nan, math.nan
    name, surprise = explain(detector, both(x))
    assert name == "surprise of each value given the others, in nats"
    assert surprise.shape == (6, 4) and not surprise.requires_grad
    score = detector.score(both(x))
    for j in range(4):
        rest = x.clone()
        rest[:, j] = math.nan
        torch.testing.assert_close(surprise[:, j], (score - detector.score(both(rest))).detach())
    assert surprise[2, 1] == 0 and (surprise[3] == 0).all() and (surprise[[0, 1, 4, 5]] != 0).all()
    x[0, 2] = 12.0
    assert explain(detector, both(x))[1][0].argmax() == 2
