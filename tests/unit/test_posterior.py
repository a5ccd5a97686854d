"""q_EW against the linear-Gaussian cases and the mixture of the specification, and integrals by brute force."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from outlie.density.latent import Normal
from outlie.density.posterior import draw, log_q_ew, log_q_tilde, log_weights, resample, vae_bound_of_q_ew
from outlie.density.targets import EIGHT_MODES, EIGHT_MODES_Q
from outlie.density.weights import log_mean_exp

ORACLE = json.loads((Path(__file__).parents[1] / "golden" / "iwae_oracle.json").read_text())
CASES = {case["name"][0]: case for case in ORACLE["cases"]}
FIGURE = ORACLE["figure_2d"]["per_k"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(name: str) -> tuple[Callable[[torch.Tensor], torch.Tensor], Normal]:
    """log p(x, z) = log N(z; 0, I) + log N(x; W z + b, diag sigma2) and q, of a case with a diagonal q."""
    case = CASES[name]
    weight, offset, variance = (torch.tensor(case["model"][key], dtype=torch.float64) for key in ("W", "b", "sigma2"))
    x = torch.tensor(case["x"], dtype=torch.float64)
    cov = torch.tensor(case["q"]["cov"], dtype=torch.float64)
    assert torch.equal(cov, cov.diagonal().diag())
    q = Normal(torch.tensor(case["q"]["mean"], dtype=torch.float64), cov.diagonal().log() / 2)

    def log_joint(z: torch.Tensor) -> torch.Tensor:
        likelihood = Normal(z @ weight.T + offset, variance.log() / 2)
        return Normal(torch.zeros_like(z), torch.zeros_like(z)).log_prob(z) + likelihood.log_prob(x)

    return log_joint, q


def several(q: Normal, rows: int) -> Normal:
    return Normal(q.mean.expand(rows, -1), q.log_std.expand(rows, -1))


def grid_of(name: str) -> tuple[torch.Tensor, float]:
    """Points that cover q and the posterior, and the volume of each."""
    dim = len(CASES[name]["q"]["mean"])
    line = torch.linspace(-8, 8, 4001 if dim == 1 else 161, dtype=torch.float64)
    step = (line[1] - line[0]).item()
    return torch.cartesian_prod(*[line] * dim).reshape(-1, dim), step**dim


def test_log_weights_are_scipys_densities():
    log_joint, q = problem("F")
    case, z = CASES["F"], draw(q, 50, seeded(0))
    weight, offset = np.array(case["model"]["W"]), np.array(case["model"]["b"])
    for one, log_w in zip(z.numpy(), log_weights(z, log_joint, q)):
        joint = multivariate_normal.logpdf(one, np.zeros(2), np.eye(2))
        joint += multivariate_normal.logpdf(case["x"], weight @ one + offset, np.diag(case["model"]["sigma2"]))
        proposal = multivariate_normal.logpdf(one, case["q"]["mean"], case["q"]["cov"])
        assert log_w.item() == pytest.approx(joint - proposal, abs=1e-10)


@pytest.mark.parametrize(("name", "k"), [(n, k) for n in "ABEF" for k in (1, 2, 10, 100)])
def test_sir_has_the_mean_and_covariance_of_q_ew(name, k):
    log_joint, q = problem(name)
    n = 20_000 if k == 100 else 40_000
    generator = seeded(k)
    z = draw(several(q, n), k, generator)
    found = resample(z, log_weights(z, log_joint, several(q, n)), generator)
    qew = CASES[name]["qew"][str(k)]
    centred = found - torch.tensor(qew["mean"])
    assert (centred.mean(0).abs() < 4 * centred.std(0) / n**0.5).all()
    products = centred[:, :, None] * centred[:, None, :]
    errors = (products.mean(0) - torch.tensor(qew["cov"])).abs()
    assert (errors < 4 * products.std(0) / n**0.5).all()


@pytest.mark.parametrize("shared", [False, True])
def test_sir_draws_by_weight_and_never_a_weight_of_zero(shared):
    log_w = torch.tensor([-1000.0, -torch.inf, -1001.0, -999.0], dtype=torch.float64)
    z, rows, generator = torch.arange(4.0)[:, None, None], 4 if shared else 20_000, seeded(0)
    draws = [
        resample(z.expand(4, rows, 1), log_w[:, None].expand(4, rows), generator, shared=shared)
        for _ in range(20_000 if shared else 1)
    ]
    if shared:
        assert all(len(set(one.flatten().tolist())) == 1 for one in draws)
        draws = [one[:1] for one in draws]
    share = torch.bincount(torch.cat(draws).flatten().long(), minlength=4) / 20_000
    expected = log_w.softmax(0)
    assert share[1] == 0
    assert ((share - expected).abs() < 4 * (expected * (1 - expected) / 20_000).sqrt() + 1e-12).all()


def test_sir_without_any_weight_is_uniform():
    z = torch.arange(5.0)[:, None, None].expand(5, 20_000, 1)
    share = resample(z, torch.full((5, 20_000), -torch.inf), seeded(0)).flatten().long().bincount(minlength=5) / 20_000
    assert ((share - 0.2).abs() < 4 * (0.2 * 0.8 / 20_000) ** 0.5).all()


def test_sir_keeps_rows_apart_and_repeats_by_its_seed():
    z = torch.randn(6, 9, 3, generator=seeded(0))
    log_w = torch.randn(6, 9, generator=seeded(1)) * 3
    first, again = (resample(z, log_w, seeded(2)) for _ in range(2))
    assert torch.equal(first, again)
    assert all((row == options).all(1).any() for row, options in zip(first, z.unbind(1)))
    alone = torch.cat([resample(z[:, [i]], log_w[:, [i]], seeded(3), shared=True) for i in range(9)])
    assert torch.equal(alone, resample(z, log_w, seeded(3), shared=True))


def test_q_tilde_is_not_normalised_and_has_the_normalisers_of_the_specification():
    log_joint, q = problem("A")
    z, volume = grid_of("A")
    log_w, log_q = log_weights(z, log_joint, q), q.log_prob(z)
    for row in ORACLE["q_tilde_normaliser"]["rows"]:
        other = log_weights(torch.tensor([[row["z2"]]], dtype=torch.float64), log_joint, q)
        assert other.item() == pytest.approx(row["log_w_z2"], rel=1e-12)
        integral = log_q_tilde(log_w, log_q, other, 2).exp().sum() * volume
        assert integral.item() == pytest.approx(row["integral_of_q_tilde"], rel=1e-8)


def q_ew_of_two(z: torch.Tensor, log_joint: Callable, q: Normal, others: torch.Tensor, volume: float) -> np.ndarray:
    """integral over z_2 of q(z_2) 2 w(z) / (w(z) + w(z_2)) q(z), as a sum over a grid."""
    log_p, log_p2, log_q2 = log_joint(z).numpy(), log_joint(others).numpy(), q.log_prob(others).numpy()
    w, w2 = np.exp(log_p - q.log_prob(z).numpy()), np.exp(log_p2 - log_q2)
    return (np.exp(log_q2) * 2 * np.exp(log_p)[:, None] / (w[:, None] + w2)).sum(1) * volume


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_q_ew_of_two_is_the_integral_over_the_other_sample(name):
    log_joint, q = problem(name)
    others, volume = grid_of(name)
    z = torch.linspace(-0.5, 1.5, 9, dtype=torch.float64)[:, None]
    expected = q_ew_of_two(z, log_joint, q, others, volume)
    found = log_q_ew(z, log_joint, q, 2, seeded(0), batches=200_000).exp()
    np.testing.assert_allclose(found, expected, rtol=0.02)


def test_q_ew_of_two_has_the_oracles_bound():
    """The brute force above against the oracle: it would not do to be tested by a wrong integral."""
    log_joint, q = problem("A")
    grid, volume = grid_of("A")
    z, wide = grid[::4], volume * 4
    density = q_ew_of_two(z, log_joint, q, grid[::4], wide)
    inside = density > 1e-300
    bound = (density * (log_joint(z).numpy() - np.log(np.where(inside, density, 1))))[inside].sum() * wide
    assert density.sum() * wide == pytest.approx(1, abs=1e-8)
    assert bound == pytest.approx(CASES["A"]["qew"]["2"]["L_vae_qew"], abs=1e-7)


@pytest.mark.parametrize(("name", "k"), [(name, k) for name in "ABCEF" for k in (2, 10, 100)])
def test_q_ew_integrates_to_one(name, k):
    log_joint, q = problem(name)
    z, volume = grid_of(name)
    masses = torch.stack([
        log_q_ew(z, log_joint, q, k, seeded(seed), batches=50).exp().sum() * volume for seed in range(20)
    ])  # fmt: skip
    assert abs(masses.mean() - 1) < 4 * masses.std() / 20**0.5
    assert masses.std() < 0.5  # or the line above says nothing


@pytest.mark.parametrize("name", ["A", "E"])
def test_q_ew_of_one_sample_is_q_and_of_many_the_posterior(name):
    log_joint, q = problem(name)
    case = CASES[name]
    z = draw(q, 30, seeded(1))
    torch.testing.assert_close(log_q_ew(z, log_joint, q, 1, seeded(0)), q.log_prob(z))
    posterior = multivariate_normal.logpdf(z.numpy(), case["posterior"]["mean"], case["posterior"]["cov"])
    np.testing.assert_allclose(log_q_ew(z, log_joint, q, 5000, seeded(0), batches=40), posterior, atol=0.03)


def test_an_exact_q_is_its_own_q_ew():
    log_joint, q = problem("D")
    z = draw(q, 30, seeded(1))
    torch.testing.assert_close(log_q_ew(z, log_joint, q, 10, seeded(0), batches=7), q.log_prob(z), rtol=1e-10, atol=0)


def test_rows_of_a_batch_have_their_own_q_ew():
    """(m, B, d) and a log-joint that differs from row to row; each row against (m, d) alone."""
    shift = torch.tensor([0.0, 2.0, -1.0], dtype=torch.float64)
    log_joint, q = problem("A")
    batched = Normal(q.mean + shift[:, None], q.log_std.expand(3, -1))
    z = draw(batched, 8, seeded(0))
    together = log_q_ew(
        z, lambda at: log_joint(at - shift[:, None]), batched, 5, seeded(1), batches=20_000, rows=30_000
    )
    for i in range(3):
        alone = log_q_ew(z[:, i] - shift[i], log_joint, q, 5, seeded(2), batches=20_000)
        torch.testing.assert_close(together[:, i], alone, rtol=0, atol=0.05)


@pytest.mark.parametrize(("name", "k"), [(name, k) for name in "ABCEF" for k in (2, 10)])
def test_the_chain_of_bounds(name, k):
    """L_1 <= L_k <= L_VAE[q_EW] <= log p(x), and the two in the middle are the oracle's, which differ."""
    log_joint, q = problem(name)
    case, expected = CASES[name], CASES[name]["qew"][str(k)]
    found = vae_bound_of_q_ew(log_joint, q, k, seeded(7), draws=10_000, batches=1000, groups=20)
    assert abs(found.importance - expected["L_iwae"]) < 4 * found.importance_se
    bias = 0.01 if name in "CF" else 0.002  # of the logarithm of a density from 1000 batches
    assert abs(found.of_q_ew - expected["L_vae_qew"]) < 4 * found.of_q_ew_se + bias
    assert case["elbo"] < found.importance < found.of_q_ew < case["log_px"] + 4 * found.of_q_ew_se + bias
    assert expected["L_vae_qew"] - expected["L_iwae"] > 4 * found.importance_se  # equality would be seen


