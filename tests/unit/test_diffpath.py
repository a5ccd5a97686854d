"""DiffPath against the path of Gaussian data in closed form, scikit-learn's mixtures and kernels, counts of calls."""

import logging

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from outlie.backbones.unet import UNet
from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.diffpath import DiffPath, path_sums
from outlie.diffusion.plms import falling_times
from outlie.diffusion.processes import VE, VP
from outlie.errors import UserError

from .test_plms import MU, Bent, Gaussian, S, abar, noise


def images(n: int, seed: int = 0) -> torch.Tensor:
    return (MU + S * noise(n, 1, 4, 4, seed=seed)).clamp(-1, 1)


def ready(network, seed=3, **options) -> DiffPath:
    detector = DiffPath(**options)
    set_up(detector, Spec({"x": (1, 4, 4)}, seed=seed, network=network))
    return detector.eval()


def fitted(network, train, **options) -> DiffPath:
    detector = ready(network, **options)
    detector.fit(Views(x=train))
    return detector


def path_by_hand(network: Gaussian, x: np.ndarray, levels: list[tuple[float, float]]) -> np.ndarray:
    """eps_1 .. eps_S of images, in float64; (S, B, ...)."""
    path = []
    for (a, b), (a_next, b_next) in zip(levels, [*levels[1:], (0, 1)]):
        x0 = np.clip(network.clean(x, a, b), -1, 1)
        path.append((x - a * x0) / b)
        x = a_next * x0 + b_next * path[-1]
    return np.array(path)


def sums_by_hand(eps: np.ndarray) -> np.ndarray:
    change = np.diff(eps, axis=0) * len(eps)
    return np.stack([(v**p).sum((0, 2, 3, 4)) for v in (eps, change) for p in (1, 2, 3)], 1)


@pytest.mark.parametrize("kind", [Gaussian, Bent])
@pytest.mark.parametrize("process", [VP(), VE()])
def test_the_six_sums_are_those_of_the_path(kind, process):
    x = torch.cat([images(3), torch.sign(noise(2, 1, 4, 4))])  # the last are clipped on their way
    network = kind(process)
    times = falling_times(process, 10)[::-1]
    if isinstance(process, VP):
        assert times == [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]
        levels = [(np.sqrt(abar()[t]), np.sqrt(1 - abar()[t])) for t in times]
    else:
        levels = [(1.0, sigma) for sigma in times]
    expected = sums_by_hand(path_by_hand(network, x.double().numpy(), levels))
    size = np.abs(expected).max(0)
    np.testing.assert_allclose(path_sums(network, x, times).numpy() / size, expected / size, atol=2e-5)
    assert network.calls == [5] * 10


def test_a_fine_path_is_the_flow_of_gaussian_data():
    """(x_t - a mu) / sqrt(a^2 s^2 + b^2) = y is constant, and eps = b y / sqrt(a^2 s^2 + b^2); x_1 is the image."""
    x = MU + 0.5 * S * torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
    process = VP()
    times = falling_times(process, 1000)[::-1]
    level = abar()[np.array(times)]
    spread = np.sqrt(level * S**2 + 1 - level)
    y = (x.double().numpy() - np.sqrt(level[0]) * MU) / spread[0]
    eps = (np.sqrt(1 - level) / spread)[:, None, None, None, None] * y
    sums = path_sums(Gaussian(process), x, times).numpy()
    expected = sums_by_hand(eps)
    np.testing.assert_allclose(sums[0, [1, 4]], expected[0, [1, 4]], rtol=0.02)
    np.testing.assert_allclose(sums[0, [0, 2]], expected[0, [0, 2]], rtol=0.05)


def test_one_d_is_a_kernel_density_of_the_root_of_squared_changes():
    train, test = images(40, seed=1), images(6, seed=2)
    for bandwidth in (None, 0.7):
        detector = fitted(Gaussian(VP()), train, statistic="one_d", bandwidth=bandwidth)
        known, new = (path_sums(Gaussian(VP()), x, detector.times)[:, 4:5].sqrt().numpy() for x in (train, test))
        if bandwidth is None:
            log_density = gaussian_kde(known.T, bw_method="silverman").logpdf(new.T)
        else:
            log_density = KernelDensity(kernel="gaussian", bandwidth=bandwidth).fit(known).score_samples(new)
        np.testing.assert_allclose(detector.score(Views(x=test)), -log_density, rtol=1e-6)


