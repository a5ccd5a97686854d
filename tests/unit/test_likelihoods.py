"""Observation models against the oracle's unit values, torch.distributions, SciPy, integrals and loops over columns."""

import copy
import json
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch import Tensor, distributions

from outlie.density.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    Gaussian,
    StudentT,
    check_range,
    raw_of,
    scale_of,
    t_log_constant,
)
from outlie.density.mixed import Categorical, Mixed, check_levels
from outlie.errors import UserError

ORACLE = json.loads((Path(__file__).parents[1] / "golden/iwae_oracle.json").read_text())["likelihoods"]
BLOCKS = (("boolean", 1), ("number", 2), ("levels", 3), ("boolean", 1), ("number", 1), ("levels", 1))
K, B, D = 4, 5, 3
FAMILIES = {
    "bernoulli": Bernoulli(D),
    "continuous_bernoulli": ContinuousBernoulli(D),
    "gaussian_fixed": Gaussian(D, "fixed", 0.7),
    "gaussian_feature": Gaussian(D, "feature"),
    "gaussian_sample": Gaussian(D, "sample"),
    "student_t": StudentT(D),
    "categorical": Categorical(D, 4),
    "pixels": Categorical(D, 256, pixels=True),
    "mixed_gaussian": Mixed(BLOCKS, "gaussian", "sample"),
    "mixed_student_t": Mixed(BLOCKS),
}
each = pytest.mark.parametrize("name", FAMILIES)


def t64(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rows(name: str, n: int = B, seed: int = 0) -> Tensor:
    """(n, dim) float64 values that the family takes."""
    generator = np.random.default_rng(seed)
    if name == "bernoulli":
        x = generator.integers(0, 2, (n, D))
    elif name == "continuous_bernoulli":
        x = generator.uniform(size=(n, D))
    elif name == "categorical":
        x = generator.integers(0, 4, (n, D))
    elif name == "pixels":
        x = generator.integers(0, 256, (n, D)) / 255
    elif name.startswith("mixed"):  # standardised: off = -0.5, on = 2
        level = np.eye(4)[generator.integers(0, 4, n)][:, :3]
        on, number = generator.integers(0, 2, (n, 2)), generator.normal(size=(n, 3))
        one = generator.integers(0, 2, (n, 1)) - 1.0  # a single level: 0 where on, -1 where another text stood
        x = np.hstack(
            [2.5 * on[:, :1] - 0.5, number[:, :2], 2.5 * level - 0.5, 2.5 * on[:, 1:] - 0.5, number[:, 2:], one]
        )
    else:
        x = generator.normal(size=(n, D))
    return t64(x)


def outputs(family, *shape: int, seed: int = 1, dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, family.outputs, generator=generator, dtype=torch.float64).to(dtype)


def test_unit_values_of_the_oracle():
    def each_column(family, out, x, log_prob):
        assert family.outputs == out.shape[-1] and family.dim == 1
        np.testing.assert_allclose(family.log_prob(out, t64(x)[:, None]), log_prob, rtol=1e-9, atol=1e-15)

    o = ORACLE["bernoulli_logits"]
    each_column(Bernoulli(1), t64(o["logits"])[:, None], o["x"], o["log_prob"])
    o = ORACLE["gaussian"]
    raw = torch.log(torch.expm1(t64(o["scale"]) - 1e-4))
    out = torch.stack([t64(o["loc"]), raw], 1)
    each_column(Gaussian(1, "sample", floor=0), out, o["x"], o["log_prob"])
    o = ORACLE["student_t"]
    raw_df = torch.log(torch.expm1(t64(o["df"]) - 3))  # -inf for df = 3
    out = torch.stack([t64(o["loc"]), raw, raw_df], 1)
    each_column(StudentT(1, floor=0), out, o["x"], o["log_prob"])
    o = ORACLE["categorical"]
    each_column(Categorical(1, 3), t64(o["logits"]), o["x"], o["log_prob"])


def reference(name: str, out: Tensor) -> distributions.Distribution:
    """torch's distribution, or SciPy's formula's, of (..., B, D)."""
    scale = lambda raw: (torch.nn.functional.softplus(raw) + 1e-4).clamp(min=0.05)  # noqa: E731
    match name:
        case "bernoulli":
            return distributions.Bernoulli(logits=out)
        case "continuous_bernoulli":
            return distributions.ContinuousBernoulli(logits=out)
        case "gaussian_fixed":
            return distributions.Normal(out, 0.7)
        case "gaussian_feature":
            return distributions.Normal(out, scale(FAMILIES[name].raw.detach().double()))
        case "gaussian_sample":
            return distributions.Normal(out[..., :D], scale(out[..., D:]))
        case "student_t":
            df = 3 + torch.nn.functional.softplus(out[..., 2 * D :])
            return distributions.StudentT(df, out[..., :D], scale(out[..., D : 2 * D]))
        case _:
            return distributions.Categorical(logits=out.unflatten(-1, (-1, D)).movedim(-2, -1))


@pytest.mark.parametrize("name", [n for n in FAMILIES if not n.startswith("mixed")])
def test_log_prob_and_mean_are_those_of_torch_distributions(name):
    family, x = FAMILIES[name], rows(name)
    out = 3 * outputs(family, 2, K, B)
    expected = reference(name, out)
    value = (x * 255).round() if name == "pixels" else x
    log_prob = family.log_prob(out, x)
    assert log_prob.shape == (2, K, B) and log_prob.dtype == torch.float64
    # theirs rounds probabilities near 1/2 and near 0, so 1e-6 there
    tolerance = 1e-5 if name == "continuous_bernoulli" else 1e-9
    torch.testing.assert_close(log_prob, expected.log_prob(value).sum(-1), rtol=tolerance, atol=tolerance)
    mean = family.mean(out)
    if "cat" in name or name == "pixels":
        levels = torch.arange(family.levels) / (255 if name == "pixels" else 1)
        torch.testing.assert_close(mean, (expected.probs * levels).sum(-1))
    else:
        torch.testing.assert_close(mean, expected.mean, rtol=tolerance, atol=tolerance)


def test_gaussian_and_student_t_are_scipys():
    x = np.linspace(-30, 30, 7)
    for raw in (-20.0, -1.0, 0.0, 3.0, 200.0):
        scale, df = max(np.logaddexp(0, raw) + 1e-4, 0.05), 3 + np.logaddexp(0, raw)
        out = t64([0.4, raw]).expand(7, 2)
        ours = Gaussian(1, "sample").log_prob(out, t64(x)[:, None])
        np.testing.assert_allclose(ours, stats.norm.logpdf(x, 0.4, scale), rtol=1e-12)
        out = t64([0.4, raw, raw]).expand(7, 3)
        ours = StudentT(1).log_prob(out, t64(x)[:, None])
        np.testing.assert_allclose(ours, stats.t.logpdf(x, df, 0.4, scale), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 4e-11), (torch.float32, 3e-7)])
