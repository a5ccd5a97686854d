"""Anomaly scores of a density model, higher = more anomalous; specification of IWAE, section 7.

The same draws serve every row, from a generator seeded anew at each call: a score is reproducible and does not depend
on the batch. Each function takes a model and rows x (B, ...) and returns (B,) float64, in nats unless it says so.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from outlie.density.complexity import png_bits
from outlie.density.latent import LatentModel, Noise, Normal
from outlie.density.objectives import log_weights, samples_at_once
from outlie.density.posterior import resample
from outlie.density.weights import RunningWeights, log_mean_exp

SIR_DRAWS = 10  # of recon_err_sir


def draws(model: LatentModel, k: int, seed: int) -> Noise:
    """Noise of k samples, the same for every row."""
    device = next(model.parameters()).device
    return model.draw(k, 1, torch.Generator(device).manual_seed(seed))


def log_weights_of(model: LatentModel, x: Tensor, k: int, seed: int, q: Normal | None = None) -> Tensor:
    """(k, B) log-weights of k samples of q(z | x)."""
    q, noise = q or model.encode(x), draws(model, k, seed)
    return log_weights(model, x, q, q.at(noise.first), noise)


def bound(model: LatentModel, x: Tensor, k: int, seed: int, q: Normal | None = None) -> Tensor:
    """L_k, decoded chunk by chunk in memory that does not grow with k but for the draws."""
    q, noise, running = q or model.encode(x), draws(model, k, seed), RunningWeights()
    for part in noise.chunks(samples_at_once(model, len(x))):
        running.update(log_weights(model, x, q, q.at(part.first), part))
    return running.log_mean_exp()


def neg_iwae(model: LatentModel, x: Tensor, k: int, seed: int) -> Tensor:
    """-L_k."""
    return -bound(model, x, k, seed)


def recon_prob(model: LatentModel, x: Tensor, k: int, seed: int, q: Normal | None = None) -> Tensor:
    """-(1/k) sum log p(x | z_i), z_i ~ q (An and Cho 2015)."""
    q, noise = q or model.encode(x), draws(model, k, seed)
    parts = noise.chunks(samples_at_once(model, len(x)))
    return -sum((model.log_likelihood(x, q.at(part.first), part.gaps).sum(0) for part in parts), x.new_zeros(())) / k


def neg_elbo(model: LatentModel, x: Tensor, k: int, seed: int) -> Tensor:
    """-L_1 = KL(q || p(z)) - E_q log p(x | z); the KL in closed form where there is one stochastic layer."""
    if len(model.latent) > 1:
        return -log_weights_of(model, x, k, seed).mean(0)
    q = model.encode(x)
    return recon_prob(model, x, k, seed, q) + q.kl_to_prior().double()


def latent_kl(model: LatentModel, x: Tensor, k: int, seed: int) -> Tensor:
    """KL(q(z | x) || p(z)), with two layers estimated from k samples."""
    if len(model.latent) > 1:
        return neg_elbo(model, x, k, seed) - recon_prob(model, x, k, seed)
    return model.encode(x).kl_to_prior().double()


def bound_gap(model: LatentModel, x: Tensor, k: int, seed: int) -> Tensor:
    """L_k - L_1: how far q(z | x) is from the posterior."""
    log_w = log_weights_of(model, x, k, seed)
    return log_mean_exp(log_w) - log_w.mean(0)


def squared_error(model: LatentModel, x: Tensor, z: Tensor) -> Tensor:
    """||x - E[x | z]||^2 over the values that are there, in the units of x."""
    mean, seen = model.likelihood.mean(model.decode(z)).double(), model.seen(x)
    error = mean - x.flatten(1).double()
    return (error if seen is None else torch.where(seen, error, 0.0)).square().sum(-1)


def recon_err(model: LatentModel, x: Tensor, k: int, seed: int) -> Tensor:
    """||x - E[x | z = mean of q]||^2."""
    return squared_error(model, x, model.encode(x).mean)


def recon_err_sir(model: LatentModel, x: Tensor, k: int, seed: int) -> Tensor:
    """recon_err with z ~ q_EW: the mean of 10 draws, each resampled from k samples of its own."""
    q = model.encode(x)
    return torch.stack([squared_error(model, x, sir(model, x, k, seed + i, q)) for i in range(SIR_DRAWS)]).mean(0)


def sir(model: LatentModel, x: Tensor, k: int, seed: int, q: Normal | None = None) -> Tensor:
    """(B, d) draws of z_1 from q_EW by sampling-importance-resampling, with the same uniform numbers for every row."""
    q, noise = q or model.encode(x), draws(model, k, seed)
    z = q.at(noise.first)
    log_w = log_weights(model, x, q, z, noise)
    return resample(z, log_w, torch.Generator(log_w.device).manual_seed(seed + 2**31), shared=True)


def input_complexity(model: LatentModel, x: Tensor, k: int, seed: int, levels: int) -> Tensor:
    """-log2 p(x) - C(x) in bits, C the length as PNG (Serra et al. 2020); x in [0, 1] with so many levels."""
    return neg_iwae(model, x, k, seed) / math.log(2) - png_bits(x, levels).to(x.device)


def waic(log_p: Tensor) -> Tensor:
    """-(mean_m log p_m(x) - var_m log p_m(x)) of (M, B) bounds of M models (Choi et al. 2018)."""
    return log_p.var(0, correction=0) - log_p.mean(0)


def typicality(nll: Tensor, entropy: Tensor | float, group: int = 1) -> Tensor:
    """|mean NLL of a group of rows - H| (Nalisnick et al. 2019); (B // group,), consecutive rows make a group."""
    whole = nll[: len(nll) // group * group]
    return (whole.view(-1, group).mean(1) - entropy).abs()
