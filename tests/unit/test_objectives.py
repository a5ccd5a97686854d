"""Bounds and their gradients: the oracle's exact ones, sums written out sample by sample, and one another."""

import math

import pytest
import torch
from torch import Tensor

from outlie.density import objectives
from outlie.density.latent import LatentModel, Noise
from outlie.density.likelihoods import Bernoulli, Gaussian
from outlie.density.objectives import Objective, loss

from .oracle_models import CASES, ORACLE, generator, of_case

GRADIENTS = ORACLE["gradients_case_A"]["per_k"]
ESTIMATORS = ("standard", "stl", "dreg")
NAMES = ("elbo", "iwae", "miwae", "ciwae", "piwae")
ROWS, K = 4, 12


def small(latent: tuple[int, ...] = (2,), absence: bool = False) -> tuple[LatentModel, Tensor, Noise]:
    """A network with hidden layers in float64, rows, and K draws for each."""
    torch.manual_seed(0)
    family = Gaussian(3, "feature")
    model = LatentModel((3,), family, latent, [[5], [4]], gaps=absence, absence=absence).double()
    x = 2 * torch.randn(ROWS, 3, generator=generator(), dtype=torch.float64)
    if absence:
        x[1, 2] = torch.nan
    return model, x, model.draw(K, ROWS, generator(1))


def gradients(model: LatentModel, value: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    value.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def assert_equal(ours: dict[str, Tensor], expected: dict[str, Tensor], names=None) -> None:
    assert ours.keys() == expected.keys()
    for name in names or ours:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-10, atol=1e-10, msg=lambda m: f"{name}: {m}")  # noqa: B023


def log_w_of(model: LatentModel, x: Tensor, noise: Noise) -> Tensor:
    q = model.encode(x)
    return model(x, q, q.at(noise.first), noise)


# --- the oracle's gradients