def test_kl_to_the_posterior_falls_with_k():
    log_joint, q = problem("B")
    bounds = [vae_bound_of_q_ew(log_joint, q, k, seeded(k), draws=2000, batches=1000).of_q_ew for k in (1, 2, 5, 20)]
    assert bounds == sorted(bounds)
    assert bounds[0].item() == pytest.approx(CASES["B"]["elbo"], abs=0.4)


def test_groups_need_draws():
    log_joint, q = problem("A")
    for draws, groups in ((1000, 1), (5, 10)):
        with pytest.raises(ValueError, match="groups"):
            vae_bound_of_q_ew(log_joint, q, 2, seeded(0), draws=draws, groups=groups)


def test_without_any_weight_q_ew_is_q():
    _, q = problem("A")
    z = draw(q, 5, seeded(0))
    found = log_q_ew(z, lambda at: torch.full(at.shape[:-1], -torch.inf), q, 3, seeded(0), batches=4)
    torch.testing.assert_close(found, q.log_prob(z))


def test_a_half_space_of_zero_weight_leaves_q_ew_normalised():
    q = Normal(torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))

    def log_joint(z: torch.Tensor) -> torch.Tensor:
        return torch.where(z[..., 0] > 0.5, q.log_prob(z), -torch.inf)

    z, volume = grid_of("A")
    density = log_q_ew(z, log_joint, q, 2, seeded(0), batches=20_000).exp()
    assert density.sum().item() * volume == pytest.approx(1, abs=0.02)
    below = 0.5 * (1 + math.erf(0.5 / 2**0.5))
    assert density[z[:, 0] <= 0.5].sum().item() * volume == pytest.approx(below**2, abs=0.02)  # both draws there


