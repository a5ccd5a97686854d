"""DDPM: the score as a loop over the paper's formula, closed forms for a perfect noise predictor, the stop rule."""

import numpy as np
import pytest
import torch

from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.ddpm import DDPM
from outlie.errors import UserError

SMALL = {"T": 40, "rec_start": 12, "steps": None}


def ready(dim: int = 4, **options) -> DDPM:
    """An untrained detector whose batch statistics are not those of a fresh one."""
    detector = DDPM(**(SMALL | options))
    set_up(detector, Spec({"x": (dim,), "features": (dim,)}, seed=3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector.train()
        for _ in range(3):
            detector.net(2 * torch.randn(32, dim), detector.net.embed_time(torch.arange(32)))
    return detector.eval()


def rows(n: int = 7, dim: int = 4) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def score(detector: DDPM, x: torch.Tensor) -> np.ndarray:
    return detector.score(Views(x=x)).numpy()


@torch.no_grad()
def papers_chain(detector: DDPM, x: torch.Tensor, start: int, levels: int) -> list[np.ndarray]:
    """x_{i-1} = (x_i - beta_i / sqrt(1 - abar_i) eps(x_i, i)) / sqrt(alpha_i) for i = start-1 ... 0; all states."""
    states = [x.numpy()]
    for i in range(start - 1, -1, -1):
        beta = 1e-4 + (1e-2 - 1e-4) * i / (levels - 1)
        abar = np.prod([1 - (1e-4 + (1e-2 - 1e-4) * j / (levels - 1)) for j in range(i + 1)])
        now = torch.as_tensor(states[-1]).float()
        eps = detector.net(now, detector.net.embed_time(torch.full((len(now),), i))).double().numpy()
        states.append((states[-1] - beta / np.sqrt(1 - abar) * eps) / np.sqrt(1 - beta))
    return states


class PointMass(torch.nn.Module):
    """The perfect noise predictor where all data lie at `mu`; hands the time through in place of an embedding."""

    def __init__(self, abar: torch.Tensor, mu: float) -> None:
        super().__init__()
        self.abar, self.mu = abar, mu

    def embed_time(self, t):
        return t[:, None]

    def forward(self, x, shift):
        abar = self.abar[shift]
        return (x - abar.sqrt() * self.mu) / (1 - abar).sqrt()


def perfect(mu: float = 0.5, **options) -> DDPM:
    detector = ready(**options)
    detector.net = PointMass(detector.abar, mu)
    return detector


def test_reconstruction_is_the_papers_loop():
    detector, x = ready(), rows()
    *_, end = papers_chain(detector, x, 12, 40)
    expected = ((x.numpy() - end) ** 2).mean(1)
    assert expected.min() > 1e-6
    np.testing.assert_allclose(score(detector, x), expected, rtol=1e-3)
    np.testing.assert_allclose(detector.denoise(x).detach(), end, rtol=1e-4, atol=1e-5)


def test_full_path_sums_the_steps_of_the_loop():
    detector, x = ready(score_by="full_path"), rows()
    states = np.array(papers_chain(detector, x, 12, 40))
    np.testing.assert_allclose(score(detector, x), (np.diff(states, axis=0) ** 2).mean(2).sum(0), rtol=1e-3)


@pytest.mark.parametrize(
    "options",
    [{}, {"steps": 1}, {"steps": 5}, {"forward_noise": True}, {"posterior_noise": True}, {"rec_start": 40}],
    ids=str,
)
def test_a_perfect_predictor_gives_the_distance_to_the_data(options):
    x = rows()
    np.testing.assert_allclose(score(perfect(**options), x), ((x - 0.5) ** 2).mean(1), rtol=1e-3)
    np.testing.assert_allclose(perfect(**options).denoise(x), 0.5, atol=1e-4)


def test_noise_error_of_a_perfect_predictor_in_closed_form():
    # x_t of a row x: predicted minus true noise = sqrt(abar / (1 - abar)) (x - mu), whatever the noise
    x, abar = rows(), np.cumprod(1 - np.linspace(1e-4, 1e-2, 40))
    ours = score(perfect(score_by="noise_error"), x)
    weight = np.mean(abar[:12] / (1 - abar[:12]))
    np.testing.assert_allclose(ours, weight * ((x - 0.5) ** 2).mean(1), rtol=1e-3)


def test_training_loss_of_a_perfect_predictor():
    detector, generator = perfect(), torch.Generator()
    on_data = detector.loss(Views(x=torch.full((500, 4), 0.5)), generator.manual_seed(0))
    assert on_data.item() == pytest.approx(0, abs=1e-6)
    abar = np.cumprod(1 - np.linspace(1e-4, 1e-2, 40))
    t = torch.randint(40, (500,), generator=generator.manual_seed(0))  # the first draw of the loss
    beside = detector.loss(Views(x=torch.full((500, 4), 1.5)), generator.manual_seed(0))
    assert beside.item() == pytest.approx(np.mean((abar / (1 - abar))[t]), rel=1e-3)


def test_every_switch_changes_the_score():
    x, options = rows(), {"rec_start": 13, "steps": 6, "forward_noise": True, "posterior_noise": True}
    switches = [{name: value} for name, value in options.items()]
    switches += [{"score_by": "full_path"}, {"score_by": "noise_error"}]
    results = [score(ready(), x), *(score(ready(**one), x) for one in switches)]
    assert all(np.isfinite(one).all() and (one > 0).all() for one in results)
    for i, one in enumerate(results):
        assert not any(np.allclose(one, other, rtol=1e-4) for other in results[:i])


@pytest.mark.parametrize(
    "options",
    [{}, {"forward_noise": True}, {"posterior_noise": True}, {"score_by": "noise_error"}, {"score_by": "full_path"}],
    ids=str,
)
def test_a_row_alone_scores_as_in_a_batch_and_twice_the_same(options):
    detector, x = ready(**options), rows()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    together = score(detector, x)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_allclose(np.concatenate([score(detector, row[None]) for row in x]), together, rtol=1e-4)
    np.testing.assert_array_equal(score(detector, x), together)
    assert score(detector, x[:1]).shape == (1,)


def test_other_seed_other_noise():
    one, other = ready(forward_noise=True), ready(forward_noise=True)
    other.seed = 4
    assert not np.allclose(score(one, rows()), score(other, rows()), rtol=1e-4)


def test_starting_above_the_last_level_is_a_mistake():
    with pytest.raises(UserError, match=r"rec_start = 250 lies outside the 100 noise levels; set detector\.rec_start"):
        DDPM(T=100, rec_start=250)
    DDPM(T=250, rec_start=250)


def test_stops_once_the_loss_exceeds_that_of_39_epochs_before():
    stop = DDPM(early_stop=True).stop

    def history(epoch: int, low: int) -> list[float]:
        """Losses of epochs 0..epoch, all 1 but for a 0.5 at epoch `low`."""
        return [0.5 if e == low else 1.0 for e in range(epoch + 1)]

    assert [e for e in range(40, 60) if stop(history(e, e - 39))] == list(range(51, 60))  # e > 50
    assert stop(history(80, 41))
    assert not stop(history(80, 40)) and not stop(history(80, 42))  # released code: history[-1] > history[-40]
    assert not stop([1.0] * 100)  # equal is not above
    assert not stop([]) and not stop([1.0])
    assert not DDPM(early_stop=False).stop(history(80, 41))
