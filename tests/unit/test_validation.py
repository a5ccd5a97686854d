"""Rows held out of a training: which they are, which epoch's weights are kept, when it stops, and that it can go on."""

import math

import pytest
import torch
from torch import nn

from outlie import stages
from outlie.detectors.base import Detector, Spec, Views, set_up
from outlie.detectors.training import Recipe
from outlie.lightning import Train
from outlie.trainer import Options
from outlie.validation import Validation, held_out

OPTIONS = Options(accelerator="cpu", checkpoint_seconds=0, threads=1)
N = 40


def numbered(n: int = N) -> Views:
    """Rows whose first entry is their number."""
    return Views(x=torch.arange(n, dtype=torch.float64)[:, None].expand(n, 3).contiguous())


@pytest.mark.parametrize(
    ("n", "share", "count"), [(40, 0.1, 4), (40, 0.001, 1), (3, 0.5, 2), (2, 0.9, 1), (40, 1.0, 39)]
)
def test_every_row_is_on_one_side(n, share, count):
    training, validating = held_out(n, share, seed=3)
    assert len(validating) == count
    assert sorted([*training.tolist(), *validating.tolist()]) == list(range(n))
    assert torch.equal(held_out(n, share, seed=3)[1], validating)


def test_another_seed_holds_out_others():
    assert not torch.equal(held_out(40, 0.2, 0)[1], held_out(40, 0.2, 1)[1])
    assert held_out(40, 0.2, 0)[1].tolist() != list(range(8))


