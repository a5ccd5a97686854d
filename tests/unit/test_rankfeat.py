"""RankFeat against torch's singular value decomposition, one row at a time."""

import numpy as np
import pytest
import torch

from outlie.detectors import rankfeat
from outlie.detectors.base import Spec, Views
from outlie.detectors.rankfeat import RankFeat, without_first_component
from outlie.errors import UserError

from .small_network import CLASSES, Network, images


def made(network: torch.nn.Module, **options) -> RankFeat:
    detector = RankFeat(**options)
    detector.setup(Spec({}, classes=CLASSES, network=network))
    return detector


@pytest.mark.parametrize("shape", [(4, 30, 5, 5), (4, 8, 7, 6), (4, 9, 3, 3), (4, 5, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_component_is_numpys(shape, dtype):
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype).relu() + 0.1
    before = maps.clone()
    expected = []
    for sample in maps.double().numpy():
        u, s, v = np.linalg.svd(sample.reshape(shape[1], -1), full_matrices=False)
        expected.append((u[:, 1:] * s[1:] @ v[1:]).reshape(sample.shape))
    result = without_first_component(maps)
    np.testing.assert_allclose(result, np.array(expected), atol=1e-6 if dtype == torch.float32 else 1e-10)
    assert result.dtype == dtype and torch.equal(maps, before)


def test_the_network_keeps_its_contract():
    network, x = Network(), images(6, 0)
    for i, maps in enumerate(network.stages(x)):
        torch.testing.assert_close(network.tail(maps, i), network.views(x).logits)


@pytest.mark.parametrize("T", [1.0, 3.0])
@pytest.mark.parametrize("blocks", ["both", "last", "second_last"])
def test_it_is_the_definition(blocks, T, monkeypatch):
    monkeypatch.setattr(rankfeat, "ROWS", 7)
    network, x = Network(), images(20, 0)
    expected = []
    for row in x:
        logits = []
        for stage, maps in enumerate(network.stages(row[None])):
            f = maps[0].flatten(1)
            u, s, v = torch.linalg.svd(f, full_matrices=False)
            rest = f - s[0] * torch.outer(u[:, 0], v[0])
            logits.append(network.tail(rest.view_as(maps), stage)[0])
        used = {"both": sum(logits) / 2, "last": logits[1], "second_last": logits[0]}[blocks]
        expected.append((-T * (used / T).exp().sum().log()).item())
    with torch.no_grad():
        result = made(network, blocks=blocks, T=T).score(Views(x=x))
    np.testing.assert_allclose(result, expected, rtol=1e-7)


def test_maps_of_zeros_are_finite():
    assert (without_first_component(torch.zeros(2, 4, 3, 3)) == 0).all()
    network = Network()
    network.first.bias.data[:], network.first.weight.data[:] = -1.0, 0.0
    assert torch.isfinite(made(network).score(Views(x=images(3, 0)))).all()


def test_a_row_alone_scores_as_in_any_batch():
    detector, x = made(Network().float()), images(20, 0).float()
    with torch.no_grad():
        alone = torch.cat([detector.score(Views(x=x[n : n + 1])) for n in range(20)])
        torch.testing.assert_close(alone, detector.score(Views(x=x)), rtol=1e-4, atol=1e-7)


def test_a_network_without_stages_is_a_mistake():
    with pytest.raises(UserError, match="RankFeat needs the maps after a network's stages, Linear has none"):
        made(torch.nn.Linear(2, 2))
