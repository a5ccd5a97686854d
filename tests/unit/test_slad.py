"""SLAD against NumPy's correlations and loops written from the definition."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.slad import SLAD, SLADRecipe, column_weights, divergence
from outlie.errors import UserError

SMALL = {"groups": 4, "group_size": 3, "subspace_dim": 6, "width": 5}


def ready(dim: int = 8, seed: int = 0, **options) -> SLAD:
    detector = SLAD(**(SMALL | options))
    set_up(detector, Spec({"x": (dim,)}, seed))
    return detector.eval()


def rows(n: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator) @ torch.randn(dim, dim, generator=generator)


def test_column_weights_are_mean_absolute_correlations():
    x = 3 * rows(40) + 2
    mean = np.abs(np.corrcoef(x.double().T)).mean(1)
    expected = (mean - mean.min()) / (mean.max() - mean.min())
    np.testing.assert_allclose(column_weights(x), expected, rtol=1e-9, atol=1e-12)


def test_a_constant_column_counts_least():
    x = rows(40)
    x[:, 3] = 7
    kept = np.abs(np.corrcoef(np.delete(x.double().numpy(), 3, 1).T)).sum(1) / 8  # its own correlations are 0
    np.testing.assert_allclose(np.delete(column_weights(x).numpy(), 3), kept / kept.max(), rtol=1e-9)
    assert column_weights(x)[3] == 0


@pytest.mark.parametrize("x", [rows(30, 50), rows(30, 2), torch.ones(30, 8), rows(1)])
def test_weights_are_ones_for_many_columns_and_where_they_are_all_alike(x):
    assert (column_weights(x) == 1).all()


def test_divergence_is_the_released_one_written_with_scipys_entropies():
    generator = torch.Generator().manual_seed(0)
    logits, scales = (3 * torch.randn(20, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = []
    for one, other in zip(logits.numpy(), scales.numpy()):
        p, t = softmax(one), softmax(other)
        m = (p + t) / 2
        expected.append(entropy(m, softmax(p)) + entropy(m, softmax(t)))
    np.testing.assert_allclose(divergence(logits, scales), expected, rtol=1e-10)


def test_scales_that_saturate_are_finite_and_so_is_the_gradient():
    logits = torch.zeros(2, 3, requires_grad=True)
    result = divergence(logits, torch.tensor([[0.0, 1e4, -1e4], [1e4, 1e4, 0.0]]))
    result.sum().backward()
    assert result.isfinite().all() and logits.grad.isfinite().all()


@pytest.mark.parametrize(("dim", "twice"), [(8, True), (30, False)])
def test_subspaces_are_random_columns_of_random_sizes(dim, twice):
    members = ready(dim=dim, groups=200).members
    sizes = members.sum(2)
    assert set(sizes.flatten().tolist()) == set(range(1, dim + 1))
    assert bool((members > 1).any()) is twice  # of up to ten columns, with replacement
    share = members.sum((0, 1)) / members.sum()
    np.testing.assert_allclose(share, 1 / dim, rtol=0.2)
    assert torch.equal(members, ready(dim=dim, groups=200).members)
    assert not torch.equal(members, ready(dim=dim, groups=200, seed=1).members)


def test_at_most_so_many_sizes():
    assert len(ready(dim=30, sizes=4, groups=100).members.sum(2).unique()) == 4


def test_subspaces_of_one_size_share_a_matrix_with_the_bounds_of_a_linear_layer():
    detector = ready(dim=30, groups=100, group_size=2)
    matrices = detector.subspaces.view(100, 30, 2, 6).transpose(1, 2)
    by_size: dict[int, list[list[float]]] = {}
    for group, place in np.ndindex(100, 2):
        used = detector.members[group, place] > 0
        matrix = matrices[group, place]
        assert (matrix[~used] == 0).all()
        size = int(used.sum())
        assert matrix.abs().max() <= size**-0.5
        by_size.setdefault(size, []).append(sorted(matrix[used][:, 0].tolist()))
    assert all(one == alike[0] for alike in by_size.values() for one in alike)
    assert max(map(len, by_size.values())) > 3


def test_scales_are_sums_of_the_weights_of_their_columns():
    detector, x = ready(magnify=7.0), rows(50)
    detector.prepare(Views(x=x))
    weights = column_weights(x).numpy()
    for group, place in np.ndindex(4, 3):
        columns = np.repeat(np.arange(8), detector.members[group, place].int().numpy())
        assert float(detector.scales[group, place]) == pytest.approx(7 * weights[columns].sum() / 6, rel=1e-5)


def by_hand(detector: SLAD, row: np.ndarray, group: int) -> float:
    """The released divergence of a row in a group, with NumPy."""
    matrix = detector.subspaces[group].double().numpy().reshape(len(row), 3, 6)
    layers: Any = detector.net
    first, _, last = layers
    hidden = np.einsum("d,dch->ch", row, matrix) @ first.weight.detach().double().numpy().T
    numbers = np.where(hidden > 0, hidden, 0.01 * hidden) @ last.weight.detach().double().numpy()[0]
    p, t = softmax(numbers), softmax(detector.scales[group].double().numpy())
    m = (p + t) / 2
    return float((m * (2 * np.log(m) - log_softmax(p) - log_softmax(t))).sum())


def test_score_is_the_mean_over_the_groups():
    detector, x = ready(), rows(5)
    detector.prepare(Views(x=x))
    expected = [np.mean([by_hand(detector, row, group) for group in range(4)]) for row in x.double().numpy()]
    with torch.no_grad():
        np.testing.assert_allclose(detector.score(Views(x=x)), expected, rtol=1e-6)


def test_in_training_a_batch_is_shared_out_among_the_groups():
    detector, x = ready(), rows(10)
    detector.prepare(Views(x=x))
    order = torch.randperm(4, generator=torch.Generator().manual_seed(3)).tolist()
    shares = zip(order, np.array_split(x.double().numpy(), 4))
    expected = np.mean([by_hand(detector, row, group) for group, share in shares for row in share])
    result = detector.loss(Views(x=x), torch.Generator().manual_seed(3))
    assert result.item() == pytest.approx(expected, rel=1e-5)
    assert detector.loss(Views(x=x[:2]), torch.Generator()).isfinite()  # fewer rows than groups


@pytest.mark.parametrize(
    ("steps", "passes"), [(1, 50), (4, 50), (5, 20), (8, 20), (9, 5), (39, 5), (40, 2), (781, 2), (782, 1)]
)
def test_small_tables_are_passed_over_more_often(steps, passes):
    assert SLADRecipe(100, 128, 1e-3).epochs_of(steps) == 100 * passes
    assert SLADRecipe(100, 128, 1e-3, passes=3).epochs_of(steps) == 300


def test_learns_to_rank_the_subspaces():
    detector, x = ready(dim=4, lr=1e-2), rows(200, 4)
    detector.prepare(Views(x=x))
    optimizer, generator = detector.recipe.optimizer(detector), torch.Generator().manual_seed(0)
    first = detector.score(Views(x=x)).mean().item()
    for _ in range(200):
        loss = detector.loss(Views(x=x), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert detector.score(Views(x=x)).mean().item() < first


@pytest.mark.parametrize("dim", [2, 3])
def test_few_columns_constant_columns_and_few_rows(dim):
    detector, x = ready(dim=dim), rows(3, dim)
    x[:, -1] = 0
    detector.prepare(Views(x=x))
    with torch.no_grad():
        scores = detector.score(Views(x=torch.cat([x, 1e6 * rows(2, dim)])))
    assert detector.loss(Views(x=x), torch.Generator()).isfinite() and scores.isfinite().all()


def test_what_has_no_rank_is_a_mistake():
    with pytest.raises(UserError, match="at least 2 columns, the data have 1"):
        ready(dim=1)
    with pytest.raises(UserError, match=r"group_size = 1.* at least 2"):
        SLAD(group_size=1)
