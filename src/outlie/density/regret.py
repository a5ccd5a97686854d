"""Likelihood regret: how much a row's own encoder could raise its bound. Xiao, Yan, Amit, NeurIPS 2020."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from outlie.density.latent import LatentModel, Normal
from outlie.density.objectives import log_weights
from outlie.density.scores import bound, draws
from outlie.errors import UserError

STEPS, LR, WEIGHT_DECAY = 100, 2e-4, 5e-5  # the authors' code, as is the 1-sample ELBO that is optimised
K = 1000  # samples of the bounds that are compared
ROWS = 64  # whose encoders are held at a time


class _Encoder(torch.nn.Module):
    """`encode` as a forward pass, of one row without its batch dimension."""

    def __init__(self, model: LatentModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.model.encode(x[None])
        return mean[0], log_std[0]


def regret(model: LatentModel, x: Tensor, seed: int, steps: int = STEPS) -> Tensor:
    """(B,) L(x; phi*) - L(x; phi), phi* an encoder copy for each row, optimised on it alone; nats.

    Raises:
        UserError: for two stochastic layers.
    """
    if len(model.latent) > 1:
        raise UserError("score_by=regret optimises one encoder: it needs one stochastic layer, not detector.latent_2")
    return torch.cat([_regret(model, rows, seed, steps) for rows in x.split(ROWS)])


def _regret(model: LatentModel, x: Tensor, seed: int, steps: int) -> Tensor:
    encoder = _Encoder(model)
    of_p = {f"model.{name}" for name in model.generative}
    own = {
        name: value.detach().expand(len(x), *value.shape).clone().requires_grad_()
        for name, value in encoder.named_parameters()
        if name not in of_p
    }

    def encode(parameters: dict[str, Tensor]) -> Normal:
        return Normal(*vmap(lambda p, row: functional_call(encoder, p, (row,)))(parameters, x))

    noise = draws(model, steps, seed)
    with torch.enable_grad():  # rows do not share parameters: one optimiser serves all
        optimizer = torch.optim.Adam(list(own.values()), lr=LR, weight_decay=WEIGHT_DECAY)
        for part in noise.chunks(1):
            q = encode(own)
            loss = -log_weights(model, x, q, q.at(part.first), part).sum()
            for parameter, gradient in zip(own.values(), torch.autograd.grad(loss, list(own.values()))):
                parameter.grad = gradient
            optimizer.step()
    with torch.no_grad():
        return bound(model, x, K, seed + 1, encode(own)) - bound(model, x, K, seed + 1)
