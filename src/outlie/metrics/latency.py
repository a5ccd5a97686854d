"""How long one row takes at batch 1, and how many rows a second at a large batch; backbone and detector apart.

Rows lie on the device already; on an accelerator every clock reading waits for the work before it.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

WARM_UP = 5  # calls before the first reading: lazy initialisation, caches, autotuning
FEWEST, MOST = 5, 5000  # calls at batch 1


class Scorer(Protocol):
    """What is timed: a detector, once fitted."""

    def score(self, views: Any) -> Tensor: ...


@torch.no_grad()
def measure(
    backbone: Callable[[Tensor], Any],
    detector: Scorer,
    rows: Tensor,
    device: torch.device | str | None = None,
    seconds: float = 1.0,
    batch_size: int = 1024,
) -> dict[str, Any]:
    """Latency in ms (p50, p95, p99 of backbone + detector, p50 of each) and throughput in rows per second.

    Args:
        rows: (n, ...) backbone input, n >= 1; batch 1 walks through them
        device: where the rows are put before timing; None = where the backbone's or the detector's tensors are
        seconds: about how long to time each of the two; a slow detector gets a handful of calls
        batch_size: largest batch for the throughput, at most n; grown by 4 as long as a call takes under seconds / 4
    """
    device = torch.device(device) if device is not None else _device_of(backbone, detector)
    rows = rows.to(device)
    backbone_ms, detector_ms = one_by_one(backbone, detector, rows, seconds)
    total = backbone_ms + detector_ms
    batch, per_second = _throughput(backbone, detector, rows, seconds, batch_size)
    return {
        "latency_p50_ms": float(np.percentile(total, 50)),
        "latency_p95_ms": float(np.percentile(total, 95)),
        "latency_p99_ms": float(np.percentile(total, 99)),
        "backbone_p50_ms": float(np.median(backbone_ms)),
        "detector_p50_ms": float(np.median(detector_ms)),
        "throughput_per_s": per_second,
        "batch_size": batch,
        "calls": len(total),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


def one_by_one(backbone: Callable, detector: Scorer, rows: Tensor, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """(calls,) milliseconds of backbone and of detector at batch 1."""
    readings: list[tuple[float, float]] = []
    start, call = time.perf_counter(), 0
    while True:
        i = call % len(rows)
        before = now(rows.device)
        views = backbone(rows[i : i + 1])
        between = now(rows.device)
        detector.score(views)
        after = now(rows.device)
        call += 1
        if call > WARM_UP or after - start > seconds:  # a very slow detector is not asked to warm up in full
            readings.append((between - before, after - between))
        if len(readings) >= MOST or (len(readings) >= FEWEST and after - start > seconds):
            break
    milliseconds = 1e3 * np.array(readings)
    return milliseconds[:, 0], milliseconds[:, 1]


def _throughput(
    backbone: Callable, detector: Scorer, rows: Tensor, seconds: float, batch_size: int
) -> tuple[int, float]:
    """The batch used and its rows per second, from the median call."""

    def call(size: int) -> float:
        before = now(rows.device)
        detector.score(backbone(rows[:size]))
        return now(rows.device) - before

    largest = min(batch_size, len(rows))
    batch = min(16, largest)
    first = call(batch)
    while batch < largest and first < seconds / 4:
        batch = min(4 * batch, largest)
        first = call(batch)
    # The first call at this batch is the warm-up, unless there is no time for a second.
    more = min(int(seconds / max(first, 1e-6)), 200)
    taken = [call(batch) for _ in range(more)] or [first]
    return batch, batch / float(np.median(taken))


def now(device: torch.device) -> float:
    """Seconds of the clock, once the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _device_of(*parts: Any) -> torch.device:
    for part in parts:
        if isinstance(part, torch.nn.Module):
            for tensor in (*part.parameters(), *part.buffers()):
                return tensor.device
    return torch.device("cpu")
