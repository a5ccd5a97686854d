"""Likelihood regret: every row's own encoder against one torch optimiser per row."""

import copy

import pytest
import torch

from outlie.density import regret as module
from outlie.density import scores
from outlie.density.latent import LatentModel, Noise
from outlie.density.likelihoods import Bernoulli, Gaussian
from outlie.density.regret import regret
from outlie.errors import UserError

from .oracle_models import amortised, generator

SEED = 4


def one_at_a_time(model: LatentModel, row: torch.Tensor, steps: int) -> torch.Tensor:
    """L(x; phi*) - L(x; phi) of a row (1, ...), phi* by Adam on the encoder of a copy of the whole model."""
    own = copy.deepcopy(model)
    encoder = [p for name, p in own.named_parameters() if name not in own.generative]
    optimizer = torch.optim.Adam(encoder, lr=2e-4, weight_decay=5e-5)
    noise = scores.draws(model, steps, SEED)
    for i in range(steps):
        part = Noise(*(None if t is None else t[i : i + 1] for t in noise))
        q = own.encode(row)
        optimizer.zero_grad()
        (-own(row, q, q.at(part.first), part).sum()).backward()
        optimizer.step()
    with torch.no_grad():
        return scores.bound(own, row, 1000, SEED + 1) - scores.bound(model, row, 1000, SEED + 1)


def conv() -> tuple[LatentModel, torch.Tensor]:
    torch.manual_seed(0)
    model = LatentModel((1, 8, 8), Bernoulli(64), [2], [[8]], "silu", "conv").double()
    return model, (torch.rand(3, 1, 8, 8, generator=generator()) < 0.5).double()


def gaps() -> tuple[LatentModel, torch.Tensor]:
    torch.manual_seed(0)
    model = LatentModel((3,), Gaussian(3), [2], [[4]], gaps=True, absence=True).double()
    x = torch.randn(4, 3, generator=generator(), dtype=torch.float64)
    x[1, 1] = x[2] = torch.nan
    return model, x


@pytest.mark.parametrize("make", [amortised, conv, gaps])
def test_every_row_is_optimised_on_its_own(make, monkeypatch):
    model, x = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = torch.cat([one_at_a_time(model, row, 20) for row in x.split(1)])
    with torch.no_grad():  # as a score is computed
        ours = regret(model, x, SEED, steps=20)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)
    assert ours.abs().min() > 1e-5  # the encoders did move
    monkeypatch.setattr(module, "ROWS", 2)
    torch.testing.assert_close(regret(model, x, SEED, steps=20).detach(), ours, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_regret_is_larger_where_the_encoder_is_worse():
    model, x = amortised()
    with torch.no_grad():
        result = regret(model, x, SEED)  # about 0, either sign: the ELBO is raised, and L_1000 is looked at
        model.posterior.bias[:2] += 2
        worse = regret(model, x, SEED)
    assert result.shape == (6,) and result.dtype == torch.float64
    assert result.abs().max() < 0.05
    assert worse.mean() > 0 and worse.mean() > 3 * result.abs().mean()


def test_two_layers_are_refused():
    model = LatentModel((3,), Gaussian(3), [2, 2], [[4], [4]])
    with pytest.raises(UserError, match="one stochastic layer"):
        regret(model, torch.zeros(1, 3), 0)
