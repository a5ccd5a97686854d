"""x' = a' (x - b e) / a + b' e with e = (55 e_1 - 59 e_2 + 37 e_3 - 9 e_4) / 24 of the last noise predictions: PLMS.

Liu et al., Pseudo Numerical Methods for Diffusion Models on Manifolds, ICLR 2022: an Adams-Bashforth method of order 4
on the network's noise, whose step is DDIM's. It starts with the orders 1, 2, 3 and no Runge-Kutta steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outlie.diffusion.image_samplers import Denoises, ddim_times, heun_sigmas, levels
from outlie.diffusion.processes import VE, VP

WEIGHTS = (  # of the last predictions, the newest first
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def falling_times(process: VP | VE, steps: int) -> list[float]:
    """Of the process's usual sampler, without the clean image: DDIM's steps, or EDM's sigmas.

    Raises:
        UserError: `steps` out of range.
    """
    return [*ddim_times(process.T, steps)] if isinstance(process, VP) else heun_sigmas(steps).tolist()


@torch.no_grad()
def plms(network: Denoises, starts: Tensor, chains: Sequence[Sequence[float]]) -> Tensor:
    """Every state to its clean image, one call of the network a time; (S, B, C, H, W), not clipped.

    The i-th steps of all chains are one batch: what a long chain is at is as good as what a short one is at.

    Args:
        network: denoises.
        starts: (S, B, C, H, W) states, B images at the first time of each chain.
        chains: S chains of times of falling noise, without the clean image; no chain is longer than the one before.

    Raises:
        UserError: no times, a time out of range, noise that does not fall.
    """
    S, B = starts.shape[:2]
    lengths = [len(times) for times in chains]
    if len(chains) != S or lengths != sorted(lengths, reverse=True):
        raise ValueError(f"{S} states and chains of {lengths} times: one state a chain, the longest chain first")
    walks = [levels(network, times, starts) for times in chains]
    x, past = starts.flatten(0, 1), []
    for i in range(lengths[0]):
        going = sum(length > i for length in lengths)
        here = x[: going * B]
        time = torch.stack([time_S[i] for time_S, _, _ in walks[:going]]).repeat_interleave(B)
        _, eps = network.denoise(here, time)
        past = [eps, *(old[: going * B] for old in past[:3])]
        mixed = sum(w * old for w, old in zip(WEIGHTS[len(past) - 1], past))
        keep, add = (here.new_tensor(c).repeat_interleave(B)[:, None, None, None] for c in _transfer(walks[:going], i))
        x = torch.cat([keep * here + add * mixed, x[going * B :]])
    return x.unflatten(0, (S, B))


def _transfer(walks: Sequence[tuple[Tensor, list[float], list[float]]], i: int) -> tuple[list[float], list[float]]:
    """a' / a and b' - a' b / a of each chain's i-th step: of the state, and of the noise."""
    keep = [a[i + 1] / a[i] for _, a, _ in walks]
    return keep, [b[i + 1] - ratio * b[i] for ratio, (_, _, b) in zip(keep, walks)]
