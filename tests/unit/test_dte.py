"""DTE-C, DTE-IG, DTE-Gaussian: losses against closed forms, scores against direct expectations."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.dte import DTEC, DTEIG, DTEGaussian
from outlie.errors import UserError

VARIANCES = 1 - np.cumprod(1 - np.linspace(1e-4, 1e-2, 400))


def ready(detector, dim: int = 5):
    set_up(detector, Spec({"x": (dim,), "features": (dim,)}, seed=0))
    return detector.eval()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Answer(torch.nn.Module):
    """A network that answers these rows, or one row to everything."""

    def __init__(self, rows) -> None:
        super().__init__()
        self.rows = torch.as_tensor(rows)

    def forward(self, x):
        return self.rows.expand(len(x), -1)


def test_times_are_uniform_and_rows_keep_their_mean():
    detector, x = ready(DTEC(far=0), dim=200), torch.full((20_000, 200), 2.0)
    x_t, t = detector.noised(Views(x=x), generator())
    counts = np.bincount(t, minlength=400)
    assert len(counts) == 400 and counts.min() > 20 and counts.max() < 90  # 50 expected, 7 standard deviations
    noise = (x_t - 2).double().numpy()
    assert noise.mean() == pytest.approx(0, abs=0.01)
    np.testing.assert_allclose((noise**2).mean(1) / VARIANCES[t], 1, atol=0.5)
    assert ((noise**2).mean(1) / VARIANCES[t]).mean() == pytest.approx(1, abs=0.005)


def test_drift_shrinks_the_rows():
    detector, x = ready(DTEC(far=0, drift=True), dim=200), torch.full((5_000, 200), 2.0)
    x_t, t = detector.noised(Views(x=x), generator())
    shrunk = x_t.double().mean(1).numpy() / 2
    np.testing.assert_allclose(shrunk, np.sqrt(1 - VARIANCES[t]), atol=0.25)
    assert np.mean(shrunk - np.sqrt(1 - VARIANCES[t])) == pytest.approx(0, abs=0.005)


def test_far_rows_are_the_asked_share_and_count_as_the_last_level():
    detector, x = ready(DTEC(far=0.25), dim=8), torch.zeros(20_000, 8)
    x_t, t = detector.noised(Views(x=x), generator())
    noise, last = x_t[:5000], t[:5000]
    assert (last == 399).all() and not (t[5000:] == 399).all()
    moved = (noise != 0).sum(1)
    assert moved.min() >= 1 and moved.max() == 8
    assert np.bincount(moved)[1:].min() > 300  # about 1/9 of the rows for each number of columns
    size = noise.abs()[noise != 0].log10()
    assert 0.6 < size.mean() < 0.9  # E log10 sigma = 1, E log10 |eps| = -0.276: 0.724
    assert x_t[5000:].abs().max() < 6  # the other rows carry the schedule's noise, sigma < 1


@pytest.mark.parametrize("column", [0, 3])
def test_a_row_far_outside_in_one_column_is_the_most_anomalous(column):
    train = torch.randn(600, 6, generator=generator(5), dtype=torch.float64)
    detector, draws = ready(DTEC(lr=1e-3), dim=6), generator(6)
    optimizer = detector.recipe.optimizer(detector)
    for start in [*range(0, 576, 64)] * 30:
        loss = detector.loss(Views(x=train[start : start + 64]), draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    far = torch.zeros(3, 6, dtype=torch.float64)
    far[:, column] = torch.tensor([20.0, 60.0, 150.0])
    with torch.no_grad():
        detector.eval()
        assert detector.score(Views(x=far)).min() > detector.score(Views(x=train)).quantile(0.99)


def targets(detector: DTEC, monkeypatch) -> np.ndarray:
    """The class of each of the T times: where the gradient of the loss in the logits is negative."""
    levels = len(detector.abar)
    logits = torch.zeros(levels, detector.outputs, requires_grad=True)
    monkeypatch.setattr(detector, "noised", lambda views, generator: (torch.zeros(levels, 5), torch.arange(levels)))
    detector.net = Answer(logits)
    detector.loss(Views(), generator()).backward()
    return logits.grad.argmin(1).numpy()


def test_bins_are_equal_shares_of_the_times(monkeypatch):
    found = targets(ready(DTEC(bins=7, T=400)), monkeypatch)
    assert np.bincount(found).tolist() == [58, 57, 57, 57, 57, 57, 57]
    assert (np.diff(found) >= 0).all()
    found = targets(ready(DTEC(bins=40, T=100)), monkeypatch)
    assert found.tolist() == [math.floor(40 * t / 100) for t in range(100)]


@pytest.mark.parametrize("loss", ["logits", "double_softmax"])
def test_loss_is_the_cross_entropy_written_out(loss):
    detector, x = ready(DTEC(loss=loss)), torch.randn(50, 5, generator=generator(1))
    x_t, t = detector.noised(Views(x=x), generator(2))
    with torch.no_grad():
        logits = detector.net(x_t).double().numpy()
        ours = detector.loss(Views(x=x), generator(2)).item()
    if loss == "double_softmax":
        logits = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert ours == pytest.approx(-np.mean([log_p[i, int(7 * t[i] / 400)] for i in range(50)]), rel=1e-5)


def test_double_softmax_lives_between_1_165_and_2_165(monkeypatch):
    detector = ready(DTEC(loss="double_softmax"))
    for t, expected in ((0, 1.165), (399, 2.165)):  # a sure and right, a sure and wrong answer
        monkeypatch.setattr(detector, "noised", lambda v, g, t=t: (torch.zeros(3, 5), torch.full((3,), t)))
        detector.net = Answer([1e4, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
        assert detector.loss(Views(), generator()).item() == pytest.approx(expected, abs=5e-4)
    detector.net = Answer([0.0] * 7)
    assert detector.loss(Views(), generator()).item() == pytest.approx(math.log(7), rel=1e-6)


def test_score_rises_with_the_mean_class():
    logits = 3 * torch.randn(500, 7, generator=generator(), dtype=torch.float64)
    detector = ready(DTEC())
    detector.net = Answer(logits)
    expectation = logits.softmax(1).numpy() @ np.arange(7)
    score = detector.score(Views(x=torch.zeros(500, 5)))
    assert spearmanr(score, expectation).statistic == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(6 * score.sigmoid(), expectation, rtol=1e-9)  # log E[k] - log(6 - E[k]), undone


def test_saturated_logits_do_not_tie():
    logits = torch.zeros(20, 7, dtype=torch.float64)
    logits[:, 6] = torch.linspace(50, 2000, 20, dtype=torch.float64)  # E[k] rounds to 6 in all of them
    detector = ready(DTEC())
    assert len(set((logits.softmax(1) @ torch.arange(7.0).double()).tolist())) == 1
    detector.net = Answer(logits)
    high = detector.score(Views(x=torch.zeros(20, 5)))
    assert torch.isfinite(high).all() and (high.diff() > 0).all()
    detector.net = Answer(logits.flip(1))
    low = detector.score(Views(x=torch.zeros(20, 5)))
    assert (low.diff() < 0).all() and low.max() < high.min()


def test_mode_is_the_likeliest_class():
    detector = ready(DTEC(score_by="mode", bins=3))
    detector.net = Answer([[0.0, 1.0, 5.0], [2.0, 1.0, 0.0], [0.0, 9.0, 1.0]])
    assert detector.score(Views(x=torch.zeros(3, 5))).tolist() == [2, 0, 1]


@pytest.mark.parametrize(("bins", "levels"), [(1, 400), (401, 400), (7, 6)])
def test_impossible_bins_are_a_mistake(bins, levels):
    with pytest.raises(UserError, match=rf"bins = {bins}: allowed are 2 to T = {levels}"):
        DTEC(bins=bins, T=levels)
    assert ready(DTEC(bins=2, T=2)).score(Views(x=torch.zeros(1, 5))).shape == (1,)


def tight_blob_and_far_rows() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    train = 0.2 * torch.randn(256, 5, generator=generator(1))
    test = torch.cat(
        [0.2 * torch.randn(50, 5, generator=generator(2)), torch.randn(50, 5, generator=generator(3)) + 0.5]
    )
    return train, test, np.repeat([0, 1], 50)


@pytest.mark.parametrize(
    "detector",
    [
        DTEC(hidden=[32, 32], lr=3e-3),
        DTEC(hidden=[32, 32], lr=3e-3, bins=40),  # the double softmax does not learn this many
        DTEC(hidden=[32, 32], lr=3e-3, loss="double_softmax"),
        DTEIG(hidden=[32, 32], lr=3e-3),
        DTEGaussian(hidden=[32, 32], lr=3e-3),
    ],
    ids=["logits", "40 bins", "double softmax", "ig", "gaussian"],
)
def test_it_learns_easy_data(detector):
    train, test, label = tight_blob_and_far_rows()
    ready(detector)
    optimizer, draws = detector.recipe.optimizer(detector), generator(4)
    losses = []
    for _ in range(250):
        loss = detector.loss(Views(x=train), draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < np.mean(losses[:20])
    with torch.no_grad():
        assert roc_auc_score(label, detector.score(Views(x=test))) > 0.95
    moved = detector.denoise(test[50:], rate=0.05, steps=40)
    assert moved.norm(dim=1).mean() < 0.8 * test[50:].norm(dim=1).mean()  # along the gradient, towards the data


@pytest.mark.parametrize("dim", [3, 21])
def test_the_optimum_of_the_ig_loss_is_alpha_over_mean_inverse_variance(dim):
    detector, x = ready(DTEIG(), dim), torch.zeros(3000, dim)
    _, t = detector.noised(Views(x=x), generator(2))

    def loss(u: float) -> float:
        detector.net = Answer([u])
        return detector.loss(Views(x=x), generator(2)).item()

    alpha, inverse = dim / 2 - 1, np.mean(1 / VARIANCES[t])
    found = minimize_scalar(loss, bounds=(1e-3, 1), method="bounded", options={"xatol": 1e-7})
    assert found.x**2 == pytest.approx(alpha / inverse, rel=0.01)
    beta = 0.3**2
    assert loss(0.3) == pytest.approx(-(alpha * math.log(beta + 1e-5) - beta * inverse), rel=1e-4)
    assert loss(-0.3) == loss(0.3)


@pytest.mark.parametrize("dim", [1, 2])
def test_ig_needs_three_features(dim):
    with pytest.raises(UserError, match=rf"at least 3 features, the data have {dim}; use detector=dte_c"):
        ready(DTEIG(), dim)


def test_ig_scores_beta_or_the_raw_output():
    for score_by, expected in (("beta", [4.0, 9.0]), ("raw", [-2.0, 3.0])):
        detector = ready(DTEIG(score_by=score_by))
        detector.net = Answer([[-2.0], [3.0]])
        assert detector.score(Views(x=torch.zeros(2, 5))).tolist() == expected


def test_gaussian_loss_is_the_squared_error_of_the_time():
    detector, x = ready(DTEGaussian()), torch.zeros(100, 5)
    _, t = detector.noised(Views(x=x), generator(2))
    detector.net = Answer([0.25])
    ours = detector.loss(Views(x=x), generator(2)).item()
    assert ours == pytest.approx(np.mean((0.25 - t.numpy() / 400) ** 2), rel=1e-5)


@pytest.mark.parametrize("detector", [DTEC(), DTEIG(), DTEGaussian()])
def test_one_row_of_64_bit_numbers_gives_one_score(detector):
    score = ready(detector).score(Views(x=torch.zeros(1, 5, dtype=torch.float64)))
    assert score.shape == (1,) and torch.isfinite(score).all()


def test_losses_draw_from_the_generator_only():
    detector, x = ready(DTEC()), torch.randn(50, 5, generator=generator(1))
    torch.manual_seed(1)
    first = detector.loss(Views(x=x), generator(2)).item()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert detector.loss(Views(x=x), generator(2)).item() == first
    assert torch.equal(torch.get_rng_state(), before)
    assert detector.loss(Views(x=x), generator(3)).item() != first
