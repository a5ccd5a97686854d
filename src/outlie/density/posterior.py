"""The posterior that importance weights imply: q_EW(z) = E_{z_2..z_k ~ q} [k w(z) / (w(z) + sum_j w(z_j)) q(z)].

All of it given x. q_EW is normalised; k = 1 gives q, k -> inf the true posterior; and
L_1 <= L_k <= L_VAE[q_EW] <= log p(x), where L_VAE[r] = E_r log p(x, z) / r(z). The first version of Cremer, Morris and
Duvenaud, Reinterpreting Importance-Weighted Autoencoders, 2017, has the two in the middle equal; they are not.
Specification of IWAE, section 2.

q is a Normal of (B, d), and then z is (m, B, d) and `log_joint(z)` gives log p(x, z) as (m, B); or q is of (d,), and
everything goes without the B. Where every weight of a batch is 0 (log-weights -inf), one of its draws from q is taken,
each as likely as the others: `resample` does so and the densities say so, which keeps q_EW normalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from outlie.density.latent import Normal
from outlie.density.weights import RunningWeights, log_mean_exp

LogJoint = Callable[[Tensor], Tensor]

ROWS = 100_000  # that `log_joint` is given at once


def draw(q: Normal, samples: int, generator: torch.Generator) -> Tensor:
    """z ~ q, (samples, B, d)."""
    shape = (samples, *q.mean.shape)
    return q.at(torch.randn(shape, generator=generator, device=generator.device, dtype=q.mean.dtype).to(q.mean.device))


def log_weights(z: Tensor, log_joint: LogJoint, q: Normal) -> Tensor:
    """log w(z) = log p(x, z) - log q(z | x), (m, B) float64."""
    return log_joint(z).double() - q.log_prob(z).double()


def resample(z: Tensor, log_w: Tensor, generator: torch.Generator, shared: bool = False) -> Tensor:
    """Sampling-importance-resampling, one draw a row: z_j, j ~ Categorical(w / sum w), distributed as q_EW; (B, d).

    Args:
        z: (k, B, d) draws from q.
        log_w: (k, B) their log-weights; where all are -inf, every draw is as likely as the others.
        shared: choose in every row by the same k numbers, so that a row's draw does not depend on its batch.
    """
    log_w = torch.where((log_w == -torch.inf).all(0), 0.0, log_w.double())
    columns = [1] * (log_w.dim() - 1) if shared else log_w.shape[1:]
    waits = torch.empty(len(z), *columns, dtype=torch.float64, device=generator.device).exponential_(
        generator=generator
    )
    j = (log_w - waits.log().to(log_w.device)).argmax(0)  # the first of exponential clocks of rates w (Gumbel-max)
    return z.gather(0, j[None, ..., None].expand(1, *z.shape[1:]))[0]


def log_q_tilde(log_w: Tensor, log_q: Tensor, log_sum_others: Tensor, k: int) -> Tensor:
    """log of q~_IW(z | x, z_2..z_k) = k w(z) / (w(z) + sum_j w(z_j)) q(z | x): not normalised, but q_EW on average.

    Args:
        log_w: log w(z).
        log_q: log q(z | x).
        log_sum_others: logsumexp of the log-weights of z_2..z_k.
        k: number of samples, z included.
    """
    total = torch.logaddexp(log_w, log_sum_others)
    return log_q + torch.where(total == -torch.inf, 0.0, math.log(k) + log_w - total)


def log_q_ew(
    z: Tensor,
    log_joint: LogJoint,
    q: Normal,
    k: int,
    generator: torch.Generator,
    batches: int = 1000,
    rows: int = ROWS,
) -> Tensor:
    """log q_EW(z | x) from N fresh batches of k - 1 draws, the same for all m points; (m, B) float64.

    The density is unbiased, its logarithm therefore too low, by about half of its relative variance. k = 1: exactly q.

    Args:
        z: (m, B, d) points.
        log_joint: (m, B, d) -> (m, B).
        q: the proposal.
        k: number of samples that q_EW is of.
        generator: of the draws; `rows` decides in what order they are made.
        batches: N.
        rows: numbers held at once; a single batch, and the m points, are never divided.
    """
    log_q = q.log_prob(z).double()
    if k == 1:
        return log_q
    log_w = log_joint(z).double() - log_q
    each = max(k - 1, len(z)) * math.prod(q.mean.shape[:-1])
    running = RunningWeights()
    for part in torch.arange(batches).split(max(1, rows // each)):
        others = log_weights(draw(q, len(part) * (k - 1), generator), log_joint, q)
        log_sum = others.unflatten(0, (len(part), k - 1)).logsumexp(1)
        running.update(log_q_tilde(log_w, log_q, log_sum[:, None], k))
    return running.log_mean_exp()


@dataclass(frozen=True)
class Bounds:
    """Estimates of L_k and of L_VAE[q_EW], (B,) each, with their standard errors.

    The logarithm of an estimated density is too low: `of_q_ew` is too high, by less the more `batches` it had.
    """

    k: int
    batches: int
    importance: Tensor
    importance_se: Tensor
    of_q_ew: Tensor
    of_q_ew_se: Tensor


def vae_bound_of_q_ew(
    log_joint: LogJoint,
    q: Normal,
    k: int,
    generator: torch.Generator,
    draws: int = 1000,
    batches: int = 1000,
    groups: int = 10,
    rows: int = ROWS,
) -> Bounds:
    """L_VAE[q_EW] = E_{z ~ q_EW} log p(x, z) - log q_EW(z | x), and L_k of the same draws.

    The standard errors are those between groups: a group's points share the batches of their density, and its error.

    Args:
        log_joint: (m, B, d) -> (m, B).
        q: the proposal.
        k: number of samples that q_EW is of.
        generator: of the draws.
        draws: points z ~ q_EW of all groups together, each resampled from k of its own; what `groups` does not
            divide is left out.
        batches: N of `log_q_ew`; 1000 or more.
        groups: independent repetitions, two or more.
        rows: numbers held at once.
    """
    if not 2 <= groups <= draws:
        raise ValueError(f"{groups} groups of {draws} draws: 2 or more groups, and a draw for each")
    importance, of_q_ew = [], []
    for _ in range(groups):
        log_ratio, log_mean = log_ratios(log_joint, q, k, generator, draws // groups, batches, rows)
        importance.append(log_mean.mean(0))
        of_q_ew.append(log_ratio.mean(0))
    bounds = [torch.stack(importance), torch.stack(of_q_ew)]
    mean, se = [b.mean(0) for b in bounds], [b.std(0) / groups**0.5 for b in bounds]
    return Bounds(k, batches, mean[0], se[0], mean[1], se[1])


def log_ratios(
    log_joint: LogJoint, q: Normal, k: int, generator: torch.Generator, draws: int, batches: int, rows: int
) -> tuple[Tensor, Tensor]:
    """log p(x, z) - log q_EW(z | x) at draws z ~ q_EW, and log (1/k) sum w of the k samples behind each; (draws, B)."""
    z, log_mean = _resampled(log_joint, q, k, draws, generator, rows)
    return log_joint(z).double() - log_q_ew(z, log_joint, q, k, generator, batches, rows), log_mean


def _resampled(
    log_joint: LogJoint, q: Normal, k: int, draws: int, generator: torch.Generator, rows: int
) -> tuple[Tensor, Tensor]:
    """Draws from q_EW (draws, B, d), and log (1/k) sum w of the k samples behind each (draws, B)."""
    points, log_means = [], []
    for part in torch.arange(draws).split(max(1, rows // (k * math.prod(q.mean.shape[:-1])))):
        z = draw(q, k * len(part), generator)
        log_w = log_weights(z, log_joint, q).unflatten(0, (k, len(part)))
        points.append(resample(z.unflatten(0, (k, len(part))), log_w, generator))
        log_means.append(log_mean_exp(log_w))
    return torch.cat(points), torch.cat(log_means)
