"""DTE-NP against SciPy's inverse gamma, loops over rows, and scikit-learn's neighbours."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import invgamma, spearmanr
from sklearn.neighbors import NearestNeighbors

from outlie.detectors.base import Views
from outlie.detectors.dte_np import DTENP, time_log_posterior
from outlie.errors import UserError

VARIANCES = 1 - np.cumprod(1 - np.linspace(1e-4, 1e-2, 300))
SCORERS = ["mean_dist", "mean_sq_dist", "kth_dist", "mode", "grid_argmax", "grid_mean", "exact_argmax", "exact_mean"]


def tables(dim: int = 6, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Training rows around 0, test rows from within them to far away."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, dim)), rng.normal(size=(30, dim)) * np.linspace(0.1, 4, 30)[:, None]


def fitted(train: np.ndarray, **options) -> DTENP:
    detector = DTENP(**options)
    detector.fit(Views(features=torch.as_tensor(train)))
    return detector


def scores(train: np.ndarray, test: np.ndarray, **options) -> np.ndarray:
    return fitted(train, **options).score(Views(features=torch.as_tensor(test))).numpy()


def k_distances(train: np.ndarray, test: np.ndarray, k: int) -> np.ndarray:
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(train).kneighbors(test)[0]


def test_distance_scorers_are_scikit_learns():
    train, test = tables()
    distances = k_distances(train, test, 5)
    np.testing.assert_allclose(scores(train, test), distances.mean(1), rtol=1e-9)
    np.testing.assert_allclose(scores(train, test, scorer="mean_sq_dist"), (distances**2).mean(1), rtol=1e-9)
    np.testing.assert_allclose(
        scores(train, test, scorer="kth_dist", k=9), k_distances(train, test, 9)[:, 8], rtol=1e-9
    )


@pytest.mark.parametrize("dim", [1, 2, 3, 6, 40])
def test_the_mode_is_r2_over_d_and_ranks_as_the_mean_squared_distance(dim):
    train, test = tables(dim)
    mode, squared = scores(train, test, scorer="mode"), scores(train, test, scorer="mean_sq_dist")
    np.testing.assert_allclose(mode, squared / dim, rtol=1e-12)
    assert spearmanr(mode, squared).statistic == pytest.approx(1)
    if dim > 2:  # b / (a + 1), found by looking at SciPy's density
        a, b = dim / 2 - 1, squared[3] / 2
        grid = mode[3] * np.linspace(0.5, 2, 20_001)
        assert grid[invgamma.logpdf(grid, a, scale=b).argmax()] == pytest.approx(mode[3], rel=1e-3)


@pytest.mark.parametrize("dim", [3, 6, 40])
def test_grid_posterior_is_the_inverse_gamma_normalised_on_the_grid(dim):
    squared = np.array([1e-3, 0.2, 3.0, 50.0])
    ours = time_log_posterior(torch.as_tensor(squared), dim, torch.as_tensor(VARIANCES)).softmax(1)
    log_pdf = np.array([invgamma.logpdf(VARIANCES, dim / 2 - 1, scale=r2 / 2) for r2 in squared])
    expected = np.exp(log_pdf - logsumexp(log_pdf, axis=1, keepdims=True))
    np.testing.assert_allclose(ours, expected, rtol=1e-7, atol=1e-300)


@pytest.mark.parametrize("k", [1, 5])
def test_grid_argmax_and_grid_mean_are_the_released_definition(k):
    train, test = tables()
    squared = (k_distances(train, test, k) ** 2).mean(1)
    log_pdf = np.array([invgamma.logpdf(VARIANCES, 6 / 2 - 1, scale=r2 / 2) for r2 in squared])
    np.testing.assert_array_equal(scores(train, test, scorer="grid_argmax", k=k), log_pdf.argmax(1))
    mean = (np.exp(log_pdf - logsumexp(log_pdf, axis=1, keepdims=True)) * np.arange(300)).sum(1)
    np.testing.assert_allclose(scores(train, test, scorer="grid_mean", k=k), mean, rtol=1e-7)
    assert log_pdf.argmax(1).min() < 250 and log_pdf.argmax(1).max() == 299  # both inside the grid and at its end


@pytest.mark.parametrize("dim", [1, 2, 6])
def test_exact_scorers_are_the_sum_over_all_training_rows(dim):
    train, noise = tables(dim, n=9)
    test = train[np.arange(30) % 9] + 0.3 * noise
    levels = 1 - np.cumprod(1 - np.linspace(1e-4, 1e-2, 50))
    argmax, mean = [], []
    for row in test:  # p(t | x) ~ sum_i v^(-D/2) exp(-r_i^2 / (2 v)), one row and one level at a time
        density = [
            logsumexp([-dim / 2 * np.log(v) - ((row - other) ** 2).sum() / (2 * v) for other in train]) for v in levels
        ]
        argmax.append(int(np.argmax(density)))
        mean.append(np.exp(density - logsumexp(density)) @ np.arange(50))
    assert len(set(argmax)) > 5
    np.testing.assert_array_equal(scores(train, test, scorer="exact_argmax", T=50), argmax)
    np.testing.assert_allclose(scores(train, test, scorer="exact_mean", T=50), mean, rtol=1e-7)


def test_with_one_training_row_exact_and_grid_agree():
    train, test = tables()
    for time in ("argmax", "mean"):
        exact = scores(train[:1], test, scorer=f"exact_{time}", k=1)
        np.testing.assert_allclose(exact, scores(train[:1], test, scorer=f"grid_{time}", k=1), rtol=1e-9)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("dim", [1, 2])
def test_two_columns_or_one_do_not_break(dim, scorer):
    train, test = tables(dim)
    result = scores(train, test, scorer=scorer)
    assert np.isfinite(result).all()
    distance = scores(train, test, scorer="mean_dist")
    assert spearmanr(result, distance).statistic > 0.7


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_row_at_distance_0_scores_lowest_and_finite(scorer):
    train, test = tables()
    train = np.concatenate([np.repeat(train[:1], 5, 0), train])
    result = scores(train, np.concatenate([train[:1], test + 1]), scorer=scorer)
    assert np.isfinite(result).all()
    assert result[0] < result[1:].min()
    if not scorer.endswith("_mean"):
        assert result[0] == 0


@pytest.mark.parametrize("scorer", SCORERS)
def test_far_rows_are_finite_and_highest(scorer):
    train, test = tables()
    result = scores(train, np.concatenate([test[:3], [np.full(6, 1e6)]]), scorer=scorer)
    assert np.isfinite(result).all()
    assert result[3] > result[:3].max()


def test_more_neighbours_than_rows_is_a_mistake():
    train, test = tables(n=4)
    with pytest.raises(UserError, match=r"k = 5 neighbours, but only 4 training rows; set detector\.k to 4"):
        fitted(train)
    assert scores(train, test, k=4).shape == (30,)


def test_one_denoising_step_is_a_mean_shift():
    train, test = tables()
    moved = fitted(train, k=3).denoise(torch.as_tensor(test), rate=0.3, steps=1)
    nearest = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(train).kneighbors(test)[1]
    expected = test - 0.3 * np.mean([test - train[nearest[:, j]] for j in range(3)], 0)
    np.testing.assert_allclose(moved, expected, rtol=1e-9)
    # the gradient of the mode is (2 / (D K)) sum_k (x - x_k): SciPy's differences say so
    detector = fitted(train, k=3, scorer="mode")
    step = 1e-6 * np.eye(6)
    rise = [detector.score(Views(features=torch.as_tensor(test + s))).numpy() for s in step]
    fall = [detector.score(Views(features=torch.as_tensor(test - s))).numpy() for s in step]
    gradient = (np.array(rise) - fall).T / 2e-6
    np.testing.assert_allclose((test - expected) / 0.3, gradient * 6 / 2, rtol=1e-4, atol=1e-6)


def test_denoising_carries_rows_to_the_data():
    train, test = tables()
    detector = fitted(train)
    end = detector.denoise(torch.as_tensor(test)).numpy()
    before, after = k_distances(train, test, 5).mean(1), k_distances(train, end, 5).mean(1)
    assert (after[10:] < before[10:]).all()
    nearest = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(train).kneighbors(end)[1]
    np.testing.assert_allclose(end, train[nearest].mean(1), atol=1e-6)  # a fixed point of the shift