def test_the_constant_of_t_does_not_lose_digits_at_large_df(dtype, tolerance):
    df = np.concatenate([np.linspace(3, 60, 500), np.geomspace(60, 1e6, 200)]).astype(np.float32)
    with mpmath.workdps(40):  # SciPy's betaln loses digits here, too
        terms = [
            (mpmath.loggamma((v + 1) / 2), mpmath.loggamma(v / 2), mpmath.log(mpmath.pi * v) / 2)
            for v in map(mpmath.mpf, df.tolist())
        ]
        exact = [float(plus - minus - root) for plus, minus, root in terms]
    np.testing.assert_allclose(t_log_constant(torch.tensor(df, dtype=dtype)), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "logit", [-700.0, -40.0, -3.0, -0.21, -0.19, -1e-3, -1e-9, 0.0, 1e-12, 1e-4, 0.3, 0.5, 2.0, 90.0]
)
def test_continuous_bernoulli_integrates_to_1_and_its_mean_is_its_mean(logit):
    family, out = ContinuousBernoulli(1), t64([[logit]])
    density = lambda x: family.log_prob(out, t64([[x]])).exp().item()  # noqa: E731
    edge = min(30 / max(abs(logit), 1), 0.5)  # where nearly all of it lies
    near = {"points": [edge, 1 - edge], "epsabs": 1e-12, "limit": 200}
    assert integrate.quad(density, 0, 1, **near)[0] == pytest.approx(1, abs=1e-10)
    mean = integrate.quad(lambda x: x * density(x), 0, 1, **near)[0]
    assert family.mean(out).item() == pytest.approx(mean, abs=1e-10)


