"""Image samplers against closed forms for Gaussian data, loops over the published equations, and counts of calls."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from outlie.diffusion.image_samplers import ancestral, ddim, ddim_step, ddim_times, heun, heun_sigmas, sample
from outlie.diffusion.processes import VE, VP
from outlie.errors import UserError

MU, S = 0.1, 0.25  # of the data; [-1, 1] is over three deviations away


class Gaussian(nn.Module):
    """The best denoiser there is for pixels N(mu, s^2), and what it was called with."""

    def __init__(self, process: VP | VE, mu: float = MU, s: float = S) -> None:
        super().__init__()
        self.process, self.mu, self.s = process, mu, s
        self.calls: list[tuple[Tensor, Tensor]] = []

    def denoise(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.append((x, time))
        a, b = self.process.coefficients(time)
        x0 = (a * self.s**2 * x + b**2 * self.mu) / (a**2 * self.s**2 + b**2)
        return x0, (x - a * x0) / b


class Bent(Gaussian):
    """Not the best one, not linear, and at times beyond [-1, 1]."""

    def denoise(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.append((x, time))
        a, b = self.process.coefficients(time)
        x0 = 1.5 * torch.sin(0.5 * x) + 0.1 * a
        return x0, (x - a * x0) / b


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def abar(T: int = 1000) -> np.ndarray:
    return np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, T))])


# ---- grids


def test_ddim_times_are_the_released_list():
    times = ddim_times()
    assert times[:3] == [991, 981, 971] and times[-2:] == [11, 1] and len(times) == 100
    assert ddim_times(1000, 1000) == list(range(1000, 0, -1))


@pytest.mark.parametrize(("T", "steps"), [(1000, 7), (1000, 300), (10, 10), (10, 1), (7, 3)])
def test_ddim_times_of_any_number_fall_evenly_to_1(T, steps):
    times = np.array(ddim_times(T, steps))
    assert len(times) == steps and times[-1] == 1 and times[0] <= T
    assert (np.abs(np.diff(times[::-1]) - T / steps) < 1).all()


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_ddim_times_out_of_range(steps):
    with pytest.raises(UserError, match=f"steps = {steps}: a chain of T = 1000 allows 1 to 1000"):
        ddim_times(1000, steps)


def test_heun_sigmas_are_the_published_grid():
    sigmas = heun_sigmas()
    table = [0.00200, 0.00753, 0.02293, 0.05995, 0.13952, 0.29644, 0.58535, 1.08817, 1.92334]
    assert [round(float(v), 5) for v in sigmas.flip(0)[:9]] == table
    assert sigmas.dtype == torch.float64 and len(sigmas) == 18 and float(sigmas[0]) == pytest.approx(80, rel=1e-12)


@pytest.mark.parametrize("options", [{"n": 0}, {"smin": 0.0}, {"smin": 3.0, "smax": 2.0}])
def test_heun_sigmas_out_of_range(options):
    with pytest.raises(UserError, match=r"at least 1|0 < smin < smax"):
        heun_sigmas(**options)


# ---- DDIM


def test_the_step_stands_on_the_line_between_image_and_noise():
    x0, eps = noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1)
    for process, time in ((VP(), torch.tensor(300)), (VE(), torch.tensor(0.7))):
        a, b = process.coefficients(time)
        torch.testing.assert_close(ddim_step(x0, eps, a, b), process.noised(x0, time, eps))
    assert torch.equal(ddim_step(x0, eps, 1.0, 0.0), x0)


def test_ddim_is_deterministic_and_calls_the_network_100_times():
    network, start = Bent(VP()), noise(3, 2, 4, 4)
    first = ddim(network, start, ddim_times())
    assert len(network.calls) == 100
    assert [int(time) for _, time in network.calls] == ddim_times()
    torch.rand(3)  # somebody else draws
    assert torch.equal(first, ddim(network, start, ddim_times()))
    assert first.dtype == torch.float32 and not torch.equal(first, ddim(network, start + 0.1, ddim_times()))


def test_a_row_of_ddim_does_not_depend_on_its_batch():
    start = noise(5, 1, 4, 4)
    together = ddim(Bent(VP()), start, ddim_times(1000, 10))
    torch.testing.assert_close(ddim(Bent(VP()), start[2:3], ddim_times(1000, 10)), together[2:3])


def gaussian_ddim_gain(times: list[int]) -> float:
    """x_0 - E = gain (x_T - E) of DDIM with the best denoiser, a step at a time in float64."""
    levels, gain = abar(), 1.0
    for t, after in zip(times, [*times[1:], 0]):
        a, b2 = np.sqrt(levels[t]), 1 - levels[t]
        slope = a * S**2 / (a**2 * S**2 + b2)  # of x0_hat
        gain *= np.sqrt(levels[after]) * slope + np.sqrt(1 - levels[after]) * (1 - a * slope) / np.sqrt(b2)
    return gain


@pytest.mark.parametrize("steps", [5, 100, 1000])
def test_ddim_carries_a_gaussian_to_the_analytic_one(steps):
    times, start = ddim_times(1000, steps), torch.tensor([-1.5, 0.0, 1.0]).view(3, 1, 1, 1)
    end = ddim(Gaussian(VP()), start, times, clip=False).flatten().double()
    gain = gaussian_ddim_gain(times)
    np.testing.assert_allclose(end.diff() / start.flatten().diff(), gain, rtol=1e-4)  # affine, of this variance


def test_more_steps_of_ddim_come_nearer_to_the_data():
    """The start has variance a^2 s^2 + b^2 and mean a mu, the data s^2 and mu."""
    wrong = []
    for steps in (10, 100, 1000):
        times = ddim_times(1000, steps)
        level = abar()[times[0]]
        spread = np.sqrt(level * S**2 + 1 - level)
        wrong.append(abs(abs(gaussian_ddim_gain(times)) * spread / S - 1))
        start = torch.full((1, 1, 1, 1), float(np.sqrt(level) * MU))
        assert ddim(Gaussian(VP()), start, times).item() == pytest.approx(MU, abs=1e-4)
    assert wrong[0] > 3 * wrong[1] > 9 * wrong[2] and wrong[2] < 0.01
    pixels = ddim(Gaussian(VP()), noise(1, 1, 150, 150), ddim_times())
    assert float(pixels.std()) == pytest.approx(abs(gaussian_ddim_gain(ddim_times())), rel=0.02)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip", [True, False])
def test_ddim_is_the_published_update(eta, clip):
    times, start = [900, 500, 210, 20, 1], noise(2, 1, 3, 3)
    ours = ddim(Bent(VP()), start, times, eta, torch.Generator().manual_seed(5), clip)
    levels, x, draws = abar(), start.double(), torch.Generator().manual_seed(5)
    for t, after in zip(times, [*times[1:], 0]):
        here, there = levels[t], levels[after]
        x0 = 1.5 * torch.sin(0.5 * x) + 0.1 * np.sqrt(here)
        x0 = x0.clamp(-1, 1) if clip else x0
        eps = (x - np.sqrt(here) * x0) / np.sqrt(1 - here)
        c1 = eta * np.sqrt((1 - here / there) * (1 - there) / (1 - here))
        x = np.sqrt(there) * x0 + np.sqrt(1 - there - c1**2) * eps
        if after and eta:
            x = x + c1 * torch.randn(x.shape, generator=draws)
    np.testing.assert_allclose(ours, x, rtol=1e-4, atol=1e-4)
    other = ddim(Bent(VP()), start, times, eta, torch.Generator().manual_seed(5), not clip)
    assert len(ours.unique()) == 18 and (ours - other).abs().max() > 2e-3  # neither is all 1, and clipping matters


def test_ddim_of_sigmas_is_eulers_method():
    sigmas, start = [5.0, 2.0, 0.7, 0.1], 5 * noise(2, 1, 3, 3)
    x, network = start, Bent(VE())
    for sigma, after in zip(sigmas, [*sigmas[1:], 0.0]):
        x0, _ = network.denoise(x, torch.tensor(sigma))
        x = x + (after - sigma) * (x - x0) / sigma
    torch.testing.assert_close(ddim(Bent(VE()), start, sigmas, clip=False), x, rtol=1e-4, atol=1e-4)


# ---- ancestral


def gaussian_ancestral_variance(times: list[int]) -> float:
    """Variance of x_0 from N(0, 1) at times[0] with the best denoiser: DDPM's equations for any jump, in float64."""
    levels, variance = abar(), 1.0
    for t, after in zip(times, [*times[1:], 0]):
        here, there = levels[t], levels[after]
        beta, a = 1 - here / there, np.sqrt(here)
        slope = a * S**2 / (a**2 * S**2 + 1 - here)
        eps_slope = (1 - a * slope) / np.sqrt(1 - here)
        mean = (1 - beta / np.sqrt(1 - here) * eps_slope) / np.sqrt(1 - beta)  # Ho et al., algorithm 2
        variance = mean**2 * variance + (beta if after else 0)
    return variance


