"""Training: batches, Adam's steps in closed form, interruption and resumption, early stop, a loss that is no number."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from outlie import stages
from outlie.backbones.training import ClassifierRecipe
from outlie.detectors.base import Detector, Spec, Views, set_up
from outlie.detectors.ddpm import DDPM
from outlie.detectors.dte import DTEC
from outlie.detectors.training import Recipe
from outlie.errors import UserError
from outlie.lightning import Batches
from outlie.results import store
from outlie.trainer import Options

OPTIONS = Options(accelerator="cpu", checkpoint_seconds=0, threads=1)


def numbered(n: int) -> Views:
    """Rows whose first feature is their number."""
    return Views(x=torch.arange(n, dtype=torch.float64)[:, None].expand(n, 3).contiguous())


def epochs_of(n: int, batch_size: int, drop_last: bool, epochs: int = 1) -> list[list[list[int]]]:
    """Row numbers of each batch of each epoch."""
    generator = torch.Generator().manual_seed(0)
    batches = Batches(numbered(n), batch_size, drop_last, lambda: generator)
    runs = [[batch.x[:, 0].int().tolist() for batch in batches] for _ in range(epochs)]
    assert all(len(run) == len(batches) for run in runs)
    return runs


@pytest.mark.parametrize(
    ("n", "drop_last", "sizes"),
    [
        (32, False, [8] * 4),
        (32, True, [8] * 4),
        (30, False, [8, 8, 8, 6]),
        (30, True, [8, 8, 8]),
        (33, False, [8] * 4),  # one row is no batch
        (5, False, [5]),
        (5, True, [5]),  # dropping it would leave nothing to train on
        (8, True, [8]),
        (1, True, [1]),
        (1, False, [1]),
    ],
)
def test_sizes_of_batches(n, drop_last, sizes):
    assert [len(batch) for batch in epochs_of(n, 8, drop_last)[0]] == sizes


@pytest.mark.parametrize(("n", "sizes"), [(10, [8]), (11, [8, 3]), (2, [2]), (16, [8, 8])])
def test_a_small_last_batch_is_left_out_where_its_statistics_would_be_kept(n, sizes):
    batches = Batches(numbered(n), 8, False, torch.Generator, fewest=3)
    assert [len(batch) for batch in batches] == sizes


def test_a_classifier_takes_no_batch_below_a_quarter():
    assert ClassifierRecipe(batch_size=128).fewest == 32 and ClassifierRecipe(batch_size=4).fewest == 2


def test_an_epoch_covers_every_row_once_in_an_order_of_its_own():
    first, second = epochs_of(30, 8, drop_last=False, epochs=2)
    for epoch in (first, second):
        assert Counter(row for batch in epoch for row in batch) == Counter(range(30))
    assert first != second
    assert [row for batch in first for row in batch] != list(range(30))
    dropped = Counter(row for epoch in epochs_of(30, 8, drop_last=True, epochs=40) for batch in epoch for row in batch)
    assert len(dropped) == 30  # what is left out changes from epoch to epoch


class Probe(Detector):
    """One weight whose loss is `slope * w`: Adam moves it by the learning rate in every step, whatever the slope."""

    needs = ("x",)

    def __init__(self, slope: float = 1.0, **recipe) -> None:
        super().__init__()
        self.recipe = Recipe(**({"epochs": 3, "batch_size": 8, "lr": 0.01} | recipe))
        self.slope, self.seen, self.drawn, self.steps = slope, [], [], 0

    def setup(self, spec: Spec) -> None:
        self.w = nn.Parameter(torch.ones(1))

    def loss(self, views: Views, generator: torch.Generator) -> torch.Tensor:
        self.steps += 1
        self.seen += views.x[:, 0].int().tolist()
        self.drawn.append((torch.rand(1, generator=generator).item(), torch.rand(1).item()))
        return (self.slope * self.w).sum()

    def score(self, views: Views) -> torch.Tensor:
        return views.x[:, 0]


def run(
    detector: Detector, folder: Path, views: Views | None = None, options: Options = OPTIONS, seed: int = 0
) -> dict:
    views = numbered(32) if views is None else views
    set_up(detector, Spec({"x": tuple(views.x.shape[1:])}, seed=seed))
    return stages.train(detector, views, seed, options, folder)


def test_every_row_once_an_epoch_through_lightning(tmp_path):
    probe = Probe(epochs=4)
    spent = run(probe, tmp_path, numbered(30))
    assert Counter(probe.seen) == Counter(list(range(30)) * 4)
    assert probe.steps == 4 * 4 and len(spent["losses"]) == 4
    assert spent["train_s"] > 0 and spent["train_cpu_s"] > 0
    assert not probe.training  # ready to score


def test_every_epoch_has_an_order_and_noise_of_its_own(tmp_path):
    probe = Probe(epochs=3)
    run(probe, tmp_path)
    assert len({tuple(probe.seen[32 * epoch : 32 * epoch + 32]) for epoch in range(3)}) == 3
    noise, dropout = zip(*probe.drawn, strict=True)  # the generator's and the global one's, which dropout draws from
    assert len(set(noise)) == len(set(dropout)) == 12
    other = Probe(epochs=3)
    run(other, tmp_path / "other seed", seed=1)
    assert not set(probe.drawn) & set(other.drawn) and probe.seen != other.seen


def test_adam_steps_by_the_learning_rate(tmp_path):
    probe = Probe(slope=7.0)
    spent = run(probe, tmp_path)
    assert probe.w.item() == pytest.approx(1 - 12 * 0.01, rel=1e-4)
    # mean over an epoch's four batches of slope * w
    assert spent["losses"][0] == pytest.approx(7 * (1 + 0.99 + 0.98 + 0.97) / 4, rel=1e-4)


def test_weight_decay_is_coupled(tmp_path):
    # Adam divides the decay's gradient by its own size: w moves by lr; AdamW would move it by lr * decay * w
    probe = Probe(slope=0.0, weight_decay=5e-4)
    run(probe, tmp_path)
    assert probe.w.item() == pytest.approx(1 - 12 * 0.01, rel=0.01)


def test_learning_rate_falls_as_a_cosine(tmp_path):
    recipe = Recipe(1, 1, lr=0.01, decay_lr=True)
    assert [recipe.lr_at(p) for p in (0, 0.5, 1)] == pytest.approx([0.01, 0.005, 0])
    assert Recipe(1, 1, lr=0.01).lr_at(0.7) == 0.01
    probe = Probe(decay_lr=True)
    run(probe, tmp_path)
    path = sum(0.005 * (1 + math.cos(math.pi * step / 12)) for step in range(12))
    assert probe.w.item() == pytest.approx(1 - path, rel=1e-4)


def test_max_epochs_caps(tmp_path):
    for cap, epochs in ((2, 2), (9, 3), (None, 3)):
        probe = Probe(decay_lr=True)
        options = Options(accelerator="cpu", max_epochs=cap)
        assert len(run(probe, tmp_path / str(cap), options=options)["losses"]) == epochs
    # the cosine ends at 0 with the cap, not with the recipe's epochs
    probe = Probe(decay_lr=True)
    run(probe, tmp_path / "cosine", options=Options(accelerator="cpu", max_epochs=2))
    assert probe.w.item() == pytest.approx(1 - sum(0.005 * (1 + math.cos(math.pi * i / 8)) for i in range(8)), rel=1e-4)


def test_a_small_table_gets_more_epochs(tmp_path):
    # 32 rows are 4 batches: 3 epochs are 12 steps
    for min_steps, epochs in ((0, 3), (12, 3), (13, 4), (40, 10)):
        probe = Probe(min_steps=min_steps, decay_lr=True)
        assert len(run(probe, tmp_path / str(min_steps))["losses"]) == epochs
    probe = Probe(min_steps=40)
    assert len(run(probe, tmp_path / "cap", options=Options(accelerator="cpu", max_epochs=2))["losses"]) == 2


def test_stop_is_asked_after_each_epoch_and_obeyed(tmp_path):
    probe, asked = Probe(epochs=9), []
    probe.stop = lambda losses: asked.append(list(losses)) or len(losses) == 4
    spent = run(probe, tmp_path)
    assert [len(losses) for losses in asked] == [1, 2, 3, 4]
    assert asked[-1] == spent["losses"]
    assert probe.steps == 4 * 4


@pytest.mark.parametrize("slope", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_told(tmp_path, slope):
    with pytest.raises(UserError, match=r"training loss became -?(nan|inf) in epoch 0, step 0 of \d+; lower lr"):
        run(Probe(slope=slope), tmp_path)


def test_a_loss_that_breaks_late_is_told_with_its_step_and_the_last_good_state(tmp_path):
    class Breaks(Probe):
        def loss(self, views, generator):
            loss = super().loss(views, generator)
            return loss * (math.nan if self.steps == 2 * 5 + 3 else 1.0)

    options = Options(accelerator="cpu", checkpoint_seconds=0)
    with pytest.raises(UserError, match=r"became nan in epoch 2, step 2 of 5; the last good state is .*training.ckpt"):
        run(Breaks(epochs=4), tmp_path, numbered(40), options)
    kept = torch.load(tmp_path / "training.ckpt", weights_only=True)
    assert kept["epoch"] == 1 and all(math.isfinite(loss) for loss in kept["losses"])
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


def test_fewer_rows_than_a_batch_are_trained_on(tmp_path):
    # the released code drops the only batch here: no step, loss NaN, no word
    rows = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    detector = DDPM(T=10, rec_start=2, epochs=2, min_steps=0)
    set_up(detector, Spec({"x": (3,)}))
    before = detector.net.stem.weight.detach().clone()
    losses = stages.train(detector, Views(x=rows), 0, OPTIONS, tmp_path)["losses"]
    assert all(math.isfinite(loss) for loss in losses)
    assert not torch.equal(before, detector.net.stem.weight)


def diffusion() -> DDPM:
    return DDPM(T=10, rec_start=2, epochs=4, min_steps=0, batch_size=16, lr=1e-3, decay_lr=True)


def time_classes() -> DTEC:
    return DTEC(T=20, hidden=[8, 8, 8], epochs=4, min_steps=0, batch_size=16, lr=1e-3, decay_lr=False)


def some_rows() -> Views:
    return Views(x=torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def interrupt_after(detector: Detector, epochs: int, error: BaseException) -> Detector:
    """Break the training in the middle of the epoch that follows."""
    original, done = detector.loss, Counter()

    def loss(views, generator):
        done["steps"] += 1
        if done["steps"] == 3 * epochs + 3:  # three batches an epoch, or four: in either case past `epochs` epochs
            raise error
        return original(views, generator)

    detector.loss = loss
    return detector


@pytest.mark.parametrize("make", [diffusion, time_classes])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("killed")], ids=["Ctrl-C", "crash"])
def test_interrupted_and_resumed_equals_uninterrupted_bit_by_bit(tmp_path, make, error):
    straight = make()
    losses = run(straight, tmp_path / "straight", some_rows())["losses"]
    folder = tmp_path / "broken"
    with pytest.raises(type(error)):
        run(interrupt_after(make(), 2, error), folder, some_rows())
    saved = torch.load(folder / "training.ckpt", weights_only=True)
    assert 1 <= len(saved["losses"]) < 4
    torch.manual_seed(99)  # the resumed process has other global random numbers
    resumed, asked = make(), []
    resumed.stop = lambda losses: asked.append(len(losses)) or False
    assert run(resumed, folder, some_rows())["losses"] == losses
    assert asked[0] == len(saved["losses"]) + 1  # it went on, it did not start again
    for (name, one), other in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert [file for file in folder.iterdir() if file.name != "training.ckpt"] == []


def test_same_seed_same_weights_other_seed_others(tmp_path):
    weights = []
    for i, seed in enumerate([5, 5, 6]):
        torch.manual_seed(i)
        detector = diffusion()
        run(detector, tmp_path / str(i), some_rows(), seed=seed)
        weights.append(detector.net.head[2].weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def trained(detector: Detector, folder: Path, force: bool = False) -> dict:
    set_up(detector, Spec({"x": (3,)}))
    return stages.trained(detector, some_rows(), 0, OPTIONS, folder, "", lambda losses, validation: None, force=force)


def test_a_training_that_is_done_is_found_not_repeated(tmp_path):
    first = time_classes()
    spent = trained(first, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"weights.ckpt", ".lock"}
    second = interrupt_after(time_classes(), -1, AssertionError("trained again"))
    assert trained(second, tmp_path) == spent
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    again = Probe()
    assert trained(again, tmp_path / "other")["losses"] and again.steps > 0
    steps = again.steps
    trained(again, tmp_path / "other", force=True)
    assert again.steps == 2 * steps


def test_two_trainings_of_the_same_weights_at_once_are_refused(tmp_path):
    with store.lock(tmp_path), pytest.raises(UserError, match="another process is computing"):
        trained(Probe(), tmp_path)


def test_small_steps_take_one_thread_and_give_the_others_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with stages.threads(1e6):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with stages.threads(1e12):
        assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


class Dead(Probe):
    """Tells what half of the smallest normal number is while it trains."""

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        self.halved = float(torch.tensor(2.0**-126) * 0.5)
        loss = super().loss(views, generator)
        loss.register_hook(lambda gradient: setattr(self, "in_backward", float(torch.tensor(2.0**-126) * 0.5)))
        return loss


def test_a_small_training_flushes_denormal_numbers_and_nothing_after_it_does(tmp_path):
    if not torch.set_flush_denormal(False):
        pytest.skip("this CPU cannot flush denormal numbers")
    module = Dead()
    trained(module, tmp_path)
    assert module.halved == module.in_backward == 0
    assert float(torch.tensor(2.0**-126) * 0.5) == 2.0**-127
    with stages.training_steps(1e12):  # its other threads would keep them
        assert float(torch.tensor(2.0**-126) * 0.5) == 2.0**-127


def test_scores_come_in_order_whatever_the_batch():
    views = numbered(11)
    for rows_at_once in (1, 3, 11, 100):
        scores = stages.score(Probe(), views, torch.device("cpu"), rows_at_once)
        assert scores.tolist() == list(range(11)) and scores.dtype == torch.float64
    assert stages.batch_lint(Probe(), views, torch.device("cpu")) == []


def test_a_score_that_depends_on_the_batch_is_a_finding():
    probe = Probe()
    probe.score = lambda views: views.x[:, 0] - views.x.mean()
    (finding,) = stages.batch_lint(probe, numbered(11), torch.device("cpu"))
    assert "alone and in a batch" in finding
