"""Latencies of several scorers, interleaved: each round times every one at every batch size, in a random order."""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outlie.metrics.latency import now, one_by_one

SLOWEST = 20.0  # seconds of a call: larger batches of this run are left out
BATCHES = 8  # different batches that the calls walk through, where there are rows enough


@dataclass
class Timed:
    """One scorer on its rows, and its readings: batch size -> (seconds since the start, ms of a call)."""

    front: Callable[[Tensor], Any]
    scorer: Any  # has score(views)
    rows: Tensor  # (n, ...) raw, on the device
    readings: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def batches(self, size: int) -> list[Tensor]:
        """Some batches of `size` rows, starting again with the first row where there are no more."""
        count = max(1, min(BATCHES, len(self.rows) // size))
        index = torch.arange(count * size, device=self.rows.device) % len(self.rows)
        return list(self.rows[index].split(size))

    def call(self, batch: Tensor) -> float:
        """Seconds of one call."""
        before = now(batch.device)
        self.scorer.score(self.front(batch))
        return now(batch.device) - before


@torch.no_grad()
def measure(
    timed: Sequence[Timed], sizes: Sequence[int], rounds: int, seconds: float, seed: int,
    advance: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Fill the readings; the timing loop is that of every run's latency (metrics/latency.py).

    Args:
        seconds: for each scorer and size, over all rounds; a slow one gets a handful of calls a round.
        advance: called after each scorer's turn at one size.
    """
    order, start = random.Random(seed), time.perf_counter()
    turns = []
    for one in timed:
        one.readings = {}
        for size in sorted(sizes):
            if size > 1 and turns and turns[-1][0] is one and one.call(turns[-1][2][0]) > SLOWEST:
                break
            batches = one.batches(size)
            one.call(batches[0])  # lazy initialisation, and the memory that a call of this size needs
            one.readings[size] = []
            turns.append((one, size, batches))
    for _ in range(rounds):
        order.shuffle(turns)
        for one, size, batches in turns:
            places = torch.arange(len(batches))

            def fetch(place: Tensor, one: Timed = one, batches: list[Tensor] = batches) -> Any:
                return one.front(batches[int(place)])

            front_ms, score_ms = one_by_one(fetch, one.scorer, places, seconds / rounds)
            at = time.perf_counter() - start
            one.readings[size] += [(at, float(ms)) for ms in front_ms + score_ms]
            advance()


def summary(one: Timed, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Percentiles, throughput and drift at each batch size; None where a call takes too long."""
    said = []
    for size in sorted(sizes):
        readings = one.readings.get(size)
        if not readings:
            nothing = dict.fromkeys(("p50_ms", "p95_ms", "p99_ms", "rows_per_s", "drift"))
            said.append({"batch": size, **nothing, "calls": 0})
            continue
        at, ms = np.array(readings).T
        p50, p95, p99 = (float(value) for value in np.percentile(ms, [50, 95, 99]))
        said.append(
            {"batch": size, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "rows_per_s": 1e3 * size / p50}
            | {"drift": drift(at, ms), "calls": len(ms)}
        )
    return said


def drift(at: np.ndarray, ms: np.ndarray) -> float:
    """The median of the last third of the time over that of the first third, less 1."""
    low, high = at.min() + (at.max() - at.min()) * np.array([1 / 3, 2 / 3])
    early, late = ms[at <= low], ms[at >= high]
    return float(np.median(late) / np.median(early) - 1) if len(early) and len(late) else 0.0


@torch.no_grad()
def memory(one: Timed, size: int) -> float | None:
    """MiB that a call at this batch size adds: to the GPU's tensors, or to the process; None where nobody tells."""
    (batch, *_) = one.batches(size)
    if batch.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(batch.device)
        before = torch.cuda.memory_allocated(batch.device)
        one.call(batch)
        return (torch.cuda.max_memory_allocated(batch.device) - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier calls left is given back first
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is used now
        before = _resident("VmRSS")
        one.call(batch)
        return max(0, _resident("VmHWM") - before) / 2**10
    except (OSError, AttributeError):  # not Linux
        return None


def _resident(name: str) -> int:
    """KiB of this process, by /proc's name."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
