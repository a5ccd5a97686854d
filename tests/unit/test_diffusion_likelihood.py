"""The bound against PyTorch's KL divergences term by term, SciPy's normal, closed forms for Gaussian pixels."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from outlie.density.complexity import png_bits
from outlie.detectors.diffusion_likelihood import (
    DiffusionLikelihood,
    binned_log_likelihood,
    chain_terms,
    plan,
    prior_kl,
)
from outlie.diffusion.processes import VE, VP
from outlie.errors import UserError

from .gaussian_denoiser import GaussianDenoiser, check_detector, images, score, set_up, tiny_unet


def grid(n: int, shape: tuple[int, ...], s: float = 0.25) -> torch.Tensor:
    """Gaussian images on the 256 values of a pixel."""
    return ((images(n, shape, s) + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_bins_are_scipys_probabilities_and_sum_to_one():
    values = torch.arange(256).double() / 127.5 - 1
    for mean, std in ((0.2, 0.01), (-1.1, 0.3), (0.999, 0.05)):
        ours = binned_log_likelihood(values, torch.tensor(mean, dtype=torch.float64), std)
        right = np.where(values > 0.999, np.inf, values + 1 / 255)
        left = np.where(values < -0.999, -np.inf, values - 1 / 255)
        expected = norm.cdf(right, mean, std) - norm.cdf(left, mean, std)
        np.testing.assert_allclose(ours.exp(), expected, rtol=1e-9, atol=1e-12)
        assert ours.exp().sum() == pytest.approx(1, abs=1e-9)
        assert ours.isfinite().all()
    far = binned_log_likelihood(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, -1.0]).double(), 0.01)
    assert far.isfinite().all() and (far < -1000).all()


def test_every_term_of_the_chain_is_a_kl_divergence():
    process, shape = VP(T=12, first=1e-3, last=0.3), (1, 3, 3)
    network, x = GaussianDenoiser(process, s=0.25), grid(4, shape)
    detector = set_up(DiffusionLikelihood(levels=12), network, shape)
    ours = score(detector, x)
    assert network.evaluated == 4 * 12
    noise, abar = torch.randn(12, *shape, generator=generator(3)).double(), process.abar
    total = kl_divergence(Normal(abar[12].sqrt() * x.double(), (1 - abar[12]).sqrt()), Normal(0.0, 1.0))
    for t in range(1, 13):
        alpha, beta = abar[t] / abar[t - 1], 1 - abar[t] / abar[t - 1]
        x_t = abar[t].sqrt() * x.double() + (1 - abar[t]).sqrt() * noise[t - 1]
        _, eps = network.denoise(x_t, torch.tensor(t))
        predicted = (x_t - beta / (1 - abar[t]).sqrt() * eps) / alpha.sqrt()  # Ho et al., eq. (11)
        if t == 1:
            total = total - binned_log_likelihood(x, predicted, float(beta.sqrt()))
            continue
        towards_x, towards_noise = abar[t - 1].sqrt() * beta, alpha.sqrt() * (1 - abar[t - 1])
        posterior = (towards_x * x.double() + towards_noise * x_t) / (1 - abar[t])  # eq. (7)
        spread = (beta * (1 - abar[t - 1]) / (1 - abar[t])).sqrt()
        total = total + kl_divergence(Normal(posterior, spread), Normal(predicted, beta.sqrt()))
    np.testing.assert_allclose(ours, total.flatten(1).mean(1) / math.log(2), rtol=1e-4)


@pytest.mark.parametrize("process", [VP(), VP(T=40), VE()])
def test_few_levels_are_unbiased(process):
    def error(times):  # smooth and between 0 and 1, as that of a network
        return torch.sigmoid(process.log_snr(times).double() / 2)

    plans = [plan(process, 6, generator(seed)) for seed in range(400)]
    mean = np.mean([float(error(p.times[1:]) @ p.weight) for p in plans])
    if isinstance(process, VP):
        weight, _ = chain_terms(process)
        expected = float(error(torch.arange(2, process.T + 1)) @ weight)
        full = plan(process, process.T, generator())
        assert float(error(full.times[1:]) @ full.weight) == pytest.approx(expected)
    else:  # integral of 1 / (1 + sigma) d ln sigma
        expected = math.log(80 / 81) - math.log(0.01 / 1.01)
    assert mean == pytest.approx(expected, rel=0.01)
    assert all(len(p.times) == 6 for p in plans[:5]) and len({tuple(p.times.tolist()) for p in plans}) > 100


@pytest.mark.parametrize("process", [VP, VE])
def test_the_exact_denoisers_bound_is_just_above_the_entropy(process):
    network, x = GaussianDenoiser(process(), s=0.25), grid(8, (3, 32, 32))
    bits = score(set_up(DiffusionLikelihood(levels=200), network, (3, 32, 32)), x)
    entropy = (0.5 * math.log(2 * math.pi * math.e * 0.25**2) + math.log(127.5)) / math.log(2)  # 7.04
    assert entropy < float(bits.mean()) < entropy + 0.06
    wide = score(set_up(DiffusionLikelihood(levels=20), network, (3, 32, 32)), grid(8, (3, 32, 32), 0.4))
    assert wide.min() > bits.max()


def test_the_end_of_the_chain_is_a_kl_divergence():
    x = grid(3, (1, 4, 4)).double()
    for process, a, b, of in ((VP(), VP().abar[-1].sqrt(), (1 - VP().abar[-1]).sqrt(), 1.0), (VE(), 1.0, 80.0, 80.0)):
        expected = kl_divergence(Normal(a * x, b), Normal(0.0, of)).flatten(1).sum(1)
        np.testing.assert_allclose(prior_kl(process, x), expected, rtol=1e-5, atol=1e-9)


def test_complexity_is_the_png_in_bits_per_dimension():
    network, x = GaussianDenoiser(), grid(3, (1, 8, 8))
    plain = score(set_up(DiffusionLikelihood(), network), x)
    less = score(set_up(DiffusionLikelihood(complexity=True), network), x)
    np.testing.assert_allclose(plain - less, png_bits((x + 1) / 2, 256) / 64, rtol=1e-9)


@pytest.mark.parametrize("process", ["ddpm", "edm"])
def test_a_network_takes_as_many_evaluations_as_levels(process):
    check_detector(DiffusionLikelihood(levels=5), DiffusionLikelihood(levels=5), tiny_unet(process), 5)


def test_bad_input():
    with pytest.raises(UserError, match=r"levels = 1: .* 2 at least; set detector\.levels"):
        set_up(DiffusionLikelihood(levels=1), GaussianDenoiser())
    with pytest.raises(UserError, match=r"2 channels is no PNG; set detector\.complexity=false"):
        set_up(DiffusionLikelihood(complexity=True), GaussianDenoiser(), (2, 8, 8))
