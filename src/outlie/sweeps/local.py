"""Cells on this machine: a few processes that stay, each given the next cell when it has done one."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from outlie.options import PositiveFloat, PositiveInt
from outlie.results.words import last_line
from outlie.sweeps.cells import Cell, Event, Tell

BUSY_S = 0.5  # before a cell that another process is at is tried again


@dataclass
class Local:
    """Processes of this machine, one a GPU, or as many as cores and memory allow.

    Args:
        jobs: processes at once; null = one a GPU, without GPUs one a core, as far as the free memory goes
        threads: CPU threads of each; null = its share of the cores
        memory_gib: what a process is assumed to need, in GiB
        batch_seeds: train the seeds of a small network as one batched model, in one process; the results are equal
    """

    jobs: PositiveInt | None = None
    threads: PositiveInt | None = None
    memory_gib: PositiveFloat = 1.5
    batch_seeds: bool = False

    def run(self, cells: list[Cell] | Queue, tell: Tell) -> None:
        """Compute the cells, or what a queue gives when asked; a process that dies costs its cell, and is replaced."""
        devices = gpus()
        queue, pool = cells if isinstance(cells, Queue) else Queue(cells, self.batch_seeds), []
        jobs = min(self.jobs or len(devices) or fitting(cores(), self.memory_gib), len(queue))
        threads = self.threads or max(1, cores() // max(jobs, 1))
        with selectors.DefaultSelector() as ready:
            try:
                for number in range(jobs):
                    device = devices[number % len(devices)] if devices else None
                    pool.append(Process(threads, device))
                    ready.register(pool[-1].out, selectors.EVENT_READ, pool[-1])
                    self._next(pool[-1], queue, tell)
                while any(process.cell for process in pool) or queue:
                    for key, _ in ready.select(timeout=BUSY_S):
                        process: Process = key.data
                        before = process.out
                        event = process.answer()
                        if process.out is not before:  # it died, and is another one now
                            ready.unregister(before)
                            ready.register(process.out, selectors.EVENT_READ, process)
                        if event is None:
                            queue.later(process.cell)
                        else:
                            tell(event)
                        process.cell = None
                    for process in pool:
                        if process.cell is None:
                            self._next(process, queue, tell)
            finally:
                for process in pool:
                    process.end()

    @staticmethod
    def _next(process: Process, queue: Queue, tell: Tell) -> None:
        cell = queue.next(process.ground)
        if cell is not None:
            tell(Event(cell, "started"))
            process.give(cell, queue.ground(cell), queue.together.pop(queue.ground(cell), []))


class Queue:
    """The cells that are left, by ground: a process stays on one as long as it can, and two avoid the same.

    Args:
        batch_seeds: the seeds of a setting are a ground, and the first of them brings all along, to be trained as one.
    """

    def __init__(self, cells: list[Cell], batch_seeds: bool = False) -> None:
        self.batch_seeds = batch_seeds
        self.together: dict[str, list[Cell]] = {}
        self.left: dict[str, list[Cell]] = {}
        self.taken: dict[str, int] = {}  # ground -> processes that are on it
        self.waiting: list[tuple[float, Cell]] = []  # not before that time
        for cell in reversed(cells):
            self.left.setdefault(self.ground(cell), []).append(cell)
        self.left = dict(reversed(self.left.items()))
        if batch_seeds:
            self.together = {ground: [*reversed(seeds)] for ground, seeds in self.left.items() if len(seeds) > 1}

    def ground(self, cell: Cell) -> str:
        """What cells have in common that one process had better compute."""
        return cell.setting if self.batch_seeds else cell.ground

    def __bool__(self) -> bool:
        return bool(self.left or self.waiting)

    def __len__(self) -> int:
        return sum(map(len, self.left.values())) + len(self.waiting)

    def next(self, ground: str) -> Cell | None:
        """The next cell for a process that was on `ground`; None where all that is left has to wait."""
        self.taken[ground] = self.taken.get(ground, 1) - 1
        if ground not in self.left:
            free = (one for one in self.left if not self.taken.get(one))
            ground = next(free, next(iter(self.left), ""))
        if ground:
            cells = self.left[ground]
            cell = cells.pop()
            if not cells:
                del self.left[ground]
        elif self.waiting and self.waiting[0][0] <= time.monotonic():
            cell = self.waiting.pop(0)[1]
        else:
            return None
        self.taken[self.ground(cell)] = self.taken.get(self.ground(cell), 0) + 1
        return cell

    def later(self, cell: Cell | None) -> None:
        """Put back a cell that another process is at."""
        if cell is not None:
            self.waiting.append((time.monotonic() + BUSY_S, cell))


class Process:
    """A worker and the cell that it is at."""

    def __init__(self, threads: int, device: str | None) -> None:
        self.cell: Cell | None = None
        self.ground = ""
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if device is not None:
            self._environment["CUDA_VISIBLE_DEVICES"] = device
        self._start()

    def _start(self) -> None:
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `end`)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "outlie.sweeps.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, env=self._environment,
        )  # fmt: skip
        assert self._process.stdin and self._process.stdout
        self._in, self.out = self._process.stdin, self._process.stdout

    def give(self, cell: Cell, ground: str, together: list[Cell]) -> None:
        """Have it computed, and before it the training of all that are `together`."""
        self.cell, self.ground, self._given = cell, ground, time.monotonic()
        batch = [one.config for one in together]
        line = json.dumps({"command": cell.command, "config": cell.config, "together": batch}) + "\n"
        with contextlib.suppress(BrokenPipeError):  # it is dead: `answer` will hear of it
            self._in.write(line.encode())
            self._in.flush()

    def answer(self) -> Event | None:
        """What became of the cell; None = another process is at it, or there was none. A dead worker is replaced."""
        if self.cell is None:  # killed while it waited for work
            self._obituary()
            return None
        line = self.out.readline()
        if not line.endswith(b"\n"):
            return Event(self.cell, "failed", time.monotonic() - self._given, 0.0, self._obituary())
        answer = json.loads(line)
        if answer["status"] == "busy":
            return None
        return Event(self.cell, answer["status"], answer["seconds"], answer["cpu_s"], answer["error"])

    def _obituary(self) -> str:
        """Why it died; and a new one."""
        code = self._process.wait()
        self._said.seek(0)
        words = last_line(self._said.read().decode(errors="replace"))
        self.end()
        self._start()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        hint = " (signal 9 is often a lack of memory: fewer launcher.jobs)" if code == -9 else ""
        return f"the process that computed it {how}{hint}" + (f"; its last words: {words}" if words else "")

    def end(self) -> None:
        """Leave nothing behind."""
        self._process.kill()
        self._process.wait()
        for file in (self._in, self.out, self._said):
            with contextlib.suppress(BrokenPipeError):
                file.close()


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fitting(jobs: int, memory_gib: float) -> int:
    """As many processes as the free memory holds, at least one."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free_kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return jobs
    return max(1, min(jobs, int(free_kib / 2**20 / memory_gib)))


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name, found without importing torch."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [one for one in given.split(",") if one.strip() and one.strip() != "-1"]
    cards = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number in range(len(list(cards.iterdir())))] if cards.is_dir() else []