@pytest.mark.parametrize("times", [None, ddim_times(1000, 20), [700, 300, 40]])
def test_ancestral_variance_by_monte_carlo(times):
    n = 20_000
    network = Gaussian(VP())
    end = ancestral(network, noise(1, 1, 1, n), torch.Generator().manual_seed(1), times, clip=False)
    chain = list(range(1000, 0, -1)) if times is None else times
    assert [int(time) for _, time in network.calls] == chain
    expected = gaussian_ancestral_variance(chain)
    assert float(end.var()) == pytest.approx(expected, rel=5 * (2 / n) ** 0.5)
    if times is None:
        assert expected == pytest.approx(S**2, rel=0.05)  # beta_t is an upper bound, and near it for many steps
        assert float(end.mean()) == pytest.approx(MU, abs=5 * S / n**0.5)


def test_the_last_step_of_ancestral_sampling_adds_no_noise():
    start = noise(2, 1, 3, 3)
    a, b = (ancestral(Bent(VP()), start, torch.Generator().manual_seed(seed), [1]) for seed in (0, 1))
    expected, _ = Bent(VP()).denoise(start, torch.tensor(1))
    torch.testing.assert_close(a, expected.clamp(-1, 1))
    assert torch.equal(a, b)
    a, b = (ancestral(Bent(VP()), start, torch.Generator().manual_seed(seed), [9, 1]) for seed in (0, 1))
    assert not torch.equal(a, b)


