"""The latent-variable model against SciPy's densities, networks written out in NumPy, and the oracle's closed forms."""

import numpy as np
import pytest
import torch
from scipy.stats import bernoulli, multivariate_normal, norm

from outlie.density import scores
from outlie.density.latent import LatentModel, Noise, Normal
from outlie.density.likelihoods import Bernoulli, Gaussian, StudentT
from outlie.density.networks import linear
from outlie.density.weights import log_mean_exp
from outlie.errors import UserError

from .oracle_models import CASES, ORACLE, amortised, generator, of_case

KS = (1, 2, 5, 10, 50)
DRAWS = 100_000  # of a case and a k, split into estimates of k samples each


def moved(model: LatentModel, seed: int = 0) -> LatentModel:
    """The model in float64, its biases no longer zero."""
    random = generator(seed)
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=random, dtype=torch.float64)
    return model


def weights(state: dict, *names: str) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(state[f"{name}.weight"].numpy(), state[f"{name}.bias"].numpy()) for name in names]


def through(h: np.ndarray, layers: list) -> np.ndarray:
    """A perceptron with tanh after every layer but the last."""
    for i, (weight, bias) in enumerate(layers):
        h = weight @ h + bias
        h = np.tanh(h) if i < len(layers) - 1 else h
    return h