def test_continuous_bernoulli_is_smooth_where_the_series_takes_over():
    family = ContinuousBernoulli(1)
    logit = torch.cat([torch.linspace(s * 0.2 - 1e-6, s * 0.2 + 1e-6, 201, dtype=torch.float64) for s in (-1, 1)])
    for values in (family.log_normaliser(logit), family.natural_mean(logit)):
        steps = values.view(2, -1).diff()
        assert (steps > 0).all() and (steps.max(1).values / steps.min(1).values < 1.001).all()
    wide = torch.linspace(-3, 3, 4001, dtype=torch.float64)
    for values in (family.natural_mean, family.log_normaliser):  # float32 keeps its digits on both sides
        torch.testing.assert_close(values(wide.float()).double(), values(wide), rtol=0, atol=1e-6)
    both = ContinuousBernoulli(1).natural_mean(wide) + ContinuousBernoulli(1).natural_mean(-wide)
    torch.testing.assert_close(both, torch.ones_like(both), rtol=0, atol=1e-14)


@each
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_differences(name, masked):
    family, x = FAMILIES[name].double(), rows(name)
    out = (0.5 * outputs(family, 2, B)).requires_grad_()
    seen = torch.rand(B, family.dim, generator=torch.Generator().manual_seed(0)) < 0.6 if masked else None
    # the tolerance is of gradcheck's differences
    assert torch.autograd.gradcheck(lambda out: family.log_prob(out, x, seen), out, atol=1e-6)
    if "categorical" not in name and "pixels" not in name and "mixed" not in name:
        x = x.requires_grad_()
        assert torch.autograd.gradcheck(lambda x: family.log_prob(out.detach(), x, seen), x, atol=1e-6)
    if "bernoulli" in name:
        assert torch.autograd.gradgradcheck(lambda out: family.log_prob(out, x.detach(), seen), out, atol=1e-6)
    for parameter in family.parameters():
        assert torch.autograd.gradcheck(lambda _: family.log_prob(out.detach(), x, seen), parameter, atol=1e-6)
    family.float()


@pytest.mark.parametrize("family", [Bernoulli(D), ContinuousBernoulli(D)])
def test_gradients_of_single_rows_can_be_mapped(family):
    out, x = outputs(family, K, B), rows("continuous_bernoulli")
    gradient = torch.func.grad(lambda o, r: family.log_prob(o[None], r[None])[0])
    mapped = torch.func.vmap(torch.func.vmap(gradient), in_dims=(0, None))(out, x)
    torch.testing.assert_close(mapped, x - family.mean(out))


