"""x_s = a_s x0_hat + b_s eps_hat: from noise to images with DDIM, DDPM's ancestral chain and Heun's method of EDM.

The specification of DDAE, section 3.3. Pure functions of a network that is already in eval mode; every draw comes from
the generator they are given. Where noise is drawn each row has its own, so a score must use eta = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from outlie.diffusion.processes import VE, VP
from outlie.errors import UserError

BATCH = 64  # images denoised at once by `sample`
CHURN_FROM, CHURN_TO, CHURN_NOISE = 0.01, 1.0, 1.007  # S_tmin, S_tmax, S_noise of the DDAE code


class Denoises(Protocol):
    """What a sampler asks of a network."""

    @property
    def process(self) -> VP | VE:
        """How images were noised in training."""
        ...

    def denoise(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """(x0_hat, eps_hat) of x = a x0_hat + b eps_hat."""
        ...


def ddim_step(x0: Tensor, eps: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    """a x0_hat + b eps_hat: the deterministic step to the level (a, b), towards the image or towards noise."""
    return a * x0 + b * eps


def ddim_times(T: int = 1000, steps: int = 100) -> list[int]:
    """1 + floor(i T / steps), falling: [991, 981, ..., 11, 1] of the released code; the clean image follows.

    The first is T + 1 - T / steps at most, so that few steps start where there is signal left: 501 for two of them.

    Raises:
        UserError: `steps` is not in 1..T.
    """
    if not 1 <= steps <= T:
        raise UserError(f"steps = {steps}: a chain of T = {T} allows 1 to {T}")
    return [1 + i * T // steps for i in reversed(range(steps))]


def heun_sigmas(n: int = 18, smin: float = 0.002, smax: float = 80.0, rho: float = 7.0) -> Tensor:
    """(smax^(1/rho) + i/(n-1) (smin^(1/rho) - smax^(1/rho)))^rho, falling; (n,) float64; 0 follows. EDM, eq. (5).

    Raises:
        UserError: n is below 1, or not 0 < smin < smax.
    """
    if n < 1:
        raise UserError(f"n = {n} noise levels: at least 1 is needed; EDM takes 18")
    if not 0 < smin < smax:
        raise UserError(f"smin = {smin}, smax = {smax}: allowed are 0 < smin < smax; EDM takes 0.002 and 80")
    high, low = smax ** (1 / rho), smin ** (1 / rho)
    return (high + torch.linspace(0, 1, n, dtype=torch.float64) * (low - high)) ** rho


@torch.no_grad()
def ddim(
    network: Denoises,
    start: Tensor,
    times: Sequence[float],
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    clip: bool = True,
) -> Tensor:
    """x' = a' x0_hat + sqrt(b'^2 - c^2) eps_hat + c z, c = eta (b'/b) sqrt(b^2 - (a b'/a')^2); x_0, as `start`.

    With a^2 + b^2 = 1 that c is eta sqrt((1 - abar/abar') (1 - abar') / (1 - abar)). Song et al., DDIM, ICLR 2021.
    The last step ends at a = 1, b = 0, the network's x0_hat; the released table ends at abar_0 = .9999, so that its
    images keep .01 eps of noise (and there abar_1 = .99978; here it is .99990, as in training).

    Args:
        network: denoises.
        start: (B, C, H, W) the state at times[0].
        times: of falling noise, without the clean image.
        eta: 0 is deterministic, 1 has the posterior's variance.
        generator: of z, for eta > 0.
        clip: whether x0_hat is clipped to [-1, 1] and eps_hat recomputed from it.

    Raises:
        UserError: no times, a time out of range, noise that does not fall, eta > 0 without a generator.
    """
    _require_generator(eta, generator)
    time_S, a, b = levels(network, times, start)
    x = start
    for i, time in enumerate(time_S):
        x0, eps = _predicted(network, x, time, a[i], b[i], clip)
        c = eta * b[i + 1] / b[i] * (b[i] ** 2 - (a[i] * b[i + 1] / a[i + 1]) ** 2) ** 0.5
        x = ddim_step(x0, eps, a[i + 1], (b[i + 1] ** 2 - c**2) ** 0.5)
        if generator is not None and c > 0:
            x = x + c * _noise(x, generator)
    return x


@torch.no_grad()
def ancestral(
    network: Denoises,
    start: Tensor,
    generator: torch.Generator,
    times: Sequence[float] | None = None,
    clip: bool = True,
) -> Tensor:
    """Posterior mean of q(x_s | x_t, x0_hat) + sqrt(beta) z, beta = b^2 - (a/a')^2 b'^2; x_0, as `start`.

    Over the full chain beta is DDPM's beta_t (Ho et al. 2020, the larger of their two variances); the last step adds
    no noise.

    Args:
        network: denoises.
        start: (B, C, H, W) the state at times[0].
        generator: of z.
        times: of falling noise; None = all of T, ..., 1.
        clip: whether x0_hat is clipped to [-1, 1].

    Raises:
        UserError: no times, a time out of range, noise that does not fall, a VE process without `times`.
    """
    if times is None:
        if not isinstance(network.process, VP):
            raise UserError("ancestral sampling of a VE process has no chain of its own; give the sigmas as times")
        times = range(network.process.T, 0, -1)
    time_S, a, b = levels(network, times, start)
    x = start
    for i, time in enumerate(time_S):
        x0, _ = _predicted(network, x, time, a[i], b[i], clip)
        beta = b[i] ** 2 - (a[i] / a[i + 1] * b[i + 1]) ** 2
        x = a[i + 1] * beta / b[i] ** 2 * x0 + a[i] / a[i + 1] * (b[i + 1] / b[i]) ** 2 * x
        if i + 1 < len(time_S):
            x = x + beta**0.5 * _noise(x, generator)
    return x


@torch.no_grad()
def heun(
    network: Denoises,
    start: Tensor,
    sigmas: Tensor,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    clip: bool = True,
) -> Tensor:
    """dx/dsigma = (x - D(x; sigma)) / sigma by Heun's method, a step of Euler's to 0; x_0, as `start`.

    Karras et al., EDM, NeurIPS 2022, algorithm 2, as the DDAE code has it: for eta > 0 each step from .01 <= sigma <= 1
    first raises sigma by a factor of 1 + eta (sqrt(2) - 1) with noise 1.007 z. The state is float64, the network's
    input float32.

    Args:
        network: denoises; its process is VE.
        start: (B, C, H, W) the state at sigmas[0].
        sigmas: (n,) falling, without 0.
        eta: 0 is deterministic.
        generator: of z, for eta > 0.
        clip: whether D is clipped to [-1, 1]; EDM's own sampler does not.

    Raises:
        UserError: a VP process, no sigmas, one not above 0, sigmas that do not fall, eta > 0 without a generator.
    """
    if not isinstance(network.process, VE):
        raise UserError("Heun's sampler is for a VE process; a VP process has ddim and ancestral")
    _require_generator(eta, generator)
    grid = [float(sigma) for sigma in sigmas]
    levels(network, grid, start)

    def slope(x: Tensor, sigma: float) -> Tensor:
        x0, _ = network.denoise(x.float(), torch.tensor(sigma, dtype=torch.float32, device=x.device))
        return (x - (x0.clamp(-1, 1) if clip else x0)) / sigma

    x = start.double()
    for sigma, after in zip(grid, [*grid[1:], 0.0], strict=True):
        if generator is not None and eta > 0 and CHURN_FROM <= sigma <= CHURN_TO:
            raised = sigma * (1 + eta * (math.sqrt(2) - 1))
            x = x + math.sqrt(raised**2 - sigma**2) * CHURN_NOISE * _noise(x, generator)
            sigma = raised
        here = slope(x, sigma)
        end = x + (after - sigma) * here
        if after > 0:
            end = x + (after - sigma) * (here + slope(end, after)) / 2
        x = end
    return x.to(start.dtype)


def sample(
    network: Denoises, n: int, shape: Sequence[int], generator: torch.Generator, steps: int | None = None
) -> Tensor:
    """n images in [-1, 1] by the usual sampler, DDIM for VP and Heun for VE; (n, C, H, W) on the network's device.

    Args:
        network: denoises, in eval mode and with averaged weights.
        n: number of images.
        shape: of one image.
        generator: of the noise they start from.
        steps: None = 100 of DDIM, 18 of Heun.

    Raises:
        UserError: n below 1, or `steps` out of range.
    """
    if n < 1:
        raise UserError(f"n = {n} images to sample: ask for 1 or more")
    process = network.process
    if isinstance(process, VP):
        times = ddim_times(process.T, min(100, process.T) if steps is None else steps)
    else:
        times = heun_sigmas(18 if steps is None else steps)
    _, _, b = levels(network, [float(times[0])], torch.empty(0))
    weights = network.parameters() if isinstance(network, nn.Module) else iter(())
    device = next((weight.device for weight in weights), torch.device("cpu"))
    images = []
    for first in range(0, n, BATCH):
        size = (min(BATCH, n - first), *shape)
        start = b[0] * torch.randn(size, generator=generator, device=generator.device).to(device)
        walked = heun(network, start, times) if isinstance(times, Tensor) else ddim(network, start, times)
        images.append(walked.clamp(-1, 1))
    return torch.cat(images)


def levels(network: Denoises, times: Sequence[float], like: Tensor) -> tuple[Tensor, list[float], list[float]]:
    """Times on the device of `like`, and (a, b) at each and at the clean image that follows."""
    if not len(times):
        raise UserError("no times to sample along; give at least one")
    time_S = torch.stack([network.process.checked(time) for time in times])
    a, b = (coefficient.tolist() for coefficient in network.process.coefficients(time_S))
    for i in range(len(times) - 1):
        if b[i + 1] / a[i + 1] >= b[i] / a[i]:
            raise UserError(f"times {times[i]}, {times[i + 1]}: the noise must fall from each to the next")
    return time_S.to(like.device), [*a, 1.0], [*b, 0.0]


def _predicted(network: Denoises, x: Tensor, time: Tensor, a: float, b: float, clip: bool) -> tuple[Tensor, Tensor]:
    x0, eps = network.denoise(x, time)
    if clip:
        x0 = x0.clamp(-1, 1)
        eps = (x - a * x0) / b
    return x0, eps


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Drawn where the generator lives, so that devices agree."""
    return torch.randn(like.shape, generator=generator, device=generator.device, dtype=torch.float32).to(like)


def _require_generator(eta: float, generator: torch.Generator | None) -> None:
    if not 0 <= eta <= 1:
        raise UserError(f"eta = {eta}: allowed are 0 (deterministic) to 1")
    if eta > 0 and generator is None:
        raise UserError(f"eta = {eta} draws noise, but there is no generator; give one, or set eta to 0")
