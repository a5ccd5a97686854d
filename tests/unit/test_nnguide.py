"""NNGuide against a loop over rows written from the definition."""

import logging

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from outlie.detectors.base import Spec, Views
from outlie.detectors.nnguide import NNGuide, bank_size
from outlie.errors import UserError


def views(n: int, seed: int, dim: int = 12, classes: int = 5) -> Views:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, dim, generator=generator).relu()
    return Views(features=features, logits=4 * torch.randn(n, classes, generator=generator))


def fitted(train: Views, seed: int = 0, **options) -> NNGuide:
    detector = NNGuide(**options)
    detector.setup(Spec({}, seed))
    detector.fit(train)
    return detector


def by_loop(train: Views, test: Views, k: int) -> list[float]:
    """The definition, with every training row in the bank."""
    unit = [h / np.linalg.norm(h) for h in train.features.double().numpy()]
    bank = [h * logsumexp(logits) for h, logits in zip(unit, train.logits.double().numpy())]
    result = []
    for h, logits in zip(test.features.double().numpy(), test.logits.double().numpy()):
        products = sorted((h / np.linalg.norm(h) @ b for b in bank), reverse=True)
        result.append(-np.mean(products[:k]) * logsumexp(logits))
    return result


@pytest.mark.parametrize("k", [1, 7, 40])
def test_it_is_the_definition(k):
    train, test = views(40, 0), views(30, 1)
    np.testing.assert_allclose(fitted(train, k=k, alpha=1.0).score(test), by_loop(train, test, k), rtol=1e-5)


def test_the_bank_is_a_random_share_drawn_by_the_seed():
    train, test = views(1000, 0), views(30, 1)
    first, same, other = (fitted(train, seed, k=5, alpha=0.05) for seed in (0, 0, 1))
    assert len(first.bank) == 50
    assert torch.equal(first.bank, same.bank)
    assert not torch.equal(first.bank, other.bank)
    chosen = [n for n in range(1000) if (guided(train, n) - first.bank).abs().sum(1).min() < 1e-4]
    assert len(chosen) == 50 and max(chosen) > 500  # not the first ones
    subset = train[torch.tensor(chosen)]
    np.testing.assert_allclose(first.score(test), by_loop(subset, test, 5), rtol=1e-5)


def guided(train: Views, n: int) -> torch.Tensor:
    h = train.features[n].double()
    return (h / h.norm() * train.logits[n].double().logsumexp(0)).float()


def test_a_small_training_set_gives_k_rows_or_all_and_says_so(caplog):
    assert [bank_size(n, 0.01, 100) for n in (50, 100, 9_000, 10_000, 20_000)] == [50, 100, 100, 100, 200]
    with caplog.at_level(logging.INFO, "outlie"):
        assert len(fitted(views(300, 0)).bank) == 100
    assert "alpha = 0.01 of 300 rows is less than k = 100; its bank has 100" in caplog.text
    test = views(9, 1)
    few = fitted(views(40, 0))  # fewer rows than k: the mean over all
    np.testing.assert_allclose(few.score(test), by_loop(views(40, 0), test, 40), rtol=1e-5)
    caplog.clear()
    with caplog.at_level(logging.INFO, "outlie"):
        fitted(views(300, 0), k=3)
    assert not caplog.text


def test_rows_of_zeros_are_finite_and_a_row_alone_scores_the_same():
    train, test = views(200, 0), views(30, 1)
    train.features[:5] = 0
    test.features[3] = 0
    detector = fitted(train)
    together = detector.score(test)
    assert torch.isfinite(together).all() and together[3] == 0
    alone = torch.cat([detector.score(test[n : n + 1]) for n in range(30)])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-7)


def test_a_share_above_1_is_a_mistake():
    with pytest.raises(UserError, match=r"alpha = 1\.5: a share"):
        NNGuide(alpha=1.5)