def test_float32_networks_are_scored_in_float64():
    log_joint, q = problem("A")
    narrow = Normal(q.mean.float(), q.log_std.float())
    z = draw(narrow, 10, seeded(0))
    assert z.dtype == torch.float32
    found = log_q_ew(z, lambda at: log_joint(at.double()).float(), narrow, 5, seeded(0), batches=2000)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, log_q_ew(z.double(), log_joint, q, 5, seeded(3), batches=2000), rtol=0, atol=0.1)


@pytest.mark.parametrize("k", [1, 2, 5, 10, 100, 1000])
def test_bounds_of_the_mixture(k):
    n = 1000 if k == 1000 else 4000
    z = draw(EIGHT_MODES_Q, n * k, seeded(k))
    log_w = log_weights(z, EIGHT_MODES.log_density, EIGHT_MODES_Q).unflatten(0, (k, n))
    estimate = log_mean_exp(log_w)
    assert abs(estimate.mean() - FIGURE[str(k)]["L_iwae"]) < 4 * estimate.std() / n**0.5
    assert EIGHT_MODES.log_total == pytest.approx(ORACLE["figure_2d"]["log_Z"], rel=1e-14)


def test_the_mixture_is_the_specifications():
    z = torch.randn(20, 2, generator=seeded(0), dtype=torch.float64) * 3
    parts = [
        multivariate_normal.logpdf(z.numpy(), part["mean"], math.exp(part["log_var"]) * np.eye(2))
        for part in ORACLE["figure_2d"]["components"]
    ]
    np.testing.assert_allclose(EIGHT_MODES.log_density(z), logsumexp(parts, axis=0), rtol=1e-12)


@pytest.mark.parametrize("k", [2, 10])
def test_sir_of_the_mixture(k):
    n, generator = 20_000, seeded(k)
    q = several(EIGHT_MODES_Q, n)
    z = draw(q, k, generator)
    found = resample(z, log_weights(z, EIGHT_MODES.log_density, q), generator)
    expected = FIGURE[str(k)]
    centred = found - torch.tensor(expected["qew_mean"], dtype=torch.float64)
    assert (centred.mean(0).abs() < 4 * centred.std(0) / n**0.5).all()
    products = centred[:, :, None] * centred[:, None, :]
    errors = (products.mean(0) - torch.tensor(expected["qew_cov"], dtype=torch.float64)).abs()
    assert (errors < 4 * products.std(0) / n**0.5).all()
