"""ODIN against the published recipe, one row at a time, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from outlie.detectors import odin
from outlie.detectors.base import Spec, Views
from outlie.detectors.odin import ODIN, log_odds_against
from outlie.errors import UserError

from .small_network import CLASSES, Network, images


def made(network: torch.nn.Module, **options) -> ODIN:
    detector = ODIN(**options)
    detector.setup(Spec({}, classes=CLASSES, network=network))
    return detector


def published(network: Network, x: Tensor, T: float, noise: float) -> list[float]:
    """-log of the published score: cross-entropy at T, its gradient's sign over the channel's std, softmax at T."""
    result = []
    std = network.scale / 255  # of pixels in 0..1, which the published noise is measured in
    for row in x:
        z = row[None].clone().requires_grad_()
        logits = network.views(z).logits
        F.cross_entropy(logits / T, logits.argmax(1)).backward()
        sign = (z.grad >= 0).double() * 2 - 1
        moved = (z - noise * sign / std).detach()
        result.append(-(network.views(moved).logits / T).softmax(1).amax().log().item())
    return result


@pytest.mark.parametrize(("T", "noise"), [(1000.0, 0.0014), (1.0, 0.05), (10.0, 0.0), (100.0, 0.3)])
def test_it_is_the_published_recipe(T, noise, monkeypatch):
    monkeypatch.setattr(odin, "ROWS", 7)
    network, x = Network(), images(20, 0)
    expected = published(network, x, T, noise)
    with torch.no_grad():
        result = made(network, T=T, noise=noise).score(Views(x=x))
    np.testing.assert_allclose(result, expected, rtol=1e-9)
    if noise:
        assert not np.allclose(result, published(network, x, T, 0.0), rtol=1e-7)


def test_the_step_makes_the_predicted_class_more_certain():
    network, x = Network(), images(20, 0)
    still, moved = (made(network, T=1.0, noise=noise).score(Views(x=x)).detach() for noise in (0.0, 0.001))
    assert (moved < still).all()


def test_float32_scores_have_no_ties_at_t_1000():
    network, x = Network().float(), images(200, 0).float()
    with torch.no_grad():
        result = made(network).score(Views(x=x))
    assert result.dtype == torch.float64 and len(result.unique()) == 200
    # the released float32 softmax has some
    assert len((network.views(x).logits / 1000).softmax(1).amax(1).unique()) < 200


def test_a_certain_network_still_has_a_gradient():
    # in float32 the softmax is 1 and its cross-entropy has gradient 0 everywhere
    network, x = Network().float(), images(10, 0).float()
    network.head.weight.data *= 1e4
    z = x.clone().requires_grad_()
    logits = network.views(z).logits
    F.cross_entropy(logits, logits.argmax(1), reduction="sum").backward()
    certain = (z.grad == 0).flatten(1).all(1)
    assert certain.any()
    nearer = made(network, T=1.0, noise=0.001)._perturbed(x, network)
    still, moved = (log_odds_against(network.views(v).logits, 1.0) for v in (x, nearer))
    assert (moved < still)[certain].all()
    assert torch.isfinite(made(network, T=1.0).score(Views(x=x))).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_parameters_and_input_are_left_alone(mode):
    network = Network()
    with mode():
        x = images(10, 0)
        before = x.clone()
        result = made(network).score(Views(x=x))
    assert not result.requires_grad and not x.requires_grad
    assert torch.equal(x, before)
    assert all(p.grad is None for p in network.parameters())
    torch.testing.assert_close(result, made(network).score(Views(x=images(10, 0))))


def test_the_network_is_not_saved_with_the_detector():
    detector = made(Network())
    assert not detector.state_dict() and not list(detector.parameters())


def test_a_row_alone_scores_as_in_any_batch():
    detector, x = made(Network().float(), T=1.0, noise=0.01), images(20, 0).float()
    alone = torch.cat([detector.score(Views(x=x[n : n + 1])) for n in range(20)])
    torch.testing.assert_close(alone, detector.score(Views(x=x)), rtol=1e-4, atol=1e-7)


def test_rows_of_a_table_move_in_standardised_units():
    class Table(torch.nn.Module):
        def views(self, z: Tensor) -> Views:
            return Views(logits=torch.stack([z[:, 0], -z[:, 1]], 1))

    x = torch.tensor([[2.0, 1.0]], dtype=torch.float64)  # logits 2, -1: both columns are raised
    result = made(Table(), T=1.0, noise=0.5).score(Views(x=x))
    torch.testing.assert_close(result, -torch.tensor([2.5, -1.5]).double().softmax(0)[:1].log())


def test_one_class_is_a_mistake():
    with pytest.raises(UserError, match="ODIN needs at least 2 classes, the network has 1"):
        ODIN().setup(Spec({}, classes=1, network=Network()))
