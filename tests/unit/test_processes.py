"""VP and VE: the specification's table of log-SNRs, EDM's identities, and what is refused."""

import pytest
import torch

from outlie.diffusion.processes import VE, VP, spread
from outlie.errors import UserError

GRID = {3: 7.55, 4: 5.63, 5: 3.94}  # log-SNR of EDM's reversed 18-step grid
SIGMAS = {3: 0.02293, 4: 0.05995, 5: 0.13952}


@pytest.mark.parametrize(
    ("t", "log_snr"), {1: 9.21, 11: 6.12, 21: 5.07, 51: 3.47, 101: 2.14, 121: 1.77, 300: -0.42}.items()
)
def test_log_snr_of_ddpm(t, log_snr):
    vp = VP()
    assert float(vp.log_snr(torch.tensor(t))) == pytest.approx(log_snr, abs=0.005)
    assert int(vp.time_at(float(vp.log_snr(torch.tensor(t))))) == t


@pytest.mark.parametrize("j", GRID)
def test_log_snr_of_edm(j):
    assert float(VE().log_snr(torch.tensor(SIGMAS[j]))) == pytest.approx(GRID[j], abs=0.005)
    assert float(VE().time_at(GRID[j])) == pytest.approx(SIGMAS[j], rel=5e-3)


def test_the_chain_keeps_the_variance_and_starts_clean():
    vp = VP()
    a, b = vp.coefficients(torch.arange(vp.T + 1))
    torch.testing.assert_close(a.square() + b.square(), torch.ones(vp.T + 1))
    assert a[0] == 1 and b[0] == 0
    betas = 1 - (a[1:] / a[:-1]).double() ** 2
    torch.testing.assert_close(betas, torch.linspace(1e-4, 0.02, 1000).double(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("process", [VP(), VE()])
def test_noised_images_have_the_moments_of_their_level(process):
    generator = torch.Generator().manual_seed(0)
    time = process.time_at(1.0)
    x = torch.full((2, 1, 200, 200), 0.5)
    noisy = process.noised(x, time.expand(2), torch.randn(x.shape, generator=generator))
    a, b = process.coefficients(time)
    assert float(noisy.mean()) == pytest.approx(0.5 * float(a), abs=0.01)
    assert float(noisy.std()) == pytest.approx(float(b), rel=0.01)
    assert float(process.log_snr(time)) == pytest.approx(1.0, abs=0.02)


def test_training_times_cover_the_process():
    generator = torch.Generator().manual_seed(0)
    t = VP().draw(200_000, generator)
    assert t.min() == 1 and t.max() == 1000 and abs(float(t.double().mean()) - 500.5) < 3
    log_sigma = VE().draw(200_000, generator).log()
    assert float(log_sigma.mean()) == pytest.approx(-1.2, abs=0.02)
    assert float(log_sigma.std()) == pytest.approx(1.2, abs=0.02)


def test_edm_weights_every_level_alike_and_keeps_clean_images():
    sigma = torch.logspace(-3, 2, 50, dtype=torch.float64)
    c_skip, c_out, c_in, c_noise = VE().preconditioning(sigma)
    torch.testing.assert_close(VE().weight(sigma) * c_out**2, torch.ones_like(sigma))
    torch.testing.assert_close(c_in**2 * (sigma**2 + 0.25), torch.ones_like(sigma))  # unit variance for data of 0.5
    torch.testing.assert_close(c_noise, sigma.log() / 4)
    c_skip, c_out, _, _ = VE().preconditioning(torch.tensor(1e-8, dtype=torch.float64))
    assert float(c_skip) == pytest.approx(1) and float(c_out) < 1e-7  # D(x; s) -> x


@pytest.mark.parametrize("time", [0, -1, 1001, 1.5, float("nan"), float("inf")])
def test_times_outside_the_chain_are_refused(time):
    with pytest.raises(UserError, match="1 to 1000"):
        VP().checked(time)


@pytest.mark.parametrize("sigma", [0, -0.1, float("nan"), float("inf")])
def test_sigma_must_be_above_zero(sigma):
    with pytest.raises(UserError, match="must be above 0"):
        VE().checked(sigma)


@pytest.mark.parametrize(("process", "level"), [(VP(), 11.0), (VP(), -12.0), (VE(), 50.0), (VP(), float("nan"))])
def test_levels_that_no_time_has_are_refused(process, level):
    with pytest.raises(UserError, match="log_snr"):
        process.time_at(level)


def test_one_value_or_one_a_row():
    x = torch.zeros(3, 1, 2, 2)
    assert (spread(torch.tensor(2.0), x) + x).shape == x.shape
    assert (spread(torch.arange(3), x) + x)[2, 0, 1, 1] == 2
