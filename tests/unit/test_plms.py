"""PLMS against a loop over the published equations, closed forms for Gaussian data, and counts of calls."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from outlie.diffusion.image_samplers import ddim, ddim_times, heun_sigmas
from outlie.diffusion.plms import falling_times, plms
from outlie.diffusion.processes import VE, VP, spread
from outlie.errors import UserError

MU, S = 0.1, 0.25  # of the data; [-1, 1] is over three deviations away


class Gaussian(nn.Module):
    """The best denoiser there is for pixels N(mu, s^2); counts as a backbone does."""

    def __init__(self, process: VP | VE, mu: float = MU, s: float = S) -> None:
        super().__init__()
        self.process, self.mu, self.s = process, mu, s
        self.calls: list[int] = []  # images of each

    @property
    def evaluated(self) -> int:
        return sum(self.calls)

    def clean(self, x, a, b):
        return (a * self.s**2 * x + b**2 * self.mu) / (a**2 * self.s**2 + b**2)

    def denoise(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.append(len(x))
        a, b = (spread(c, x) for c in self.process.coefficients(time))
        x0 = self.clean(x, a, b)
        return x0, (x - a * x0) / b

    def features(self, x: Tensor) -> Tensor:
        """Two numbers an image, by a pass that is counted."""
        self.calls.append(len(x))
        return torch.stack([x.mean((1, 2, 3)), 3 * x.square().mean((1, 2, 3))], 1)


class Bent(Gaussian):
    """Not the best one, not linear, and at times beyond [-1, 1]; of tensors and of arrays."""

    def clean(self, x, a, b):
        sin = torch.sin if isinstance(x, Tensor) else np.sin
        return 1.5 * sin(0.8 * x) + 0.1 * a


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def abar(T: int = 1000) -> np.ndarray:
    return np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, T))])


def by_hand(network: Gaussian, x: np.ndarray, times: list[int]) -> np.ndarray:
    """Liu et al. 2022, equations (9) and (12), of one state on DDPM's chain, in float64."""
    level, old = abar(), []
    for t, after in zip(times, [*times[1:], 0]):
        now, then = level[t], level[after]
        old.append((x - np.sqrt(now) * network.clean(x, np.sqrt(now), np.sqrt(1 - now))) / np.sqrt(1 - now))
        if len(old) == 1:
            e = old[-1]
        elif len(old) == 2:
            e = (3 * old[-1] - old[-2]) / 2
        elif len(old) == 3:
            e = (23 * old[-1] - 16 * old[-2] + 5 * old[-3]) / 12
        else:
            e = (55 * old[-1] - 59 * old[-2] + 37 * old[-3] - 9 * old[-4]) / 24
        below = np.sqrt(now) * (np.sqrt((1 - then) * now) + np.sqrt((1 - now) * then))
        x = np.sqrt(then / now) * x - (then - now) / below * e
    return x


@pytest.mark.parametrize("network", [Gaussian(VP()), Bent(VP())])
@pytest.mark.parametrize("times", [ddim_times()[30:], [401, 201, 101, 51, 1], [301, 1], [11]])
def test_it_is_the_published_recursion(network, times):
    start = noise(3, 2, 4, 4)
    expected = by_hand(network, start.numpy().astype(np.float64), times)
    np.testing.assert_allclose(plms(network, start[None], [times])[0], expected, atol=2e-5)


def test_orders_rise_on_noise_that_is_a_cubic_in_the_step():
    """With a = 1 the state is the integral of the noise: order 4 is exact on a cubic, after its first three steps."""
    sigmas = torch.linspace(1.0, 0.1, 10).tolist()
    cubic = np.polynomial.Polynomial([0.3, -1.0, 0.5, 2.0])

    class Cubic(Gaussian):
        def denoise(self, x, time):
            eps = torch.as_tensor(cubic(time.numpy()))[:, None, None, None].expand(x.shape).float()
            return x - eps, eps

    x = float(plms(Cubic(VE()), torch.zeros(1, 1, 1, 1, 1), [sigmas]))
    h, f = -0.1, cubic(np.array(sigmas))
    first = h * (f[0] + (3 * f[1] - f[0]) / 2 + (23 * f[2] - 16 * f[1] + 5 * f[0]) / 12)
    rest = cubic.integ()(0.0) - cubic.integ()(sigmas[3])
    assert x == pytest.approx(first + rest, abs=1e-6)


@pytest.mark.parametrize("process", [VP(), VE()])
def test_chains_together_are_chains_alone(process):
    grid = falling_times(process, 12)
    chains = [grid[2:], grid[5:], grid[5:], grid[11:]]
    starts = torch.stack([noise(3, 1, 4, 4, seed=seed) for seed in range(4)])
    network = Bent(process)
    together = plms(network, starts, chains)
    assert network.calls == [12, 9, 9, 9, 9, 9, 9, 3, 3, 3]  # images of 4, 3 and 1 chains
    for start, chain, result in zip(starts, chains, together):
        torch.testing.assert_close(plms(Bent(process), start[None], [chain])[0], result)
        torch.testing.assert_close(plms(Bent(process), start[None, 1:2], [chain])[0], result[1:2])


@pytest.mark.parametrize(("process", "first"), [(VP(), 701), (VE(), None)])
def test_it_follows_the_flow_of_gaussian_data_closer_than_ddim(process, first):
    """(x_t - a mu) / sqrt(a^2 s^2 + b^2) is constant along the probability flow."""
    times = [t for t in falling_times(process, 100) if first is None or t <= first]
    time = process.checked(times[0])
    a, b = (float(c) for c in process.coefficients(time))
    start = b * noise(1, 4, 1, 4, 4)
    flow = MU + S * (start - a * MU) / (a**2 * S**2 + b**2) ** 0.5
    error = float((plms(Gaussian(process), start, [times]) - flow).abs().max())
    plain = float((ddim(Gaussian(process), start[0], times, clip=False) - flow).abs().max())
    assert error < plain / 3
    assert error < 3e-3


def test_the_grids_are_those_of_the_usual_samplers():
    assert falling_times(VP(), 100) == ddim_times()
    assert falling_times(VE(), 18) == heun_sigmas().tolist()
    with pytest.raises(UserError, match="steps = 1001"):
        falling_times(VP(), 1001)


@pytest.mark.parametrize(
    ("chains", "error", "says"),
    [
        ([[11], [21, 11]], ValueError, "the longest chain first"),
        ([[21, 11]], ValueError, "one state a chain"),
        ([[], []], UserError, "no times"),
        ([[11, 21], [11]], UserError, "noise must fall"),
        ([[1001, 21], [11]], UserError, "t = 1001"),
    ],
)
def test_bad_chains(chains, error, says):
    with pytest.raises(error, match=says):
        plms(Gaussian(VP()), noise(2, 1, 1, 2, 2), chains)