@each
def test_a_mask_is_dropping_columns_and_nan_stays_behind_it(name):
    family, x = FAMILIES[name], rows(name)
    out = outputs(family, K, B)
    if name.startswith("mixed"):
        blocks = [slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 6), slice(6, 7), slice(7, 8), slice(8, 9)]
    else:
        blocks = [slice(j, j + 1) for j in range(D)]
    alone = []
    for block in blocks:
        seen = torch.zeros(B, family.dim, dtype=torch.bool)
        seen[:, block] = True
        alone.append(family.log_prob(out, x, seen))
        assert alone[-1].std() > 0
    alone = torch.stack(alone)  # (blocks, K, B)
    torch.testing.assert_close(alone.sum(0), family.log_prob(out, x))
    pattern = torch.rand(B, len(blocks), generator=torch.Generator().manual_seed(3)) < 0.5
    pattern[0] = False
    seen = torch.cat([pattern[:, [i]].expand(B, b.stop - b.start) for i, b in enumerate(blocks)], 1)
    out = out.requires_grad_()
    holes = torch.where(seen, x, torch.nan).requires_grad_()
    log_prob = family.log_prob(out, holes, seen)
    torch.testing.assert_close(log_prob, torch.where(pattern.T[:, None], alone, 0.0).sum(0))
    assert (log_prob[:, 0] == 0).all()
    log_prob.sum().backward()
    assert out.grad.isfinite().all() and (out.grad[:, 0] == 0).all() and (out.grad[:, 1:] != 0).any()
    assert holes.grad is None or holes.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in family.parameters())
    family.zero_grad()


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_is_widened_first(name, dtype):
    family, x = FAMILIES[name], rows(name).float()
    out = outputs(family, K, B, dtype=dtype)
    log_prob = family.log_prob(out, x)
    assert log_prob.dtype == family.mean(out).dtype == torch.float32
    assert torch.equal(log_prob, family.log_prob(out.float(), x))
    torch.testing.assert_close(log_prob.double(), family.log_prob(out.double(), rows(name)), rtol=2e-6, atol=2e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(family.log_prob(out, x), log_prob)


@each
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_outputs_stay_finite(name, sign, dtype):
    family, x = FAMILIES[name], rows(name).to(dtype)
    flip = torch.where(outputs(family, K, B) > 0, 1.0, -1.0)
    for out in (sign * torch.full_like(flip, 1e4), sign * 1e4 * flip):
        out = out.to(dtype).requires_grad_()
        log_prob = family.log_prob(out, x)
        log_prob.sum().backward()
        generator = torch.Generator().manual_seed(0)
        for values in (log_prob, out.grad, family.mean(out), family.sample(out, generator)):
            assert values.isfinite().all()


@pytest.mark.parametrize("family", [Gaussian(1, "sample"), StudentT(1)])
def test_a_scale_on_the_floor_can_grow_again(family):
    out = torch.full((1, family.outputs), -8.0).requires_grad_()
    scale = family.loc_scale(out)[1]
    assert scale.item() == pytest.approx(0.05)
    scale.sum().backward()
    assert out.grad[0, 1] > 0
    np.testing.assert_allclose(
        scale_of(raw_of(torch.tensor([0.05, 0.3, 1.0, 900.0]), 0.05), 0.05), [0.05, 0.3, 1, 900], 1e-6
    )


@pytest.mark.parametrize("name", [n for n in FAMILIES if not n.startswith("mixed")])
def test_samples_have_the_distribution_that_log_prob_says(name):
    family, n = FAMILIES[name], 40_000
    out = outputs(family, 1)
    x = family.sample(out.expand(n, -1), torch.Generator().manual_seed(0)).detach()
    assert x.shape == (n, D)
    expected = reference(name, out)
    if name in ("bernoulli", "categorical", "pixels"):
        probs = expected.probs[0] if name != "bernoulli" else torch.stack([1 - expected.probs[0], expected.probs[0]], 1)
        code = (x * 255 if name == "pixels" else x).round().long()
        for j in range(D):
            count = torch.bincount(code[:, j], minlength=probs.shape[1])
            assert stats.chisquare(count, n * probs[j] / probs[j].sum()).pvalue > 1e-3
    else:
        if name == "student_t":
            df, loc, scale = (p[0].numpy() for p in (expected.df, expected.loc, expected.scale))
            cdf = [stats.t(df[j], loc[j], scale[j]).cdf for j in range(D)]
        elif name == "continuous_bernoulli":
            l_ = out[0].numpy()
            cdf = [lambda v, j=j: np.expm1(l_[j] * v) / np.expm1(l_[j]) for j in range(D)]
        else:
            loc, scale = expected.loc[0].numpy(), expected.scale.broadcast_to(1, D)[0].numpy()
            cdf = [stats.norm(loc[j], scale[j]).cdf for j in range(D)]
        for j in range(D):
            assert stats.kstest(x[:, j].numpy(), cdf[j]).pvalue > 1e-3
    error = x.std(0) / np.sqrt(n)
    assert ((x.mean(0) - family.mean(out)[0]).abs() < 4.5 * error).all()


@each
def test_the_same_generator_gives_the_same_sample(name):
    family = FAMILIES[name]
    out = outputs(family, K, B, dtype=torch.float32)
    first, again, other = (family.sample(out, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (K, B, family.dim) and first.dtype == torch.float32


def test_gradients_reach_the_parameters_through_numbers_that_were_drawn():
    for family in (Gaussian(D, "sample"), StudentT(D)):
        out = outputs(family, 1).expand(20_000, -1).clone().requires_grad_()
        family.sample(out, torch.Generator().manual_seed(0)).square().mean(0).sum().backward()
        loc = out.detach()[0, :D]
        torch.testing.assert_close(out.grad[:, :D].sum(0), 2 * loc, rtol=0, atol=0.15)  # d E x^2 / d loc
        assert out.grad.isfinite().all() and (out.grad[:, D:] != 0).all(0).all()


def test_start_gives_the_means_of_training_rows():
    generator = np.random.default_rng(0)
    x = (generator.uniform(size=(200, 4)) < [0.0, 0.3, 0.9, 1.0]).astype(np.float32)
    x[:50, 1] = np.nan
    mean = Bernoulli(4).mean(Bernoulli(4).start(torch.tensor(x)))
    np.testing.assert_allclose(mean, np.clip(np.nanmean(x, 0), 0.001, 0.999), rtol=1e-5)

    x = generator.normal([3, -1, 0, 5], [0.3, 2, 1e-9, 1], (300, 4)).astype(np.float32)
    x[::3, 0], x[:, 3] = np.nan, np.nan
    mean, std = np.nanmean(x[:, :3], 0), np.maximum(np.nanstd(x[:, :3], 0), 0.05)
    expected = (np.append(mean, 0), np.append(std, 1))
    for scale in ("feature", "sample"):
        family = Gaussian(4, scale)
        for ours, theirs in zip(family.loc_scale(family.start(torch.tensor(x))), expected):
            np.testing.assert_allclose(ours.detach(), theirs, rtol=1e-5, atol=1e-6)
    assert Gaussian(4, "fixed").start(torch.tensor(x)).shape == (4,)
    loc, scale, df = StudentT(4).loc_scale_df(StudentT(4).start(torch.tensor(x)))
    np.testing.assert_allclose(loc, expected[0], rtol=1e-5, atol=1e-6)
    std = stats.t(df.double().numpy(), 0, scale.double().numpy()).std()
    np.testing.assert_allclose(std[[0, 1, 3]], expected[1][[0, 1, 3]], rtol=1e-5)

    x = generator.integers(0, 3, (100, 2)).astype(np.float32)
    x[:20, 1] = np.nan
    share = Categorical(2, 4).logits(Categorical(2, 4).start(torch.tensor(x))[None]).softmax(-2)[0].numpy()
    count = np.array([[(x[:, j] == level).sum() + 1 for j in range(2)] for level in range(4)])
    np.testing.assert_allclose(share, count / count.sum(0), rtol=1e-5)


def test_rows_of_a_memory_map_are_not_written_to():
    for name, family in copy.deepcopy(FAMILIES).items():
        x = rows(name, 30).float()
        before = x.clone()
        family.start(x)
        assert torch.equal(x, before)


@pytest.mark.parametrize("numbers", ["gaussian", "student_t"])
def test_a_mixed_table_is_the_sum_of_its_columns(numbers):
    family, x = Mixed(BLOCKS, numbers, "sample"), rows("mixed", 40)
    out = outputs(family, K, 40)
    per = 2 if numbers == "gaussian" else 3  # out: numbers' parameters, boolean logits, 3 + 1 logits, 1 + 1 logits
    sizes = [3] * per + [2, 4, 2]
    assert family.outputs == sum(sizes) and family.dim == 9
    o, expected = out.numpy(), np.zeros((K, 40))
    for b in range(40):
        row = x[b].numpy()
        for k in range(K):
            v = o[k, b]
            for i, j in enumerate([1, 2, 7]):
                scale = max(np.logaddexp(0, v[3 + i]) + 1e-4, 0.05)
                density = stats.norm if numbers == "gaussian" else stats.t(3 + np.logaddexp(0, v[6 + i]))
                expected[k, b] += density.logpdf((row[j] - v[i]) / scale) - np.log(scale)
            for i, j in enumerate([0, 6]):
                expected[k, b] += special.log_expit(v[3 * per + i] if row[j] >= 0 else -v[3 * per + i])
            level = [j for j in range(3) if row[3 + j] >= 0] or [3]
            expected[k, b] += special.log_softmax(v[3 * per + 2 : 3 * per + 6])[level[0]]
            expected[k, b] += special.log_softmax(v[3 * per + 6 :])[0 if row[8] >= 0 else 1]
    np.testing.assert_allclose(family.log_prob(out, x), expected, rtol=1e-9)


def test_a_block_of_levels_is_seen_where_its_first_column_is():
    family, x = FAMILIES["mixed_student_t"], rows("mixed")
    out, seen = outputs(family, B), torch.ones(B, 9, dtype=torch.bool)
    seen[:, 4:6] = False
    torch.testing.assert_close(family.log_prob(out, x, seen), family.log_prob(out, x))
    seen[:, 3] = False
    assert (family.log_prob(out, x, seen) > family.log_prob(out, x)).all()


def mixed_training(n: int = 20_000) -> Tensor:
    """Standardised rows: a boolean, a number, three levels, a boolean that is never on, or always."""
    generator = np.random.default_rng(0)
    level = np.eye(3)[generator.choice(3, n, p=[0.2, 0.5, 0.3])]
    columns = [generator.uniform(size=(n, 1)) < 0.1, generator.normal(4, 2, (n, 1)), level]
    raw = np.hstack([*columns, np.zeros((n, 1)), np.ones((n, 1))])
    scale = raw.std(0)
    return torch.tensor((raw - raw.mean(0)) / np.where(scale == 0, 1, scale), dtype=torch.float32)


MIXED = (("boolean", 1), ("number", 1), ("levels", 3), ("boolean", 2))


@pytest.mark.parametrize("numbers", ["gaussian", "student_t"])
def test_mixed_start_mean_and_samples_are_in_the_units_of_the_rows(numbers):
    x = mixed_training()
    family = Mixed(MIXED, numbers, "sample")
    bias = family.start(x)
    assert bias.shape == (family.outputs,)
    mean = family.mean(bias[None])[0].numpy()
    np.testing.assert_allclose(mean, x.double().mean(0), atol=2e-3)  # 2e-3: the clip, and the unseen level
    draws = family.sample(bias.expand(20_000, -1), torch.Generator().manual_seed(0)).numpy()
    np.testing.assert_allclose(draws.mean(0), 0, atol=0.04)
    np.testing.assert_allclose(draws[:, [0, 2, 3, 4, 5, 6]].std(0), [1, 1, 1, 1, 0, 0], atol=0.06)
    for j in (0, 2, 3, 4, 5, 6):  # only values that training rows have
        assert set(np.unique(draws[:, j])) == set(np.unique(x[:, j]))
    on = draws[:, 2:5] > 0
    assert (on.sum(1) <= 1).all()
    share = family.log_prob(bias[None], x[:1])
    assert share.isfinite().all()
    saved = Mixed(MIXED, numbers, "sample")
    saved.load_state_dict(family.state_dict())
    assert torch.equal(saved.mean(bias[None]), family.mean(bias[None]))


def test_what_training_never_saw_is_unlikely():
    x = mixed_training()
    family = Mixed(MIXED)
    bias = family.start(x)[None]
    usual = family.log_prob(bias, x[:1]).item()
    never = x[:1].clone()
    never[0, 2:5] = x[:, 2:5].amin(0)  # a new text is 0 in every column of its block
    assert family.log_prob(bias, never).item() < usual - 7
    for column, value in ((5, 1.0), (6, -1.0)):  # on for the first time; off for the first time
        changed = x[:1].clone()
        changed[0, column] = value
        assert family.log_prob(bias, changed).item() < usual - 6


def test_missing_training_values_are_left_out_of_the_start():
    x = mixed_training(500)
    gaps = x.clone()
    gaps[:100, 0], gaps[100:200, 2:5], gaps[:, 6] = torch.nan, torch.nan, torch.nan
    family = Mixed(MIXED)
    mean = family.mean(family.start(gaps)[None])[0].numpy()
    np.testing.assert_allclose(mean[:5], gaps.double().nanmean(0)[:5], atol=0.02)
    assert (family.low[6], family.high[6]) == (0, 1)
    assert np.isfinite(mean).all()


@pytest.mark.parametrize("blocks", [(("number", 2),), (("boolean", 2),), (("levels", 2),)])
def test_tables_of_one_kind(blocks):
    family = Mixed(blocks)
    x = t64([[-1.0, 1.0], [2.0, -0.3]])
    out = outputs(family, 2)
    alone = {"number": StudentT(2), "boolean": Bernoulli(2), "levels": Categorical(1, 3)}[blocks[0][0]]
    values = {"number": x, "boolean": (x >= 0).double(), "levels": t64([[1], [0]])}[blocks[0][0]]
    torch.testing.assert_close(family.log_prob(out, x), alone.log_prob(out, values))


def test_values_outside_0_to_1_are_named_with_the_fix():
    check_range(torch.tensor([[0.0, 1.0], [torch.nan, 0.5]]))
    check_range(torch.full((2, 2), torch.nan))
    with pytest.raises(
        UserError, match=r"values from -1\.5 to 3\.25, .*between 0 and 1: set backbone=pixels.*gaussian"
    ):
        check_range(torch.tensor([[-1.5, 3.25, torch.nan]]))
    with pytest.raises(UserError, match=r"from 0 to 1\.001"):
        check_range(torch.tensor([[0.0, 1.001]]))


def test_values_that_are_no_levels_are_named_with_the_fix():
    check_levels(torch.tensor([[0.0, 9.0, torch.nan]]), 10)
    for wrong in (2.5, -1.0, 10.0):
        with pytest.raises(UserError, match=rf"value {wrong:.4g}, .*from 0 to 9: .*gaussian"):
            check_levels(torch.tensor([[0.0, wrong]]), 10)


def test_a_pixel_between_two_levels_is_the_nearer_one():
    family = Categorical(1, 256, pixels=True)
    out = outputs(family, 256)
    for off in (-0.4, 0.0, 0.4):
        x = ((torch.arange(256) + off) / 255).clamp(0, 1)[:, None]
        torch.testing.assert_close(family.log_prob(out, x), out.log_softmax(1).diagonal())