@pytest.mark.parametrize("k", [1, 2, 5, 10, 50])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients_are_the_oracles(k, estimator):
    model, x = of_case(CASES["A"])
    n, exact, drawn = max(2000, 100_000 // k), GRADIENTS[str(k)]["exact"], GRADIENTS[str(k)]["monte_carlo"]
    value = loss(model, x.expand(n, 2), model.draw(k, n, generator(k)), Objective("iwae", estimator, k))
    grads = gradients(model, -value)
    for key, ours in (("m", grads["posterior.bias"][0]), ("s", grads["posterior.bias"][1])):
        short = {"standard": "std"}.get(estimator, estimator)
        error = drawn[f"{short}_{key}"]["std"] / n**0.5
        expected = exact["d_m" if key == "m" else "d_log_s"]
        if estimator == "stl" and k > 1:  # it estimates something else
            expected = drawn[f"stl_{key}"]["mean"]
            assert abs(expected - exact["d_m" if key == "m" else "d_log_s"]) > 10 * error
            error = math.hypot(error, drawn[f"stl_{key}"]["se"])
        assert float(ours) == pytest.approx(expected, abs=4 * error + 1e-6), key
    error = drawn["dec_b"]["std"] / n**0.5
    assert float(grads["decoder.0.bias"][0]) == pytest.approx(exact["d_b0"], abs=4 * error + 1e-6)
    spread = CASES["A"]["iwae"][str(k)]["std_of_one_estimate"]
    assert -float(value.detach()) == pytest.approx(CASES["A"]["iwae"][str(k)]["value"], abs=4 * spread / n**0.5)


def test_dreg_varies_less_than_standard():
    """One row at a time, k = 50: the oracle's signal to noise is 2.3 against 0.035."""
    model, x = of_case(CASES["A"])
    noise = model.draw(50, 300, generator())
    of_m = {}
    for estimator in ("standard", "dreg"):
        objective = Objective("iwae", estimator, 50)
        parts = [Noise(noise.first[:, i : i + 1]) for i in range(300)]
        of_m[estimator] = torch.stack(
            [gradients(model, loss(model, x, part, objective))["posterior.bias"][0] for part in parts]
        )
    ratio = of_m["standard"].std() / of_m["dreg"].std()
    expected = GRADIENTS["50"]["monte_carlo"]["std_m"]["std"] / GRADIENTS["50"]["monte_carlo"]["dreg_m"]["std"]
    assert float(ratio) == pytest.approx(expected, rel=0.3)


# --- gradients from their definitions


def written_out(model: LatentModel, x: Tensor, noise: Noise, c: Tensor, a: Tensor) -> dict[str, Tensor]:
    """Mean over rows of -sum_i (a_i d log w_i / d theta, c_i d log w_i / dz dz / dphi), sample by sample."""
    grads = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    encoder = {name: p for name, p in model.named_parameters() if name not in model.generative}
    decoder = {name: p for name, p in model.named_parameters() if name in model.generative}
    for b in range(len(x)):
        row, q = x[b : b + 1], model.encode(x[b : b + 1])
        for i in range(len(noise.first)):
            part = Noise(noise.first[i : i + 1, b : b + 1])
            z = q.at(part.first)
            leaf = z.detach().requires_grad_()
            log_w = model(row, q.detached(), leaf, part).sum()
            of_z, *of_p = torch.autograd.grad(log_w, [leaf, *decoder.values()])
            for name, gradient in zip(decoder, of_p, strict=True):
                grads[name] -= a[i, b] * gradient / len(x)
            of_q = torch.autograd.grad(z, list(encoder.values()), of_z, retain_graph=True)
            for name, gradient in zip(encoder, of_q, strict=True):
                grads[name] -= c[i, b] * gradient / len(x)
    return grads


@pytest.mark.parametrize("estimator", ["stl", "dreg"])
def test_path_gradients_are_the_sums_they_are_defined_by(estimator):
    model, x, noise = small()
    with torch.no_grad():
        log_w = log_w_of(model, x, noise)
    power = 2 if estimator == "dreg" else 1
    share = (log_w - log_w.logsumexp(0)).exp()
    assert_equal(
        gradients(model, loss(model, x, noise, Objective("iwae", estimator, K))),
        written_out(model, x, noise, share**power, share),
    )
    even = torch.full_like(share, 1 / K)
    assert_equal(
        gradients(model, loss(model, x, noise, Objective("elbo", estimator, K))),
        written_out(model, x, noise, even, even),
    )
    c = 0.3 / K + 0.7 * share**power
    assert_equal(
        gradients(model, loss(model, x, noise, Objective("ciwae", estimator, K, beta=0.3))),
        written_out(model, x, noise, c, 0.3 / K + 0.7 * share),
    )


@pytest.mark.parametrize(("name", "latent"), [(name, latent) for name in NAMES for latent in ((2,), (2, 3))])
def test_standard_gradients_are_those_of_the_bound(name, latent):
    model, x, noise = small(latent)
    log_w = log_w_of(model, x, noise)
    iwae = torch.logsumexp(log_w, 0) - math.log(K)
    groups = log_w.view(3, 4, ROWS)
    bounds = {
        "elbo": log_w.mean(0),
        "iwae": iwae,
        "miwae": torch.stack([torch.logsumexp(group, 0) - math.log(4) for group in groups]).mean(0),
        "ciwae": 0.2 * log_w.mean(0) + 0.8 * iwae,
        "piwae": iwae,
    }
    value = loss(model, x, noise, Objective(name, "standard", K, groups=3, beta=0.2))
    assert value.dtype == torch.float64 and value.ndim == 0
    assert float(value.detach()) == pytest.approx(-float(bounds[name].detach().mean()), rel=1e-12)
    expected = gradients(model, -bounds[name].mean())
    names = model.generative if name == "piwae" else None
    assert_equal(gradients(model, value), expected, names)


# --- the objectives of Rainforth et al. against one another


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_miwae_is_the_mean_of_independent_bounds(estimator):
    model, x, noise = small()
    value = loss(model, x, noise, Objective("miwae", estimator, K, groups=3))
    parts = [loss(model, x, part, Objective("iwae", estimator, 4)) for part in noise.chunks(4)]
    assert float(value.detach()) == pytest.approx(float(sum(parts).detach()) / 3, rel=1e-12)
    assert_equal(gradients(model, value), gradients(model, sum(parts) / 3))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_ciwae_is_between_elbo_and_iwae(estimator):
    model, x, noise = small()
    value = loss(model, x, noise, Objective("ciwae", estimator, K, beta=0.05))
    elbo, iwae = (loss(model, x, noise, Objective(name, estimator, K)) for name in ("elbo", "iwae"))
    assert float(value.detach()) == pytest.approx(float((0.05 * elbo + 0.95 * iwae).detach()), rel=1e-12)
    assert_equal(gradients(model, value), gradients(model, 0.05 * elbo + 0.95 * iwae))
    for beta, same in ((0.0, "iwae"), (1.0, "elbo")):
        limit = loss(model, x, noise, Objective("ciwae", estimator, K, beta=beta))
        assert_equal(gradients(model, limit), gradients(model, loss(model, x, noise, Objective(same, estimator, K))))


@pytest.mark.parametrize(
    ("estimator", "latent"), [("standard", (2,)), ("stl", (2,)), ("dreg", (2,)), ("standard", (2, 3))]
)
def test_piwae_takes_the_decoder_of_one_and_the_encoder_of_the_other(estimator, latent):
    model, x, noise = small(latent)
    value = loss(model, x, noise, Objective("piwae", estimator, K, groups=3))
    ours, of_p = gradients(model, value), model.generative
    iwae = loss(model, x, noise, Objective("iwae", estimator, K))
    assert float(value.detach()) == pytest.approx(float(iwae.detach()), rel=1e-12)
    assert_equal(ours, gradients(model, iwae), of_p)
    miwae = gradients(model, loss(model, x, noise, Objective("miwae", estimator, K, groups=3)))
    assert_equal(ours, miwae, set(ours) - of_p)
    name = "decoder.0.weight"
    assert not torch.allclose(ours[name], miwae[name], rtol=1e-3)


def test_the_value_is_the_bound_and_not_the_surrogates():
    """sum wt log w has IWAE's gradient, but lies above the bound (specification, section 5)."""
    model, x, noise = small()
    with torch.no_grad():
        log_w = log_w_of(model, x, noise)
    bound = float((torch.logsumexp(log_w, 0) - math.log(K)).mean())
    for estimator in ESTIMATORS:
        assert -float(loss(model, x, noise, Objective("iwae", estimator, K)).detach()) == pytest.approx(
            bound, rel=1e-12
        )
    assert float((log_w.softmax(0) * log_w).sum(0).mean()) > bound + 0.01


# --- chunks


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("absence", [False, True])
def test_chunks_have_the_gradient_of_the_whole(name, estimator, absence, monkeypatch):
    model, x, noise = small(absence=absence)
    objective = Objective(name, estimator, K, groups=3, beta=0.2)
    whole = loss(model, x, noise, objective)
    expected = gradients(model, whole)
    for samples in (1, 5):
        monkeypatch.setattr(objectives, "NUMBERS_AT_ONCE", samples * model.numbers_a_sample * ROWS)
        assert objectives.samples_at_once(model, ROWS) == samples
        calls = []
        model.register_forward_pre_hook(lambda _, args: calls.append(len(args[2])))  # noqa: B023
        chunked = loss(model, x, noise, objective)
        assert max(calls) == samples and len(calls) >= -(-K // samples)
        assert float(chunked.detach()) == pytest.approx(float(whole.detach()), rel=1e-12)
        assert_equal(gradients(model, chunked), expected)
        model._forward_pre_hooks.clear()


def test_chunks_of_two_layers_have_the_gradient_of_the_whole(monkeypatch):
    model, x, noise = small((2, 3))
    for name in NAMES:
        objective = Objective(name, "standard", K, groups=3)
        monkeypatch.setattr(objectives, "NUMBERS_AT_ONCE", 2**26)
        expected = gradients(model, loss(model, x, noise, objective))
        monkeypatch.setattr(objectives, "NUMBERS_AT_ONCE", 5 * model.numbers_a_sample * ROWS)
        assert_equal(gradients(model, loss(model, x, noise, objective)), expected)


@pytest.mark.parametrize("name", ["iwae", "piwae"])
@pytest.mark.parametrize("estimator", ["standard", "dreg"])
def test_chunks_keep_little_for_the_backward_pass(name, estimator, monkeypatch):
    """Beside the samples themselves nothing that is kept grows with k."""
    torch.manual_seed(0)
    model = LatentModel((200,), Bernoulli(200), [2], [[100]])
    x = (torch.rand(5, 200, generator=generator()) < 0.5).float()
    kept = {}

    def bytes_kept(k: int) -> int:
        held: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            value = loss(model, x, model.draw(k, 5, generator()), Objective(name, estimator, k, groups=2))
        value.backward()
        return sum(held.values())

    kept["whole"] = bytes_kept(400) - bytes_kept(200)
    monkeypatch.setattr(objectives, "NUMBERS_AT_ONCE", 20 * model.numbers_a_sample * 5)
    kept["chunks"] = bytes_kept(400) - bytes_kept(200)
    per_sample = {how: size / (200 * 5) for how, size in kept.items()}
    assert per_sample["whole"] > 4 * 300
    assert per_sample["chunks"] < 200  # z, its gradient and log w, some of it twice in float64


def test_without_gradient_chunks_are_the_whole(monkeypatch):
    model, x, noise = small()
    with torch.no_grad():
        q = model.encode(x)
        whole = objectives.log_weights(model, x, q, q.at(noise.first), noise)
        monkeypatch.setattr(objectives, "NUMBERS_AT_ONCE", 1)
        torch.testing.assert_close(objectives.log_weights(model, x, q, q.at(noise.first), noise), whole)


# --- weights that are far apart


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_numbers_where_weights_underflow(name, estimator):
    model, x, noise = small()
    objective = Objective(name, estimator, K, groups=3, beta=0.0)
    grads = gradients(model, loss(model, 300 * x, noise, objective))
    with torch.no_grad():
        assert (log_w_of(model, 300 * x, noise).softmax(0) == 0).any()
    assert all(gradient.isfinite().all() for gradient in grads.values())


def test_a_row_whose_every_weight_is_zero_has_no_bound():
    for name in NAMES:
        bound = Objective(name, "standard", 4, groups=2).bound(torch.full((4, 2), -torch.inf, dtype=torch.float64))
        assert (bound == -torch.inf).all()