def mean_and_std(both: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of (mean, log std) side by side; section 5 of the specification clamps the latter."""
    mean, log_std = np.split(both, 2)
    return mean, np.exp(np.clip(log_std, -7, 5))


def log_normal(z: np.ndarray, both: np.ndarray) -> float:
    return norm.logpdf(z, *mean_and_std(both)).sum()


def test_the_log_weight_of_one_layer_is_that_of_scipys_densities():
    model = moved(LatentModel((4,), Bernoulli(4), [2], [[5, 3]]))
    x = (torch.rand(6, 4, generator=generator()) < 0.5).double()
    z = torch.randn(7, 6, 2, generator=generator(1), dtype=torch.float64)
    with torch.no_grad():
        ours = model(x, model.encode(x), z, Noise(z))
    assert ours.shape == (7, 6) and ours.dtype == torch.float64
    state = model.state_dict()
    encoder, decoder = weights(state, "encoder.0", "encoder.2", "posterior"), weights(state, "decoder.0", "decoder.2")
    decoder += weights(state, "decoder.4")
    for i in range(7):
        for b in range(6):
            row, point = x[b].numpy(), z[i, b].numpy()
            share = 1 / (1 + np.exp(-through(point, decoder)))
            expected = bernoulli.logpmf(row, share).sum() + norm.logpdf(point).sum()
            expected -= log_normal(point, through(row, encoder))
            assert ours[i, b] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("hidden_2", [[4, 3], []])
def test_the_log_weight_of_two_layers_is_that_of_scipys_densities(hidden_2):
    model = moved(LatentModel((3,), Gaussian(3, "sample", floor=0.0), [2, 1], [[5], hidden_2]))
    x = torch.randn(4, 3, generator=generator(), dtype=torch.float64)
    noise = model.draw(6, 4, generator(1))
    with torch.no_grad():
        q = model.encode(x)
        z_1 = q.at(noise.first)
        ours = model(x, q, z_1, noise)
    state = model.state_dict()
    q_1, p_x = weights(state, "encoder.0", "posterior"), weights(state, "decoder.0", "decoder.2")
    inner = ("0", "2")[: len(hidden_2)]
    q_2 = weights(state, *(f"encoder_2.{i}" for i in inner), "posterior_2")
    p_1 = weights(state, *(f"decoder_2.{i}" for i in inner), "prior_1")
    for i in range(6):
        for b in range(4):
            row, point = x[b].numpy(), z_1[i, b].numpy()
            mean, std = mean_and_std(through(point, q_2))
            point_2 = mean + std * noise.second[i, b].numpy()
            loc, raw = np.split(through(point, p_x), 2)
            expected = norm.logpdf(row, loc, np.log1p(np.exp(raw)) + 1e-4).sum()
            expected += log_normal(point, through(point_2, p_1)) + norm.logpdf(point_2).sum()
            expected -= log_normal(point, through(row, q_1)) + log_normal(point_2, through(point, q_2))
            assert ours[i, b] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_log_joint_of_the_oracles_models(name):
    case, (model, x) = CASES[name], of_case(CASES[name])
    z = torch.randn(5, 1, len(case["q"]["mean"]), generator=generator(), dtype=torch.float64)
    turned = z.numpy() @ np.linalg.eigh(np.array(case["q"]["cov"]))[1].T  # the oracle's coordinates
    W, b, sigma2 = (np.array(case["model"][key]) for key in ("W", "b", "sigma2"))
    joint = [norm.logpdf(case["x"], W @ t + b, np.sqrt(sigma2)).sum() + norm.logpdf(t).sum() for t in turned[:, 0]]
    np.testing.assert_allclose(model.log_joint(x, z).detach()[:, 0], joint, rtol=1e-9)
    q = multivariate_normal(case["q"]["mean"], case["q"]["cov"])
    ours = model(x, model.encode(x), z, Noise(z)).detach()[:, 0]
    np.testing.assert_allclose(ours, np.array(joint) - q.logpdf(turned[:, 0]), rtol=1e-9)


def test_with_the_true_posterior_every_weight_is_p_of_x():
    case, (model, x) = CASES["D"], of_case(CASES["D"])
    noise = model.draw(1000, 1, generator())
    q = model.encode(x)
    log_w = model(x, q, q.at(noise.first), noise).detach()
    assert log_w.std() < 1e-12
    np.testing.assert_allclose(log_w, case["log_px"], rtol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_elbo_in_closed_form(name):
    """The KL exactly; the reconstruction term by E (a - w z)^2 = (a - w m)^2 + w^2 s^2."""
    case, (model, x) = CASES[name], of_case(CASES[name])
    q = model.encode(x)
    assert float(q.kl_to_prior().detach()) == pytest.approx(case["elbo_kl_to_prior"], abs=1e-6)
    _, scale = model.likelihood.loc_scale(model.decode(q.mean))
    spread = q.log_std.exp().square() @ model.decoder[0].weight.T.square()
    reconstruction = model.log_likelihood(x, q.mean) - 0.5 * (spread / scale.square()).sum(1)
    assert float(reconstruction.detach()) == pytest.approx(case["elbo_reconstruction_term"], abs=1e-6)
    assert float((reconstruction - q.kl_to_prior()).detach()) == pytest.approx(case["elbo"], abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_mean_of_many_estimates_is_the_bound(name):
    case, (model, x) = CASES[name], of_case(CASES[name])
    noise = model.draw(DRAWS, 1, generator(3))
    with torch.no_grad():
        q = model.encode(x)
        log_w = model(x, q, q.at(noise.first), noise)[:, 0]
    means = []
    for k in KS:
        expected = case["iwae"][str(k)]
        estimates = log_mean_exp(log_w.view(k, -1))
        allowed = 4 * expected["std_of_one_estimate"] / len(estimates) ** 0.5
        if expected["method"] == "monte_carlo":  # the expected value is itself an estimate
            allowed = np.hypot(allowed, 4 * expected["mc_se"])
        assert float(estimates.mean()) == pytest.approx(expected["value"], abs=allowed + 1e-9), k
        means.append(float(estimates.mean()))
        assert means[-1] <= case["log_px"] + allowed + 1e-9
    assert name == "D" or means == sorted(means)  # of the same draws: Jensen holds for the means themselves


def test_the_bound_as_a_score_grows_with_k():
    model, x = of_case(CASES["B"])
    rows = x.expand(500, 2) + 0.5 * torch.randn(500, 2, generator=generator(), dtype=torch.float64)
    with torch.no_grad():
        means = [float(scores.bound(model, rows, k, seed=1).mean()) for k in (1, 5, 50, 500)]
    assert means == sorted(means) and means[-1] - means[0] > 1


def test_a_batch_of_rows_each_with_its_own_posterior():
    model, x = amortised()
    rows = ORACLE["amortised_batch"]["rows"]
    n = 4000
    with torch.no_grad():
        q = model.encode(x)
        np.testing.assert_allclose(q.mean, [row["q_mean"] for row in rows], rtol=1e-12)
        np.testing.assert_allclose(q.kl_to_prior(), [row["kl"] for row in rows], rtol=1e-9)
        spread = q.log_std.exp().square() @ model.decoder[0].weight.T.square()
        _, scale = model.likelihood.loc_scale(model.decode(q.mean))
        reconstruction = model.log_likelihood(x, q.mean) - 0.5 * (spread / scale.square()).sum(1)
        np.testing.assert_allclose(reconstruction, [row["reconstruction"] for row in rows], rtol=1e-9)
        np.testing.assert_allclose(reconstruction - q.kl_to_prior(), [row["elbo"] for row in rows], rtol=1e-9)
        noise = model.draw(50 * n, len(x), generator())
        log_w = model(x, q, q.at(noise.first), noise)
    assert log_w.shape == (50 * n, 6)
    for k in (5, 50):
        estimates = log_mean_exp(log_w[: k * n].view(k, n, 6))
        expected = np.array([row[f"iwae{k}"] for row in rows])
        error = np.hypot(estimates.std(0).numpy() / n**0.5, [row[f"iwae{k}_se"] for row in rows])
        assert (np.abs(estimates.mean(0).numpy() - expected) < 4 * error).all()
    assert (log_mean_exp(log_w).numpy() <= np.array([row["log_px"] for row in rows]) + 0.05).all()


@pytest.mark.parametrize("case", ORACLE["missing_data"]["cases"], ids=lambda case: str(case["mask"]))
def test_gaps_take_their_columns_out_of_the_likelihood(case):
    """With q the posterior given what is there, every weight is p(x_obs); also where nothing is there."""
    own, mask = ORACLE["missing_data"]["model"], np.array(case["mask"], dtype=bool)
    x = torch.tensor([ORACLE["missing_data"]["x"]], dtype=torch.float64)
    x[0, ~mask] = torch.nan
    posterior = case["posterior_given_obs"]
    variances, turn = np.linalg.eigh(np.array(posterior["cov"]))
    model = LatentModel((3,), Gaussian(3, "feature", floor=0.0), [2], [[]], gaps=True).double()
    with torch.no_grad():
        model.decoder[0].weight.copy_(torch.tensor(np.array(own["W"]) @ turn))
        model.decoder[0].bias.copy_(torch.tensor(own["b"]))
        model.likelihood.raw.copy_(torch.tensor(np.log(np.expm1(np.sqrt(own["sigma2"]) - 1e-4))))
        model.posterior.weight.zero_()
        model.posterior.bias.copy_(
            torch.tensor(np.concatenate([turn.T @ np.array(posterior["mean"]), 0.5 * np.log(variances)]))
        )
        noise = model.draw(20, 1, generator())
        q = model.encode(x)
        log_w = model(x, q, q.at(noise.first), noise)
    np.testing.assert_allclose(log_w, case["log_p_obs"], atol=1e-9)


def test_the_encoder_sees_where_the_gaps_are_and_not_what_was_there():
    model = moved(LatentModel((3,), StudentT(3), [2], [[4]], gaps=True))
    x = torch.tensor([[0.0, 1.0, 2.0], [torch.nan, 1.0, 2.0]], dtype=torch.float64)
    mean = model.encode(x).mean
    assert mean.isfinite().all() and not torch.allclose(mean[0], mean[1])  # 0 and missing differ
    state = model.state_dict()
    seen = np.array([0.0, 1.0, 2.0, 0.0, 1.0, 1.0])
    np.testing.assert_allclose(mean[1].detach(), through(seen, weights(state, "encoder.0", "posterior"))[:2], rtol=1e-9)


def test_absence_adds_the_probability_of_the_gaps():
    """log p(s | x, x_mis): logit p(missing) = a x + b, of the value there or, where there is none, of a draw of it."""
    model = moved(LatentModel((3,), Gaussian(3, "feature", floor=0.0), [2], [[4]], gaps=True, absence=True))
    x = torch.tensor([[0.4, torch.nan, -1.0]], dtype=torch.float64)
    noise = model.draw(5, 1, generator())
    with torch.no_grad():
        q = model.encode(x)
        z = q.at(noise.first)
        ours, without = model(x, q, z, noise), model(x, q, z, Noise(noise.first))
        loc, scale = model.likelihood.loc_scale(model.decode(z))
    slope, offset = model.slope.detach().numpy(), model.offset.detach().numpy()
    assert np.abs(slope).min() > 1e-3
    for i in range(5):
        value = x[0].numpy().copy()
        value[1] = loc[i, 0, 1] + scale[1] * noise.gaps[i, 0, 1]
        missing = 1 / (1 + np.exp(-(slope * value + offset)))
        expected = np.log(1 - missing[0]) + np.log(missing[1]) + np.log(1 - missing[2])
        assert float(ours[i, 0] - without[i, 0]) == pytest.approx(expected, abs=1e-9)


def test_generative_are_the_parameters_of_p():
    model = LatentModel((3,), Gaussian(3), [2, 2], [[4], [3]], gaps=True, absence=True)
    of_p = {name.split(".")[0] for name in model.generative}
    assert of_p == {"decoder", "decoder_2", "prior_1", "likelihood", "slope", "offset"}
    rest = {name.split(".")[0] for name, _ in model.named_parameters() if name not in model.generative}
    assert rest == {"encoder", "encoder_2", "posterior", "posterior_2"}


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 12)])
@pytest.mark.parametrize("per_pixel", [1, 2])
def test_convolutions_give_a_map_for_every_parameter(shape, per_pixel):
    D = int(np.prod(shape))
    family = Bernoulli(D) if per_pixel == 1 else Gaussian(D, "sample")
    model = LatentModel(shape, family, [5], [[16]], "silu", "conv")
    assert {name for name in model.generative if name.startswith("posterior")} == set()
    x = torch.rand(3, *shape, generator=generator())
    q = model.encode(x)
    assert q.mean.shape == q.log_std.shape == (3, 5)
    assert model.decode(q.at(torch.zeros(7, 3, 5))).shape == (7, 3, per_pixel * D)
    torch.testing.assert_close(model.decode(q.mean.expand(7, 3, 5))[4], model.decode(q.mean), rtol=1e-4, atol=1e-5)
    model.start(x.flatten(1))
    last = model.decoder.last.bias.detach()
    assert len(last) == shape[0] * per_pixel
    expected = (x.double().mean(0).logit() if per_pixel == 1 else x.double().mean(0)).view(shape[0], -1).mean(1)
    torch.testing.assert_close(last[: shape[0]].double(), expected, rtol=1e-3, atol=1e-3)


def test_the_decoder_starts_at_the_mean_of_the_rows():
    model = LatentModel((4,), Bernoulli(4), [2], [[5]])
    x = torch.tensor([[0.0, 0.25, 0.5, 1.0]]).repeat(10, 1)
    model.start(x)
    torch.testing.assert_close(model.likelihood.mean(model.decoder[-1].bias), x[0].clamp(0.001, 0.999))


def test_convolutions_say_what_they_cannot_take():
    for shape, says in (((6,), r"takes images, the rows have shape \(6,\)"), ((1, 6, 8), "6 x 8 must be multiples")):
        with pytest.raises(UserError, match=says):
            LatentModel(shape, Bernoulli(int(np.prod(shape))), [2], [[4]], network="conv")


def test_the_deviation_of_q_is_kept_within_bounds():
    model = LatentModel((2,), Gaussian(2), [3], [[]])
    with torch.no_grad():
        model.posterior.bias.copy_(torch.tensor([0.0, 0, 0, -50, 0.5, 50]))
        model.posterior.weight.zero_()
    assert model.encode(torch.zeros(1, 2)).log_std.tolist() == [[-7.0, 0.5, 5.0]]


def test_noise_in_chunks_is_the_noise():
    noise = Noise(torch.arange(7)[:, None], None, 10 * torch.arange(7)[:, None])
    parts = list(noise.chunks(3))
    assert [len(part.first) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([part.first for part in parts]), noise.first)
    assert torch.equal(torch.cat([part.gaps for part in parts]), noise.gaps)
    assert all(part.second is None for part in parts)


def test_normals_against_scipy():
    both = torch.randn(2, 4, 3, generator=generator(), dtype=torch.float64)
    normal, z = Normal(*both), torch.randn(5, 4, 3, generator=generator(1), dtype=torch.float64)
    expected = norm.logpdf(z, both[0], both[1].exp()).sum(-1)
    np.testing.assert_allclose(normal.log_prob(z), expected, rtol=1e-12)
    draws = normal.at(torch.randn(200_000, 4, 3, generator=generator(2), dtype=torch.float64))
    kl = normal.log_prob(draws) - torch.from_numpy(norm.logpdf(draws).sum(-1))
    assert ((kl.mean(0) - normal.kl_to_prior()).abs() < 4 * kl.std(0) / 200_000**0.5).all()


def test_layers_side_by_side_start_as_layers_of_their_own():
    """Glorot's bound sqrt(6 / (in + out)) is of each output, not of all together."""
    torch.manual_seed(0)
    layer = linear(30, 10, 10)
    assert layer.weight.abs().max() <= (6 / 40) ** 0.5
    assert layer.weight.abs().max() > (6 / 50) ** 0.5 and not layer.bias.any()
