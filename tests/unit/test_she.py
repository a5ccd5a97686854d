"""SHE against loops over rows, and what it does with classes that the network never gets right."""

import logging

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine, euclidean

from outlie.detectors.base import Spec, Views
from outlie.detectors.she import SHE
from outlie.errors import UserError

CLASSES = 4


def views(n: int, seed: int) -> Views:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    logits = torch.randn(n, CLASSES, generator=generator) + 1.5 * torch.nn.functional.one_hot(y, CLASSES)
    return Views(features=torch.randn(n, 7, generator=generator).relu() + 0.1 * y[:, None], logits=logits, y=y)


def fitted(train: Views, **options) -> SHE:
    detector = SHE(**options)
    detector.setup(Spec({}, classes=CLASSES))
    detector.fit(train)
    return detector


DISTANCES = {"inner": lambda h, s: -(h @ s), "cosine": lambda h, s: cosine(h, s) - 1, "euclidean": euclidean}


@pytest.mark.parametrize("metric", DISTANCES)
def test_it_is_the_definition(metric):
    train, test = views(200, 0), views(30, 1)
    h, predicted, y = train.features.double().numpy(), train.logits.argmax(1).numpy(), train.y.numpy()
    assert 0.5 < (predicted == y).mean() < 0.9
    stored = [np.mean([h[n] for n in range(200) if y[n] == predicted[n] == c], 0) for c in range(CLASSES)]
    expected = [
        DISTANCES[metric](row, stored[c])
        for row, c in zip(test.features.double().numpy(), test.logits.argmax(1).tolist())
    ]
    np.testing.assert_allclose(fitted(train, metric=metric).score(test), expected, rtol=1e-9)


def test_a_class_that_is_never_right_has_the_mean_of_all_its_rows(caplog):
    train, test = views(200, 0), views(30, 1)
    train.logits[:, 2] = -9
    with caplog.at_level(logging.INFO, "outlie"):
        detector = fitted(train)
    assert "no training row of class 2 is classified correctly" in caplog.text
    mean = train.features[train.y == 2].double().mean(0)
    torch.testing.assert_close(detector.patterns[2], mean)
    assert torch.isfinite(detector.score(test)).all() and (test.logits.argmax(1) == 2).any()


@pytest.mark.parametrize("metric", DISTANCES)
def test_rows_of_zeros_are_finite(metric):
    train, test = views(200, 0), views(30, 1)
    test.features[:] = 0
    assert torch.isfinite(fitted(train, metric=metric).score(test)).all()


def test_what_labels_may_not_be():
    train = views(200, 0)
    for label in (4, -1):
        train.y = torch.arange(200) % CLASSES
        train.y[7] = label
        with pytest.raises(UserError, match=f"class label {label}, but the head has the classes 0 to 3"):
            fitted(train)
    train.y = torch.arange(200) % 2
    with pytest.raises(UserError, match=r"no training row of class 2, 3; SHE needs rows of every class"):
        fitted(train)
    train.y = None
    with pytest.raises(UserError, match="needs class labels"):
        fitted(train)
