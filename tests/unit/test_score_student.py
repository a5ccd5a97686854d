"""Students of a score: targets and ranking losses against their definitions, what they learn, how rows are spoilt."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import norm, rankdata, spearmanr

from outlie.detectors.base import Spec, Views
from outlie.detectors.score_student import ScoreStudent, correlation, huber, listwise, pairwise
from outlie.distillers import image_corruptions, row_corruptions
from outlie.distillers.scores import Scores
from outlie.errors import UserError
from outlie.results.cascade import cascade


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def student(shape: tuple[int, ...] = (4,), **options) -> ScoreStudent:
    torch.manual_seed(0)
    made = ScoreStudent(**{"width": 32, "depth": 2} | options)
    made.setup(Spec({"x": shape}))
    return made


def rows(n: int = 400, dim: int = 4) -> torch.Tensor:
    return torch.randn(n, dim, generator=draws())


def trained(made: ScoreStudent, views: Views, steps: int = 300) -> ScoreStudent:
    made.prepare(views)
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    for seed in range(steps):
        batch = views[torch.randint(len(views), (128,), generator=draws(seed))]
        optimizer.zero_grad()
        made.loss(batch, draws(seed)).backward()
        optimizer.step()
    return made.eval()


def test_a_scores_target_is_its_rank_as_a_normal_deviate():
    x = rows(2000)
    score = x.square().sum(1).double()
    made = student()
    made.prepare(Views(x=x, y=score))
    expected = norm.ppf(rankdata(score) / (len(score) + 1))
    middle = np.abs(expected) < 2
    assert np.abs(made.targets(score).numpy() - expected)[middle].max() < 0.03


def test_an_errors_target_is_its_standardised_logarithm():
    x = rows()
    rebuilt = 0.5 * x
    error = (x - rebuilt).square().mean(1).double()
    made = student()
    made.prepare(Views(x=x, y=error, maps=rebuilt))
    logs = error.log()
    torch.testing.assert_close(made.targets(error).double(), (logs - logs.mean()) / logs.std(), rtol=1e-4, atol=1e-4)


def test_the_score_is_the_error_that_the_student_predicts():
    x = rows(8)
    made = student(family="reconstruction")
    made.prepare(Views(x=x, y=x.square().mean(1).double(), maps=torch.zeros_like(x)))
    z, off = made.answers(x)
    expected = (off[0].square().mean(1).log() - made.middle) / made.spread
    torch.testing.assert_close(made.score(Views(x=x)), expected)
    torch.testing.assert_close(z[0], expected)


@pytest.mark.parametrize("family", ["score", "reconstruction"])
def test_it_learns_to_rank_as_its_teacher(family):
    """Teacher: the distance from the line that data lie on, R(x) the projection; on rows that were not seen."""
    direction = torch.tensor([1.0, 1.0, 0.0, 0.0]) / 2**0.5
    x = rows(3000) * 2
    rebuilt = (x @ direction)[:, None] * direction
    error = (x - rebuilt).square().mean(1).double()
    made = trained(student(family=family), Views(x=x[:2000], y=error[:2000], maps=rebuilt[:2000]))
    assert spearmanr(made.score(Views(x=x[2000:])).detach(), error[2000:])[0] > 0.97


def test_members_that_disagree_raise_the_score():
    x = rows(16)
    views = Views(x=x, y=x.square().sum(1).double())
    calm, wary = student(members=3), student(members=3, guard=1.0)
    for made in (calm, wary):
        made.prepare(views)
    z, _ = calm.answers(x)
    torch.testing.assert_close(wary.score(Views(x=x)), z.mean(0) + z.std(0))
    torch.testing.assert_close(calm.score(Views(x=x)), z.mean(0))


def test_images_alone_score_as_in_a_batch():
    x = torch.randint(0, 256, (6, 1, 16, 16), generator=draws(), dtype=torch.uint8)
    rebuilt = torch.zeros(6, 1, 16, 16)
    made = student((1, 16, 16), width=8).eval()
    made.prepare(Views(x=x, y=(x.float() / 255).square().mean((1, 2, 3)).double(), maps=rebuilt))
    together = made.score(Views(x=x))
    alone = torch.cat([made.score(Views(x=x[i : i + 1])) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    floats = made.score(Views(x=x.float() / 255))  # as backbone=pixels hands them on
    torch.testing.assert_close(floats, together, rtol=1e-4, atol=1e-5)


def test_losses_are_their_definitions():
    z, t = torch.randn(12, generator=draws(1)), torch.randn(12, generator=draws(2))
    p, q = np.exp(t.numpy()) / np.exp(t.numpy()).sum(), np.exp(z.numpy()) / np.exp(z.numpy()).sum()
    assert float(listwise(z, t, draws())) == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-5)
    gaps = (z - t).abs()
    assert float(huber(z, t, draws())) == pytest.approx(
        float(torch.where(gaps < 1, gaps**2 / 2, gaps - 0.5).mean()), rel=1e-5
    )
    partner = torch.randperm(12, generator=draws(5))
    expected, pairs = 0.0, 0
    for i, j in enumerate(partner.tolist()):
        if abs(t[i] - t[j]) > 0.02:
            sign = 1 if t[i] > t[j] else -1
            expected += float(np.log1p(np.exp(-4 * float(z[i] - z[j]) * sign))) / 4
            pairs += 1
    assert float(pairwise(z, t, draws(5))) == pytest.approx(expected / pairs, rel=1e-5)
    sharp = float(correlation(z, t, draws(), softness=1e-6))
    assert sharp == pytest.approx(1 - spearmanr(z, t)[0], abs=1e-4)


def test_what_cannot_be_learnt_is_refused():
    x = rows(8)
    with pytest.raises(UserError, match="run distill"):
        student().prepare(Views(x=x, y=torch.zeros(8, dtype=torch.int64)))
    with pytest.raises(UserError, match=r"detector\.family=score"):
        student(family="reconstruction").prepare(Views(x=x, y=torch.zeros(8)))
    with pytest.raises(UserError, match="members"):
        ScoreStudent(guard=1.0)
    with pytest.raises(UserError, match="did you mean 'line'"):
        Scores(held_out=["lines"])


@pytest.mark.parametrize("kind", row_corruptions.KINDS)
def test_spoilt_rows_are_as_many_as_asked_for_and_others(kind):
    x = rows(50, 6)
    spoilt = row_corruptions.spoilt(x, [kind], 101, draws())
    assert spoilt.shape == (101, 6) and spoilt.isfinite().all()
    assert torch.equal(spoilt, row_corruptions.spoilt(x, [kind], 101, draws()))
    changed = (spoilt[:, None] != x[None]).any(2).all(1)
    assert changed.float().mean() > 0.4  # a tenth of six columns may be none


def test_spikes_reach_columns_that_never_vary():
    x = rows(50, 6)
    x[:, 2] = 0.0
    assert row_corruptions.spoilt(x, ["spikes"], 500, draws())[:, 2].abs().max() > 3


@pytest.mark.parametrize("kind", image_corruptions.KINDS)
def test_spoilt_images_are_images(kind):
    x = torch.randint(0, 256, (9, 3, 12, 10), generator=draws(), dtype=torch.uint8)
    spoilt = image_corruptions.spoilt(x, x.flip(0), [kind], 20, draws())
    assert spoilt.shape == (20, 3, 12, 10) and spoilt.dtype == torch.uint8
    same = (spoilt[:, None] == x[None]).flatten(2).all(2).any(1)
    assert same.float().mean() < 0.3


def test_blur_is_the_binomial_filter_of_scipy():
    from scipy.ndimage import correlate1d

    x = torch.randint(0, 256, (1, 1, 9, 9), generator=draws()).float()
    out = image_corruptions.blur(x, x, torch.tensor([0]), draws())[0, 0].numpy()
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    expected = correlate1d(correlate1d(x[0, 0].numpy(), kernel, 0, mode="nearest"), kernel, 1, mode="nearest")
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-3)


def test_a_cascade_goes_from_the_student_to_the_teacher():
    draw = np.random.RandomState(0)
    label = (np.arange(3000) < 500).astype(np.int64)
    teacher = draw.randn(3000) + 4 * label
    student_scores = teacher + draw.randn(3000)
    bands = cascade(student_scores, teacher, label, 0.01, ms=(1.0, 100.0))
    normal = label == 0
    for end, scores in ((bands[0], student_scores), (bands[-1], teacher)):
        limit = np.quantile(scores[normal], 0.99)
        assert end["recall"] == pytest.approx((scores[~normal] > limit).mean(), abs=0.02)
    assert bands[0]["asked"] == 0 and bands[0]["ms_per_row"] == 1.0
    assert all(a["asked"] <= b["asked"] for a, b in itertools.pairwise(bands))
    assert bands[3]["recall"] > bands[0]["recall"]  # five per cent of the normal rows asked about
    assert not cascade(teacher, teacher, np.zeros(3000, np.int64))
