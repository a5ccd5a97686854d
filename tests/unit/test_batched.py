"""Seeds trained as one against the same seeds trained one by one through Lightning, the oracle throughout."""

import copy
from pathlib import Path

import polars as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from outlie import batched, cli, compose, stacked, stages
from outlie.detectors.base import Detector, Spec, Views, set_up
from outlie.detectors.ddpm import DDPM
from outlie.detectors.dte import DTEC, DTEIG, DTEGaussian
from outlie.detectors.training import Recipe
from outlie.detectors.vae import VAE
from outlie.results import store
from outlie.trainer import Options

OPTIONS = Options(accelerator="cpu", threads=1)
SMALL = {"hidden": [16, 24, 16], "epochs": 6, "min_steps": 0, "batch_size": 32}
KINDS = {
    "dte_c": lambda: DTEC(**SMALL),  # with far noise and a decaying rate
    "dte_c as published": lambda: DTEC(loss="double_softmax", far=0, decay_lr=False, **SMALL),
    "dte_ig": lambda: DTEIG(**SMALL),
    "dte_gaussian": lambda: DTEGaussian(drift=True, **SMALL),
    "ddpm": lambda: DDPM(epochs=6, min_steps=0, batch_size=32),
}


def rows(seed: int, n: int = 70, dim: int = 5) -> Views:
    """Two batches of 32 and one of 6, other rows for every seed."""
    return Views(x=torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(100 + seed)))


def ready(make, seed: int, dim: int = 5) -> Detector:
    return set_up(make(), Spec({"x": (dim,)}, seed=seed))


def alone(make, views: list[Views], seeds: list[int], folder: Path, options: Options = OPTIONS):
    """Each by Lightning: the detectors and what was spent."""
    detectors = [ready(make, seed, views[0].x.shape[1]) for seed in seeds]
    return detectors, [
        stages.train(detector, one, seed, options, folder / str(seed))
        for detector, one, seed in zip(detectors, views, seeds, strict=True)
    ]


def as_one(make, views: list[Views], seeds: list[int], options: Options = OPTIONS, **more):
    detectors = [ready(make, seed, views[0].x.shape[1]) for seed in seeds]
    return detectors, stacked.train_together(detectors, views, seeds, options, **more)


