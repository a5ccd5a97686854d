"""Exact nearest neighbours against scikit-learn's brute force, the kernel sum against SciPy."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.neighbors import NearestNeighbors

from outlie.detectors import neighbours
from outlie.detectors.neighbours import log_sum_exp_kernel, nearest_neighbours


def rows_and_bank(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """200 bank rows, 30 of them twice; 50 queries, 10 of them bank rows (three of these twice in the bank)."""
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(170, 6))
    bank = np.concatenate([bank, bank[:30]])
    x = np.concatenate([rng.normal(size=(40, 6)), bank[[0, 1, 2, 40, 50, 60, 70, 80, 90, 100]]])
    return torch.as_tensor(x).to(dtype), torch.as_tensor(bank).to(dtype)


def reference(x: torch.Tensor, bank: torch.Tensor, k: int) -> np.ndarray:
    search = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="sqeuclidean").fit(bank.double().numpy())
    return search.kneighbors(x.double().numpy())[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 5, 32, 197, 200])
def test_distances_are_scikit_learns(k, dtype):
    x, bank = rows_and_bank(dtype)
    squared, index = nearest_neighbours(x, bank, k)
    assert squared.shape == index.shape == (50, k)
    assert squared.dtype == dtype and index.dtype == torch.int64
    atol = 1e-5 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(squared, reference(x, bank, k), rtol=1e-5, atol=atol)
    assert (squared.diff(dim=1) >= 0).all()
    assert all(len(set(row)) == k for row in index.tolist())  # no row of the bank is counted twice
    torch.testing.assert_close((x[:, None] - bank[index]).square().sum(2), squared, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_of_the_bank_is_at_distance_exactly_0(dtype):
    x, bank = rows_and_bank(dtype)
    squared, index = nearest_neighbours(x, bank, 3)
    assert (squared[40:, 0] == 0).all() and (squared[40:43, 1] == 0).all() and (squared[43:, 1] > 0).all()
    assert set(index[40, :2].tolist()) == {0, 170}


@pytest.mark.parametrize("rows_in_a_block", [1, 7, 49, 50, 51])
def test_blocks_do_not_show(monkeypatch, rows_in_a_block):
    x, bank = rows_and_bank()
    whole, kernel = nearest_neighbours(x, bank, 5), log_sum_exp_kernel(x, bank, torch.tensor([0.5, 2.0]).double())
    monkeypatch.setattr(neighbours, "BLOCK_BYTES", rows_in_a_block * 16 * len(bank))
    squared, index = nearest_neighbours(x, bank, 5)
    torch.testing.assert_close(squared, whole[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(bank[index], bank[whole[1]])
    torch.testing.assert_close(
        log_sum_exp_kernel(x, bank, torch.tensor([0.5, 2.0]).double()), kernel, rtol=1e-12, atol=0
    )


def test_more_neighbours_than_rows_gives_them_all():
    x, bank = rows_and_bank()
    squared, _ = nearest_neighbours(x, bank[:3], 5)
    np.testing.assert_allclose(squared, reference(x, bank[:3], 3), atol=1e-12)


def test_near_ties_far_from_the_origin_keep_their_order():
    # float32 products of rows at distance 100 from the origin have errors of 1e-3, gaps here are 1e-2
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(300, 3, generator=generator) + 58.0
    x = torch.randn(20, 3, generator=generator) + 58.0
    np.testing.assert_allclose(nearest_neighbours(x, bank, 5)[0], reference(x, bank, 5), rtol=1e-4, atol=1e-4)


def test_no_query_gives_no_answer():
    _, bank = rows_and_bank()
    squared, index = nearest_neighbours(bank[:0], bank, 4)
    assert squared.shape == index.shape == (0, 4)


def test_kernel_sum_is_scipys_logsumexp():
    x, bank = rows_and_bank()
    variances = torch.tensor([1e-4, 0.1, 1.0, 30.0]).double()
    squared = cdist(x, bank, "sqeuclidean")
    expected = np.stack([logsumexp(-squared / (2 * v), axis=1) for v in variances.tolist()], 1)
    np.testing.assert_allclose(log_sum_exp_kernel(x, bank, variances), expected, rtol=1e-9, atol=1e-9)
    assert np.isfinite(expected).all()  # exp(-r^2 / 2e-4) underflows, its logarithm does not
