"""VAE and IWAE as a detector: scores from their definitions, PPCA in closed form, tables, images, gaps, bad input."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits

from outlie import stages
from outlie.density import objectives, scores
from outlie.density.complexity import binarised, binarised_alike, png_bits
from outlie.density.corruption import block_of_column, gaps_at_random, noised
from outlie.density.objectives import Objective, loss
from outlie.density.regret import regret
from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.vae import VAE
from outlie.errors import UserError
from outlie.trainer import Options
from outlie.validation import held_out

from .oracle_models import generator

CPU = torch.device("cpu")
SEED = 3
SMALL = {"hidden": [8], "latent": 2, "k": 4, "epochs": 2, "batch_size": 32, "lr": 1e-2}
IMAGES = {"hidden": [16], "latent": 2, "k": 3, "epochs": 2, "batch_size": 32, "lr": 1e-2}
NAN = float("nan")


def table(n: int = 60, dim: int = 4, seed: int = 0) -> Views:
    """Standardised rows on a plane, with noise."""
    random = generator(seed)
    z, turn = torch.randn(n, 2, generator=random), torch.randn(2, dim, generator=generator(99))
    return Views(x=z @ turn + 0.3 * torch.randn(n, dim, generator=random))


def digits(n: int = 80) -> Views:
    """Grey digits, 8 x 8, as backbone pixels hands them on: 17 of the 256 levels."""
    return Views(x=(torch.from_numpy(load_digits().images[:n]) * 15).float()[:, None] / 255)


def fresh(views: Views, blocks=(), **options) -> VAE:
    detector = VAE(**options)
    set_up(detector, Spec({"x": tuple(views.x.shape[1:])}, SEED, blocks=blocks))
    return detector


def trained(views: Views, folder, blocks=(), precision="32-true", **options) -> VAE:
    detector = fresh(views, blocks, **options)
    run = Options(accelerator="cpu", threads=1, precision=precision)
    spent = stages.train(detector, views, SEED, run, folder)
    assert all(map(math.isfinite, [*spent["losses"], *spent["validation_losses"]]))
    stages.fit(detector, views, CPU)
    return detector.eval()


def scored(detector: VAE, views: Views, at_once: int | None = None) -> torch.Tensor:
    return stages.score(detector, views, CPU, at_once)


# --- scores


def log_w(model, x: torch.Tensor, k: int) -> torch.Tensor:
    """(k, B) log-weights by the model's networks, of the draws that every score uses."""
    noise, q = scores.draws(model, k, SEED), model.encode(x)
    return model(x, q, q.at(noise.first), noise).detach()


