"""Mixtures against scikit-learn's log-likelihood, kernels against SciPy's density, saving, and bad input."""

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde, multivariate_normal
from sklearn.mixture import GaussianMixture

from outlie.detectors.mixtures import Kernels, Mixture, gaussian_mixture_log_density, mean_and_std, silverman
from outlie.errors import UserError


def two_clouds(n: int = 120, dim: int = 3) -> torch.Tensor:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n, dim)) @ rng.normal(size=(dim, dim))
    rows[: n // 2] += 8
    return torch.as_tensor(rows)


def test_density_is_the_sum_of_scipys_normals():
    rng = np.random.default_rng(1)
    means, halves, x = rng.normal(size=(2, 3)), rng.normal(size=(2, 3, 3)), rng.normal(size=(5, 3))
    covariances = [half @ half.T + np.eye(3) for half in halves]
    weights = [0.3, 0.7]
    expected = sum(w * multivariate_normal(m, s).pdf(x) for w, m, s in zip(weights, means, covariances, strict=True))
    factors = torch.as_tensor(np.stack([np.linalg.cholesky(np.linalg.inv(s)) for s in covariances]))
    ours = gaussian_mixture_log_density(
        torch.as_tensor(x), torch.tensor(weights).double().log(), torch.as_tensor(means), factors
    )
    np.testing.assert_allclose(ours, np.log(expected), rtol=1e-7)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_every_kind_scores_as_scikit_learn(kind):
    rows = two_clouds()
    mixture = Mixture()
    mixture.fit(rows, (3,), (kind,), seed=5)
    theirs = GaussianMixture(3, covariance_type=kind, max_iter=200, random_state=5).fit(rows.numpy())
    x = torch.cat([rows[:20] + 1, torch.full((1, 3), 1e6)])
    np.testing.assert_allclose(mixture.log_density(x), theirs.score_samples(x.numpy()), rtol=1e-9)
    assert mixture.factors.ndim == (3 if kind in ("full", "tied") else 2)


def test_bic_finds_the_two_clouds():
    rows, mixture = two_clouds(), Mixture()
    mixture.fit(rows, (1, 2, 5))
    assert len(mixture.means) == 2
    bics = {k: GaussianMixture(k, random_state=0).fit(rows.numpy()).bic(rows.numpy()) for k in (1, 2, 5)}
    assert min(bics, key=lambda k: bics[k]) == 2


def test_cross_validation_finds_the_two_clouds_and_that_their_axes_are_correlated():
    mixture = Mixture()
    mixture.fit(two_clouds(), (1, 2), ("diag", "full"), by="cv", folds=4)
    assert mixture.means.shape == (2, 3) and mixture.factors.shape == (2, 3, 3)


def test_cross_validation_needs_rows_outside_each_fold():
    with pytest.raises(UserError, match=r"8 components, but only 7 rows .* set detector\.components to 7"):
        Mixture().fit(two_clouds(8), (2, 8), by="cv", folds=10)


def test_more_components_than_rows_and_none_at_all_are_mistakes():
    with pytest.raises(UserError, match=r"8 components, but only 5 rows"):
        Mixture().fit(two_clouds(5), (2, 8))
    with pytest.raises(UserError, match="at least"):
        Mixture().fit(two_clouds(5), ())


@pytest.mark.parametrize("dim", [1, 3])
def test_kernels_are_scipys(dim):
    rows, kernels = two_clouds(40, dim), Kernels()
    kernels.fit(rows)
    theirs = gaussian_kde(rows.numpy().T, bw_method="silverman")
    x = rows[:9] * 1.3 + 0.2
    np.testing.assert_allclose(kernels.log_density(x), theirs.logpdf(x.numpy().T), rtol=1e-9)
    np.testing.assert_allclose(silverman(rows) @ silverman(rows).T, theirs.covariance, rtol=1e-9)
    far = kernels.log_density(torch.full((1, dim), 1e8).double())
    assert far.isfinite().all() and far < kernels.log_density(x).min()


def test_a_given_bandwidth_is_the_kernels_deviation():
    rows, kernels = two_clouds(40, 1), Kernels()
    kernels.fit(rows, bandwidth=5.0)
    theirs = gaussian_kde(rows.numpy().T, bw_method=5.0 / rows.numpy().std(ddof=1))
    np.testing.assert_allclose(kernels.log_density(rows[:5]), theirs.logpdf(rows[:5].numpy().T), rtol=1e-9)


def test_kernels_need_variance():
    rows = two_clouds(10, 2)
    with pytest.raises(UserError, match="do not vary in each direction"):
        silverman(torch.stack([rows[:, 0], torch.ones(10)], 1))


def test_saved_mixtures_and_kernels_score_the_same():
    rows = two_clouds()
    for fitted, empty in ((Mixture(), Mixture()), (Kernels(), Kernels())):
        fitted.fit(rows)
        empty.load_state_dict(fitted.state_dict())
        torch.testing.assert_close(empty.log_density(rows), fitted.log_density(rows), rtol=0, atol=0)


def test_constant_columns_have_deviation_1():
    rows = torch.stack([torch.full((9,), 0.1), torch.arange(9.0)], 1)
    mean, std = mean_and_std(rows)
    np.testing.assert_allclose(mean, [0.1, 4], rtol=1e-7)
    np.testing.assert_allclose(std, [1, np.arange(9).std()], rtol=1e-12)