def test_six_d_is_the_mixture_that_scikit_learn_would_choose():
    train, test = images(60, seed=1), images(6, seed=2)
    detector = fitted(Gaussian(VP()), train, components=[1, 2])
    known, new = (path_sums(Gaussian(VP()), x, detector.times).numpy() for x in (train, test))
    pipeline = Pipeline([("scaler", StandardScaler()), ("gmm", GaussianMixture(random_state=3, max_iter=200))])
    grid = {"gmm__n_components": [1, 2], "gmm__covariance_type": ["full", "tied", "diag", "spherical"]}
    search = GridSearchCV(pipeline, grid, cv=KFold(10, shuffle=True, random_state=3)).fit(known)
    np.testing.assert_allclose(
        detector.score(Views(x=test)), -search.best_estimator_.score_samples(new), rtol=1e-4, atol=1e-4
    )


def test_few_images_have_few_components_and_it_is_said(caplog):
    with caplog.at_level(logging.INFO):
        detector = fitted(Gaussian(VP()), images(45))
    assert "DiffPath: 45 training images, so at most 2 components" in caplog.text
    assert len(detector.density.means) == 2
    caplog.clear()
    with caplog.at_level(logging.INFO):
        fitted(Gaussian(VP()), images(45), components=[2])
    assert "training images" not in caplog.text


def test_only_six_d_sees_the_sign_of_an_image():
    """Section 3.5 of the paper: the paths of x and -x mirror each other where the data's do."""
    network, x = Gaussian(VP(), mu=0.0), images(3).abs()
    one = ready(network, statistic="one_d")
    torch.testing.assert_close(one.statistics(x), one.statistics(-x))
    detector = fitted(network, images(60, seed=1).abs(), components=[1])
    assert (detector.score(Views(x=-x)) > detector.score(Views(x=x)) + 10).all()


@pytest.mark.parametrize("options", [{"components": [2]}, {"statistic": "one_d"}])
def test_a_row_alone_save_and_load_and_calls_of_a_network(options):
    """In three steps: what rounding leaves grows along the path of random weights, and not along a trained one's."""
    options = options | {"steps": 3}
    network = UNet(base=8, multipliers=(1, 2), depth=1, attention=(1,), dropout=0.0)
    torch.manual_seed(0)
    network.build((1, 4, 4), None)
    network.eval()
    with torch.no_grad():
        detector = fitted(network, images(40), **options)
        before, x = network.evaluated, images(4, seed=1)
        together = detector.score(Views(x=x))
        assert network.evaluated - before == 4 * 3
        torch.testing.assert_close(detector.score(Views(x=x[1:2])), together[1:2], rtol=1e-4, atol=1e-5)
        again = ready(network, **options)
        again.load_state_dict(detector.state_dict())
        assert torch.equal(again.score(Views(x=x)), together)
    assert together.dtype == torch.float64 and torch.isfinite(together).all()


@pytest.mark.parametrize("options", [{"components": [1, 2]}, {"statistic": "one_d"}])
def test_images_that_are_none_of_the_data_score_higher_and_finite(options):
    detector = fitted(Gaussian(VP()), images(60, seed=1), **options)
    known = detector.score(Views(x=images(10, seed=2)))
    odd = detector.score(Views(x=torch.sign(noise(10, 1, 4, 4))))
    assert known.max() < odd.min() and torch.isfinite(odd).all()


def test_bad_input():
    with pytest.raises(UserError, match=r"steps = 1: .* set detector\.steps"):
        DiffPath(steps=1)
    with pytest.raises(UserError, match="steps = 1001"):
        ready(Gaussian(VP()), steps=1001)
    with pytest.raises(UserError, match=r"detector\.components = \[\]"):
        fitted(Gaussian(VP()), images(20), components=[])
    with pytest.raises(UserError, match="DiffPath was given 1 training images"):
        fitted(Gaussian(VP()), images(1))
    with pytest.raises(UserError, match="do not vary"):
        fitted(Gaussian(VP()), images(1).repeat(3, 1, 1, 1), statistic="one_d")
