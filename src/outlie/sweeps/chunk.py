"""A job of several cells: what it does on its node, and what it says of itself in a file on the shared disk.

The file has a line of JSON for each thing that happens: {"cell": number, "status": "started", then "done", "failed" or
"busy"}, and {"status": "end"} where the job ended by itself. A cell that was started and has no second line was lost.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from outlie.sweeps.cells import Cell

ENDS = ("done", "failed")


class Chunk:
    """The cells of a job; submitit pickles it, calls it on a node, and again where SLURM took the node away."""

    def __init__(self, cells: list[Cell], report: Path, threads: int) -> None:
        self.asked = [(cell.command, cell.config) for cell in cells]
        self.report, self.threads = report, threads

    def __call__(self) -> None:
        """Compute what the report does not say to have ended, one after the other."""
        import torch
        from threadpoolctl import threadpool_limits

        from outlie.sweeps import worker

        ended = {line["cell"] for line in read(self.report)[0] if line["status"] in ENDS}
        torch.set_num_threads(self.threads)
        with threadpool_limits(self.threads):
            data = worker.Data()
            for number, (command, config) in enumerate(self.asked):
                if number not in ended:
                    self._say(cell=number, status="started")
                    self._say(cell=number, **worker.compute(command, dict(config), data))
        self._say(status="end")

    def checkpoint(self) -> Any:
        """What to queue again before a time limit or a preemption: all of it, the report says what has ended."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _say(self, **line: Any) -> None:
        with self.report.open("a") as file:  # closed at once: only then is it sure to be seen from other nodes
            file.write(json.dumps(line) + "\n")


def read(report: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a report from byte `start` on, and where the next one begins."""
    try:
        with report.open("rb") as file:
            file.seek(start)
            text = file.read()
    except FileNotFoundError:  # the job has not begun
        return [], start
    whole = text[: text.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], start + len(whole)


def divided(cells: list[Cell], most: int) -> list[list[Cell]]:
    """Chunks of at most `most` cells; those that share data and backbone stand together."""
    grounds: dict[str, list[Cell]] = {}
    for cell in cells:
        grounds.setdefault(cell.ground, []).append(cell)
    ordered = [cell for ground in grounds.values() for cell in ground]
    return [ordered[start : start + most] for start in range(0, len(ordered), most)]