def log_mean(log_w: torch.Tensor) -> np.ndarray:
    return logsumexp(log_w.numpy(), axis=0) - math.log(len(log_w))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Binarised digits, two models and one of the background; and test images with others among them."""
    options = {"likelihood": "bernoulli", "binarise": True, "members": 2, "background": 0.3, "estimator": "dreg"}
    detector = trained(digits(), tmp_path_factory.mktemp("made"), **IMAGES, **options)
    noise = torch.rand(5, 1, 8, 8, generator=generator())
    return detector, Views(x=torch.cat([digits(90).x[80:], noise]))


def defined(name: str, detector: VAE, views: Views, k: int) -> np.ndarray:
    """The score of the table in section 7 of the specification, from log-weights and networks."""
    x = binarised_alike(views.x, SEED)
    model, flat = detector.model, x.flatten(1)
    q, bound = model.encode(x), log_mean(log_w(model, x, k))
    weights = log_w(model, x, k)
    z = q.at(scores.draws(model, k, SEED).first)
    reconstruction = torch.distributions.Bernoulli(logits=model.decode(z)).log_prob(flat).sum(-1).mean(0)
    mean, std = q.mean.double(), q.log_std.double().exp()
    kl = 0.5 * (mean**2 + std**2 - 1).sum(1) - std.log().sum(1)
    if name == "neg_iwae":
        return -bound
    if name == "neg_elbo":
        return (kl - reconstruction).detach().numpy()
    if name == "recon_prob":
        return -reconstruction.detach().numpy()
    if name == "recon_err":
        return (flat - model.decode(q.mean).sigmoid()).square().sum(1).detach().numpy()
    if name == "latent_kl":
        return kl.detach().numpy()
    if name == "bound_gap":
        return bound - weights.mean(0).numpy()
    if name == "llr":
        return log_mean(log_w(detector.noise_model, x, k)) - bound
    if name == "input_complexity":
        return -bound / math.log(2) - png_bits(x, 2).numpy()
    if name == "regret":
        return regret(model, x, SEED).numpy()
    if name == "waic":
        members = np.stack([log_mean(log_w(one, x, k)) for one in detector.models])
        return members.var(0) - members.mean(0)
    if name == "typicality":
        return np.abs(-bound - float(detector.entropy))
    assert name == "recon_err_sir"
    drawn = [scores.sir(model, x, k, SEED + i) for i in range(10)]
    return np.mean([(flat - model.decode(z).sigmoid()).square().sum(1).detach().numpy() for z in drawn], 0)


DEFAULT = {"neg_iwae": 128, "bound_gap": 128, "recon_err_sir": 128, "typicality": 128}
KEYS = ["neg_elbo", "neg_iwae", "recon_prob", "recon_err", "recon_err_sir", "latent_kl", "bound_gap", "llr",
        "input_complexity", "regret", "waic", "typicality"]  # fmt: skip


@pytest.mark.parametrize("name", KEYS)
def test_every_score_is_what_it_says(name, made):
    detector, test = made
    options = {"likelihood": "bernoulli", "binarise": True, "members": 2, "background": 0.3}
    for draws in (None, 7) if name != "regret" else (None,):
        own = fresh(test, **IMAGES, **options, score_by=name, draws=draws).eval()
        own.load_state_dict(detector.state_dict())  # the weights are the same whatever the score
        result = scored(own, test)
        assert result.shape == (15,) and result.dtype == torch.float64 and result.isfinite().all()
        expected = defined(name, detector, test, draws or DEFAULT.get(name, 64))
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=2e-4)
        assert torch.equal(scored(own, test), result)  # bit by bit
        if name != "regret":  # a hundred steps for each batch; test_regret.py looks at single rows
            torch.testing.assert_close(scored(own, test, 1), result, rtol=1e-4, atol=1e-4)
        backwards = Views(x=test.x.flip(0))
        torch.testing.assert_close(scored(own, backwards).flip(0), result, rtol=1e-4, atol=1e-4)


def test_the_entropy_is_of_the_rows_held_out_of_training(made):
    detector, _ = made
    rows = digits().x[held_out(80, 0.1, SEED)[1]]
    assert len(rows) == 8
    expected = -log_mean(log_w(detector.model, binarised_alike(rows, SEED), 128)).mean()
    assert float(detector.entropy) == pytest.approx(expected, rel=1e-6)


def test_without_held_out_rows_the_entropy_is_of_all():
    for n in (1, 5):
        views = table(n)
        detector = fresh(views, **SMALL, validation=0.0)
        stages.fit(detector, views, CPU)
        rows = views.x if n == 1 else views.x[held_out(5, 1.0, SEED)[1]]
        assert len(rows) == max(1, n - 1)
        assert float(detector.entropy) == pytest.approx(-log_mean(log_w(detector.model, rows, 128)).mean(), rel=1e-6)


def test_score_and_loss_do_not_move_with_the_scoring_options():
    assert {"score_by", "draws", "diagnose"} == set(VAE.scoring)
    one, other = (fresh(table(), **SMALL, score_by=name).state_dict() for name in ("neg_iwae", "recon_err"))
    assert all(torch.equal(one[name], other[name]) for name in one)


# --- what it learns


def test_a_linear_model_reaches_the_maximum_likelihood_of_ppca(tmp_path):
    """Tipping and Bishop 1999: W = U (L - s^2)^(1/2), s^2 the mean of the other eigenvalues."""
    random = np.random.default_rng(0)
    W = random.normal(size=(6, 2)) * 1.2
    x = random.normal(size=(600, 2)) @ W.T + 0.5 * random.normal(size=(600, 6)) + [1, -1, 0, 0.5, 0, 2]
    covariance = np.cov(x.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    noise = values[:4].mean()
    top = vectors[:, 4:] * np.sqrt(values[4:] - noise)
    best = -multivariate_normal(x.mean(0), top @ top.T + noise * np.eye(6)).logpdf(x).mean()
    options = {"likelihood": "gaussian", "hidden": [], "latent": 2, "k": 5, "lr": 0.02, "decay_lr": True}
    views = Views(x=torch.from_numpy(x))
    detector = trained(views, tmp_path, **options, epochs=40, batch_size=60, validation=0.0)
    with torch.no_grad():
        layer, (_, scale) = detector.model.decoder[0], detector.model.likelihood.loc_scale(torch.zeros(1, 6))
        own = (layer.weight @ layer.weight.T + scale.square().diag()).double().numpy()
    learnt = -multivariate_normal(layer.bias.detach().double().numpy(), own).logpdf(x)
    assert learnt.mean() == pytest.approx(best, rel=0.01)
    start = -multivariate_normal(x.mean(0), np.diag(covariance.diagonal())).logpdf(x).mean()
    assert start > 1.1 * best  # what it starts from, independent columns
    # and the score is that density, as q can be the posterior
    assert scored(detector, views).mean() == pytest.approx(learnt.mean(), rel=0.01)
    np.testing.assert_allclose(scored(detector, views), learnt, atol=0.5)


def test_same_seed_same_scores_bit_by_bit(tmp_path):
    views, results = table(), []
    for i, seed in enumerate((3, 3, 4)):
        torch.manual_seed(i)
        detector = VAE(**SMALL)
        set_up(detector, Spec({"x": (4,)}, seed))
        stages.train(detector, views, seed, Options(accelerator="cpu", threads=1), tmp_path / str(i))
        results.append(scored(detector, views))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_interrupted_and_resumed_gives_the_same_weights(tmp_path):
    views, options = table(), SMALL | {"epochs": 5, "members": 2, "background": 0.2}
    run = Options(accelerator="cpu", threads=1, checkpoint_seconds=0)

    def train(folder, steps: int | None = None) -> VAE:
        detector, done = fresh(views, **options), []
        original = detector.loss

        def loss(views, generator):
            done.append(0)
            if len(done) == steps:
                raise RuntimeError("killed")
            return original(views, generator)

        detector.loss = loss
        stages.train(detector, views, SEED, run, folder)
        assert len(done) == (10 if steps is None and folder.name == "straight" else 10 - 6)
        return detector

    straight = train(tmp_path / "straight")
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "broken", 8)  # in the fourth of five epochs of two batches
    resumed = train(tmp_path / "broken").state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in straight.state_dict().items())


@pytest.mark.parametrize("objective", ["elbo", "iwae", "miwae", "ciwae", "piwae"])
@pytest.mark.parametrize("estimator", ["standard", "stl", "dreg"])
def test_every_objective_learns(objective, estimator, tmp_path):
    options = SMALL | {"objective": objective, "estimator": estimator, "groups": 2, "lr": 0.02, "epochs": 8}
    views = table(150)
    before = fresh(views, **options)
    before.prepare(views)
    detector = trained(views, tmp_path, **options)
    test = table(100, seed=1)
    assert scored(detector, test).mean() < scored(before, test).mean() - 0.3


def test_the_loss_is_the_sum_over_the_models():
    views = digits(6)
    detector = fresh(views, **IMAGES, binarise=True, members=2, background=0.4)
    ours = detector.loss(views, generator(1))
    random, expected = generator(1), 0.0
    for model in (*detector.models, detector.noise_model):
        x = noised(views.x, 0.4, detector.block_of, random) if model is detector.noise_model else views.x
        x = binarised(x, random)
        expected = expected + loss(model, x, model.draw(3, 6, random), Objective("iwae", "dreg", 3))
    assert float(ours.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    weights = [model.posterior.weight for model in detector.all_models]
    assert len(weights) == 3 and not torch.equal(weights[0], weights[1])  # they start apart


def test_the_validation_is_the_bound_of_twenty_samples():
    views = table(1100)
    detector = fresh(views, **SMALL, members=2)
    expected = -sum(log_mean(log_w(model, views.x, 20)) for model in detector.models).mean()
    with torch.no_grad():
        assert float(detector.validate(views)) == pytest.approx(expected, rel=1e-6)


# --- rows and images


@pytest.mark.parametrize("scale", ["fixed", "feature", "sample"])
@pytest.mark.parametrize("kinds", [False, True])
def test_tables(scale, kinds, tmp_path):
    views, blocks = table(), ()
    if kinds:  # two numbers, a boolean, three levels of a text: standardised
        on = torch.nn.functional.one_hot(torch.arange(60) % 3, 3).float()
        views.x = torch.cat([views.x[:, :2], (views.x[:, 2:3] > 0).float(), on], 1)
        views.x = (views.x - views.x.mean(0)) / views.x.std(0)
        blocks = (("number", 2), ("boolean", 1), ("levels", 3))
    detector = trained(views, tmp_path, blocks, **SMALL, likelihood="gaussian", scale=scale)
    result = scored(detector, views)
    assert result.isfinite().all()
    torch.testing.assert_close(scored(detector, views, 1), result, rtol=1e-4, atol=1e-4)
    far = Views(x=views.x.clone())
    far.x[:, 0] += 30
    assert (scored(detector, far) > result).all()


def test_a_level_that_training_never_saw_is_unusual(tmp_path):
    on = torch.nn.functional.one_hot(torch.arange(90) % 3, 3).float()
    train = (on - on.mean(0)) / on.std(0)
    detector = trained(Views(x=train), tmp_path, (("levels", 3),), **SMALL | {"epochs": 30})
    unseen = -on.mean(0) / on.std(0)
    result = scored(detector, Views(x=torch.cat([train[:3], unseen[None]])))
    assert result.isfinite().all() and result[3] > result[:3].max() + 1


def test_constant_columns_do_not_diverge(tmp_path):
    views = table()
    views.x[:, 1] = 0
    for likelihood in ("gaussian", "student_t"):
        detector = trained(views, tmp_path / likelihood, **SMALL | {"epochs": 30, "lr": 0.05}, likelihood=likelihood)
        result = scored(detector, views)
        assert result.isfinite().all() and result.min() > -20  # log N(0; 0, 0.05) = 2.1 is all that it can give
        moved = Views(x=views.x.clone())
        moved.x[:, 1] = 5
        assert (scored(detector, moved) > result + 5).all() and scored(detector, moved).isfinite().all()


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize(
    "likelihood",
    [
        {"likelihood": "bernoulli", "binarise": True},
        {"likelihood": "continuous_bernoulli"},
        {"likelihood": "categorical"},
        {"likelihood": "gaussian"},
        {"likelihood": "gaussian", "scale": "sample"},
    ],
    ids=lambda own: "-".join(map(str, own.values())),
)
def test_images(network, likelihood, tmp_path):
    views = digits(120)
    detector = trained(views, tmp_path, **IMAGES | {"network": network, "epochs": 5}, **likelihood)
    noise = torch.rand(20, 1, 8, 8, generator=generator())
    test = Views(x=torch.cat([digits(150).x[120:], (noise * 255).round() / 255]))
    result = scored(detector, test)
    assert result.shape == (50,) and result.isfinite().all()
    torch.testing.assert_close(scored(detector, test, 1), result, rtol=1e-4, atol=1e-3)
    assert result[:30].median() < result[30:].median()


def test_colour_images_and_odd_options():
    views = Views(x=torch.rand(6, 3, 8, 12, generator=generator()))
    for options in ({"network": "conv"}, {"network": "conv", "hidden": []}, {"hidden": []}, {"activation": "silu"}):
        detector = fresh(views, **IMAGES | options)
        detector.prepare(views)
        detector.loss(views, generator()).backward()
        assert scored(detector, views).isfinite().all()
    assert type(detector.model.likelihood).__name__ == "ContinuousBernoulli"


def test_what_is_not_said_depends_on_the_rows():
    def family(**options) -> tuple[str, int, int]:
        detector = fresh(digits(2) if "binarise" in options else table(dim=options.pop("dim")), **options)
        first = next(m for m in detector.model.encoder if isinstance(m, torch.nn.Linear))
        return type(detector.model.likelihood).__name__, detector.model.latent[0], first.out_features

    assert family(dim=4) == ("StudentT", 2, 128)
    assert family(dim=2) == ("StudentT", 2, 128)
    assert family(dim=20) == ("StudentT", 10, 128)
    assert family(dim=90) == ("StudentT", 16, 128)
    assert family(binarise=False) == ("ContinuousBernoulli", 50, 200)
    assert family(binarise=True) == ("Bernoulli", 50, 200)  # what is 0 or 1 has a probability, not a density


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_two_layers(network, tmp_path):
    options = IMAGES | {"latent": 4, "latent_2": 2, "hidden_2": [8], "estimator": "standard", "network": network}
    views = digits()
    detector = trained(views, tmp_path, **options)
    result = scored(detector, views)
    assert result.isfinite().all() and detector.model.latent == (4, 2)
    torch.testing.assert_close(scored(detector, views, 1), result, rtol=1e-4, atol=1e-3)


def test_the_score_survives_saving(tmp_path):
    views = table()
    detector = trained(views, tmp_path, **SMALL, score_by="typicality")
    again = fresh(views, **SMALL, score_by="typicality")
    again.load_state_dict(detector.state_dict())
    assert torch.equal(scored(again.eval(), views), scored(detector, views))


# --- gaps


@pytest.mark.parametrize(
    ("missing", "likelihood"), [("random", "gaussian"), ("random", "student_t"), ("absence", "gaussian")]
)
def test_rows_with_gaps(missing, likelihood, tmp_path):
    views = table(120)
    views.x[torch.rand(views.x.shape, generator=generator(5)) < 0.2] = NAN
    views.x[:, 3] = NAN  # a column that was never there
    views.x[0] = NAN
    options = SMALL | {"likelihood": likelihood, "missing": missing, "epochs": 5}
    detector = trained(views, tmp_path, **options)
    assert detector.gaps
    assert all(p.isfinite().all() for p in detector.parameters())
    result = scored(detector, views)
    assert result.isfinite().all()
    torch.testing.assert_close(scored(detector, views, 1), result, rtol=1e-4, atol=1e-4)
    complete = scored(detector, Views(x=torch.cat([table(3).x[:, :3], torch.full((3, 1), NAN)], 1)))
    assert complete.isfinite().all()
    there = scored(detector, table(3))  # and here it is
    assert there.isfinite().all()


def test_a_row_without_values_says_nothing(tmp_path):
    """p(nothing) = 1: where q is the prior the score is 0."""
    views = table(200)
    views.x[:60] = NAN
    detector = trained(views, tmp_path, **SMALL | {"epochs": 40}, missing="random")
    assert scored(detector, views[torch.arange(1)]).item() == pytest.approx(0, abs=0.1)


def test_absence_learns_which_values_are_missing(tmp_path):
    """Values above 0.5 of the first column are not there; the model's slope says so, and a gap is no surprise then."""
    views = table(600)
    hidden = views.x[:, 0] > 0.5
    views.x[hidden, 0] = NAN
    options = SMALL | {"likelihood": "gaussian", "missing": "absence", "epochs": 60, "lr": 0.03, "hide": 0.5}
    detector = trained(views, tmp_path, **options)
    slope, offset = detector.model.slope.detach(), detector.model.offset.detach()
    assert slope[0] > 0.5
    assert (offset[1:] < -2).all()  # the others are never missing; hiding some in training must not say they are
    rows = torch.tensor([[NAN, 0, 0, 0], [0, NAN, 0, 0]])
    first, second = scored(detector, Views(x=rows))
    assert second > first


