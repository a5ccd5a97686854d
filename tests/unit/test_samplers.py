"""The reverse chain, against Ho et al. 2020 and Bayes' rule for Gaussians."""

import itertools

import numpy as np
import pytest
import torch

from outlie.diffusion.samplers import posterior_mean_step, reverse, reverse_times
from outlie.diffusion.schedules import alpha_bars, linear_betas

BETAS = linear_betas(1000)
ABAR = alpha_bars(BETAS).tolist()


def some_rows(n: int = 5, dim: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, n, dim, generator=generator, dtype=torch.float64).unbind()


def bayes(x0: float, x_t: float, abar_t: float, abar_s: float) -> tuple[float, float]:
    """Mean and variance of q(x_s | x_t, x_0): prior N(sqrt(abar_s) x0, 1 - abar_s) times likelihood of x_t."""
    alpha = abar_t / abar_s
    precision = 1 / (1 - abar_s) + alpha / (1 - alpha)
    return (abar_s**0.5 * x0 / (1 - abar_s) + alpha**0.5 * x_t / (1 - alpha)) / precision, 1 / precision


@pytest.mark.parametrize("t", [1, 249, 999])
def test_one_step_is_ddpms_posterior_mean(t):
    x, eps = some_rows()
    beta, abar, before = BETAS[t].item(), ABAR[t], ABAR[t - 1]
    algorithm_2 = (x - beta / np.sqrt(1 - abar) * eps) / np.sqrt(1 - beta)  # line 4, without the noise
    x0 = (x - np.sqrt(1 - abar) * eps) / np.sqrt(abar)
    eq_7 = np.sqrt(before) * beta / (1 - abar) * x0 + np.sqrt(1 - beta) * (1 - before) / (1 - abar) * x
    ours = posterior_mean_step(x, eps, abar, before)
    np.testing.assert_allclose(ours, algorithm_2, rtol=1e-10)
    np.testing.assert_allclose(ours, eq_7, rtol=1e-9)


@pytest.mark.parametrize(("t", "s"), [(249, 248), (249, 100), (999, 0), (1, 0)])
def test_a_jump_is_the_posterior_mean_of_bayes_rule(t, s):
    x0, eps = 0.7, -1.3
    x_t = ABAR[t] ** 0.5 * x0 + (1 - ABAR[t]) ** 0.5 * eps
    x, noise = torch.tensor([[[x_t]], [[eps]]], dtype=torch.float64)
    ours = posterior_mean_step(x, noise, ABAR[t], ABAR[s])
    assert ours.item() == pytest.approx(bayes(x0, x_t, ABAR[t], ABAR[s])[0], rel=1e-9)


@pytest.mark.parametrize("steps", [None, 1, 2, 7, 250])
@pytest.mark.parametrize("noisy", [False, True])
def test_a_point_mass_is_recovered_exactly(steps, noisy):
    mu = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    times = reverse_times(250, steps)

    def exact_noise(x, position):  # E[eps | x_t] when all data lie at mu
        abar = ABAR[times[position]]
        return (x - abar**0.5 * mu) / (1 - abar) ** 0.5

    x, _ = some_rows()
    generator = torch.Generator().manual_seed(0) if noisy else None
    states = list(reverse(exact_noise, x, ABAR, times, generator))
    assert len(states) == len(times)
    torch.testing.assert_close(states[-1], mu.expand_as(x), rtol=1e-9, atol=1e-9)


def test_gaussian_data_follow_the_linear_chain():
    # x_0 ~ N(0, s2): eps_t(x) = sqrt(1 - abar) x / (abar s2 + 1 - abar), so the chain is a product of factors
    s2, start = 4.0, 30
    x, _ = some_rows()
    factor = 1.0
    for t in range(start - 1, -1, -1):
        eps = np.sqrt(1 - ABAR[t]) / (ABAR[t] * s2 + 1 - ABAR[t])
        beta = 1e-4 + t * 9.9e-3 / 999
        factor *= (1 - beta / np.sqrt(1 - ABAR[t]) * eps) / np.sqrt(1 - beta)
    times = reverse_times(start, None)

    def predict(x, position):
        abar = ABAR[times[position]]
        return (1 - abar) ** 0.5 * x / (abar * s2 + 1 - abar)

    *_, end = reverse(predict, x, ABAR, times)
    np.testing.assert_allclose(end, factor * x, rtol=1e-8)


def test_the_full_chain_visits_every_level_once():
    visited = []
    times = reverse_times(250, None)
    list(reverse(lambda x, i: visited.append(times[i]) or x, torch.ones(1, 1), ABAR, times))
    assert visited == list(range(249, -1, -1))


def test_strided_times_fall_strictly_from_start_to_0():
    for steps in range(1, 70):
        times = reverse_times(60, steps)
        assert len(times) == min(steps, 60)
        assert times[0] == 59
        assert all(a > b for a, b in itertools.pairwise(times))
        assert steps == 1 or times[-1] == 0
    assert np.ptp(np.diff(reverse_times(250, 10))) <= 1  # evenly spaced
    assert reverse_times(1, None) == reverse_times(1, 5) == [0]


@pytest.mark.parametrize(("t", "s"), [(249, 248), (999, 500), (1, 0)])
def test_posterior_noise_has_the_variance_of_bayes_rule_and_is_shared_by_the_rows(t, s):
    x = torch.zeros(3, 100_000, dtype=torch.float64)

    def first(generator):
        return next(iter(reverse(lambda x, _: torch.zeros_like(x), x, ABAR, [t, s], generator)))

    noise = first(torch.Generator().manual_seed(0)) - first(None)
    assert noise[0].var().item() == pytest.approx(bayes(0.0, 0.0, ABAR[t], ABAR[s])[1], rel=0.03)
    if s == t - 1:  # Ho et al. 2020, eq. (7)
        assert noise[0].var().item() == pytest.approx(BETAS[t].item() * (1 - ABAR[s]) / (1 - ABAR[t]), rel=0.03)
    assert torch.equal(noise[0], noise[1]) and torch.equal(noise[0], noise[2])


def test_the_last_step_adds_no_noise():
    x, eps = some_rows()
    noisy = list(reverse(lambda *_: eps, x, ABAR, [0], torch.Generator().manual_seed(0)))
    assert torch.equal(noisy[-1], next(iter(reverse(lambda *_: eps, x, ABAR, [0]))))
