"""A sweep: what is done is found, the rest is computed by a launcher, a failure is told at once and stops nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from outlie.errors import UserError
from outlie.results import store
from outlie.sweeps.cells import Cell, Event, Tell
from outlie.sweeps.progress import Progress

EVALUATION = ("names", "false_alarms", "bootstrap")  # of metrics=: what a stored result depends on


class Launcher(Protocol):
    """Where cells are computed: this machine, SLURM, Ray."""

    def run(self, cells: list[Cell], tell: Tell) -> None:
        """Compute the cells, and tell what happens to each: started, then done or failed."""
        ...


def compute(
    cells: list[Cell], launcher: Launcher, progress: Progress | None = None, measured: bool = True
) -> dict[Path, Event]:
    """What became of each cell: found, done or failed; what is missing or failed before is computed.

    Args:
        measured: a finished cell whose metrics are not those of its config is measured again, from its stored scores.
    """
    ended: dict[Path, Event] = {}
    missing = []
    for cell in cells:
        if (known := found(cell, measured)) is None:
            missing.append(cell)
        else:
            ended[cell.folder] = known
    with progress or Progress() as shown:
        shown.start(len(cells), list(ended.values()), missing)

        def tell(event: Event) -> None:
            if event.what != "started":
                ended[event.cell.folder] = event
            shown.tell(event)

        if missing:
            launcher.run(missing, tell)
    for cell in missing:  # a launcher that lost one
        ended.setdefault(cell.folder, Event(cell, "failed", error="nobody computed it; the same command tries again"))
    return {cell.folder: ended[cell.folder] for cell in cells}


def found(cell: Cell, measured: bool = True) -> Event | None:
    """`found` for a finished cell, `failed` for one of another schema, None where there is something to compute."""
    if cell.config["force"]:
        return None
    try:
        result = store.read_result(cell.folder)
    except UserError as error:
        return Event(cell, "failed", error=str(error))
    if result is None or result["status"] != "done":
        return None
    wanted = {name: cell.config["metrics"].get(name) for name in EVALUATION}
    if measured and result.get("evaluated_with") != wanted:
        return None
    return Event(cell, "found")
