"""What a sweep says while it runs: a live table on a terminal, a line now and then elsewhere; failures at once."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from outlie.results.words import last_line, seconds
from outlie.sweeps.cells import Cell, Event

QUIET_SECONDS = 10.0  # without a terminal, a line at most so often
SHOWN = 12  # running cells


class Progress:
    """Counts, what runs now, and an estimate of what remains; on stderr."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.live: Live | None = None
        self.total = self.found = self.done = self.failed = 0
        self.running: dict[Path | str, tuple[str, float]] = {}  # folder, or a search's trial -> name, since when
        self.most = 1  # cells at once
        self.took: dict[str, list[float]] = defaultdict(list)  # detector and dataset -> seconds of a cell
        self.left: dict[str, int] = defaultdict(int)  # detector and dataset -> cells
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def start(self, total: int, ended: list[Event], missing: list[Cell]) -> None:
        """What is there, and what is to be computed."""
        self.total = total
        for event in ended:
            self.found += event.what == "found"
            if event.what == "failed":
                self._failure(event)
        for cell in missing:
            self.left[_kind(cell)] += 1
        if missing and self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=2, get_renderable=self.render, transient=True)
            self.live.start()
        elif missing:
            self.console.print(f"{len(missing)} of {total} cells to compute", soft_wrap=True)

    def tell(self, event: Event) -> None:
        """Something happened."""
        kind = _kind(event.cell)
        if event.what == "started":
            self.running[event.cell.folder] = event.cell.name, time.monotonic()
            self.most = max(self.most, len(self.running))
            return
        self.running.pop(event.cell.folder, None)
        self.left[kind] -= 1
        if event.what == "failed":
            self._failure(event)
        else:
            self.done += 1
            self.took[kind].append(event.seconds)
        if not self.console.is_terminal and time.monotonic() - self._said > QUIET_SECONDS:
            self.console.print(self.line(), soft_wrap=True)
            self._said = time.monotonic()

    def _failure(self, event: Event) -> None:
        self.failed += 1
        reason = last_line(event.error) or "no reason was given"
        self.console.print(Text(f"failed    {event.cell.name}: {reason}", "red"), soft_wrap=True)

    def line(self) -> str:
        """Where the sweep is, in a line."""
        parts = [f"{self.found + self.done} of {self.total} cells done"]
        parts += [f"{self.found} of them found"] if self.found else []
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{len(self.running)} running"] if self.running else []
        parts += [f"about {seconds(left)} left"] if (left := self.remaining()) is not None else []
        return ", ".join(parts)

    def remaining(self) -> float | None:
        """Seconds, by the mean time so far of cells of the same detector and dataset; None before anything is known."""
        every = [one for took in self.took.values() for one in took]
        if not every:
            return None
        mean = sum(every) / len(every)
        means = {kind: sum(took) / len(took) for kind, took in self.took.items()}
        now = time.monotonic()
        work = sum(count * means.get(kind, mean) for kind, count in self.left.items())
        spent = sum(min(now - since, mean) for _, since in self.running.values())
        return max(0.0, work - spent) / self.most

    def render(self) -> Group:
        """The live table."""
        ended = self.found + self.done + self.failed
        head = Table.grid(padding=(0, 1))
        head.add_row(ProgressBar(total=max(self.total, 1), completed=ended, width=30), self.line())
        running = Table.grid(padding=(0, 2))
        now = time.monotonic()
        for name, since in list(self.running.values())[:SHOWN]:
            running.add_row("  running", name, seconds(now - since))
        if len(self.running) > SHOWN:
            running.add_row("", f"and {len(self.running) - SHOWN} more", "")
        return Group(head, running)


def _kind(cell: Cell) -> str:
    return f"{cell.config['choices']['detector']} {cell.config['choices']['dataset']}"
