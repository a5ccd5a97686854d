"""Relation against a loop over all pairs written from the definition."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from outlie.detectors import relation
from outlie.detectors.base import Views
from outlie.detectors.relation import Relation


def views(n: int, seed: int, confidence: float, classes: int = 6, dim: int = 12) -> Views:
    """Rows of classes, some on the border of two; the larger `confidence`, the more pairs can be skipped."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(9))
    features = centres[y] + 0.7 * torch.randn(n, dim, generator=generator)
    return Views(features=features, logits=confidence * (features @ centres.T))


def fitted(train: Views, **options) -> Relation:
    detector = Relation(**options)
    detector.fit(train)
    return detector


def by_loop(train: Views, test: Views, power: float, threshold: float) -> np.ndarray:
    h, h_train = (v.features.double().numpy() for v in (test, train))
    p, p_train = (softmax(v.logits.double().numpy(), axis=1) for v in (test, train))
    result = np.zeros(len(h))
    for i in range(len(h)):
        for j in range(len(h_train)):
            cosine = h[i] @ h_train[j] / np.linalg.norm(h[i]) / np.linalg.norm(h_train[j])
            edge = max(0.0, cosine) * (p[i] @ p_train[j])
            result[i] -= edge**power if edge > threshold else 0.0
    return result


@pytest.mark.parametrize("confidence", [0.0, 0.05, 0.5, 5.0])
@pytest.mark.parametrize(("power", "threshold"), [(1.0, 0.03), (4.0, 0.03), (1.0, 0.0), (0.5, 0.3)])
@pytest.mark.parametrize("by_blocks_from", [8, 64])
def test_it_is_the_definition_whatever_is_skipped(confidence, power, threshold, by_blocks_from, monkeypatch):
    monkeypatch.setattr(relation, "ROWS", by_blocks_from)
    monkeypatch.setattr(relation, "COLUMNS", 32)
    train, test = views(150, 0, confidence), views(50, 1, confidence)
    result = fitted(train, power=power, threshold=threshold).score(test)
    np.testing.assert_allclose(result, by_loop(train, test, power, threshold), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("by_blocks_from", [1, 2000])
def test_confident_rows_meet_few_training_rows(by_blocks_from, monkeypatch):
    products, computed = [], relation.sums

    def counting(x, p, bank, *rest):
        products.append(len(x) * len(bank))
        return computed(x, p, bank, *rest)

    train, test = views(600, 0, 8.0), views(600, 1, 8.0)
    alike = test[test.logits.argmax(1) == 0]  # few queries at once meet what all of them together can reach
    monkeypatch.setattr(relation, "sums", counting)
    monkeypatch.setattr(relation, "COLUMNS", 20)
    monkeypatch.setattr(relation, "ROWS", by_blocks_from)
    queries = test if by_blocks_from == 1 else alike
    fitted(train).score(queries)
    assert 0 < sum(products) < 0.6 * 600 * len(queries)


def test_rows_of_zeros_and_rows_without_an_edge_score_0():
    train, test = views(150, 0, 5.0), views(4, 1, 5.0)
    train.features[:9] = 0
    test.features[0] = 0
    test.features[1] = -train.features[20]
    test.logits[1] = train.logits[20]
    result = fitted(train, threshold=0.9).score(test)
    assert torch.isfinite(result).all() and result[0] == 0 and result[1] == 0


def test_a_row_alone_scores_as_in_any_batch():
    train, test = views(150, 0, 1.0), views(50, 1, 1.0)
    detector = fitted(train)
    alone = torch.cat([detector.score(test[n : n + 1]) for n in range(50)])
    torch.testing.assert_close(alone, detector.score(test), rtol=1e-5, atol=1e-7)


def test_views_are_left_alone():
    # the released code normalises the features where they lie
    train, test = views(150, 0, 1.0), views(50, 1, 1.0)
    before = [t.clone() for t in (train.features, train.logits, test.features, test.logits)]
    fitted(train, power=2.0).score(test)
    assert all(torch.equal(a, b) for a, b in zip(before, (train.features, train.logits, test.features, test.logits)))
