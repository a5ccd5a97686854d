"""What is maximised, L_k and its relatives, and how the encoder's gradient is estimated.

ELBO = E log w;  IWAE: E log (1/k) sum w_i (Burda et al., ICLR 2016);  MIWAE(M, K): mean of M independent IWAE_K;
CIWAE(beta) = beta ELBO + (1 - beta) IWAE;  PIWAE(M, K): the decoder learns by IWAE_MK, the encoder by MIWAE(M, K) on
the same draws (Rainforth et al., ICML 2018). Estimators: standard (autograd), STL (Roeder et al., NeurIPS 2017),
DReG (Tucker et al., ICLR 2019).

The gradient with respect to the decoder is sum_i a_i d log w_i, with respect to the encoder
sum_i c_i (d log w_i / dz) (dz / dphi). STL has c = a, DReG squares the normalised weights in c; both take the density
of q at parameters without gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from outlie.density.latent import LatentModel, Noise, Normal
from outlie.density.weights import log_mean_exp

NUMBERS_AT_ONCE = 2**26  # kept for the backward pass, in floats: above, samples are decoded in chunks, twice

Name = Literal["elbo", "iwae", "miwae", "ciwae", "piwae"]
Estimator = Literal["standard", "stl", "dreg"]


@dataclass(frozen=True)
class Objective:
    """k samples a row, of which `name` makes a bound; `groups` is M of MIWAE and PIWAE, `beta` the ELBO's share."""

    name: Name = "iwae"
    estimator: Estimator = "dreg"
    k: int = 1
    groups: int = 1
    beta: float = 0.05

    def bound(self, log_w: Tensor) -> Tensor:
        """(k, B) log-weights -> (B,) the bound that they estimate; for PIWAE the decoder's."""
        if self.name == "elbo":
            return log_w.mean(0)
        if self.name == "miwae":
            return log_mean_exp(self.grouped(log_w), 1).mean(0)
        if self.name == "ciwae":
            return self.beta * log_w.mean(0) + (1 - self.beta) * log_mean_exp(log_w)
        return log_mean_exp(log_w)

    def grouped(self, log_w: Tensor) -> Tensor:
        """(k, B) -> (M, K, B)."""
        return log_w.unflatten(0, (self.groups, -1))

    def coefficients(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        """a = d bound / d log w, and c / a, the factor of the gradient that enters z; (k, B) each, without gradient."""
        log_w = log_w.detach()
        ones, k = torch.ones_like(log_w), len(log_w)
        squared = self.estimator == "dreg"
        if self.name == "elbo":
            return ones / k, ones
        if self.name == "miwae":
            share = self.grouped(log_w).softmax(1).flatten(0, 1)
            return share / self.groups, share if squared else ones
        share = log_w.softmax(0)
        if self.name == "ciwae":
            a = self.beta / k + (1 - self.beta) * share
            c = self.beta / k + (1 - self.beta) * share.square()
            return a, c / a.clamp_min(1e-300) if squared else ones  # with beta = 0 a share can be 0
        return share, share if squared else ones


def loss(model: LatentModel, x: Tensor, noise: Noise, objective: Objective) -> Tensor:
    """-bound, mean over the rows: its value is the bound's, its gradient the estimator's; scalar float64."""
    q = model.encode(x)
    if objective.name == "piwae":
        return _partial(model, x, q, noise, objective)
    return _loss(model, x, q, noise, objective)


def _loss(model: LatentModel, x: Tensor, q: Normal, noise: Noise, objective: Objective) -> Tensor:
    z = q.at(noise.first)
    if objective.estimator == "standard":
        return -objective.bound(log_weights(model, x, q, z, noise)).mean()
    factor: list[Tensor] = []
    if z.requires_grad:
        z.register_hook(lambda gradient: gradient * factor[0][..., None].to(gradient))
    log_w = log_weights(model, x, q.detached(), z, noise)
    a, c_over_a = objective.coefficients(log_w)
    factor.append(c_over_a)
    surrogate = (a * log_w).sum(0)
    return -(objective.bound(log_w.detach()) + surrogate - surrogate.detach()).mean()


def _partial(model: LatentModel, x: Tensor, q: Normal, noise: Noise, objective: Objective) -> Tensor:
    """PIWAE: two weightings of the same samples, and so two passes: one for p's parameters, one for q's."""
    of_p = model.generative
    parameters = dict(model.named_parameters())

    def frozen(names: set[str]) -> dict[str, Tensor]:
        return {name: parameters[name].detach() for name in names}

    z = q.at(noise.first)
    decoder = log_weights(model, x, q.detached(), z.detach(), noise, frozen(set(parameters) - of_p))
    bound = log_mean_exp(decoder)
    encoder = Objective("miwae", objective.estimator, objective.k, objective.groups)
    factor: list[Tensor] = []
    path = objective.estimator != "standard"
    if path and z.requires_grad:
        z.register_hook(lambda gradient: gradient * factor[0][..., None].to(gradient))
    log_w = log_weights(model, x, q.detached() if path else q, z, noise, frozen(of_p))
    a, c_over_a = encoder.coefficients(log_w)
    factor.append(c_over_a)
    surrogate = (a * log_w).sum(0)
    return -(bound + surrogate - surrogate.detach()).mean()


def log_weights(
    model: LatentModel, x: Tensor, q: Normal, z: Tensor, noise: Noise, instead: dict[str, Tensor] | None = None
) -> Tensor:
    """(k, B) log-weights; above `NUMBERS_AT_ONCE` in chunks whose activations are computed again for the gradient.

    That is the exact two-pass gradient (specification of IWAE, section 5): the first pass knows the weights, the
    second one decodes chunk by chunk. `instead` are tensors that stand for some of the model's parameters.
    """

    def forward(x: Tensor, q: Normal, z: Tensor, noise: Noise) -> Tensor:
        return model(x, q, z, noise) if instead is None else functional_call(model, instead, (x, q, z, noise))

    k = samples_at_once(model, len(x))
    if k >= len(z):
        return forward(x, q, z, noise)
    if not torch.is_grad_enabled():
        return torch.cat([forward(x, q, *part) for part in zip(z.split(k), noise.chunks(k))])
    return torch.cat([
        checkpoint(forward, x, q, *part, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore
        for part in zip(z.split(k), noise.chunks(k))
    ])  # fmt: skip


def samples_at_once(model: LatentModel, rows: int) -> int:
    """Samples a row that are decoded together."""
    return max(1, NUMBERS_AT_ONCE // (model.numbers_a_sample * rows))
