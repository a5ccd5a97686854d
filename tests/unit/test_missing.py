"""Filling gaps and surprise of single values against the normal conditionals of a linear model, and brute force."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.special import expit
from sklearn.datasets import load_wine

from outlie import stages
from outlie.density import objectives, scores
from outlie.density.corruption import block_of_column
from outlie.density.latent import LatentModel, Normal
from outlie.density.likelihoods import Gaussian
from outlie.density.missing import attribution, impute, multiple_imputation, per_observed
from outlie.density.mixed import Mixed
from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.vae import VAE
from outlie.trainer import Options

ORACLE = json.loads((Path(__file__).parents[1] / "golden" / "iwae_oracle.json").read_text())["missing_data"]
W, B, VARIANCE = (np.array(ORACLE["model"][name]) for name in ("W", "b", "sigma2"))
SIGMA = W @ W.T + np.diag(VARIANCE)  # covariance of x
CASES = ORACLE["cases"]
EACH_COLUMN = torch.arange(3)
NAN = float("nan")
OPTIONS = Options(accelerator="cpu", threads=1)

pytestmark = pytest.mark.usefixtures("no_gradients")

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: "".join(map(str, case["mask"])))


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


def linear_model(turn: np.ndarray | None = None, absence: bool = False) -> LatentModel:
    """The oracle's model, z turned; its encoder answers N(0, 1.44 I) to every row until it is told otherwise."""
    d = W.shape[1]
    model = LatentModel((len(W),), Gaussian(len(W), floor=0.0), [d], [[]], gaps=True, absence=absence).double()
    with torch.no_grad():
        model.decoder[-1].weight.copy_(torch.from_numpy(W @ (np.eye(d) if turn is None else turn)))
        model.decoder[-1].bias.copy_(torch.from_numpy(B))
        model.likelihood.raw.copy_(torch.from_numpy(np.log(np.expm1(np.sqrt(VARIANCE) - 1e-4))))
        model.posterior.weight.zero_()
        model.posterior.bias.copy_(torch.tensor([0.0] * d + [np.log(1.2)] * d))
        if absence:
            model.slope.copy_(torch.tensor([1.5, -0.8, 0.6]))
            model.offset.copy_(torch.tensor([-0.5, 0.3, 0.2]))
    return model


def row_of(case: dict) -> torch.Tensor:
    x = torch.tensor([ORACLE["x"]], dtype=torch.float64)
    return x.masked_fill(~torch.tensor(case["mask"]).bool(), NAN)


def exact(case: dict) -> tuple[LatentModel, Normal]:
    """A model whose z is turned so that the posterior's covariance is diagonal, and that posterior."""
    values, turn = np.linalg.eigh(np.array(case["posterior_given_obs"]["cov"]))
    mean = torch.from_numpy(turn.T @ np.array(case["posterior_given_obs"]["mean"]))[None]
    return linear_model(turn), Normal(mean, 0.5 * torch.from_numpy(values).log()[None])


def conditional(x: np.ndarray, j: int) -> tuple[float, float]:
    """Mean and variance of x_j given the other values that are there."""
    others = [i for i in np.flatnonzero(~np.isnan(x)) if i != j]
    weights = np.linalg.solve(SIGMA[np.ix_(others, others)], SIGMA[others, j]) if others else np.zeros(0)
    return B[j] + weights @ (x[others] - B[others]), SIGMA[j, j] - weights @ SIGMA[others, j]


def weighted(values: np.ndarray, log_w: np.ndarray) -> np.ndarray:
    """sum_i wt_i values_i, from the definition."""
    w = np.exp(log_w - log_w.max())
    return w @ values / w.sum()


