"""Scores of a density model from their definitions: SciPy on linear models, loops over rows and samples, the oracle."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm

from outlie.density import objectives, scores
from outlie.density.latent import LatentModel
from outlie.density.likelihoods import Gaussian

from .oracle_models import CASES, ORACLE, amortised, generator, of_case

K = 30
ROWS = ORACLE["amortised_batch"]["rows"]
PLAIN = (
    scores.neg_elbo, scores.neg_iwae, scores.recon_prob, scores.recon_err, scores.recon_err_sir, scores.latent_kl,
    scores.bound_gap,
)  # fmt: skip


def sampled(k: int = K, seed: int = 5):
    """(k, rows) log p(x|z), log p(z) and log q(z|x) of the amortised model by SciPy, on the draws of that seed."""
    model, x = amortised()
    with torch.no_grad():
        q, noise = model.encode(x), scores.draws(model, k, seed)
        z = q.at(noise.first).numpy()
    W, b = (model.decoder[0].weight.detach().numpy(), model.decoder[0].bias.detach().numpy())
    scale = np.sqrt([0.3, 0.6, 0.4])
    likelihood = norm.logpdf(x.numpy(), z @ W.T + b, scale).sum(-1)
    return likelihood, norm.logpdf(z).sum(-1), norm.logpdf(z, q.mean, q.log_std.exp()).sum(-1)


def ours(score, k: int = K, seed: int = 5) -> np.ndarray:
    model, x = amortised()
    with torch.no_grad():
        result = score(model, x, k, seed)
    assert result.shape == (6,) and result.dtype == torch.float64
    return result.numpy()


def test_the_same_draws_serve_every_row():
    model, _ = amortised()
    noise = scores.draws(model, K, 1)
    assert noise.first.shape == (K, 1, 2)
    assert torch.equal(noise.first, scores.draws(model, K, 1).first)
    assert not torch.equal(noise.first, scores.draws(model, K, 2).first)


def test_neg_iwae_is_minus_the_log_mean_weight():
    likelihood, prior, q = sampled()
    expected = math.log(K) - logsumexp(likelihood + prior - q, axis=0)
    np.testing.assert_allclose(ours(scores.neg_iwae), expected, rtol=1e-9)
    np.testing.assert_allclose(ours(scores.bound), -expected, rtol=1e-9)


def test_recon_prob_and_neg_elbo():
    likelihood, *_ = sampled()
    np.testing.assert_allclose(ours(scores.recon_prob), -likelihood.mean(0), rtol=1e-9)
    kl = [row["kl"] for row in ROWS]
    np.testing.assert_allclose(ours(scores.latent_kl), kl, rtol=1e-9)
    np.testing.assert_allclose(ours(scores.neg_elbo), np.array(kl) - likelihood.mean(0), rtol=1e-9)


def test_neg_elbo_converges_to_the_closed_form():
    expected = np.array([-row["elbo"] for row in ROWS])
    likelihood, *_ = sampled(20_000)
    error = likelihood.std(0) / 20_000**0.5
    assert (np.abs(ours(scores.neg_elbo, 20_000) - expected) < 4 * error).all()


def test_bound_gap_is_the_bound_less_the_mean_log_weight():
    likelihood, prior, q = sampled()
    log_w = likelihood + prior - q
    expected = logsumexp(log_w, axis=0) - math.log(K) - log_w.mean(0)
    np.testing.assert_allclose(ours(scores.bound_gap), expected, rtol=1e-9)
    assert (expected > 0).all()


def test_recon_err_is_the_squared_distance_to_what_the_mean_decodes_to():
    model, x = amortised()
    W, b = model.decoder[0].weight.detach().numpy(), model.decoder[0].bias.detach().numpy()
    z = np.array([row["q_mean"] for row in ROWS])
    np.testing.assert_allclose(ours(scores.recon_err), ((x.numpy() - z @ W.T - b) ** 2).sum(1), rtol=1e-9)


@pytest.mark.parametrize("name", ["A", "F"])
def test_sir_draws_from_q_ew(name):
    case, (model, x) = CASES[name], of_case(CASES[name])
    k, n = 2, 1500
    with torch.no_grad():
        q = model.encode(x)
        draws = torch.cat([scores.sir(model, x, k, 10 + i, q) for i in range(n)])
    turn = np.linalg.eigh(np.array(case["q"]["cov"]))[1]
    own = draws.numpy() @ turn.T
    expected = case["qew"][str(k)]
    variance = np.diag(np.array(expected["cov"]))
    assert (np.abs(own.mean(0) - expected["mean"]) < 4 * np.sqrt(variance / n)).all()
    np.testing.assert_allclose(np.diag(np.atleast_2d(np.cov(own.T))), variance, rtol=4 * (3 / n) ** 0.5)
    distance = np.abs(np.array(expected["mean"]) - case["q"]["mean"])
    assert (distance > 8 * np.sqrt(variance / n)).any()  # draws from q would fail


def test_recon_err_sir_is_the_mean_of_ten_draws():
    model, x = amortised()
    W, b = model.decoder[0].weight.detach().numpy(), model.decoder[0].bias.detach().numpy()
    with torch.no_grad():
        z = np.stack([scores.sir(model, x, K, 5 + i).numpy() for i in range(10)])
    assert len(np.unique(z[:, 0, 0])) > 7
    expected = ((x.numpy() - z @ W.T - b) ** 2).sum(-1).mean(0)
    np.testing.assert_allclose(ours(scores.recon_err_sir), expected, rtol=1e-9)


def test_waic_is_minus_mean_plus_variance():
    log_p = np.random.default_rng(0).normal(size=(5, 8)) * 3 - 40
    expected = [-(np.mean(column) - np.mean((column - column.mean()) ** 2)) for column in log_p.T]
    np.testing.assert_allclose(scores.waic(torch.from_numpy(log_p)), expected, rtol=1e-12)
    same = torch.full((3, 4), -7.0, dtype=torch.float64)
    assert torch.equal(scores.waic(same), -same[0])


def test_typicality_is_the_distance_to_the_entropy_of_groups_of_rows():
    nll = torch.tensor([1.0, 4.0, 9.0, 2.0, 5.0], dtype=torch.float64)
    assert scores.typicality(nll, 3.0).tolist() == [2, 1, 6, 1, 2]
    assert scores.typicality(nll, torch.tensor(3.0), group=2).tolist() == [0.5, 2.5]  # (1+4)/2, (9+2)/2; one is left
    assert scores.typicality(nll, 3.0, group=5).tolist() == pytest.approx([1.2])


def two_layers() -> tuple[LatentModel, torch.Tensor]:
    torch.manual_seed(3)
    model = LatentModel((3,), Gaussian(3), [2, 2], [[4], [4]]).double()
    return model, torch.randn(6, 3, generator=generator(), dtype=torch.float64)


def test_two_layers_estimate_the_divergence_from_samples():
    """KL(q(z_1, z_2 | x) || p(z_1, z_2)) is the mean of log q - log p, and the ELBO that of the log-weights."""
    model, x = two_layers()
    with torch.no_grad():
        noise, q = scores.draws(model, K, 5), model.encode(x)
        z_1 = q.at(noise.first)
        q_2 = model.encode_2(z_1)
        z_2 = q_2.at(noise.second)
        p_1 = model.prior(z_2)
        likelihood = model.log_likelihood(x, z_1).numpy()
    log_q = norm.logpdf(z_1, q.mean, q.log_std.exp()).sum(-1) + norm.logpdf(z_2, q_2.mean, q_2.log_std.exp()).sum(-1)
    log_p = norm.logpdf(z_1, p_1.mean, p_1.log_std.exp()).sum(-1) + norm.logpdf(z_2).sum(-1)
    kl, log_w = (log_q - log_p).mean(0), likelihood + log_p - log_q
    with torch.no_grad():
        np.testing.assert_allclose(scores.latent_kl(model, x, K, 5), kl, rtol=1e-9)
        np.testing.assert_allclose(scores.neg_elbo(model, x, K, 5), kl - likelihood.mean(0), rtol=1e-9)
        np.testing.assert_allclose(scores.bound(model, x, K, 5), logsumexp(log_w, axis=0) - math.log(K), rtol=1e-9)


@pytest.mark.parametrize("make", [amortised, two_layers])
@pytest.mark.parametrize("score", PLAIN, ids=lambda f: f.__name__)
def test_neither_chunks_nor_the_batch_change_a_score(make, score, monkeypatch):
    model, x = make()
    with torch.no_grad():
        whole = score(model, x, K, 5)
        assert torch.equal(score(model, x, K, 5), whole)
        for samples in (1, 7):
            monkeypatch.setattr(objectives, "NUMBERS_AT_ONCE", samples * model.numbers_a_sample * len(x))
            assert objectives.samples_at_once(model, len(x)) == samples
            torch.testing.assert_close(score(model, x, K, 5), whole, rtol=1e-10, atol=1e-10)
        order = torch.tensor([4, 2, 0, 5, 1, 3])
        torch.testing.assert_close(score(model, x[order], K, 5), whole[order], rtol=1e-10, atol=1e-10)
        alone = torch.cat([score(model, row, K, 5) for row in x.split(1)])
        torch.testing.assert_close(alone, whole, rtol=1e-10, atol=1e-10)


def with_gaps(absence: bool) -> tuple[LatentModel, torch.Tensor]:
    torch.manual_seed(3)
    model = LatentModel((3,), Gaussian(3), [2], [[4]], gaps=True, absence=absence).double()
    x = torch.randn(6, 3, generator=generator(), dtype=torch.float64)
    x[1, 0] = x[2, 1:] = x[3] = torch.nan
    return model, x


@pytest.mark.parametrize("absence", [False, True])
@pytest.mark.parametrize("score", PLAIN, ids=lambda f: f.__name__)
def test_rows_with_gaps_have_finite_scores(score, absence):
    model, x = with_gaps(absence)
    with torch.no_grad():
        result = score(model, x, K, 5)
    assert result.shape == (6,) and result.isfinite().all()


def test_gaps_leave_recon_err_to_what_is_there():
    model, x = with_gaps(False)
    with torch.no_grad():
        mean = model.likelihood.mean(model.decode(model.encode(x).mean))
        result = scores.recon_err(model, x, K, 5)
    assert result[3] == 0
    assert result.numpy() == pytest.approx(np.nansum((x - mean).numpy() ** 2, 1))
