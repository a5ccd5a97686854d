"""What a detector costs: numbers to store, operations to score a row, memory, CPU seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass
class Seconds:
    """Filled in when the `with seconds()` block ends."""

    wall: float = 0.0
    cpu: float = 0.0  # of all threads of this process


@contextmanager
def seconds() -> Iterator[Seconds]:
    """Time a block: `with seconds() as spent: ...`, then `spent.wall` and `spent.cpu`."""
    spent = Seconds()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield spent
    finally:
        spent.wall, spent.cpu = time.perf_counter() - wall, time.process_time() - cpu


def stored(*modules: nn.Module) -> dict[str, int]:
    """`parameters` (learnt by gradient) and `buffers` (fitted state, e.g. a kNN bank): numbers in each."""
    return {
        "parameters": sum(p.numel() for module in modules for p in module.parameters()),
        "buffers": sum(b.numel() for module in modules for b in module.buffers()),
    }


@torch.no_grad()
def flops(backbone: Callable[[Tensor], Any], detector: Any, row: Tensor) -> int | None:
    """Floating-point operations to score one row (1, ...): matrix products, convolutions and attention.

    None where PyTorch counts none of these, as for a detector that runs in NumPy.
    """
    with FlopCounterMode(display=False) as counter:
        detector.score(backbone(row))
    return counter.get_total_flops() or None


@torch.no_grad()
def nfe(denoiser: Any, detector: Any, front: Callable[[Tensor], Any], row: Tensor) -> int:
    """Network evaluations that the score of one row (1, ...) takes, counted; a truncated pass is one, too."""
    before = denoiser.evaluated
    detector.score(front(row))
    return denoiser.evaluated - before


def peak_memory(device: torch.device | str = "cpu") -> dict[str, Any]:
    """`peak_memory_mb` (MiB) and `peak_memory_of`: what was measured, the GPU's tensors or the whole process."""
    device = torch.device(device)
    if device.type == "cuda":
        return {"peak_memory_mb": torch.cuda.max_memory_allocated(device) / 2**20, "peak_memory_of": "gpu tensors"}
    try:
        import resource
    except ImportError:  # not a Unix
        return {"peak_memory_mb": None, "peak_memory_of": None}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return {"peak_memory_mb": peak * unit / 2**20, "peak_memory_of": "process"}
