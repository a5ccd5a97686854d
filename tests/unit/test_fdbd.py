"""fDBD against a loop over rows and classes, and against the boundary itself."""

import numpy as np
import pytest
import torch

from outlie.detectors.base import Spec, Views
from outlie.detectors.fdbd import FDBD

CLASSES, DIM = 5, 8


def head(seed: int = 0) -> torch.nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    layer = torch.nn.Linear(DIM, CLASSES)
    layer.weight.data = torch.randn(CLASSES, DIM, generator=generator)
    layer.bias.data = torch.randn(CLASSES, generator=generator)
    return layer


def views(n: int, seed: int, layer: torch.nn.Linear) -> Views:
    features = torch.rand(n, DIM, generator=torch.Generator().manual_seed(seed))
    return Views(features=features, logits=layer(features).detach())


def fitted(layer: torch.nn.Linear, train: Views, **options) -> FDBD:
    detector = FDBD(**options)
    detector.setup(Spec({}, classes=CLASSES, head=layer))
    detector.fit(train)
    return detector


@pytest.mark.parametrize("distance", ["train_mean", "origin"])
def test_it_is_the_definition(distance):
    layer = head()
    train, test = views(100, 0, layer), views(30, 1, layer)
    w, mean = layer.weight.detach().double().numpy(), train.features.double().numpy().mean(0)
    expected = []
    for h, logits in zip(test.features.double().numpy(), test.logits.double().numpy()):
        best = int(np.argmax(logits))
        boundaries = [(logits[best] - logits[c]) / np.linalg.norm(w[best] - w[c]) for c in range(CLASSES) if c != best]
        expected.append(-np.mean(boundaries) / np.linalg.norm(h - mean if distance == "train_mean" else h))
    np.testing.assert_allclose(fitted(layer, train, distance=distance).score(test), expected, rtol=1e-9)


def test_with_two_classes_it_is_the_distance_to_the_boundary():
    layer = torch.nn.Linear(2, 2)
    layer.weight.data, layer.bias.data = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2)
    features = torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 2.5]])  # at 5, 10, 2 from the line 3x + 4y = 0
    detector = FDBD(distance="origin")
    detector.setup(Spec({}, classes=2, head=layer))
    detector.fit(Views(features=features))
    result = detector.score(Views(features=features, logits=layer(features).detach()))
    np.testing.assert_allclose(result, [-1, -1, -0.8], rtol=1e-6)


def test_equal_weights_are_left_out():
    layer = head()
    layer.weight.data[3] = layer.weight.data[1]
    train, test = views(100, 0, layer), views(200, 1, layer)
    result = fitted(layer, train).score(test)
    assert torch.isfinite(result).all()
    n = int((test.logits.argmax(1) == 1).nonzero()[0])
    w, logits = layer.weight.detach().double(), test.logits[n].double()
    boundaries = torch.stack([(logits[1] - logits[c]) / (w[1] - w[c]).norm() for c in (0, 2, 4)])
    deviation = (test.features[n].double() - train.features.double().mean(0)).norm()
    torch.testing.assert_close(result[n], -boundaries.mean() / deviation)
    layer.weight.data[:] = layer.weight.data[0].clone()
    assert (fitted(layer, train).score(test) == 0).all()


@pytest.mark.parametrize("distance", ["train_mean", "origin"])
def test_rows_of_zeros_or_at_the_mean_are_finite(distance):
    layer = head()
    train = views(100, 0, layer)
    train.features[:] = train.features[0].clone()
    detector = fitted(layer, train, distance=distance)
    features = torch.stack([torch.zeros(DIM), train.features[0]])
    assert torch.isfinite(detector.score(Views(features=features, logits=layer(features).detach()))).all()
