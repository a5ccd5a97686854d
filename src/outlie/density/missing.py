"""Rows with gaps: E[x_mis | x_obs] ~ sum_i wt_i E[x_mis | z_i], wt = w / sum w; and what each value adds to the score.

Mattei and Frellsen, MIWAE, ICML 2019; Ipsen, Mattei and Frellsen, not-MIWAE, ICLR 2021, whose weights rest on draws
x_mis ~ p(x_mis | z_i): where absence is modelled these stand for the expectation. Specification of IWAE, section 8.

x is (B, D) with NaN for a missing value, of a one-hot block in all its columns; the model's encoder knows gaps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outlie.density import scores
from outlie.density.latent import LatentModel, Normal
from outlie.density.objectives import log_weights, samples_at_once
from outlie.density.posterior import resample
from outlie.density.weights import RunningWeights, normalised


@torch.no_grad()
def impute(model: LatentModel, x: Tensor, k: int, seed: int, q: Normal | None = None) -> Tensor:
    """(B, D) x, its gaps filled with their expected values from k weighted samples; the same draws for every row."""
    q, noise = q or model.encode(x), scores.draws(model, k, seed)
    mean, log_total, done = x.new_zeros(x.shape, dtype=torch.float64), x.new_full((len(x),), -torch.inf).double(), 0
    for part in noise.chunks(samples_at_once(model, len(x))):
        z = q.at(part.first)
        log_w = log_weights(model, x, q, z, part)
        log_sum, done = log_w.logsumexp(0), done + len(z)
        log_total = torch.logaddexp(log_total, log_sum)
        share = torch.where(log_total == -torch.inf, len(z) / done, (log_sum - log_total).exp())
        here = torch.einsum("kb,kbd->bd", normalised(log_w), expected(model, z, part.gaps).double())
        mean = mean + share[:, None] * (here - mean)
    return torch.where(x.isnan(), mean.to(x), x)


@torch.no_grad()
def multiple_imputation(
    model: LatentModel, x: Tensor, k: int, draws: int, seed: int, q: Normal | None = None
) -> Tensor:
    """(draws, B, D) x, its gaps filled at random: z by SIR from k samples of its own, then x_mis ~ p(x_mis | z).

    Rows are independent, as estimates from a whole filled table need it, so a row's values depend on its place in the
    batch. Where absence is modelled, x_mis is resampled with its z.
    """
    q, seen = q or model.encode(x), ~x.isnan()
    generator = torch.Generator(q.mean.device).manual_seed(seed)
    filled = []
    for part in torch.arange(draws).split(max(1, samples_at_once(model, len(x)) // k)):
        noise = model.draw(k * len(part), len(x), generator)
        z, width = q.at(noise.first), q.mean.shape[-1]
        log_w = log_weights(model, x, q, z, noise).unflatten(0, (k, len(part)))
        drawn = z if noise.gaps is None else torch.cat([z, noise.gaps], -1)
        chosen = resample(drawn.unflatten(0, (k, len(part))), log_w, generator)  # (part, B, d) or (part, B, d + D)
        if noise.gaps is None:
            values = model.likelihood.sample(model.decode(chosen), generator)
        else:
            values = expected(model, chosen[..., :width], chosen[..., width:])
        filled.append(torch.where(seen, x, values.to(x)))
    return torch.cat(filled)


@torch.no_grad()
def attribution(model: LatentModel, x: Tensor, k: int, seed: int, block_of: Tensor) -> Tensor:
    """(B, D) -log p(x_j | x_-j) = L_k(x_-j) - L_k(x), nats; 0 where x_j is missing.

    A one-hot block is one value: its surprise stands at the column that is on, of a level that training never saw at
    the block's first. Where absence is modelled, all of it is given which values are there.

    Args:
        model: with an encoder that knows gaps.
        x: (B, D), standardised.
        k: samples of each bound.
        seed: of the draws, which are the same for every row and bound.
        block_of: (D,) the number of each column's block, as `corruption.block_of_column` gives it.
    """
    whole, surprise_BD = scores.bound(model, x, k, seed), x.new_zeros(x.shape, dtype=torch.float64)
    for block in range(int(block_of[-1]) + 1):
        columns = (block_of == block).nonzero()[:, 0].to(x.device)
        values = x[:, columns]
        surprise = bound_without(model, x, columns, k, seed) - whole
        place = columns[(values >= 0).int().argmax(1)][:, None]
        surprise_BD.scatter_(1, place, surprise.where(~values[:, 0].isnan(), 0.0)[:, None])
    return surprise_BD


def bound_without(model: LatentModel, x: Tensor, columns: Tensor, k: int, seed: int) -> Tensor:
    """(B,) L_k of rows less some columns, whose values are not known but known to be there."""
    rest = x.index_fill(1, columns, torch.nan)
    if not model.absence:
        return scores.bound(model, rest, k, seed)
    q, noise, running = model.encode(rest), scores.draws(model, k, seed), RunningWeights()
    for part in noise.chunks(samples_at_once(model, len(x))):
        z = q.at(part.first)
        logit = model.slope * expected(model, z, part.gaps) + model.offset
        # p(missing) = sigmoid(logit) gives way to p(there) = sigmoid(-logit), and their ratio is exp(-logit)
        running.update(log_weights(model, rest, q, z, part) - logit[..., columns].sum(-1).double())
    return running.log_mean_exp()


def expected(model: LatentModel, z: Tensor, gaps: Tensor | None) -> Tensor:
    """(..., B, D) E[x | z]; with `gaps`, standard normal, the draws of x that enter not-MIWAE's weights."""
    out = model.decode(z)
    if gaps is None:
        return model.likelihood.mean(out)
    loc, scale = model.likelihood.loc_scale(out)
    return loc + scale * gaps


def per_observed(score: Tensor, x: Tensor, block_of: Tensor) -> Tensor:
    """(B,) score / number of values that are there, a one-hot block counting as one; NaN for a row without any."""
    first = torch.ones_like(block_of, dtype=torch.bool)
    first[1:] = block_of[1:] != block_of[:-1]
    count = (~x[:, first.to(x.device)].isnan()).sum(1)
    return score / torch.where(count > 0, count, torch.nan)
