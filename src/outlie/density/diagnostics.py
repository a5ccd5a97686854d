"""Whether a density model can be believed: L_k against k, its weights, its gaps, its latent units, its gradients.

Specification of IWAE, section 9. Every row has draws of its own, so that a mean over rows averages over draws, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from outlie.density import posterior, weights
from outlie.density.latent import LOG_STD, LatentModel, Normal
from outlie.density.objectives import Objective, log_weights, loss, samples_at_once

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
DRAWS = SIZES[-1]
ACTIVE = 0.01  # least variance over rows of an active unit's posterior mean; Burda et al., ICLR 2016, section 4.2
PARETO = 0.7  # above, expect no 1/k law; Vehtari et al. 2024
PAIRED_DRAWS = 500  # of either side of the amortisation gap
ROWS = 100  # looked at together
STEPS, STEP_DRAWS, LR = 500, 2, 0.1  # of a row's best normal; LR in the encoder's standard deviations
POINTS, BATCHES = 100, 1000  # of q_EW: where its density is estimated, and from how many batches


@dataclass(frozen=True)
class Importance:
    """What the importance weights of each row say."""

    curve: Tensor  # (sizes, B) L_k for k in SIZES
    ess: Tensor  # (B,) effective samples, as a share of all
    entropy: Tensor  # (B,) exp(entropy) of the normalised weights, as a share of all
    largest: Tensor  # (B,) normalised weight
    pareto_k: Tensor  # (B,)


def generator_of(model: LatentModel, seed: int) -> torch.Generator:
    """A generator where the model is."""
    return torch.Generator(next(model.parameters()).device).manual_seed(seed)


def parts(model: LatentModel, x: Tensor) -> Iterator[Tensor]:
    """Rows, as many together as memory holds one sample of."""
    yield from x.split(min(ROWS, samples_at_once(model, 1)))


def independent_log_weights(
    model: LatentModel, x: Tensor, q: Normal, k: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """k log-weights a row, of draws of each row's own, some samples at a time: (k_c, B)."""
    step = samples_at_once(model, len(x))
    for done in range(0, k, step):
        noise = model.draw(min(step, k - done), len(x), generator)
        yield log_weights(model, x, q, q.at(noise.first), noise)


@torch.no_grad()
def importance(model: LatentModel, x: Tensor, seed: int) -> Importance:
    """Bounds and weights of (B, ...) rows, from one set of 5000 log-weights each."""
    generator, found = generator_of(model, seed), []
    for rows in parts(model, x):
        q = model.encode(rows)
        log_w = torch.cat([part.cpu() for part in independent_log_weights(model, rows, q, DRAWS, generator)])
        found.append(
            (
                weights.bound_curve(log_w, SIZES),
                weights.effective_samples(log_w) / DRAWS,
                weights.entropy_samples(log_w) / DRAWS,
                weights.normalised(log_w).amax(0),
                weights.pareto_k(log_w),
            )
        )
    return Importance(*(torch.cat(column, -1) for column in zip(*found, strict=True)))


def best_normal(model: LatentModel, x: Tensor, seed: int, steps: int = STEPS) -> Normal:
    """The q(z_1) of each row that maximises its L_1, found by Adam from the encoder's output; (B, d).

    Mean and log std move in units of the encoder's, q's density is taken at parameters without gradient: at an exact
    posterior the gradient has no noise. With two layers, q(z_2 | z_1) stays the encoder's.
    """
    generator, found = generator_of(model, seed), []
    frozen = {name: p.detach() for name, p in model.named_parameters()}
    for rows in parts(model, x):
        start = Normal(*(t.detach() for t in model.encode(rows)))
        move = [torch.zeros_like(t).requires_grad_() for t in start]
        adam = torch.optim.Adam(move, lr=LR, betas=(0.9, 0.99), fused=True)

        def moved(start: Normal = start, move: list[Tensor] = move) -> Normal:
            return Normal(start.mean + start.log_std.exp() * move[0], start.log_std + move[1])

        for i in range(steps):
            adam.param_groups[0]["lr"] = LR * (0.5 + 0.5 * math.cos(math.pi * i / steps))
            noise = model.draw(STEP_DRAWS, len(rows), generator)
            with torch.enable_grad():
                q = moved()
                bound = log_weights(model, rows, q.detached(), q.at(noise.first), noise, frozen).mean(0).sum()
                gradients = torch.autograd.grad(-bound, move)
            for value, gradient in zip(move, gradients, strict=True):
                value.grad = gradient
            adam.step()
        found.append(moved().detached())
    return Normal(*(torch.cat(column) for column in zip(*found, strict=True)))


@torch.no_grad()
def amortisation_gap(model: LatentModel, x: Tensor, seed: int, steps: int = STEPS) -> Tensor:
    """(B,) L_1 of each row's best normal less L_1 of the encoder's, both of the same 500 draws; nats."""
    best, done, gaps = best_normal(model, x, seed, steps), 0, []
    for rows in parts(model, x):
        here = Normal(*(t[done : done + len(rows)] for t in best))
        done += len(rows)
        ends = [
            torch.cat(list(independent_log_weights(model, rows, q, PAIRED_DRAWS, generator_of(model, seed + done))))
            for q in (here, model.encode(rows))
        ]
        gaps.append((ends[0] - ends[1]).mean(0).cpu())
    return torch.cat(gaps)


