"""What `run probe` saves: truncated passes, all noise levels at once, all heads at once; writes ddae_probe_cost.csv.

    python benchmarks/ddae_probe_cost.py [ROUNDS]

CPU seconds on one thread, of networks with random weights: the cost does not depend on them. Both sides of a line are
timed in turn, so that drift of the machine hits them alike; the ratio is the median of the rounds' ratios. `unet` is
DDPM's U-Net on 3 x 32 x 32 images (target: DDAE's default block is 0.345 of the arithmetic), `unet/small` the one for
CPUs on 1 x 28 x 28. A step of the published route is a pass of 128 images at all levels, then the heads.
"""

import csv
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from outlie import catalog
from outlie.build import build
from outlie.probe.grid import Grid
from outlie.probe.heads import BATCH, Heads, train
from outlie.results.store import code_version

COLUMNS = ("network", "what", "cpu_s", "beside_cpu_s", "ratio", "min", "max", "target", "rounds", "load", "commit",
           "command")  # fmt: skip
LEVELS = (9.21, 6.12, 5.07, 3.5, 2.0, 0.0)
CLASSES = 10


class Line(NamedTuple):
    """Two things to time."""

    network: str
    what: str
    work: Callable[[], Any]
    beside: Callable[[], Any]
    target: str


def network(choice: str, shape: tuple[int, int, int]) -> Any:
    """A U-Net of our configs with random weights."""
    backbone = build(catalog.load(catalog.choices("backbone", catalog.roots())[choice]))
    torch.manual_seed(0)
    backbone.build(shape, None)
    return backbone.eval()


def random(n: int, shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images and their noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (n, *shape), generator=generator, dtype=torch.uint8)
    return x, torch.randn(x.shape, generator=generator)


def passes(choice: str, shape: tuple[int, int, int], n: int) -> list[Line]:
    """Truncated against whole, and levels together against one by one, at the default block."""
    backbone, (images, noise) = network(choice, shape), random(n, shape)
    x, default = backbone.standardise(images), backbone.feature_blocks
    time = backbone.process.time_at(6.0)
    together = Grid(backbone, default, LEVELS[:4])
    alone = [Grid(backbone, default, [level]) for level in LEVELS[:4]]
    return [
        Line(choice, f"pass of {n} up to {default[0]} / whole pass", lambda: backbone.maps(x, time, default),
             lambda: backbone.denoise(x, time), "<= 0.45"),
        Line(choice, f"4 levels of {n} in one call / in four", lambda: together.features(images, noise),
             lambda: [one.features(images, noise) for one in alone], "<= 1.1"),
    ]  # fmt: skip


def heads(grid: Grid, count: int) -> Heads:
    """Heads of the first cells."""
    return Heads(grid.cell_widths[:count], CLASSES, torch.Generator().manual_seed(0))


def steps(choice: str, shape: tuple[int, int, int]) -> list[Line]:
    """A step of the published route with all heads against one; a hundred steps of all heads against each alone."""
    grid, (images, noise) = Grid(network(choice, shape), [], LEVELS), random(BATCH, shape)
    y = torch.arange(BATCH) % CLASSES
    kept = grid.features(images[:1], noise[:1]).expand(-1, BATCH, -1) + torch.randn(len(grid), BATCH, 1)

    def published(count: int) -> None:
        parts = list(grid._passes(images, noise))
        train(heads(grid, count), lambda epoch: [(torch.cat(parts, 1)[:count], y)], 1, 1e-3)

    def many(cells: range, head: Heads) -> None:
        rows = kept[cells.start : cells.stop]
        train(head, lambda epoch: ((rows, y) for _ in range(100)), 1, 1e-3)

    def each() -> None:
        for g in range(len(grid)):
            many(range(g, g + 1), heads(grid, 1))

    all_of_them = f"all {len(grid)} heads"
    return [
        Line(choice, f"published step, {all_of_them} / one head", partial(published, len(grid)), partial(published, 1),
             "<= 1.3"),
        Line(choice, f"100 steps of {all_of_them} at once / one by one",
             lambda: many(range(len(grid)), heads(grid, len(grid))), each, ""),
    ]  # fmt: skip


def seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    table = []
    lines = [*passes("unet", (3, 32, 32), 4), *passes("unet/small", (1, 28, 28), 32)]
    for line in (*lines, *steps("unet/small", (1, 28, 28))):
        inference = torch.inference_mode() if line in lines else torch.enable_grad()
        with inference:
            line.work()  # allocates
            both = [(seconds(line.work), seconds(line.beside)) for _ in range(rounds)]
        ratios = [one / other for one, other in both]
        numbers = [*(statistics.median(column) for column in zip(*both)), statistics.median(ratios), min(ratios)]
        said = [f"{value:.3f}" for value in (*numbers, max(ratios))]
        where = (line.target, rounds, f"{os.getloadavg()[0]:.1f}", code_version())
        row = (line.network, line.what, *said, *where, "python benchmarks/ddae_probe_cost.py")
        table.append(row)
        print(*row[:8], flush=True)
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(table)
