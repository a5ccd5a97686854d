"""The stages of a run, each a function of what it depends on: extract views, train, fit, score."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from outlie.data.split import Rows, Split
from outlie.detectors.base import Detector, Spec, Views
from outlie.gather import gather_shares, rank_and_world, share
from outlie.lightning import Bar, Extract, Told, Train, make_trainer
from outlie.log import log
from outlie.results import store
from outlie.results.checkpoint import load_state
from outlie.trainer import Options

ROWS_AT_ONCE = 1024  # of one forward pass: on a CPU four times as many leave the cache and take twice as long
PIXELS_AT_ONCE = 2**22
SMALL_FLOPS = 1e9  # a step below is one thread's
QUIET_SECONDS = 30.0  # without a bar, a training says where it is at most so often


def rows_at_once(shape: tuple[int, ...]) -> int:
    """Rows of one forward pass, for samples of that shape: a table's row, or an image (C, H, W)."""
    if len(shape) < 3:
        return ROWS_AT_ONCE
    # without a GPU, the activations of 256 images are given back to the system and fetched again with every batch
    most = 512 if torch.cuda.is_available() else 64
    return min(most, max(1, PIXELS_AT_ONCE // (shape[-1] * shape[-2])))


def front(backbone: Any, needs: tuple[str, ...]) -> Callable[[Tensor], Views]:
    """Raw samples -> what a detector is given: the backbone, or its input alone for who asks the denoiser itself."""
    if "denoiser" in needs and "features" not in needs:
        return lambda x: Views(x=backbone.standardise(x))
    return backbone


class Passes:
    """Views computed when they are asked for, for detectors that need the input or the network itself.

    Stands where `Views` of all rows would: `len(passes)`, `passes[rows]`.
    """

    def __init__(self, backbone: nn.Module, rows: Rows, device: torch.device, needs: tuple[str, ...] = ()) -> None:
        self.front, self.rows, self.device = front(backbone.to(device), needs), rows, device

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> Views:
        views = self.front(self.rows.x[rows].to(self.device))
        views.y = None if self.rows.row_y is None else self.rows.row_y[rows].to(self.device)
        return views


def extract(backbone: nn.Module, rows: Rows, options: Options, folder: Path) -> Views:
    """The backbone's views of all rows, in order, on every rank; each rank computes its share."""
    mine = rows.x[share(len(rows))]
    batches = DataLoader(mine.split(rows_at_once(mine.shape[1:])), batch_size=None)  # pyright: ignore[reportArgumentType]
    parts = make_trainer(options, folder).predict(Extract(backbone, without=("maps",)), batches)  # too large to hold
    views = Views.cat(parts) if parts else backbone(mine)
    views.maps = None
    views = views.map(lambda t: gather_shares(t, len(rows)))
    views.y = rows.row_y
    return views


def spec_of(views: Views, seed: int, backbone: nn.Module, blocks: tuple[tuple[str, int], ...] = ()) -> Spec:
    """Sizes for `Detector.setup`."""
    shapes = {
        name: tuple(t.shape[1:])
        for name in ("x", "features", "logits", "maps")
        if (t := getattr(views, name)) is not None
    }
    classes = getattr(backbone, "classes", None) if views.logits is None else views.logits.shape[1]
    return Spec(shapes, seed, classes, getattr(backbone, "head", None), backbone, blocks)


@contextlib.contextmanager
def threads(flops: float) -> Iterator[None]:
    """One CPU thread where a step is too small to share (under 1 GFLOP): a second one is mostly waited for.

    Measured on 2 loaded cores: a DDPM step of 64 rows took 145 CPU ms with two threads, 5 ms with one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if flops < SMALL_FLOPS else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def training_steps(flops: float) -> Iterator[None]:
    """`threads`, and numbers below 1e-38 are 0 in the steps of one thread (the mode is the calling thread's alone).

    Weight decay shrinks the weights of a dead unit without end, and a CPU is slow on denormal numbers: with them a
    whole `dte_c/paper` training took up to 2.7 times the CPU seconds (benchmarks/denormal.csv).
    """
    with threads(flops):
        torch.set_flush_denormal(flops < SMALL_FLOPS)
        try:
            yield
        finally:
            torch.set_flush_denormal(False)


@torch.no_grad()
def step_flops(module: Any, views: Views) -> float:
    """About the operations of a training step, forward and backward."""
    rows = module.recipe.batch_size
    if isinstance(module, Detector):  # on rows: each weight is used once, or once a sample
        return 6.0 * sum(p.numel() for p in module.parameters()) * rows * getattr(module, "samples", 1)
    with FlopCounterMode(display=False) as counter:  # on images: at every pixel
        module.eval()(views.x[torch.arange(1)])
    module.train()
    return 3.0 * counter.get_total_flops() * rows


def train(
    module: Any,
    views: Views,
    seed: int,
    options: Options,
    folder: Path,
    bar: str = "",
    on_epoch: Told = lambda losses, validation: None,
) -> dict[str, Any]:
    """Train the loss of a detector or a backbone, or go on with the state that a killed training left in `folder`.

    Args:
        bar: title of a progress bar; empty = none.
        on_epoch: called after each epoch with the losses so far, on training rows and on held-out ones.

    Returns:
        losses and validation_losses (one an epoch), train_s (wall) and train_cpu_s of this process.
    """
    state = folder / "training.ckpt"
    folder.mkdir(parents=True, exist_ok=True)
    wall, cpu = time.perf_counter(), time.process_time()
    said = time.monotonic()

    def told(losses: list[float], validation: list[float]) -> None:
        nonlocal said
        if not bar and time.monotonic() - said > QUIET_SECONDS:
            log.info("          epoch %d of %d, loss %.4g", len(losses), loop.epochs, losses[-1])
            said = time.monotonic()
        on_epoch(losses, validation)

    loop = Train(module, views, seed, state, options.checkpoint_seconds, options.max_epochs, told)
    if options.compile:
        for child in module.children():
            child.compile()
    trainer = make_trainer(options, folder, loop.epochs, [Bar(bar)] if bar else None)
    module.train()
    if state.exists():
        load_state(state)  # a broken one is said before Lightning meets it
    elif hasattr(module, "prepare"):
        module.prepare(views)
    try:
        with training_steps(step_flops(module, views)):
            trainer.fit(loop, ckpt_path=state if state.exists() else None, weights_only=True)
    except SystemExit as exit:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from exit
    module.eval()
    return {
        "losses": loop.losses,
        "validation_losses": loop.validation_losses,
        "train_s": time.perf_counter() - wall,
        "train_cpu_s": time.process_time() - cpu,
    }


def trained(
    module: Any,
    views: Views,
    seed: int,
    options: Options,
    folder: Path,
    bar: str,
    on_epoch: Told,
    force: bool,
) -> dict[str, Any]:
    """`train`, unless `folder` holds the weights of the same training already; returns what the training cost then."""
    weights = folder / "weights.ckpt"
    rank, world = rank_and_world()
    if force and rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    if world > 1:
        torch.distributed.barrier()
    if weights.exists():
        saved = load_state(weights)
        module.load_state_dict(saved["detector"])
        module.eval()
        losses, validation = saved["spent"]["losses"], saved["spent"].get("validation_losses", [])
        for epoch in range(1, len(losses) + 1):
            on_epoch(losses[:epoch], validation[:epoch])
        return saved["spent"]
    if rank > 0:
        return train(module, views, seed, options, folder)
    with store.lock(folder):
        spent = train(module, views, seed, options, folder, bar, on_epoch)
        with store.whole(weights) as temporary:
            torch.save({"detector": module.state_dict(), "spent": spent}, temporary)
        (folder / "training.ckpt").unlink(missing_ok=True)
    return spent


@torch.no_grad()
def fit(detector: Any, views: Views | Passes, device: torch.device) -> None:
    """Hand the detector every row: all at once, or, where views are computed as they are needed, batch by batch."""
    detector.to(device)
    if isinstance(views, Views):
        detector.fit(views.map(lambda t: t.to(device)))
        return
    chosen = torch.arange(len(views))
    if (most := getattr(detector, "fit_rows", None)) and most < len(views):  # where every row costs many passes
        order = torch.randperm(len(views), generator=torch.Generator().manual_seed(detector.seed))
        chosen = order[:most].sort().values
    for rows in chosen[share(len(chosen))].split(rows_at_once(tuple(views.rows.x.shape[1:]))):
        if len(rows):
            detector.update(views[rows])
    detector.finish()


@torch.no_grad()
def score(detector: Detector, views: Views | Passes, device: torch.device, at_once: int | None = None) -> Tensor:
    """(n,) float64 scores of all rows, in order, on every rank; each rank computes its share."""
    detector.eval().to(device)
    passes = isinstance(views, Passes)
    at_once = at_once or (rows_at_once(tuple(views.rows.x.shape[1:])) if passes else ROWS_AT_ONCE)
    mine = share(len(views)).split(at_once)
    numbers = sum(t.numel() for t in (*detector.parameters(), *detector.buffers()))
    with threads(float("inf") if passes else 2.0 * numbers * min(len(views), at_once)):
        parts = [detector.score(views[rows].map(lambda t: t.to(device))).double().cpu() for rows in mine if len(rows)]
    return gather_shares(torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64), len(views))


@torch.no_grad()
def score_with_maps(detector: Detector, views: Views | Passes, device: torch.device) -> tuple[Tensor, Tensor]:
    """(n,) float64 scores and the (n, H, W) float32 maps that they are of, in one pass; for detectors that localise."""
    detector.eval().to(device)
    localise: Any = detector
    scores, maps, done = [], torch.empty(0), 0
    mine = share(len(views))
    for rows in mine.split(rows_at_once(tuple(views.rows.x.shape[1:])) if isinstance(views, Passes) else ROWS_AT_ONCE):
        found = localise.score_map(views[rows].map(lambda t: t.to(device)))
        scores.append(detector.score_of(found).double().cpu())
        maps = maps if done else torch.empty(len(mine), *found.shape[1:])
        maps[done : done + len(rows)] = found
        done += len(rows)
    return gather_shares(torch.cat(scores), len(views)), gather_shares(maps, len(views))


@torch.no_grad()
def batch_lint(detector: Detector, views: Views | Passes, device: torch.device, rows: int = 8) -> list[str]:
    """A finding where the score of a row alone differs from its score in a batch."""
    some = views[torch.arange(min(rows, len(views)))]
    together = score(detector, some, device, len(some))
    alone = score(detector, some, device, 1)
    spread = float(together.std()) if len(together) > 1 else 0.0  # a score may cross 0, where rounding is no small part
    if torch.allclose(together, alone, rtol=1e-4, atol=max(1e-6, 1e-4 * spread)):
        return []
    return ["the detector scores a row differently alone and in a batch: its latency at batch 1 is of another score"]


def describe(split: Split) -> str:
    """Rows of each part, anomalies and columns, in a line."""
    size = " x ".join(map(str, split.train.x.shape[1:]))
    parts = [f"{len(split.train)} train"]
    if split.calibration is not None:
        parts.append(f"{len(split.calibration)} calibration")
    for name, rows in split.tests.items():
        anomalies = "no labels" if rows.label is None else f"{int(rows.label.sum())} anomalies"
        parts.append(f"{len(rows)} {name} ({anomalies})")
    return f"{', '.join(parts)} rows, {size} {'features' if split.train.x.ndim == 2 else 'pixels'}"