@torch.no_grad()
def kl_and_reconstruction(model: LatentModel, x: Tensor, elbo: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """(B,) KL(q || prior), exact for one layer, and E log p(x | z): `elbo` is their difference; nats."""
    if len(model.latent) == 1:
        kl = torch.cat([model.encode(rows).kl_to_prior().double().cpu() for rows in parts(model, x)])
        return kl, elbo + kl
    generator, found = generator_of(model, seed), []
    for rows in parts(model, x):
        q, total = model.encode(rows), torch.zeros(len(rows), dtype=torch.float64)
        step = samples_at_once(model, len(rows))
        for done in range(0, PAIRED_DRAWS, step):
            noise = model.draw(min(step, PAIRED_DRAWS - done), len(rows), generator)
            total += model.log_likelihood(rows, q.at(noise.first), noise.gaps).sum(0).cpu()
        found.append(total / PAIRED_DRAWS)
    reconstruction = torch.cat(found)
    return reconstruction - elbo, reconstruction


@torch.no_grad()
def clamped(model: LatentModel, x: Tensor) -> tuple[float, float]:
    """Shares of the encoder's log standard deviations that lie at the lower and at the upper clamp."""
    log_std = torch.cat([model.encode(rows).log_std for rows in parts(model, x)])
    return tuple(float((log_std == end).double().mean()) for end in LOG_STD)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def mean_variances(model: LatentModel, x: Tensor, seed: int) -> list[Tensor]:
    """(d,) for each stochastic layer: the variance over rows of q's mean; above `ACTIVE`, the unit is active.

    The second layer's means are given one sample of z_1 a row.
    """
    generator = generator_of(model, seed)
    q = [model.encode(rows) for rows in parts(model, x)]
    means = [[one.mean for one in q]]
    if len(model.latent) > 1:
        z_1 = [one.at(model.draw(1, len(one.mean), generator).first[0]) for one in q]
        means.append([model.encode_2(z).mean for z in z_1])
    return [torch.cat(layer).double().var(0).cpu() for layer in means]


@dataclass(frozen=True)
class Gradients:
    """Signal to noise of the gradients of one network, of `parameters` numbers."""

    snr: float  # |mean| / std, median over the parameters that have a gradient
    dsnr: float  # length along the mean direction over length across it, mean over the gradients
    parameters: int


def gradient_noise(
    model: LatentModel, x: Tensor, objective: Objective, repeats: int, seed: int
) -> tuple[Gradients, Gradients]:
    """SNR and DSNR of the encoder's and the decoder's gradients on the same rows, drawn `repeats` times (4 or more).

    The mean direction is that of the first half of the gradients, and the second half is measured against it: no
    gradient is compared with itself. Rainforth et al., Tighter Variational Bounds are Not Necessarily Better, 2018.
    """
    generator = generator_of(model, seed)
    named = dict(model.named_parameters())
    groups = [[p for n, p in named.items() if (n in model.generative) == of_p] for of_p in (False, True)]
    zeros = [torch.zeros(sum(p.numel() for p in group), dtype=torch.float64, device=x.device) for group in groups]
    sums, squares, directions = list(zeros), list(zeros), list(zeros)
    ratios: list[list[float]] = [[], []]
    for i in range(repeats):
        with torch.enable_grad():
            value = loss(model, x, model.draw(objective.k, len(x), generator), objective)
            gradients = torch.autograd.grad(value, [*groups[0], *groups[1]], allow_unused=True, materialize_grads=True)
        halves = gradients[: len(groups[0])], gradients[len(groups[0]) :]
        for j, half in enumerate(halves):
            g = torch.cat([t.flatten() for t in half]).double()
            sums[j], squares[j] = sums[j] + g, squares[j] + g.square()
            if i + 1 == repeats // 2:
                directions[j] = torch.nn.functional.normalize(sums[j], dim=0)
            elif i >= repeats // 2:
                along = float(g @ directions[j])
                across = float(g @ g) - along**2
                ratios[j].append(abs(along) / math.sqrt(across) if across > 0 else math.inf)
    found = []
    for total, square, ratio in zip(sums, squares, ratios, strict=True):
        mean = total / repeats
        std = ((square / repeats - mean.square()).clamp_min(0) * repeats / (repeats - 1)).sqrt()
        snr = (mean.abs() / std)[square > 0].sort().values
        median = float(snr[len(snr) // 2]) if len(snr) else math.nan
        found.append(Gradients(median, sum(ratio) / len(ratio), len(mean)))
    return found[0], found[1]


@torch.no_grad()
def bound_of_q_ew(model: LatentModel, x: Tensor, k: int, seed: int) -> Tensor:
    """(B,) L_VAE[q_EW] of one-layer models, from 100 points and a density of 1000 batches; errs upwards."""
    generator, found = generator_of(model, seed), []
    at_once = samples_at_once(model, 1)
    for row in x.split(1):  # k - 1 fresh samples for each of 1000 batches are a large batch already
        q = model.encode(row)

        def log_joint(z: Tensor, row: Tensor = row) -> Tensor:
            return torch.cat([model.log_joint(row, part) for part in z.split(at_once)])

        log_ratio, _ = posterior.log_ratios(log_joint, q, k, generator, POINTS, BATCHES, at_once)
        found.append(log_ratio.mean(0).cpu())
    return torch.cat(found)


def work_of_a_sample(model: LatentModel) -> float:
    """About the FLOP that one sample of one row costs; a number in memory costs a core as much as 200 of a product."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.decode(next(model.parameters()).new_zeros(1, 1, model.latent[0]))
    return counter.get_total_flops() + 200.0 * model.numbers_a_sample