def test_values_are_hidden_in_blocks():
    block_of = block_of_column((("number", 2), ("levels", 3), ("boolean", 2), ("levels", 2)), 9)
    assert block_of.tolist() == [0, 1, 2, 2, 2, 3, 4, 5, 5]
    assert block_of_column((), 3).tolist() == [0, 1, 2]
    x = torch.arange(9.0).expand(20_000, 9).clone()
    hidden = gaps_at_random(x, 0.3, block_of, generator())
    gone = hidden.isnan().double()
    assert not x.isnan().any() and torch.equal(hidden[gone == 0], x[gone == 0])
    assert torch.equal(gone[:, 2], gone[:, 3]) and torch.equal(gone[:, 2], gone[:, 4])
    torch.testing.assert_close(gone.mean(0), torch.full((9,), 0.3).double(), atol=4 * (0.21 / 20_000) ** 0.5, rtol=0)
    assert abs(np.corrcoef(gone[:, 1], gone[:, 2])[0, 1]) < 0.04


def test_noise_of_the_background_is_uniform_or_from_other_rows():
    images = torch.full((400, 1, 5, 5), 2.0)
    loud = noised(images, 0.25, block_of_column((), 25), generator())
    changed = loud != 2
    assert float(changed.double().mean()) == pytest.approx(0.25, abs=4 * (0.1875 / 10_000) ** 0.5)
    assert 0 <= loud[changed].min() < 0.01 and 0.99 < loud[changed].max() <= 1
    rows = torch.arange(1000.0)[:, None] + torch.tensor([[0.0, 10_000, 20_000]])
    mixed = noised(rows, 0.4, block_of_column((("number", 1), ("levels", 2)), 3), generator())
    for column in range(3):  # the column's own values
        assert set(mixed[:, column].tolist()) <= set(rows[:, column].tolist())
    assert torch.equal(mixed[:, 2] - mixed[:, 1], torch.full((1000,), 10_000.0))  # a block stays together
    share = (mixed != rows).double().mean(0)
    torch.testing.assert_close(share, torch.full((3,), 0.4).double(), atol=0.07, rtol=0)