def same(ours: Detector, theirs: Detector, views: Views) -> None:
    """Weights, batch statistics and scores to 1e-5; nothing left in training mode."""
    assert not ours.training
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    with torch.no_grad():
        torch.testing.assert_close(ours.score(views), theirs.score(views), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_as_one_equals_one_by_one(kind, tmp_path):
    seeds = [3, 0, 11]
    views = [rows(seed) for seed in seeds]
    theirs, spent = alone(KINDS[kind], views, seeds, tmp_path)
    ours, spent_as_one = as_one(KINDS[kind], views, seeds)
    for a, b, one, cost, cost_as_one in zip(ours, theirs, views, spent, spent_as_one, strict=True):
        same(a, b, one)
        assert cost_as_one["losses"] == pytest.approx(cost["losses"], rel=1e-5)
        assert cost_as_one.keys() == cost.keys() and cost_as_one["validation_losses"] == []
        assert cost_as_one["train_s"] > 0 and cost_as_one["train_cpu_s"] > 0
    weights = [next(detector.parameters()) for detector in ours]
    assert (weights[0] - weights[1]).abs().max() > 1e-2  # seeds are not one another's copies


def test_max_epochs_and_min_steps_count_as_they_do_alone(tmp_path):
    make, views = lambda: DTEC(**SMALL | {"min_steps": 1000}), [rows(0), rows(1)]
    options = Options(accelerator="cpu", max_epochs=2)
    said = []
    ours, spent = as_one(make, views, [0, 1], options, told=lambda *what: said.append(what))
    theirs, _ = alone(make, views, [0, 1], tmp_path, options)
    same(ours[1], theirs[1], views[1])
    assert [(done, epochs) for done, epochs, _ in said] == [(1, 2), (2, 2)]
    assert [losses for *_, losses in said] == [[one["losses"][epoch] for one in spent] for epoch in (0, 1)]


def test_a_seed_that_stops_keeps_its_weights_while_the_others_go_on(tmp_path):
    def make():
        return DDPM(epochs=70, min_steps=0, batch_size=16, early_stop=True, lr=1e-3)

    seeds = [0, 1, 2]
    views = [rows(seed, n=16, dim=3) for seed in seeds]
    theirs, spent = alone(make, views, seeds, tmp_path)
    ours, spent_as_one = as_one(make, views, seeds)
    epochs = [len(one["losses"]) for one in spent]
    assert [len(one["losses"]) for one in spent_as_one] == epochs and len(set(epochs)) > 1
    for a, b, one, cost, cost_as_one in zip(ours, theirs, views, spent, spent_as_one, strict=True):
        assert cost_as_one["losses"] == pytest.approx(cost["losses"], rel=1e-3)
        assert a.net.stem.weight.detach().numpy() == pytest.approx(b.net.stem.weight.detach().numpy(), abs=1e-3)
        assert int(a.net.head[0].num_batches_tracked) == len(cost["losses"])
        with torch.no_grad():
            torch.testing.assert_close(a.score(one), b.score(one), rtol=1e-2, atol=1e-3)


def test_a_seed_without_a_finite_loss_drops_out_alone(tmp_path):
    views = [rows(0), rows(1), rows(2)]
    views[1].x[5] = float("nan")
    before = ready(KINDS["dte_c"], 1)
    ours, spent = as_one(KINDS["dte_c"], views, [0, 1, 2])
    assert [one is None for one in spent] == [False, True, False]
    assert all(torch.equal(a, b) for a, b in zip(ours[1].parameters(), before.parameters(), strict=True))
    theirs, _ = alone(KINDS["dte_c"], [views[0], views[2]], [0, 2], tmp_path)
    same(ours[0], theirs[0], views[0])
    same(ours[2], theirs[1], views[2])


def test_every_seed_can_fail():
    views = [rows(0), rows(1)]
    for one in views:
        one.x[:] = float("inf")
    assert as_one(KINDS["dte_c"], views, [0, 1])[1] == [None, None]


def test_groups_are_alike_in_rows_and_shapes():
    make = KINDS["dte_c"]
    detectors = [ready(make, 0), ready(make, 1), ready(make, 2), ready(make, 3, dim=4), ready(KINDS["dte_ig"], 4)]
    views = [rows(0), rows(1, n=71), rows(2), rows(3, dim=4), rows(4)]
    assert batched.groups(detectors, views) == [[0, 2], [1], [3], [4]]


def test_masks_are_those_of_the_global_generator():
    x = torch.randn(33, 21)
    torch.manual_seed(7)
    theirs = [F.dropout(x, 0.4), F.dropout(x[:5], 0.1)]
    with stacked.Draws() as draws:
        assert F.dropout(x, 0.4) is x and F.dropout(x[:5], 0.1).shape == (5, 21)
        assert F.dropout(x, 0.3, training=False) is x and F.dropout(x, 0.0) is x
    assert [draw.dropout for draw in draws.noted] == [True, True]
    generator = torch.Generator().manual_seed(7)
    for draw, masked in zip(draws.noted, theirs, strict=True):
        mask = torch.empty(draw.shape, dtype=draw.dtype)
        draw.fill(generator, mask)
        assert torch.equal(x[: len(mask)] * mask, masked)


class Unknown(Detector):
    """A loss with a draw that nobody makes for each seed."""

    def __init__(self) -> None:
        super().__init__()
        self.recipe, self.w = Recipe(1, 32, 0.1), nn.Parameter(torch.ones(5))

    def loss(self, views, generator):
        return (views.x[torch.randperm(len(views.x), generator=generator)].float() @ self.w).mean()


def test_a_draw_that_is_not_known_is_refused_not_shared():
    with pytest.raises(RuntimeError, match="random"):
        stacked.train_together([Unknown(), Unknown()], [rows(0), rows(1)], [0, 1], OPTIONS)
    assert not batched.can_batch(Unknown(), OPTIONS)


class Child(DTEC):
    """Whatever it changes, nobody has tested it."""


@pytest.mark.parametrize(
    ("detector", "options"),
    [
        (VAE(), {}),
        (Child(), {}),
        (DTEC(), {"precision": "64-true"}),
        (DTEC(), {"precision": "bf16-mixed"}),
        (DTEC(), {"devices": 2}),
        (DTEC(), {"num_nodes": 2}),
        (DTEC(), {"strategy": "ddp"}),
        (DTEC(), {"compile": True}),
    ],
)
def test_what_is_not_supported_is_trained_one_by_one(detector, options):
    assert batched.can_batch(DTEC(), OPTIONS)
    assert not batched.can_batch(detector, Options(**{"accelerator": "cpu"} | options))


@pytest.mark.parametrize("more", [{"validation": 0.1}, {"ema": 0.9}, {"clip_norm": 1.0}])
def test_recipes_that_are_not_supported(more):
    detector = DTEC()
    detector.recipe = Recipe(1, 32, 0.1, **more)
    assert not batched.can_batch(detector, OPTIONS)


def test_other_processes_and_a_missing_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not batched.can_batch(DTEC(), Options(accelerator="gpu"))
    monkeypatch.setattr(batched.distributed, "started", lambda: True)
    assert not batched.can_batch(DTEC(), OPTIONS)


WORDS = [
    "dataset=wine",
    "trainer=cpu",
    "trainer.threads=1",
    "metrics=fast",
    "detector.epochs=3",
    "detector.min_steps=0",
]


def cells(*words: str, seeds=(0, 1, 2)) -> list[dict]:
    return [compose.composed("train", [*WORDS, *words, f"seed={seed}"]) for seed in seeds]


def stage(cfg: dict) -> Path:
    return store.stage_folder(cfg, ("score_by",) if "dte" in cfg["choices"]["detector"] else DDPM.scoring)


def scores(folder: Path) -> pl.Series:
    return pl.read_parquet(folder / "scores.parquet")["score"]


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("detector", ["dte_c", "diffusion"])
def test_a_run_finds_what_was_trained_as_one(detector, empty, monkeypatch):
    configs = cells(f"detector={detector}")
    given = copy.deepcopy(configs)
    assert batched.prepare(configs) == 3 and configs == given
    assert batched.prepare(configs) == 0  # there already
    words = [*WORDS, f"detector={detector}", "seed=2"]
    assert cli.main(["train", *words, "output_dir=apart"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(stages, "train", lambda *_: pytest.fail("trained again"))
        assert cli.main(["train", *words]) == 0
    folder = store.run_folder(configs[2])
    (apart,) = (empty / "apart" / "train").iterdir()
    ours, theirs = scores(folder).to_numpy(), scores(apart).to_numpy()
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    cost, cost_apart = (store.read_result(one)["cost"] for one in (folder, apart))
    assert cost.keys() == cost_apart.keys() and cost["train_cpu_s"] > 0
    curves = [(one / "metrics.csv").read_text().split() for one in (folder, apart)]
    assert len(curves[0]) == len(curves[1]) == 4
    (stage(configs[0]) / "weights.ckpt").unlink()  # alone, it has nobody to train with
    assert batched.prepare(configs) == 0
    assert batched.prepare([configs[2]]) == 0


def test_what_is_begun_locked_forced_or_of_another_kind_is_left(empty):
    configs = cells("detector=dte_c")
    state = stage(configs[0]) / "training.ckpt"
    state.parent.mkdir(parents=True)
    state.touch()  # a run goes on from there
    with store.lock(stage(configs[1])):
        assert batched.prepare(configs) == 0
    assert batched.prepare(configs) == 2 and not (state.parent / "weights.ckpt").exists()
    assert batched.prepare(cells("detector=dte_c", "force=true")) == 0
    assert batched.prepare([]) == 0
    knn = [compose.composed("train", ["dataset=wine", "detector=knn", f"seed={seed}"]) for seed in (0, 1)]
    assert batched.prepare(knn) == 0
    network = cells("dataset=digits", "detector=dte_c", "backbone=pixels", seeds=(0, 1))
    assert batched.prepare(network) == 0
    with pytest.raises(ValueError, match="more than their seed"):
        batched.prepare([*cells("detector=dte_c", seeds=(7,)), *cells("detector=dte_ig", seeds=(8,))])


def test_an_end_in_the_middle_leaves_nothing_half_done(empty, monkeypatch):
    configs = cells("detector=dte_c", seeds=(0, 1))

    def killed(self, *_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stacked.Stack, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            batched.prepare(configs)
    assert {file.name for cfg in configs for file in stage(cfg).iterdir()} == {".lock"}
    assert batched.prepare(configs) == 2  # and the locks were let go


def test_what_is_wrong_with_a_cell_is_said_by_its_own_run(empty):
    def load(section, name, seed, allow):
        if seed == 1:
            raise batched.UserError("no such data")
        return batched.cell.load(section, name, seed, allow)

    configs = cells("detector=dte_c")
    assert batched.prepare(configs, load) == 2
    assert not (stage(configs[1]) / "weights.ckpt").exists()