class Weight(nn.Module):
    """One weight; its loss on held-out rows is a list read off by an epoch's number."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.w, self.losses = nn.Parameter(torch.zeros(1)), losses
        self.register_buffer("seen", torch.zeros(1))
        self.modes: list[bool] = []

    def validate(self, views: Views) -> torch.Tensor:
        self.modes.append(self.training)
        return torch.tensor(self.losses[int(self.w)])


def watched(losses: list[float], patience: int) -> tuple[Weight, Validation, list[bool]]:
    module, validation, stops = Weight(losses), Validation(numbered(), patience), []
    for epoch in range(len(losses)):
        with torch.no_grad():
            module.w.fill_(epoch)
            module.seen.fill_(10 * epoch)
        stops.append(validation.stops(module))
    return module, validation, stops


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([3.0, 1.0, 2.0, 4.0], 1),
        ([1.0, 2.0], 0),
        ([3.0, 2.0, 1.0], 2),
        ([2.0, 1.0, 1.0], 1),  # the first of equals
        ([math.nan, 2.0, 1.0, 3.0], 2),  # a number is better than none
        ([2.0, math.nan, 3.0], 0),
        ([math.inf, 5.0, math.nan], 1),
        ([math.nan, math.nan], 0),
        ([-1.0, -5.0, 3.0], 1),
    ],
)
def test_the_best_epoch_is_kept(losses, best):
    module, validation, stops = watched(losses, patience=0)
    assert not any(stops)  # patience 0 never stops
    validation.keep_best(module)
    assert module.w.item() == best and module.seen.item() == 10 * best
    assert module.modes == [False] * len(losses) and module.training
    torch.testing.assert_close(validation.losses, losses, equal_nan=True)


@pytest.mark.parametrize(
    ("losses", "patience", "stops"),
    [
        ([3.0, 2.0, 2.5, 2.6, 2.7], 2, [False, False, False, True, True]),
        ([3.0, 2.0, 2.5, 1.0, 2.7], 2, [False] * 5),
        ([3.0, 3.0, 3.0], 1, [False, True, True]),  # no lower is no better
        ([3.0, 2.0, 1.0], 1, [False] * 3),
        ([math.nan, math.nan, math.nan], 2, [False, False, True]),
    ],
)
def test_patience_counts_epochs_without_a_lower_loss(losses, patience, stops):
    assert watched(losses, patience)[2] == stops


def test_the_state_goes_on(tmp_path):
    module, validation, _ = watched([3.0, 1.0, 2.0], patience=3)
    torch.save(validation.state(), tmp_path / "state")
    again = Validation(numbered(), 3)
    again.load(torch.load(tmp_path / "state", weights_only=True))
    assert again.losses == [3.0, 1.0, 2.0]
    module.losses = [9.0, 9, 9, 9, 0.5]
    with torch.no_grad():
        module.w.fill_(3)
    assert not again.stops(module)  # two epochs after the best one
    again.keep_best(module)
    assert module.w.item() == 1


class Falling(Detector):
    """A weight that Adam lowers by 0.1 a step; best on held-out rows where it is nearest to `target`."""

    needs = ("x",)

    def __init__(self, target: float, dropout: bool = False, **recipe) -> None:
        super().__init__()
        self.recipe = Recipe(**({"epochs": 8, "batch_size": 100, "lr": 0.1, "validation": 0.2} | recipe))
        self.target, self.trained_on, self.validated_on = target, [], []

    def setup(self, spec: Spec) -> None:
        self.w = nn.Parameter(torch.ones(1))

    def loss(self, views: Views, generator: torch.Generator) -> torch.Tensor:
        self.trained_on.append(set(views.x[:, 0].int().tolist()))
        return self.w.sum()

    def validate(self, views: Views) -> torch.Tensor:
        self.validated_on.append(set(views.x[:, 0].int().tolist()))
        return (self.w - self.target).square().sum()

    def score(self, views: Views) -> torch.Tensor:
        return views.x[:, 0]


def train(detector: Detector, folder, options: Options = OPTIONS, seed: int = 5) -> dict:
    set_up(detector, Spec({"x": (3,)}, seed=seed))
    return stages.train(detector, numbered(), seed, options, folder)


def test_training_keeps_the_best_epoch_on_rows_it_never_saw(tmp_path):
    detector = Falling(0.7)
    spent = train(detector, tmp_path)
    assert detector.w.item() == pytest.approx(0.7, abs=1e-5)  # after the third of eight epochs
    kept, validating = held_out(N, 0.2, 5)
    assert detector.trained_on == [set(kept.tolist())] * 8
    assert detector.validated_on == [set(validating.tolist())] * 8
    assert spent["validation_losses"] == pytest.approx([(0.9 - 0.1 * i - 0.7) ** 2 for i in range(8)], abs=1e-5)
    assert len(spent["losses"]) == 8 and not detector.training


def test_training_stops_by_patience(tmp_path):
    detector = Falling(0.7, patience=2)
    spent = train(detector, tmp_path)
    assert len(spent["losses"]) == len(spent["validation_losses"]) == 5
    assert detector.w.item() == pytest.approx(0.7, abs=1e-5)


def test_without_held_out_rows_the_last_weights_stay(tmp_path):
    detector = Falling(0.7, validation=0.0)
    spent = train(detector, tmp_path)
    assert spent["validation_losses"] == [] and detector.validated_on == []
    assert detector.w.item() == pytest.approx(0.2, abs=1e-5)
    assert detector.trained_on == [set(range(N))] * 8


def broken_at(detector: Detector, steps: int) -> Detector:
    original, done = detector.loss, []

    def loss(views, generator):
        done.append(0)
        if len(done) > steps:
            raise RuntimeError("killed")
        return original(views, generator)

    detector.loss = loss
    return detector


@pytest.mark.parametrize("steps", [2, 5, 7])
def test_interrupted_and_resumed_ends_with_the_same_weights(tmp_path, steps):
    """Before the best epoch, after it, and in the last one."""
    straight = Falling(0.7)
    expected = train(straight, tmp_path / "straight")
    with pytest.raises(RuntimeError, match="killed"):
        train(broken_at(Falling(0.7), steps), tmp_path / "broken")
    resumed = Falling(0.7)
    spent = train(resumed, tmp_path / "broken")
    assert len(resumed.trained_on) == 8 - steps
    assert spent["losses"] == expected["losses"] and spent["validation_losses"] == expected["validation_losses"]
    assert torch.equal(resumed.w, straight.w)


@pytest.mark.parametrize("recipe", [{}, {"ema": 0.5, "validation": 0.0}])
def test_killed_between_the_last_epoch_and_its_end(tmp_path, monkeypatch, recipe):
    """The last checkpoint must lead to the best weights (or the average), and not to those of the last step."""
    straight = Falling(0.7, **recipe)
    train(straight, tmp_path / "straight")
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="killed"):
        patched.setattr(Train, "on_train_end", lambda self: (_ for _ in ()).throw(RuntimeError("killed")))
        train(Falling(0.7, **recipe), tmp_path / "broken")
    resumed = Falling(0.7, **recipe)
    spent = train(resumed, tmp_path / "broken")
    assert torch.equal(resumed.w, straight.w)
    assert len(spent["losses"]) == 8
