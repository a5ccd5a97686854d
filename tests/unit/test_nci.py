"""NCI against a loop over rows, and its two limits."""

import numpy as np
import pytest
import torch

from outlie.detectors.base import Spec, Views
from outlie.detectors.nci import NCI

CLASSES, DIM = 5, 8


def head() -> torch.nn.Linear:
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(DIM, CLASSES, bias=False)
    layer.weight.data = torch.randn(CLASSES, DIM, generator=generator)
    return layer


def views(n: int, seed: int) -> Views:
    features = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed)).relu()
    return Views(features=features, logits=head()(features).detach())


def fitted(train: Views, **options) -> NCI:
    detector = NCI(**options)
    detector.setup(Spec({}, classes=CLASSES, head=head()))
    detector.fit(train)
    return detector


@pytest.mark.parametrize("alpha", [0.0, 1e-4, 0.3])
def test_it_is_the_definition(alpha):
    train, test = views(100, 0), views(30, 1)
    w, mean = head().weight.detach().double().numpy(), train.features.double().numpy().mean(0)
    expected = [
        -(w[logits.argmax()] @ (h - mean) / np.linalg.norm(h - mean) + alpha * np.abs(h).sum())
        for h, logits in zip(test.features.double().numpy(), test.logits.numpy())
    ]
    np.testing.assert_allclose(fitted(train, alpha=alpha).score(test), expected, rtol=1e-9)


def test_under_collapse_the_mean_of_a_class_is_most_in_distribution():
    # features at mu + w_c: the cosine to their weights is 1, and nothing of that length has a larger product
    train = views(100, 0)
    detector = fitted(train, alpha=0.0)
    collapsed = train.features.double().mean(0) + head().weight.detach().double()
    at_classes = detector.score(Views(features=collapsed, logits=torch.eye(CLASSES)))
    torch.testing.assert_close(at_classes, -head().weight.detach().double().norm(dim=1))
    assert (detector.score(views(500, 1)) >= at_classes.min()).all()


def test_rows_of_zeros_or_at_the_mean_are_finite():
    train = views(100, 0)
    train.features[:] = train.features[0].clone()
    features = torch.stack([torch.zeros(DIM), train.features[0]])
    result = fitted(train).score(Views(features=features, logits=torch.zeros(2, CLASSES)))
    assert torch.isfinite(result).all()
