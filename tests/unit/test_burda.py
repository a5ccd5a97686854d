"""The published recipe of the IWAE paper against its official code, written out in NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from outlie import stages
from outlie.detectors.base import Detector, Spec, Views, set_up
from outlie.detectors.training import BurdaRecipe
from outlie.trainer import Options

OFFICIAL = [10.0, 7.2, 5.2, 3.7, 2.7, 1.9, 1.4, 1.0]  # times 1e-4, for 3^i epochs; specification of IWAE, section 3
EPOCHS, B = 3280, 20


def recipe(**options) -> BurdaRecipe:
    return BurdaRecipe(
        **({"epochs": EPOCHS, "batch_size": B, "lr": 1e-3, "decay_lr": True, "shuffle": False} | options)
    )


def table() -> list[float]:
    """The rate of every epoch."""
    return [1e-4 * rate for i, rate in enumerate(OFFICIAL) for _ in range(3**i)]


def test_every_epoch_has_the_official_learning_rate():
    expected = table()
    assert len(expected) == EPOCHS
    assert [recipe().lr_at(epoch / EPOCHS) for epoch in range(EPOCHS)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("steps", [7, 2980])
def test_the_rate_changes_with_the_epoch_and_not_within_it(steps):
    """As Train computes the progress, in floating point, at an epoch's first and last step."""
    own, expected = recipe(), table()
    for epoch in (0, 1, 3, 4, 12, 13, 39, 40, 120, 121, 363, 364, 1092, 1093, EPOCHS - 1):
        for step in (0, 1, steps - 1):
            assert own.lr_at((epoch + step / steps) / EPOCHS) == pytest.approx(expected[epoch], rel=1e-12), (
                epoch,
                step,
            )


def test_a_shorter_training_has_the_same_shares():
    own = recipe(epochs=82)  # 1, 3, 9 ... out of 3280 epochs are fractions of an epoch
    rates = [own.lr_at(epoch / 82) for epoch in range(82)]
    assert rates == sorted(rates, reverse=True) and rates[0] == 1e-3 and rates[-1] == 1e-4
    assert sum(rate == 1e-4 for rate in rates) / 82 == pytest.approx(3**7 / EPOCHS, abs=0.02)


def quadratic(w: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Gradient of each row's (w - row)^2 / 2: (B, D)."""
    return w - rows


def official(w: np.ndarray, batches: list[np.ndarray], lr: float, previous: bool, eps_outside: bool) -> np.ndarray:
    """Burda's Adam: gradients summed over the batch, v_0 = 1, beta1 = 0.99, eps = 1e-4.

    `previous`: as the Theano updates are, all from the values before the step, so that the step is along the moments of
    the one before. `eps_outside`: lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps).
    """
    m, v, path = np.zeros_like(w), np.ones_like(w), []
    for t, rows in enumerate(batches, start=1):
        g = quadratic(w, rows).sum(0)
        new_m, new_v = 0.99 * m + 0.01 * g, 0.999 * v + 0.001 * g**2
        if not previous:
            m, v = new_m, new_v
        first, second = 1 - 0.99**t, 1 - 0.999**t
        if eps_outside:
            w = w - lr * np.sqrt(second) / first * m / (np.sqrt(v) + 1e-4)
        else:
            w = w - lr / first * m / (np.sqrt(v / second) + 1e-4)
        m, v = new_m, new_v
        path.append(w)
    return np.array(path)


class Quadratic(Detector):
    """Mean over rows of |w - row|^2 / 2."""

    needs = ("x",)

    def __init__(self, **options) -> None:
        super().__init__()
        self.recipe, self.path, self.firsts = recipe(**options), [], []

    def setup(self, spec: Spec) -> None:
        self.w = nn.Parameter(torch.full(spec.shapes["x"], 2.0, dtype=torch.float64))

    def loss(self, views: Views, generator: torch.Generator) -> torch.Tensor:
        self.path.append(self.w.detach().numpy().copy())
        self.firsts.append(float(views.x[0, 0]))
        return (self.w - views.x).square().sum(1).mean() / 2

    def score(self, views: Views) -> torch.Tensor:
        return views.x[:, 0]


@pytest.fixture
def trained(tmp_path):
    """Sixty steps on three batches of 20 at the first rate, and the rows."""
    rows = np.random.default_rng(0).normal(size=(3 * B, 4))
    detector = Quadratic(decay_lr=False)
    set_up(detector, Spec({"x": (4,)}))
    options = Options(accelerator="cpu", max_epochs=20, threads=1)
    stages.train(detector, Views(x=torch.from_numpy(rows)), 0, options, tmp_path)
    return np.array([*detector.path[1:], detector.w.detach().numpy()]), rows, detector


def test_steps_are_the_official_ones(trained):
    path, rows, _ = trained
    batches = [rows[B * (i % 3) : B * (i % 3) + B] for i in range(60)]
    start = np.full(4, 2.0)
    same = official(start, batches, 1e-3, previous=False, eps_outside=False)
    np.testing.assert_allclose(path, same, rtol=1e-9)
    # where eps stands changes nothing to speak of: sqrt(v) is 1 or more, eps 1e-4
    outside = official(start, batches, 1e-3, previous=False, eps_outside=True)
    np.testing.assert_allclose(path - 2, outside - 2, rtol=1e-3)
    # the official code is a step behind; its first one does not move at all
    behind = official(start, batches, 1e-3, previous=True, eps_outside=True)
    assert (behind[0] == start).all() and not (path[0] == start).any()
    assert np.abs(path - behind).max() < 0.15 * np.abs(path - 2).max()


def test_it_is_not_adam_with_the_usual_start(trained):
    path, rows, _ = trained
    w = torch.full((4,), 2.0, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([w], lr=1e-3, betas=(0.99, 0.999), eps=1e-4 / B)
    w.grad = torch.from_numpy(quadratic(w.detach().numpy(), rows[:B]).mean(0))
    adam.step()
    ours, usual = path[0] - 2, w.detach().numpy() - 2
    assert (np.abs(ours) > 1.3 * np.abs(usual)).any() or (np.abs(ours) < 0.9 * np.abs(usual)).any()


def test_rows_come_in_the_same_order_in_every_epoch(trained):
    _, rows, detector = trained
    assert detector.firsts == [rows[0, 0], rows[B, 0], rows[2 * B, 0]] * 20


def test_interrupted_and_resumed_keeps_the_moments(tmp_path):
    rows = Views(x=torch.from_numpy(np.random.default_rng(0).normal(size=(3 * B, 4))))
    options = Options(accelerator="cpu", checkpoint_seconds=0, threads=1)

    def run(folder, steps: int | None = None) -> Quadratic:
        detector = Quadratic(epochs=8)
        set_up(detector, Spec({"x": (4,)}))
        original = detector.loss

        def loss(views, generator):
            if len(detector.path) == steps:
                raise RuntimeError("killed")
            return original(views, generator)

        detector.loss = loss
        stages.train(detector, rows, 0, options, folder)
        return detector

    straight = run(tmp_path / "straight")
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "broken", 10)
    resumed = run(tmp_path / "broken")
    assert len(resumed.path) == 8 * 3 - 9
    assert torch.equal(resumed.w, straight.w)
