"""The Frechet distance against SciPy's matrix square root and closed forms for Gaussians."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from outlie.errors import UserError
from outlie.metrics.frechet import frechet_distance


def rows(n: int, dim: int, seed: int) -> np.ndarray:
    """Correlated columns, means away from 0."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim)


def exactly(mean: np.ndarray, covariance: np.ndarray) -> torch.Tensor:
    """2 D rows whose sample mean and covariance (divisor N - 1) are these."""
    dim = len(mean)
    corners = np.linalg.cholesky(covariance).T * np.sqrt((2 * dim - 1) / 2)
    return torch.as_tensor(np.concatenate([corners, -corners]) + mean)


def scipys(first: np.ndarray, second: np.ndarray) -> float:
    s, t = np.cov(first.T), np.cov(second.T)
    return float(((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(s + t - 2 * np.real(sqrtm(s @ t))))


@pytest.mark.parametrize(("n", "m", "dim"), [(50, 80, 1 + 1), (200, 90, 12), (500, 500, 64)])
def test_it_is_scipys(n, m, dim):
    first, second = rows(n, dim, 0), rows(m, dim, 1)
    ours = frechet_distance(torch.as_tensor(first), torch.as_tensor(second))
    assert isinstance(ours, float)
    assert ours == pytest.approx(scipys(first, second), rel=1e-9)
    assert frechet_distance(torch.as_tensor(second), torch.as_tensor(first)) == pytest.approx(ours, rel=1e-9)


def test_covariances_with_common_axes_have_a_closed_form():
    """||m - m'||^2 + sum (s_i - s'_i)^2 where both are U diag(s^2) U^T."""
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    s, t = rng.uniform(0.1, 2, 5), rng.uniform(0.1, 2, 5)
    m, k = rng.normal(size=5), rng.normal(size=5)
    ours = frechet_distance(exactly(m, u * s**2 @ u.T), exactly(k, u * t**2 @ u.T))
    assert ours == pytest.approx(((m - k) ** 2).sum() + ((s - t) ** 2).sum(), rel=1e-9)


def test_two_by_two_has_a_closed_form():
    """Tr (S S')^(1/2) = sqrt(Tr S S' + 2 sqrt(det S S')), with axes that are not common."""
    s, t = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[0.5, -0.4], [-0.4, 3.0]])
    expected = 0.25 + np.trace(s + t) - 2 * np.sqrt(np.trace(s @ t) + 2 * np.sqrt(np.linalg.det(s @ t)))
    assert frechet_distance(exactly(np.zeros(2), s), exactly(np.array([0.5, 0]), t)) == pytest.approx(expected)


def test_a_set_is_at_0_from_itself_and_a_shift_at_its_square():
    features = torch.as_tensor(rows(100, 8, 0))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features.flip(0) + 3) == pytest.approx(8 * 9, rel=1e-9)


def test_fewer_rows_than_columns():
    """Covariances without an inverse; the oracle is the nuclear norm of X Y^T, ||.||_* = Tr (S S')^(1/2)."""
    first, second = rows(10, 40, 0), rows(15, 40, 1)
    x, y = (first - first.mean(0)) / 3, (second - second.mean(0)) / np.sqrt(14)
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + (x**2).sum() + (y**2).sum()
    expected -= 2 * np.linalg.svd(x @ y.T, compute_uv=False).sum()
    assert frechet_distance(torch.as_tensor(first), torch.as_tensor(second)) == pytest.approx(expected, rel=1e-6)


def test_float32_features_far_from_0_lose_nothing():
    first, second = (torch.as_tensor(rows(60, 4, seed)).float() + 1000 for seed in (0, 1))
    assert frechet_distance(first, second) == pytest.approx(
        scipys(first.double().numpy(), second.double().numpy()), rel=1e-6
    )


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (torch.zeros(1, 3), torch.zeros(5, 3), r"the first set has shape \(1, 3\)"),
        (torch.zeros(5, 3), torch.zeros(0, 3), r"the second set has shape \(0, 3\)"),
        (torch.zeros(5, 3, 2), torch.zeros(5, 3), "the first set has shape"),
        (torch.zeros(5, 3), torch.zeros(5, 4), "width 3 and 4"),
        (torch.full((5, 3), torch.nan), torch.zeros(5, 3), "NaN or Inf"),
    ],
)
def test_mistakes_are_named(first, second, words):
    with pytest.raises(UserError, match=words):
        frechet_distance(first, second)