def test_the_background_leaves_nothing_out(tmp_path):
    for views, options in ((table(), SMALL), (digits(), IMAGES)):
        detector = trained(views, tmp_path / str(views.x.ndim), **options, background=0.2, score_by="llr")
        assert scored(detector, views).isfinite().all()


# --- memory and precision


def test_more_samples_than_fit_into_memory(monkeypatch):
    views = table(8)
    detector = fresh(views, **SMALL | {"k": 4000})
    whole = detector.loss(views, generator())
    whole.backward()
    expected = detector.model.posterior.weight.grad.clone()
    monkeypatch.setattr(objectives, "NUMBERS_AT_ONCE", 300 * detector.model.numbers_a_sample * 8)
    sizes = []
    detector.model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[2])))
    detector.zero_grad()
    chunked = detector.loss(views, generator())
    chunked.backward()
    assert max(sizes) == 300 and sum(sizes) == 2 * 4000  # each once more for the gradient
    assert float(chunked.detach()) == pytest.approx(float(whole.detach()), rel=1e-6)
    torch.testing.assert_close(detector.model.posterior.weight.grad, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("latent_2", [None, 2])
def test_bfloat16_keeps_the_weights_in_float64(latent_2):
    views = digits(20)
    detector = fresh(views, **IMAGES | {"hidden": [200, 200], "latent_2": latent_2, "estimator": "standard", "k": 20})
    detector.prepare(views)
    model, noise = detector.model, detector.model.draw(20, 20, generator())
    with torch.no_grad():
        q = model.encode(views.x)
        exact = model(views.x, q, q.at(noise.first), noise)
        with torch.autocast("cpu", torch.bfloat16):
            assert model.decoder(q.at(noise.first)).dtype == torch.bfloat16  # it does run in half precision
            q = model.encode(views.x)
            half = model(views.x, q, q.at(noise.first), noise)
    assert q.mean.dtype == torch.float32 and half.dtype == torch.float64
    error = (half - exact).abs()
    assert error.mean() < 0.05 * exact.std() and error.max() < 0.5 * exact.std()
    assert len(half.unique()) > 390  # bf16 has 3 digits: sums of it would coincide


def test_training_in_bfloat16(tmp_path):
    half = trained(digits(), tmp_path / "half", precision="bf16-mixed", **IMAGES)
    full = trained(digits(), tmp_path / "full", **IMAGES)
    one, other = scored(half, digits()), scored(full, digits())
    assert (one - other).abs().mean() < 0.1 * other.std()
    assert all(p.dtype == torch.float32 for p in half.parameters())


# --- bad input


@pytest.mark.parametrize(
    "options", [{"likelihood": "bernoulli"}, {}, {"likelihood": "categorical"}, {"binarise": True}]
)
@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_pixels_outside_0_and_1_are_refused(options, value, tmp_path):
    views = digits(40)
    detector = fresh(views, **IMAGES, **options)
    bad = Views(x=views.x.clone())
    bad.x[3, 0, 2, 2] = value
    says = r"values from .* to .*, but this likelihood takes values between 0 and 1: set backbone=pixels for images"
    with pytest.raises(UserError, match=says):
        scored(detector, bad)
    with pytest.raises(UserError, match=says):
        stages.train(detector, bad, SEED, Options(accelerator="cpu"), tmp_path)


def test_any_pixels_do_for_gaussians():
    views = Views(x=3 * torch.randn(5, 1, 8, 8, generator=generator()))
    assert scored(fresh(views, **IMAGES, likelihood="gaussian"), views).isfinite().all()


def test_values_beyond_all_weights_stop_the_training(tmp_path):
    """Every weight of the row is 0."""
    views = table()
    views.x[:] = views.x.double() * 1e30
    detector = fresh(views, **SMALL, likelihood="gaussian", scale="fixed")
    with pytest.raises(
        UserError, match=r"training loss became -?(nan|inf) in epoch 0, step .* extreme values in the data"
    ):
        stages.train(detector, views, SEED, Options(accelerator="cpu"), tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"latent_2": 3}, r"estimator=dreg is for one .*detector\.estimator=standard"),
        ({"latent_2": 3, "estimator": "stl"}, r"estimator=stl is for one .*detector\.estimator=standard"),
        ({"objective": "miwae", "k": 9, "groups": 2}, "k=9 samples do not make 2 equal groups"),
        ({"objective": "piwae"}, "k=20 samples do not make 8 equal groups: set detector"),
        ({"missing": "absence"}, r"missing=absence .*detector\.likelihood=gaussian"),
        ({"missing": "absence", "likelihood": "student_t"}, r"missing=absence .*detector\.likelihood=gaussian"),
        ({"missing": "random", "binarise": True}, "missing values are for tables"),
        ({"missing": "random", "likelihood": "categorical"}, "missing values are for tables"),
        ({"validation": 1.0}, r"validation=1\.0, hide=0\.2 and beta=0\.05 are shares: set them below 1"),
        ({"missing": "random", "hide": 1.5}, r"hide=1\.5 and beta=0\.05 are shares"),
        ({"score_by": "waic"}, r"waic compares models: set detector\.members=5"),
        ({"score_by": "llr"}, r"llr needs a second model: set detector\.background=0\.2"),
        ({"score_by": "input_complexity"}, r"input_complexity needs a probability in bits.*likelihood=categorical"),
        ({"score_by": "regret", "latent_2": 3, "estimator": "standard"}, "regret optimises one encoder"),
        ({"binarise": True, "likelihood": "gaussian"}, r"binarise=true .*likelihood=gaussian: set .*likelihood=bernou"),
    ],
)
def test_options_that_do_not_go_together(options, says):
    with pytest.raises(UserError, match=says):
        VAE(**options)


def test_what_only_the_rows_can_tell():
    with pytest.raises(UserError, match="compresses images, and these are rows: set backbone=pixels"):
        fresh(table(), likelihood="categorical", score_by="input_complexity")
    with pytest.raises(UserError, match=r"network=conv takes images, the rows have shape \(4,\)"):
        fresh(table(), network="conv")
    with pytest.raises(UserError, match="likelihood=categorical on columns of kinds boolean, number"):
        fresh(table(), (("number", 3), ("boolean", 1)), likelihood="categorical")
    with pytest.raises(UserError, match="5 x 8 must be multiples of 4"):
        fresh(Views(x=torch.rand(2, 1, 5, 8)), network="conv")
