"""The seeds of a small network as one training: from cells that differ in seed only to weights where a run looks."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from outlie import cell, distributed, stacked
from outlie.build import build
from outlie.detectors.base import Detector, Views, set_up
from outlie.detectors.ddpm import DDPM
from outlie.detectors.dte import DTEC, DTEIG, DTEGaussian
from outlie.detectors.training import Recipe
from outlie.errors import UserError
from outlie.log import log
from outlie.results import store
from outlie.stages import QUIET_SECONDS
from outlie.trainer import Options

# a loss that keeps state outside of its buffers would go wrong without a word: only what is tested
TESTED = (DTEC, DTEIG, DTEGaussian, DDPM)
IDENTITY = "outlie.backbones.identity.Identity"  # any other backbone has views of its own for each seed, or trains


class Untrained(NamedTuple):
    """A cell whose detector waits for its training, the folder of its weights locked."""

    cfg: dict[str, Any]
    detector: Detector
    views: Views
    folder: Path


def can_batch(detector: Detector, options: Options) -> bool:
    """Whether trainings of such a detector, with these options, may be made one; false = train them one by one."""
    if type(detector) not in TESTED:
        return False
    recipe: Any = detector.recipe
    supported = type(recipe) is Recipe and not (recipe.validation or recipe.ema or recipe.clip_norm)
    one_process = not distributed.started() and distributed.wanted(options) == options.num_nodes == 1
    here = options.accelerator != "gpu" or torch.cuda.is_available()
    usual = options.precision == "32-true" and options.strategy == "auto" and not options.compile
    return supported and one_process and here and usual


def groups(detectors: list[Detector], views: list[Views]) -> list[list[int]]:
    """Positions of those that can train as one: as many rows, so that their batches are alike, and the same shapes."""
    alike: dict[Any, list[int]] = {}
    for position, (detector, rows) in enumerate(zip(detectors, views, strict=True)):
        shapes = tuple((name, value.shape) for name, value in detector.state_dict().items())
        alike.setdefault((type(detector), detector.recipe, len(rows), shapes), []).append(position)
    return list(alike.values())


def prepare(configs: list[dict[str, Any]], load: cell.Load = cell.load) -> int:
    """Train the detectors of cells that differ in seed only as one, and store their weights for `run train` to find.

    Does nothing for a cell that is done or trained, that another process trains, or that has to be trained alone; nor
    does it raise for what is wrong with a cell: its own run says so.

    Args:
        configs: complete and plain; not changed.
        load: how to get the data, as in `run_cell`.

    Returns:
        How many cells it trained.
    """
    if len({store.digest({**cfg, "seed": 0}) for cfg in configs}) > 1:
        raise ValueError("these configs differ in more than their seed")
    trained = 0
    with contextlib.ExitStack() as locks:
        cells = [one for cfg in configs if (one := _untrained(cfg, load, locks))]
        for group in groups([one.detector for one in cells], [one.views for one in cells]):
            if len(group) > 1 and len(cells[group[0]].views) > 1:
                trained += _train([cells[position] for position in group])
    return trained


def _untrained(cfg: dict[str, Any], load: cell.Load, locks: contextlib.ExitStack) -> Untrained | None:
    """A cell ready to be trained, with a lock that `locks` holds; None where there is nothing to do."""
    allow = list(cfg["allow"])
    try:
        detector, options = build(cfg["detector"], allow), build(cfg["trainer"], allow)
        alone = cfg["backbone"]["_target_"] != IDENTITY or "teacher" in cfg or cfg["force"]
        if alone or not can_batch(detector, options):
            return None
        folder = store.stage_folder(cfg, detector.scoring)
        if _needs_none(cfg, folder):
            return None
        locks.enter_context(store.lock(folder))
        if _needs_none(cfg, folder):  # another process was faster
            return None
        split = load(cfg["dataset"], cfg["choices"]["dataset"], cfg["seed"], allow)
        backbone, _ = cell.ready_backbone(cfg, split, options, lambda losses, validation: None)
        ground = cell.Ground(split, backbone, options, store.run_folder(cfg), Path(cfg["output_dir"]) / "views")
        cell.refuse_gaps(cfg["choices"], detector, ground)
        set_up(detector, ground.spec(detector.needs, cfg["seed"]))
        return Untrained(cfg, detector, Views(x=ground.views("train", with_input=True).x), folder)
    except UserError as error:
        log.debug("seed %d is trained alone: %s", cfg["seed"], error)
        return None


def _needs_none(cfg: dict[str, Any], folder: Path) -> bool:
    """Done, trained, or begun: a run goes on from the state that it finds."""
    done = (store.read_result(store.run_folder(cfg)) or {}).get("status") == "done"
    return done or any((folder / name).exists() for name in ("weights.ckpt", "training.ckpt"))


def _train(cells: list[Untrained]) -> int:
    """Train these as one and store what each learnt; how many did."""
    seeds = [one.cfg["seed"] for one in cells]
    said = time.monotonic()

    def told(done: int, epochs: int, losses: list[float]) -> None:
        nonlocal said
        if time.monotonic() - said > QUIET_SECONDS:
            log.info("          epoch %d of %d, losses %s", done, epochs, " ".join(f"{loss:.4g}" for loss in losses))
            said = time.monotonic()

    options = build(cells[0].cfg["trainer"], list(cells[0].cfg["allow"]))
    spent = stacked.train_together([one.detector for one in cells], [one.views for one in cells], seeds, options, told)
    good = [(one, cost) for one, cost in zip(cells, spent, strict=True) if cost is not None]
    for one, cost in good:
        with store.whole(one.folder / "weights.ckpt") as temporary:
            torch.save({"detector": one.detector.state_dict(), "spent": cost}, temporary)
    log.info(
        "train     seeds %s as one, %.1f s (CPU %.1f s)",
        " ".join(map(str, seeds)), *(sum(cost[name] for _, cost in good) for name in ("train_s", "train_cpu_s")),
    )  # fmt: skip
    return len(good)
