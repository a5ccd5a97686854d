"""Numbers of importance weights against the specification's vectors, SciPy, and loops written from the definitions."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import genpareto

from outlie.density.weights import (
    RunningWeights,
    bound_curve,
    effective_samples,
    entropy_samples,
    jackknife,
    log_mean_exp,
    normalised,
    pareto_k,
)

ORACLE = json.loads((Path(__file__).parents[1] / "golden" / "iwae_oracle.json").read_text())
NUMERICS = ORACLE["numerics"]
GONE = -torch.inf


def column(values: list) -> torch.Tensor:
    return torch.tensor([float(v) for v in values], dtype=torch.float64)


def some_log_w(k: int = 60, rows: int = 7, origin: float = -1e4) -> torch.Tensor:
    """Moderate to extreme spread, from column to column; one weight of column 2 is zero."""
    noise = torch.randn(k, rows, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_w = origin + noise * torch.linspace(0.1, 30, rows, dtype=torch.float64)
    log_w[5, 2] = GONE
    return log_w


@pytest.mark.parametrize("case", NUMERICS["cases"], ids=lambda case: str(case["log_w"]))
@pytest.mark.parametrize("rows", [None, 3])
def test_the_vectors_of_the_specification(case, rows):
    log_w = column(case["log_w"])
    log_w = log_w if rows is None else log_w[:, None].expand(-1, rows)
    assert log_mean_exp(log_w).numpy() == pytest.approx(case["log_mean_exp"], rel=1e-14)
    for weights in normalised(log_w).reshape(len(log_w), -1).unbind(1):
        np.testing.assert_allclose(weights, case["w_tilde"], rtol=1e-11)
    # At -10000 the specification's own ESS is 2e-12 from (1 + e^-0.5)^2 / (1 + e^-1): rounding of the logarithms.
    assert effective_samples(log_w).numpy() == pytest.approx(case["ess"], rel=1e-11)
    assert entropy_samples(log_w).numpy() == pytest.approx(case["entropy_ess"], rel=1e-11)


def test_a_column_without_weight_is_never_nan():
    log_w = torch.stack([torch.full((6,), GONE), torch.arange(6.0)], 1).double()
    assert log_mean_exp(log_w).tolist() == [GONE, pytest.approx(logsumexp(np.arange(6)) - math.log(6))]
    assert normalised(log_w)[:, 0].tolist() == [1 / 6] * 6
    assert effective_samples(log_w)[0] == entropy_samples(log_w)[0] == 0
    assert bound_curve(log_w, [1, 4])[:, 0].tolist() == [GONE, GONE]
    assert jackknife(log_w)[0] == GONE
    assert pareto_k(torch.full((50, 1), GONE)).tolist() == [torch.inf]
    running = RunningWeights()
    for chunk in log_w.split(2):
        running.update(chunk)
    assert running.log_mean_exp()[0] == GONE and running.effective_samples()[0] == 0
    assert torch.isfinite(running.log_mean_exp()[1])


def test_nan_is_not_swallowed():
    log_w = some_log_w()
    log_w[3, 1] = torch.nan
    for numbers in (log_mean_exp, effective_samples, entropy_samples, jackknife, pareto_k):
        nan = numbers(log_w).isnan()
        assert nan[1] and not nan[[0, 2, 3]].any(), numbers.__name__
    running = RunningWeights()
    running.update(log_w)
    assert running.log_mean_exp().isnan().tolist() == [False, True, *[False] * 5]


def test_log_mean_exp_over_another_dimension():
    log_w = some_log_w()
    expected = logsumexp(log_w.numpy(), axis=1) - math.log(7)
    np.testing.assert_allclose(log_mean_exp(log_w, 1), expected, rtol=1e-14)


@pytest.mark.parametrize("sizes", [[1, 2, 5, 10, 60], [7, 25, 59]])
def test_bound_curve_is_the_loop_over_disjoint_blocks(sizes):
    log_w = some_log_w(origin=-90)
    ours = bound_curve(log_w, sizes)
    for size, curve in zip(sizes, ours):
        blocks = [log_w[i : i + size].numpy() for i in range(0, 60 - size + 1, size)]
        expected = np.mean([logsumexp(block, axis=0) - math.log(size) for block in blocks], axis=0)
        np.testing.assert_allclose(curve, expected, rtol=1e-12)


@pytest.mark.parametrize("k", [1, 5, 10, 50])
def test_bound_curve_finds_the_bounds_of_the_lognormal_table(k):
    row = next(row for row in ORACLE["lognormal_gap_table"]["rows"] if row["D"] == 1.0)
    distance, gaps = row["D"], row["gap"]
    noise = torch.randn(100, 10_000, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    curve = bound_curve(-(distance**2) / 2 + distance * noise, [k])[0]
    assert abs(curve.mean() + gaps[str(k)]) < 4 * curve.std() / 100


@pytest.mark.parametrize("size", [0, -1, 61])
def test_bound_curve_refuses_impossible_blocks(size):
    with pytest.raises(ValueError, match="from 1 to 60"):
        bound_curve(some_log_w(), [5, size])


def test_jackknife_vector():
    case = NUMERICS["jackknife_jvi1"]
    assert jackknife(column(case["log_w"])).item() == pytest.approx(case["value"], rel=1e-13)


def test_jackknife_is_the_loop_that_leaves_one_out():
    log_w = some_log_w(origin=-50)
    log_w[7, 4] = 40.0  # carries all the weight: S - w_i would be 0
    numbers, k = log_w.numpy(), len(log_w)
    without = [logsumexp(np.delete(numbers, i, axis=0), axis=0) - math.log(k - 1) for i in range(k)]
    expected = k * (logsumexp(numbers, axis=0) - math.log(k)) - (k - 1) * np.mean(without, axis=0)
    np.testing.assert_allclose(jackknife(log_w), expected, rtol=1e-10)


def test_jackknife_ends():
    one = column([GONE, -3.0, GONE])
    assert jackknife(one) == torch.inf
    with pytest.raises(ValueError, match="two or more"):
        jackknife(torch.zeros(1, 4))


def test_jackknife_is_less_biased_than_the_bound():
    noise = torch.randn(20, 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_w = -0.5 + noise  # log p(x) = 0
    bound, corrected = log_mean_exp(log_w), jackknife(log_w)
    assert bound.mean() < -5 * bound.std() / 20_000**0.5
    assert abs(corrected.mean()) < 0.2 * abs(bound.mean())


@pytest.mark.parametrize("chunk", [1, 7, 60])
@pytest.mark.parametrize("origin", [-1e4, 700.0])
def test_streaming_is_one_shot_whatever_the_chunks_and_their_order(chunk, origin):
    log_w = some_log_w(origin=origin)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(chunk))
    running = RunningWeights()
    for part in log_w[order].split(chunk):
        running.update(part)
    assert running.samples == 60
    np.testing.assert_allclose(running.log_mean_exp(), log_mean_exp(log_w), rtol=1e-15, atol=1e-12)
    np.testing.assert_allclose(running.effective_samples(), effective_samples(log_w), rtol=1e-12)


def test_the_streaming_vector_and_empty_or_weightless_chunks():
    case, running = NUMERICS["streaming"], RunningWeights()
    for chunk in case["chunks"]:
        running.update(column(chunk))
        running.update(column([]))
    assert running.log_mean_exp().item() == pytest.approx(case["expected"], rel=1e-15)
    first = RunningWeights()
    for chunk in ([GONE, GONE], [-5.0, GONE], [GONE]):
        first.update(column(chunk))
    assert first.log_mean_exp().item() == pytest.approx(-5 - math.log(5))
    assert first.effective_samples().item() == 1


def zhang_stephens(x: np.ndarray) -> float:
    """The papers' procedure, one sample of exceedances at a time, with Vehtari's prior."""
    x, n = np.sort(x), len(x)
    m = 30 + int(np.sqrt(n))
    b = [1 / x[-1] + (1 - math.sqrt(m / (j - 0.5))) / (3 * x[int(n / 4 + 0.5) - 1]) for j in range(1, m + 1)]
    shape = [np.mean(np.log1p(-one * x)) for one in b]
    profile = np.array([n * (math.log(-one / k) - k - 1) for one, k in zip(b, shape)])
    weights = 1 / np.exp(profile - profile[:, None]).sum(1)
    k = np.mean(np.log1p(-(weights @ b) * x))
    return (n * k + 10 * 0.5) / (n + 10)


@pytest.mark.parametrize("k", [26, 100, 999])
def test_pareto_k_is_the_papers_loop(k):
    log_w = some_log_w(k, rows=5)[:, :4] * 0.2
    for row, ours in enumerate(pareto_k(log_w)):
        ordered = np.sort(log_w[:, row].numpy())
        tail = math.ceil(0.2 * k)
        above = np.exp(ordered[-tail:] - ordered[-1]) - np.exp(ordered[-tail - 1] - ordered[-1])
        assert ours.item() == pytest.approx(zhang_stephens(above[above > 0]), rel=1e-8)


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.4, 0.7, 1.5])
def test_pareto_k_finds_the_shape_of_scipys_draws(shape):
    rng = np.random.default_rng(1)
    draws = genpareto.rvs(shape, size=(5000, 40), random_state=rng)  # its tail beyond any threshold has the same shape
    found = pareto_k(torch.as_tensor(np.log(draws)) - 1e4).numpy()
    prior = (1000 * shape + 5) / 1010
    assert found.mean() == pytest.approx(prior, abs=4 * found.std() / math.sqrt(40) + 0.01)
    maximum_likelihood = genpareto.fit(np.sort(draws[:, 0])[-1000:] - np.sort(draws[:, 0])[-1001], floc=0)[0]
    assert found[0] == pytest.approx(maximum_likelihood, abs=0.04)


def test_pareto_k_where_there_is_nothing_to_fit():
    ties = torch.zeros(100, 4, dtype=torch.float64)
    ties[:, 1] = torch.tensor([GONE] * 99 + [0.0])  # one weight of a hundred
    ties[:, 2] = torch.arange(100) >= 30  # the largest are equal
    ties[:, 3] = torch.cat([torch.zeros(90), torch.linspace(0.1, 0.2, 10)])  # half of the tail is at its threshold
    constant, lone, bounded, some = pareto_k(ties)
    assert constant == -torch.inf and lone == torch.inf and bounded == -torch.inf
    above = np.exp(np.linspace(0.1, 0.2, 10) - 0.2) - np.exp(-0.2)
    assert some.item() == pytest.approx(zhang_stephens(above), rel=1e-6)
    assert pareto_k(some_log_w(20)).tolist() == [torch.inf] * 7  # four weights in the tail
    assert pareto_k(torch.zeros(1, 2)).tolist() == [torch.inf] * 2


def test_no_column_depends_on_the_others():
    log_w = some_log_w(200)
    for numbers in (log_mean_exp, effective_samples, entropy_samples, jackknife, pareto_k):
        alone = torch.cat([numbers(log_w[:, [i]]) for i in range(7)])
        torch.testing.assert_close(numbers(log_w), alone, rtol=1e-12, atol=0, equal_nan=True)
