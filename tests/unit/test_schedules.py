"""Noise schedules and forward processes, against the specification's table and the step-by-step Markov chain."""

import numpy as np
import pytest
import torch

from outlie.diffusion.schedules import alpha_bars, diffuse, diffuse_without_drift, linear_betas


@pytest.mark.parametrize(
    ("levels", "variance", "sigma", "kept"),
    [(300, 0.781, 0.884, 0.468), (400, 0.868, 0.932, 0.363), (1000, 0.994, 0.997, 0.079)],
)
def test_last_level_of_the_published_schedules(levels, variance, sigma, kept):
    abar = alpha_bars(linear_betas(levels))[-1].item()
    assert 1 - abar == pytest.approx(variance, abs=5e-4)
    assert (1 - abar) ** 0.5 == pytest.approx(sigma, abs=5e-4)
    assert abar**0.5 == pytest.approx(kept, abs=5e-4)


def test_upper_variances_of_the_seven_bins_of_400_levels():
    variance = 1 - alpha_bars(linear_betas(400))
    last = [max(t for t in range(400) if 7 * t // 400 == k) for k in range(7)]
    np.testing.assert_allclose(variance[last], [0.046, 0.160, 0.318, 0.489, 0.647, 0.776, 0.868], atol=5e-4)


@pytest.mark.parametrize("levels", [2, 300, 1000])
def test_betas_run_from_1e_4_to_1e_2_inclusive(levels):
    betas = linear_betas(levels)
    assert betas.shape == (levels,) and betas.dtype == torch.float64
    assert (betas[0].item(), betas[-1].item()) == pytest.approx((1e-4, 1e-2), rel=1e-12)
    np.testing.assert_allclose(betas.diff(), 9.9e-3 / (levels - 1), rtol=1e-9)


def test_diffuse_has_the_moments_of_the_step_by_step_chain():
    # x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps_t: Ho et al. 2020, eq. (2); mean and variance by recurrence
    mean, variance = 2.0, 0.0
    for beta in np.linspace(1e-4, 1e-2, 300):
        mean, variance = np.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
    noise = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_t = diffuse(torch.full_like(noise, 2.0), noise, alpha_bars(linear_betas(300))[-1])
    assert x_t.mean().item() == pytest.approx(mean, abs=0.01)
    assert x_t.var().item() == pytest.approx(variance, rel=0.01)
    zero = torch.zeros_like(noise)
    assert diffuse(zero + 2, zero, alpha_bars(linear_betas(300))[-1])[0].item() == pytest.approx(mean, rel=1e-12)


def test_without_drift_the_mean_stays():
    noise = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    abar = alpha_bars(linear_betas(300))[-1]
    x_t = diffuse_without_drift(torch.full_like(noise, 2.0), noise, abar)
    assert x_t.mean().item() == pytest.approx(2.0, abs=0.01)
    assert x_t.var().item() == pytest.approx(0.781, abs=0.01)
    assert torch.equal(diffuse_without_drift(noise, torch.zeros_like(noise), abar), noise)


def test_every_row_has_its_own_level():
    abar = alpha_bars(linear_betas(400))[[0, 100, 399]][:, None]
    ones = torch.ones(3, 2, dtype=torch.float64)
    np.testing.assert_allclose(diffuse(ones, 0 * ones, abar) ** 2 + diffuse(0 * ones, ones, abar) ** 2, 1, rtol=1e-12)
    assert (diffuse_without_drift(0 * ones, ones, abar)[:, 0].diff() > 0).all()
