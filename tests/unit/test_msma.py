"""MSMA against norms in closed form, scikit-learn's mixture and neighbours; bad input."""

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from outlie.detectors.msma import MSMA
from outlie.diffusion.processes import VE, VP
from outlie.errors import UserError

from .gaussian_denoiser import GaussianDenoiser, check_detector, fitted, images, score, set_up, tiny_unet


@pytest.mark.parametrize("process", [VP, VE])
def test_norms_are_those_of_gaussian_pixels(process):
    network = GaussianDenoiser(process())
    x, detector = images(20), set_up(MSMA(), network)
    norms = detector.statistics(x)
    noise = torch.randn(1, *x.shape[1:], generator=torch.Generator().manual_seed(3))
    for level, log_snr in enumerate(np.linspace(-10, 5, 8)):
        a, b = (float(c) for c in network.process.coefficients(network.process.time_at(log_snr)))
        x_t = a * x + b * noise  # score of N(0, a^2 s^2 + b^2) is -x_t / variance, eps_hat = -b score
        np.testing.assert_allclose(norms[:, level], (b * x_t / (a**2 * 0.25 + b**2)).flatten(1).norm(dim=1), rtol=1e-4)


def test_the_score_is_scikit_learns_mixture_of_least_bic():
    network, train, x = GaussianDenoiser(), images(80), images(9, s=0.7, seed=4)
    detector = fitted(MSMA(components=[2, 4]), network, train)
    rows, test = (detector.statistics(part).numpy() for part in (train, x))
    z, z_test = ((part - rows.mean(0)) / rows.std(0) for part in (rows, test))
    models = [GaussianMixture(k, max_iter=200, random_state=3).fit(z) for k in (2, 4)]
    best = min(models, key=lambda model: model.bic(z))
    np.testing.assert_allclose(score(detector, x), -best.score_samples(z_test), rtol=1e-6)
    assert score(detector, x).min() > score(detector, train).median()


def test_the_other_head_is_scikit_learns_neighbours():
    network, train, x = GaussianDenoiser(VE()), images(40), images(9, s=0.7, seed=4)
    detector = fitted(MSMA(head="knn", levels=3), network, train)
    rows, test = (detector.statistics(part).numpy() for part in (train, x))
    neighbours = NearestNeighbors(n_neighbors=5).fit((rows - rows.mean(0)) / rows.std(0))
    expected = neighbours.kneighbors((test - rows.mean(0)) / rows.std(0))[0].mean(1)
    np.testing.assert_allclose(score(detector, x), expected, rtol=1e-7)


@pytest.mark.parametrize("head", ["gmm", "knn"])
def test_a_network_takes_eight_evaluations(head):
    options = {"head": head, "components": [1, 2]}
    check_detector(MSMA(**options), MSMA(**options), tiny_unet(), 8)


def test_bad_input():
    with pytest.raises(UserError, match=r"detector\.lowest below detector\.highest"):
        MSMA(lowest=5, highest=-10)
    with pytest.raises(UserError, match=r"log_snr = -12\.0"):
        set_up(MSMA(lowest=-12), GaussianDenoiser())
    with pytest.raises(UserError, match="8 components, but only 5 rows"):
        fitted(MSMA(), GaussianDenoiser(), images(5))
    with pytest.raises(UserError, match="k = 5 neighbours, but only 4 training rows"):
        fitted(MSMA(head="knn"), GaussianDenoiser(), images(4))