def test_ancestral_sampling_of_sigmas_keeps_the_chain_to_the_data():
    sigmas = heun_sigmas(200, 0.01, 20.0).tolist()
    end = ancestral(Gaussian(VE()), 20 * noise(1, 1, 1, 20_000), torch.Generator().manual_seed(1), sigmas)
    assert float(end.std()) == pytest.approx(S, rel=0.05)


# ---- Heun


def heun_error(n: int) -> float:
    """Relative error of the state at sigma = 0.5, for which the ODE of a Gaussian is solved in closed form."""
    sigmas = heun_sigmas(n, smin=0.5)
    start = (80 * torch.tensor([-1.0, 1.0]) + MU).view(2, 1, 1, 1).double()
    network = Gaussian(VE())
    heun(network, start, sigmas, clip=False)
    reached = network.calls[-1][0].flatten().double()  # the last call, before the step to 0, is at sigma = 0.5
    assert float(network.calls[-1][1]) == 0.5
    exact = 2 * 80 * np.sqrt((S**2 + 0.5**2) / (S**2 + 80**2))
    return abs(float(reached.diff()) / exact - 1)


def test_heun_is_of_second_order():
    errors = np.array([heun_error(n + 1) for n in (8, 16, 32, 64)])
    order = np.log2(errors[:-1] / errors[1:])
    assert errors[-1] > 1e-5  # above the rounding of the float32 network
    assert (np.abs(order - 2) < 0.35).all(), order