def mixed_model() -> tuple[LatentModel, torch.Tensor]:
    """Two numbers, a boolean and a text of three levels on random weights, and complete rows of them, (50, 6)."""
    generator = torch.Generator().manual_seed(0)
    blocks = (("number", 2), ("boolean", 1), ("levels", 3))
    level = torch.nn.functional.one_hot(torch.arange(50) % 3, 3)
    raw = torch.cat([torch.randn(50, 2, generator=generator), (torch.arange(50) % 2)[:, None], level], 1).double()
    x = (raw - raw.mean(0)) / raw.std(0, correction=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LatentModel((6,), Mixed(blocks), [2], [[8]], gaps=True).double()
    model.start(x)
    return model, x


@every_case
@pytest.mark.parametrize("k", [1, 2, 10, 50])
def test_with_the_posterior_every_weight_is_the_probability_of_what_is_there(case, k):
    model, q = exact(case)
    torch.testing.assert_close(
        scores.log_weights_of(model, row_of(case), k, 3, q),
        torch.full((k, 1), case["log_p_obs"], dtype=torch.float64), rtol=0, atol=1e-6,
    )  # fmt: skip
    assert scores.bound(model, row_of(case), k, 3, q).item() == pytest.approx(case["log_p_obs"], abs=1e-6)


@every_case
def test_imputation_converges(case):
    x, missing = row_of(case), ~np.array(case["mask"], bool)
    wanted, covariance = (np.array(case[f"imputation_{name}"]) for name in ("mean", "cov"))
    for model, q, k in ((*exact(case), 40_000), (linear_model(), None, 200_000)):
        filled = impute(model, x, k, 0, q)
        error = 4 * np.sqrt(np.diag(covariance) / (k / 20))  # the second q's weights are worth more than a 20th
        assert (np.abs(filled[0, missing].numpy() - wanted) < error).all()
        assert torch.equal(filled[~x.isnan()], x[~x.isnan()])


@every_case
def test_multiple_imputation_has_the_posteriors_moments(case):
    x, missing = row_of(case), ~np.array(case["mask"], bool)
    wanted, covariance = (np.array(case[f"imputation_{name}"]) for name in ("mean", "cov"))
    draws = 10_000
    filled = multiple_imputation(linear_model(), x, 100, draws, 0)
    assert filled.shape == (draws, 1, 3)
    assert torch.equal(filled[:, ~x.isnan()], x[~x.isnan()].expand(draws, -1))
    found = filled[:, 0, missing].numpy()
    assert (np.abs(found.mean(0) - wanted) < 4.5 * np.sqrt(np.diag(covariance) / draws) + 0.01).all()
    np.testing.assert_allclose(np.cov(found.T).reshape(covariance.shape), covariance, atol=0.06 * covariance.max())


def test_rows_are_filled_at_random_independently():
    x = row_of(CASES[0]).expand(2, 3)
    found = multiple_imputation(linear_model(), x, 20, 4000, 0)[:, :, 1].T.numpy()
    assert abs(np.corrcoef(found)[0, 1]) < 0.07


def test_each_row_is_filled_as_if_it_came_alone(monkeypatch):
    x = torch.cat([row_of(case) for case in CASES])
    model = linear_model()
    together = impute(model, x, 500, 1)
    alone = torch.cat([impute(model, row, 500, 1) for row in x.split(1)])
    torch.testing.assert_close(alone, together, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(impute(model, x.flip(0), 500, 1).flip(0), together, rtol=1e-10, atol=1e-12)
    surprise = attribution(model, x, 100, 1, EACH_COLUMN)
    torch.testing.assert_close(attribution(model, x.flip(0), 100, 1, EACH_COLUMN).flip(0), surprise)
    assert not torch.equal(impute(model, x, 500, 2), together)
    monkeypatch.setattr(objectives, "NUMBERS_AT_ONCE", 7 * model.numbers_a_sample * len(x))  # 7 samples at a time
    torch.testing.assert_close(impute(model, x, 500, 1), together, rtol=1e-10, atol=1e-12)
    many = multiple_imputation(model, x, 50, 300, 1)  # more samples than at a time
    assert many[:, 0, 1].mean().item() == pytest.approx(CASES[0]["imputation_mean"][0], abs=0.3)


@every_case
def test_surprise_is_that_of_the_conditional_normal(case):
    x = row_of(case)
    found = attribution(linear_model(), x, 200_000, 0, EACH_COLUMN)[0].numpy()
    for j in range(3):
        mean, variance = conditional(x[0].numpy(), j)
        known = stats.norm.logpdf(x[0, j].item(), mean, np.sqrt(variance))
        assert found[j] == pytest.approx(-known if case["mask"][j] else 0.0, abs=0.03)


def test_the_surprise_of_everything_adds_up():
    # log p(x) = log p(x_0 | x_1, x_2) + log p(x_1 | x_2) + log p(x_2)
    x, model, total = torch.tensor([[0.7, -0.4, 1.1]], dtype=torch.float64), linear_model(), 0.0
    row = x.clone()
    for j in range(3):
        total += attribution(model, row, 3000, 0, EACH_COLUMN)[0, j].item()
        row[0, j] = NAN
    nothing = scores.neg_iwae(model, row, 3000, 0).item()  # of a row without values: 0 but for the noise
    assert abs(nothing) < 0.05
    assert total == pytest.approx(scores.neg_iwae(model, x, 3000, 0).item() - nothing, abs=1e-9)


# --- not-MIWAE


@pytest.mark.parametrize("mask", [case["mask"] for case in CASES])
def test_not_miwae_weighs_and_fills_as_its_definition_says(mask):
    model, k, seed = linear_model(absence=True), 7, 5
    x, noise = row_of({"mask": mask}), scores.draws(model, k, seed)
    row, slope, offset = x[0].numpy(), model.slope.detach().numpy(), model.offset.detach().numpy()
    scale, log_w, drawn = np.sqrt(VARIANCE), np.empty(k), np.empty((k, 3))
    for i in range(k):
        z = 1.2 * noise.first[i, 0].numpy()
        mean = W @ z + B
        log_w[i] = stats.norm.logpdf(z).sum() - stats.norm.logpdf(z, 0, 1.2).sum()
        for j in range(3):
            drawn[i, j] = mean[j] + scale[j] * noise.gaps[i, 0, j].item()
            p_missing = expit(slope[j] * (row[j] if mask[j] else drawn[i, j]) + offset[j])
            log_w[i] += np.log(1 - p_missing if mask[j] else p_missing)
            log_w[i] += stats.norm.logpdf(row[j], mean[j], scale[j]) if mask[j] else 0.0
    found = scores.log_weights_of(model, x, k, seed)[:, 0].detach().numpy()
    np.testing.assert_allclose(found, log_w, rtol=1e-9)
    wanted = np.where(np.array(mask, bool), row, weighted(drawn, log_w))
    np.testing.assert_allclose(impute(model, x, k, seed)[0].numpy(), wanted, rtol=1e-9)


def with_absence(x: np.ndarray, model: LatentModel) -> tuple[float, float, float]:
    """Of a row whose second value alone is missing: E[x_1 | .], Var[x_1 | .] and log p(x_0, x_2, s), by quadrature."""
    slope, offset = model.slope.detach().numpy(), model.offset.detach().numpy()
    mean, variance = conditional(x, 1)
    there = [0, 2]
    log_p = stats.multivariate_normal(B[there], SIGMA[np.ix_(there, there)]).logpdf(x[there])
    log_p += np.log(expit(-(slope * x + offset))[there]).sum()
    grid = np.linspace(mean - 12 * variance**0.5, mean + 12 * variance**0.5, 20_001)
    density = stats.norm.pdf(grid, mean, variance**0.5) * expit(slope[1] * grid + offset[1])
    mass = integrate.trapezoid(density, grid)
    first, second = (integrate.trapezoid(grid**n * density, grid) / mass for n in (1, 2))
    return first, second - first**2, log_p + np.log(mass)


def test_what_is_missing_tells_about_the_value():
    model, x = linear_model(absence=True), row_of(CASES[0])
    mean, variance, log_p = with_absence(x[0].numpy(), model)
    assert abs(mean - CASES[0]["imputation_mean"][0]) > 0.3  # than if absence told nothing
    assert scores.bound(model, x, 200_000, 0).item() == pytest.approx(log_p, abs=0.02)
    assert impute(model, x, 200_000, 0)[0, 1].item() == pytest.approx(mean, abs=0.03)
    drawn = multiple_imputation(model, x, 200, 5000, 0)[:, 0, 1]
    assert drawn.mean().item() == pytest.approx(mean, abs=0.08)
    assert drawn.var().item() == pytest.approx(variance, rel=0.1)


def test_not_miwaes_surprise_is_given_that_the_value_is_there():
    model = linear_model(absence=True)
    slope, offset = model.slope.detach().numpy(), model.offset.detach().numpy()
    x = torch.tensor([[0.7, -0.4, 1.1]], dtype=torch.float64)
    found = attribution(model, x, 200_000, 0, EACH_COLUMN)[0].numpy()
    for j in range(3):  # p(x_j | x_-j, s_j = there) = p(x_j | x_-j) p(there | x_j) / the same, integrated over x_j
        mean, variance = conditional(x[0].numpy(), j)
        grid = np.linspace(mean - 12 * variance**0.5, mean + 12 * variance**0.5, 20_001)
        mass = integrate.trapezoid(
            stats.norm.pdf(grid, mean, variance**0.5) * expit(-slope[j] * grid - offset[j]), grid
        )
        value = x[0, j].item()
        known = stats.norm.logpdf(value, mean, variance**0.5) + np.log(expit(-slope[j] * value - offset[j]) / mass)
        assert found[j] == pytest.approx(-known, abs=0.03)


def test_surprise_where_absence_tells_nothing_is_miwaes():
    plain, modelled = linear_model(), linear_model(absence=True)
    modelled.slope.zero_()  # values are missing with probabilities that do not depend on them
    generator = torch.Generator().manual_seed(1)
    for model in (plain, modelled):
        model.posterior.weight.copy_(0.1 * torch.randn(4, 6, generator=generator.manual_seed(1), dtype=torch.float64))
    x = torch.cat([row_of(case) for case in CASES])
    wanted = attribution(plain, x, 50, 3, EACH_COLUMN)
    torch.testing.assert_close(attribution(modelled, x, 50, 3, EACH_COLUMN), wanted, rtol=1e-10, atol=1e-12)
    assert (wanted[~x.isnan()] != 0).all()


# --- tables that mix numbers, booleans and texts


def test_a_text_is_filled_with_the_probabilities_of_its_levels():
    model, x = mixed_model()
    low, high = x.amin(0), x.amax(0)
    gaps = x.clone()
    gaps[:10, 3:], gaps[5:20, 2], gaps[15:30, 0] = NAN, NAN, NAN
    share = ((impute(model, gaps, 200, 0) - low) / (high - low))[:, 2:]
    assert torch.isfinite(share).all() and (share >= -1e-9).all() and (share <= 1 + 1e-9).all()
    of_text = share[:10, 1:].sum(1)
    assert (of_text > 0.5).all() and (of_text < 1).all()  # what is left over is of a level that training never saw
    wanted, q, noise = torch.zeros(10, 3).double(), model.encode(gaps), scores.draws(model, 200, 0)
    w = scores.log_weights_of(model, gaps, 200, 0).softmax(0)
    for i in range(200):  # the last four of the decoder's numbers are the text's
        out = model.decode(q.at(noise.first[i]))
        wanted += w[i, :10, None] * out[:10, -4:].softmax(-1)[:, :3]
    torch.testing.assert_close(share[:10, 1:], wanted)
    drawn = (multiple_imputation(model, gaps, 20, 50, 0)[..., 2:] - low[2:]) / (high - low)[2:]
    torch.testing.assert_close(drawn, drawn.round(), atol=1e-9, rtol=0)
    assert (drawn[..., 1:].round().sum(-1) <= 1).all()
    assert (drawn[:, 10:, 1:] == drawn[:1, 10:, 1:]).all()  # known texts


def test_the_surprise_of_a_text_stands_at_its_level():
    model, x = mixed_model()
    block_of = block_of_column((("number", 2), ("boolean", 1), ("levels", 3)), 6)
    rows = x[:4].clone()
    rows[1, 3:] = NAN  # missing
    rows[2, 3:] = x[:, 3:].amin(0)  # a level that training never saw
    rows[3, 0] = -5.0
    found = attribution(model, rows, 500, 0, block_of)
    assert found.shape == (4, 6) and torch.isfinite(found).all()
    rest = rows.clone()
    rest[:, 3:] = NAN
    surprise = scores.neg_iwae(model, rows, 500, 0) - scores.neg_iwae(model, rest, 500, 0)
    on = [int((rows[0, 3:] > 0).nonzero()), None, 0, int((rows[3, 3:] > 0).nonzero())]
    for i, level in enumerate(on):
        wanted = torch.zeros(3).double()
        if level is not None:
            wanted[level] = surprise[i]
        torch.testing.assert_close(found[i, 3:], wanted)
    assert (found[:, :3] != 0).all()
    assert found[3, 0] > found[:3, 0].max()  # -5 standard deviations


def test_score_per_value_counts_a_text_once():
    block_of = block_of_column((("number", 2), ("boolean", 1), ("levels", 3)), 6)
    x = torch.tensor([[0.0] * 6, [NAN, *[0.0] * 5], [0.0, 0.0, 0.0, NAN, NAN, NAN], [NAN] * 6])
    found = per_observed(torch.full((4,), 12.0, dtype=torch.float64), x, block_of)
    torch.testing.assert_close(found, torch.tensor([3.0, 4.0, 4.0, NAN]).double(), equal_nan=True)


# --- trained


def self_masked(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's wine table, standardised and shuffled; and less what is above the mean in half of its columns."""
    x = torch.from_numpy(load_wine(return_X_y=True)[0])
    x = ((x - x.mean(0)) / x.std(0, correction=0))[
        torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    ]
    gone = x > 0
    gone[:, x.shape[1] // 2 :] = False
    return x, x.masked_fill(gone, NAN)


def trained(x: torch.Tensor, folder: Path, **options: Any) -> VAE:
    detector = VAE(**options)
    set_up(detector, Spec({"x": (x.shape[1],)}, 0))
    with torch.enable_grad():
        stages.train(detector, Views(x=x), 0, OPTIONS, folder)
    return detector.eval()


def test_modelling_the_absence_helps_where_large_values_are_missing(tmp_path):
    full, x = self_masked(0)
    gone, error = x.isnan(), {}
    options = {"lr": 3e-3, "epochs": 120, "k": 5}
    models = {
        "miwae": trained(x, tmp_path / "a", missing="random", **options),
        "not_miwae": trained(x, tmp_path / "b", missing="absence", likelihood="gaussian", **options),
    }
    for name, detector in models.items():
        filled = impute(detector.model, x, 1000, 0)
        error[name] = (filled - full)[gone].square().mean().sqrt().item()
    error["mean"] = (x.nanmean(0) - full)[gone].square().mean().sqrt().item()
    assert error["not_miwae"] < 0.93 * error["miwae"] < 0.93 * error["mean"]
    slope = models["not_miwae"].model.slope[: x.shape[1] // 2]
    assert (slope > 0).float().mean() > 0.7  # large values are missing, it found


@pytest.mark.parametrize("options", [{"missing": "random"}, {"missing": "absence", "likelihood": "gaussian"}])
def test_rows_and_columns_without_any_value(options, tmp_path):
    x = torch.randn(80, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 3] = NAN  # nothing to learn from
    x[7] = NAN
    detector = trained(x, tmp_path, epochs=3, k=5, **options)
    rows = torch.tensor([[0.1, -0.2, 0.3, NAN], [NAN] * 4, [0.1, -0.2, 0.3, 5.0]], dtype=torch.float64)
    score = detector.score(Views(x=rows))
    assert torch.isfinite(score).all()
    if options["missing"] == "random":
        assert abs(score[1].item()) < 0.2  # the probability of nothing is 1
    assert torch.isfinite(impute(detector.model, rows, 50, 0)).all()
    found = detector.attribute(Views(x=rows))
    assert torch.isfinite(found).all() and (found[rows.isnan()] == 0).all()
