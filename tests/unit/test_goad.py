"""GOAD against loops written from the definition, and against the distribution that its maps are drawn from."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import kstest

from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.goad import GOAD, centre_triplet, surprise
from outlie.errors import UserError


def ready(dim: int = 5, seed: int = 0, **options) -> GOAD:
    detector = GOAD(**({"maps": 6, "map_dim": 7, "width": 3} | options))
    set_up(detector, Spec({"x": (dim,)}, seed))
    return detector.eval()


def rows(n: int, dim: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def representations(detector: GOAD, x: torch.Tensor) -> np.ndarray:
    """LeakyReLU(W (x T_m)), row by row and map by map."""
    weight, maps = detector.trunk.weight.detach().double().numpy(), detector.transforms.double().numpy()
    z = np.array([[weight @ (row @ maps[:, m]) for m in range(maps.shape[1])] for row in x.double().numpy()])
    return np.where(z > 0, z, 0.2 * z)


def test_maps_are_standard_normal_and_the_seeds_own():
    maps = ready(dim=50, maps=40).transforms
    assert maps.shape == (50, 40, 7)
    assert kstest(maps.flatten().double(), "norm").pvalue > 1e-4
    assert torch.equal(maps, ready(dim=50, maps=40).transforms)
    assert not torch.equal(maps, ready(dim=50, maps=40, seed=1).transforms)
    assert not any("transforms" in name for name in ready().state_dict())


def test_weights_start_as_released():
    detector = ready(dim=4, maps=256, map_dim=32, width=8)
    assert sum(p.numel() for p in detector.parameters()) == 32 * 8 + 8 * 256 + 256
    for layer in (detector.trunk, detector.head):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 * 2 / sum(layer.weight.shape)), rel=0.15)


def test_loss_is_the_definition():
    detector, x = ready(margin=2.0, triplet=0.3), rows(9)
    z = representations(detector, x)
    weight, bias = (p.detach().double().numpy() for p in detector.head.parameters())
    told, triplet = [], []
    for b in range(9):
        for m in range(6):
            told.append(-log_softmax(weight @ z[b, m] + bias)[m])
            distances = [((z[b, m] - z[:, j].mean(0)) ** 2).sum() for j in range(6)]
            triplet.append(max(0, distances[m] + 2.0 - min(d for j, d in enumerate(distances) if j != m)))
    result = detector.loss(Views(x=x), torch.Generator())
    assert result.item() == pytest.approx(np.mean(told) + 0.3 * np.mean(triplet), rel=1e-5)
    assert np.mean(triplet) > 0


def test_the_triplet_loss_is_zero_where_every_centre_is_nearest_by_the_margin():
    z = 10 * torch.eye(4)[None].repeat(3, 1, 1)  # other centres are at squared distance 200
    assert centre_triplet(z, 200.0) == 0
    assert centre_triplet(z, 203.0) == 3


@pytest.mark.parametrize("eps", [0.0, 0.7])
def test_score_is_the_definition(eps):
    detector, train, test = ready(eps=eps), rows(50), 2 * rows(8, seed=1)
    with torch.no_grad():
        detector.fit(Views(x=train))
        result = detector.score(Views(x=test))
    centres, z = representations(detector, train).mean(0), representations(detector, test)
    np.testing.assert_allclose(detector.centres, centres, rtol=1e-5, atol=1e-6)
    expected = [
        -sum(log_softmax([-max(((z[b, m] - c) ** 2).sum(), eps) for c in centres])[m] for m in range(6))
        for b in range(8)
    ]
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_sure_answers_do_not_tie():
    centres = torch.eye(3, dtype=torch.float64)
    z = torch.linspace(6, 12, 20, dtype=torch.float64)[:, None, None] * centres  # surer and surer, up to exp(-24)
    assert (log_softmax(-((z[:, :, None] - centres) ** 2).sum(-1).float().numpy(), 2)[-1].diagonal() == 0).all()
    result = surprise(z, centres, 0.0)
    assert (result.diff() < 0).all() and result.min() > 0


def test_chunks_of_rows_do_not_matter():
    detector, x = ready(), rows(2100)
    with torch.no_grad():
        detector.fit(Views(x=x))
        assert torch.allclose(detector.centres, detector.represent(x.double()).mean(0), rtol=1e-9)
        whole = surprise(detector.represent(x.double()), detector.centres, 0.0)
        torch.testing.assert_close(detector.score(Views(x=x)), whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_few_columns_constant_columns_and_few_rows(dim):
    detector, x = ready(dim=dim), rows(3, dim)
    x[:, -1] = 0
    loss = detector.loss(Views(x=x), torch.Generator())
    with torch.no_grad():
        detector.fit(Views(x=x[:1]))
        scores = detector.score(Views(x=torch.cat([x, 1e4 * rows(2, dim)])))
    assert loss.isfinite() and scores.isfinite().all()


def test_adam_forgets_as_released():
    assert ready().recipe.optimizer(ready()).param_groups[0]["betas"] == (0.5, 0.999)


def test_one_map_is_a_mistake():
    with pytest.raises(UserError, match=r"maps = 1: .* set detector.maps to at least 2"):
        GOAD(maps=1)
