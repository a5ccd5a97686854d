"""Deep k-NN against scikit-learn's neighbours of normalised rows."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from outlie.detectors.base import Views
from outlie.detectors.deep_knn import DeepKNN, kth_distance
from outlie.errors import UserError


def features(n: int, seed: int, dim: int = 12) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)).relu()


def fitted(train: torch.Tensor, k: int) -> DeepKNN:
    detector = DeepKNN(k)
    detector.fit(Views(features=train))
    return detector


@pytest.mark.parametrize("k", [1, 3, 50, 60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_are_scikit_learns(k, dtype):
    train, test = features(60, 0).to(dtype), features(20, 1).to(dtype)
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(normalize(train.double()))
    expected = search.kneighbors(normalize(test.double()))[0][:, -1]
    result = fitted(train, k).score(Views(features=test))
    np.testing.assert_allclose(result, expected, rtol=1e-5 if dtype == torch.float32 else 1e-9)


def test_length_does_not_count():
    train, test = features(60, 0), features(20, 1)
    detector = fitted(train, 5)
    scaled = fitted(train * torch.linspace(0.1, 9, 60)[:, None], 5)
    torch.testing.assert_close(scaled.score(Views(features=7 * test)), detector.score(Views(features=test)))


def test_rows_of_zeros_are_finite():
    train = features(60, 0)
    train[:3] = 0
    test = torch.zeros(2, 12)
    test[1] = train[5]
    result = fitted(train, 3).score(Views(features=test))
    assert result[0] == 0  # the three rows of zeros
    assert torch.isfinite(result).all() and result[1] > 0
    # to a row of zeros a unit row is at distance 1, nearer than to an orthogonal one
    bank = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert kth_distance(torch.tensor([[1.0, 0.0]]), bank, 1) == 1


def test_a_row_that_lies_in_the_bank_as_often_as_asked_is_at_distance_0():
    train = torch.cat([features(1, 3).expand(50, 12), features(300, 0)])
    assert fitted(train, 50).score(Views(features=train[:1])) == 0
    assert fitted(train, 51).score(Views(features=train[:1])) > 0


def test_small_distances_keep_their_digits():
    # 2 - 2 cos in float32 knows these to 1e-4 at best
    base = torch.nn.functional.normalize(features(1, 0).double())
    nudge = torch.randn(200, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    train = (base + 1e-3 * nudge).float()
    expected = np.sort(np.linalg.norm(normalize(train.double()) - normalize(base), axis=1))
    result = fitted(train, 50).score(Views(features=base.float()))
    np.testing.assert_allclose(result, expected[[49]], rtol=1e-3)


def test_more_neighbours_than_rows_is_a_mistake():
    with pytest.raises(UserError, match="k = 50 neighbours, but only 49 training rows"):
        DeepKNN().fit(Views(features=features(49, 0)))


def test_the_training_rows_are_left_alone():
    train = features(60, 0)
    before = train.clone()
    fitted(train, 5)
    assert torch.equal(train, before)