def gaussian_heun_gain(n: int) -> float:
    """x_0 - mu = gain (x_T - mu) of n levels, a step at a time in float64: dx/dsigma = x sigma / (s^2 + sigma^2)."""
    i, gain = np.arange(n) / (n - 1), 1.0
    grid = [*(80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, 0]
    for sigma, after in pairwise(grid):
        slope, length = sigma / (S**2 + sigma**2), after - sigma
        there = after / (S**2 + after**2) * (1 + length * slope) if after else slope  # Euler's step to 0
        gain *= 1 + length * (slope + there) / 2
    return gain


@pytest.mark.parametrize("n", [2, 18, 72])
def test_heun_carries_a_gaussian_to_the_analytic_one(n):
    network, start = Gaussian(VE()), (80 * torch.tensor([-1.0, 0.0, 1.0]) + MU).view(3, 1, 1, 1)
    end = heun(network, start, heun_sigmas(n), clip=False)
    assert len(network.calls) == 2 * n - 1
    assert {x.dtype for x, _ in network.calls} == {torch.float32} and end.dtype == torch.float32
    np.testing.assert_allclose(end.flatten(), MU + 80 * gaussian_heun_gain(n) * np.array([-1, 0, 1]), rtol=1e-4)


def test_more_steps_of_heun_come_nearer_to_the_data():
    wrong = [abs(80 * gaussian_heun_gain(n) / S - 1) for n in (9, 18, 36, 72)]
    assert all(before > 3 * after for before, after in pairwise(wrong)) and wrong[-1] < 0.005
    pixels = heun(Gaussian(VE()), 80 * noise(1, 1, 150, 150), heun_sigmas(), clip=False)
    assert float(pixels.std()) == pytest.approx(80 * gaussian_heun_gain(18), rel=0.02)
    assert float(pixels.mean()) == pytest.approx(MU, abs=0.01)


def edm(start: Tensor, sigmas: list[float], eta: float, seed: int, clip: bool) -> Tensor:
    """Algorithm 2 of the EDM paper, with the DDAE code's clip, for the bent network in float64."""

    def derivative(x, t):
        denoised = 1.5 * torch.sin(0.5 * x) + 0.1
        return (x - (denoised.clamp(-1, 1) if clip else denoised)) / t

    x, draws = start.double(), torch.Generator().manual_seed(seed)
    for i, t in enumerate(sigmas):
        after = [*sigmas, 0][i + 1]
        gamma = (np.sqrt(2) - 1) * eta if 0.01 <= t <= 1 else 0
        hat = t + gamma * t
        if gamma:
            x = x + np.sqrt(hat**2 - t**2) * 1.007 * torch.randn(x.shape, generator=draws)
        d = derivative(x, hat)
        end = x + (after - hat) * d
        x = x + (after - hat) * (0.5 * d + 0.5 * derivative(end, after)) if after else end
    return x


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("clip", [True, False])
def test_heun_is_edms_algorithm(eta, clip):
    sigmas, start = [3.0, 1.5, 0.9, 0.3, 0.1, 0.02, 0.005], 3 * noise(2, 1, 3, 3)
    ours = heun(Bent(VE()), start, torch.tensor(sigmas).double(), eta, torch.Generator().manual_seed(2), clip)
    np.testing.assert_allclose(ours, edm(start, sigmas, eta, 2, clip), rtol=1e-4, atol=1e-4)
    other = edm(start, sigmas, eta, 2, not clip)
    assert len(ours.unique()) == 18 and (ours - other).abs().max() > 2e-3  # neither is all 1, and clipping matters


# ---- sample


@pytest.mark.parametrize(("process", "calls"), [(VP(), 100), (VE(), 35)])
def test_sample_is_the_usual_sampler_of_the_process(process, calls):
    network = Gaussian(process, s=0.5)  # wide: clipping and clamping have work to do
    images = sample(network, 3, (1, 40, 40), torch.Generator().manual_seed(0))
    assert images.shape == (3, 1, 40, 40) and images.dtype == torch.float32
    assert images.abs().max() <= 1 and len(network.calls) == calls
    assert float(images.mean()) == pytest.approx(MU, abs=0.05)
    assert float(images.std()) == pytest.approx(0.45, abs=0.05)
    again = sample(network, 3, (1, 40, 40), torch.Generator().manual_seed(0))
    assert torch.equal(images, again)
    assert not torch.equal(images, sample(network, 3, (1, 40, 40), torch.Generator().manual_seed(1)))
    first_x, first_time = network.calls[0]
    _, b = process.coefficients(first_time)
    assert float(first_x.std()) == pytest.approx(float(b), rel=0.1)


def test_sample_goes_in_batches_of_64():
    network = Gaussian(VP())
    images = sample(network, 130, (1, 4, 4), torch.Generator().manual_seed(0), steps=5)
    assert [len(x) for x, _ in network.calls] == [64] * 5 + [64] * 5 + [2] * 5
    assert len(images.flatten(1).unique(dim=0)) == 130
    fewer = sample(Gaussian(VP()), 64, (1, 4, 4), torch.Generator().manual_seed(0), steps=5)
    assert torch.equal(images[:64], fewer)


def test_sample_of_a_short_chain_takes_all_its_steps():
    network = Gaussian(VP(T=10))
    sample(network, 1, (1, 4, 4), torch.Generator())
    assert [int(time) for _, time in network.calls] == list(range(10, 0, -1))


def test_no_gradients_are_kept():
    start = noise(1, 1, 2, 2).requires_grad_()
    assert not ddim(Bent(VP()), start, [3, 1]).requires_grad
    assert not heun(Bent(VE()), start, heun_sigmas(3)).requires_grad
    assert not ancestral(Bent(VP()), start, torch.Generator(), [3, 1]).requires_grad


X = torch.zeros(1, 1, 2, 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ddim(Bent(VP()), X, []), "no times"),
        (lambda: ddim(Bent(VP()), X, [5, 0]), "t = 0: allowed are the integers 1 to 1000"),
        (lambda: ddim(Bent(VP()), X, [1001, 5]), "t = 1001"),
        (lambda: ddim(Bent(VP()), X, [5, 7]), "times 5, 7: the noise must fall"),
        (lambda: ddim(Bent(VE()), X, [1.0, 0.0]), "sigma = 0"),
        (lambda: ddim(Bent(VP()), X, [5], eta=0.5), "eta = 0.5 draws noise"),
        (lambda: ddim(Bent(VP()), X, [5], eta=1.5, generator=torch.Generator()), "eta = 1.5: allowed are 0"),
        (lambda: ancestral(Bent(VE()), X, torch.Generator()), "give the sigmas as times"),
        (lambda: ancestral(Bent(VP()), X, torch.Generator(), [5, 5]), "must fall"),
        (lambda: heun(Bent(VP()), X, heun_sigmas()), "ddim and ancestral"),
        (lambda: heun(Bent(VE()), X, torch.tensor([1.0, 0.0])), "sigma = 0"),
        (lambda: heun(Bent(VE()), X, torch.tensor([1.0, 2.0])), "must fall"),
        (lambda: heun(Bent(VE()), X, heun_sigmas(), eta=0.1), "eta = 0.1 draws noise"),
        (lambda: sample(Bent(VP()), 0, (1, 2, 2), torch.Generator()), "n = 0 images"),
        (lambda: sample(Bent(VP()), 1, (1, 2, 2), torch.Generator(), steps=0), "steps = 0"),
        (lambda: sample(Bent(VE()), 1, (1, 2, 2), torch.Generator(), steps=0), "n = 0 noise levels"),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(UserError, match=words):
        call()
