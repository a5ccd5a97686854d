"""Reverse processes, as pure functions of a noise predictor."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def reverse_times(start: int, steps: int | None) -> list[int]:
    """Time indices from start-1 down to 0: every one of them, or `steps` of them evenly spaced."""
    if steps is None or steps >= start:
        return list(range(start - 1, -1, -1))
    return [round(t) for t in torch.linspace(start - 1, 0, steps, dtype=torch.float64).tolist()]


def posterior_mean_step(x: Tensor, eps: Tensor, abar_t: float, abar_s: float) -> Tensor:
    """mean of q(x_s | x_t, x_0hat) for s < t, abar_{-1} = 1; (B, D).

    With s = t-1 this is (x - beta_t / sqrt(1 - abar_t) eps) / sqrt(alpha_t), Ho et al. 2020, eq. (11).
    """
    alpha = abar_t / abar_s  # of the whole jump from s to t
    return (x - (1 - alpha) / (1 - abar_t) ** 0.5 * eps) / alpha**0.5


def reverse(
    predict_noise: Callable[[Tensor, int], Tensor],
    x: Tensor,
    abar: list[float],
    times: list[int],
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Walk the reverse chain from x at times[0] to 0 and yield the state after each step.

    Args:
        predict_noise: eps_theta(x, i) with i the position in `times`; (B, D) -> (B, D).
        x: (B, D) the state at times[0].
        abar: abar_t for every t.
        times: strictly decreasing time indices; after the last comes x_0.
        generator: where the posterior noise sqrt(beta_t (1 - abar_s) / (1 - abar_t)) z is drawn from, None = no noise.
            One z serves all rows of a step, so that a row's result does not depend on the batch it comes in.
    """
    for position, t in enumerate(times):
        abar_s = abar[times[position + 1]] if position + 1 < len(times) else 1.0
        x = posterior_mean_step(x, predict_noise(x, position), abar[t], abar_s)
        if generator is not None and abar_s < 1.0:
            variance = (1 - abar[t] / abar_s) * (1 - abar_s) / (1 - abar[t])
            z = torch.randn(1, *x.shape[1:], generator=generator, device=generator.device).to(x)
            x = x + variance**0.5 * z
        yield x
