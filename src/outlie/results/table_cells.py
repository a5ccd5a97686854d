"""The cells of a table: composed from its words, looked up in their run folders; what is not there is named."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from outlie.data.absent import absent
from outlie.errors import UserError
from outlie.results import store
from outlie.results.table import Line, Metric, Table
from outlie.results.words import last_line
from outlie.sweeps import cells as sweep_cells
from outlie.sweeps.cells import Cell

DONE, MISSING, TRUNCATED, FAILED, ABSENT, OTHER, WITHOUT = (
    "done", "missing", "truncated", "failed", "absent", "other schema", "no such number",
)  # fmt: skip
LEAK_ROWS = 1000  # fewer are drawn with replacement before the split
TO_COMPUTE = (MISSING, TRUNCATED, FAILED, WITHOUT)


class State(NamedTuple):
    """What became of one cell of a table."""

    row: str
    column: str
    cell: Cell | None  # None where it cannot even be composed: a folder of the user's is not there
    status: str
    number: float | None = None  # in the unit that is shown
    protocol: str = ""  # of the number
    why: str = ""  # the files that are absent, the error of a failed one
    code: str = ""  # version that computed it
    cost: tuple[float, ...] = ()  # CPU seconds of what it took
    interval: tuple[float, float] | None = None  # of the number over test rows, 95 %, bootstrap; where it was asked for

    @property
    def part(self) -> str:
        """The file of a dataset of several, else ''."""
        return str(self.cell.config["dataset"].get("part") or "") if self.cell else ""

    @property
    def seed(self) -> int:
        """The cell's."""
        return self.cell.config["seed"] if self.cell else 0

    @property
    def folder(self) -> str:
        """Of its run."""
        return str(self.cell.folder) if self.cell else ""


def cells(
    table: Table, row: Line, column: Line, more: Iterable[str], config_dirs: tuple[str, ...]
) -> tuple[list[Cell], str]:
    """One cell for each seed and file of a row and a column; and, where these wait for another one, what that is.

    A student cannot be composed before its teacher is done: until then the teacher's cell stands for all of them.
    """
    words, command = [*table.words, *row.words, *column.words, *more], "train"
    if taught := column.teacher or row.teacher:
        teacher = sweep_cells.expand([*taught, *more, "seed=0"], config_dirs)[0]
        if read(teacher.folder)[1] != DONE:
            return [teacher], f"the teacher of {column.name} comes first: {teacher.folder}"
        words, command = [f"teacher={teacher.folder}", *words], "distill"
    found = []
    for first in sweep_cells.expand([*words, "seed=0"], config_dirs, command):  # composed once: only the seed differs
        for seed in range(table.seeds):
            config = first.config | {"seed": seed}
            own = tuple(f"seed={seed}" if word == "seed=0" else word for word in first.words)
            found.append(first._replace(words=own, config=config, folder=store.run_folder(config)))
    return found, ""


def states(
    table: Table,
    metric: Metric,
    config_dirs: tuple[str, ...] = (),
    more: Iterable[str] = (),
    rows: Iterable[Line] | None = None,
    protocol: str = "",
) -> list[State]:
    """Every cell of the table, as it stands in its folder.

    Args:
        more: overrides of every cell, after the table's own
        rows: instead of all
        protocol: instead of the table's

    Raises:
        UserError: a cell that cannot be composed, or a result of another protocol than the table's.
    """
    here = _Data()
    found = []
    for row in table.rows if rows is None else rows:
        for column in table.columns:
            if lacking := paths_lacking([*table.words, *row.words, *column.words, *column.teacher, *row.teacher]):
                found.append(State(row.name, column.name, None, ABSENT, why=", ".join(lacking)))
                continue
            composed, waits = cells(table, row, column, more, config_dirs)
            for cell in composed:
                state = _state(metric, row, column, cell, here)
                found.append(state._replace(why=state.why or waits))
    refuse_mixed(found, protocol or table.protocol)
    return found


class _Data:
    """What is absent, asked once for each dataset."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {}

    def __call__(self, dataset: dict[str, Any]) -> list[str]:
        key = repr(dataset)
        if key not in self.known:
            self.known[key] = absent(dataset)
        return self.known[key]


def _state(metric: Metric, row: Line, column: Line, cell: Cell, here: _Data) -> State:
    state = State(row.name, column.name, cell, MISSING)
    result, status, why = read(cell.folder)
    if result is None:
        lacking = here(cell.config["dataset"]) if status in (MISSING, TRUNCATED) else []
        return state._replace(status=ABSENT if lacking else status, why=", ".join(lacking) or why)
    value = metric.value.replace("{row}", row.at).replace("{column}", column.at)
    number, keys = at(result, value), value.split(".")
    sets = result.get("protocols") or {}  # a number of one of several test sets is of that set's protocol
    protocol = str(sets.get(keys[1] if len(keys) > 1 else "", result.get("protocol")))
    spent = tuple(v for k, v in (result.get("cost") or {}).items() if k.endswith("cpu_s") and isinstance(v, float))
    state = state._replace(code=str(result.get("code_version", "")), cost=spent, protocol=protocol)
    if not isinstance(number, int | float):
        return state._replace(status=WITHOUT, why=f"{cell.folder / 'result.json'} has no {value}")
    interval = at(result, value.replace("metrics.", "intervals.", 1)) if value.startswith("metrics.") else None
    low, high = sorted(metric.scale * end for end in interval or (0.0, 0.0))
    known = (low, high) if interval else None
    return state._replace(status=DONE, number=metric.scale * number, interval=known)


def read(folder: Path) -> tuple[dict[str, Any] | None, str, str]:
    """(result, status, why): the result only of a run that is done, of a schema that we read."""
    try:
        result = store.read_result(folder)
    except UserError as error:
        return None, OTHER, str(error)
    if result is None:
        if not (folder / "result.json").exists():
            return None, MISSING, ""
        return None, TRUNCATED, f"{folder / 'result.json'} is not whole; it counts as missing"
    if result["status"] != "done":
        return None, FAILED, last_line(result.get("error")) or "no reason was recorded"
    return result, DONE, ""


def at(result: dict[str, Any], path: str) -> Any:
    """What stands at a dotted path, None where it leads nowhere."""
    node: Any = result
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node


def paths_lacking(words: Iterable[str]) -> list[str]:
    """Folders that the words name and that are not there, without which nothing can be composed."""
    pairs = [word.partition("=") for word in words]
    named = [value for key, _, value in pairs if key in ("dataset.path", "dataset.root")]
    return [path for path in named if not Path(path).expanduser().exists()]


def refuse_mixed(found: list[State], protocol: str) -> None:
    """UserError naming the runs whose protocol is another one than the table's."""
    other = [one for one in found if one.protocol not in ("", protocol)]
    if other:
        runs = ", ".join(f"{Path(one.folder).name} ({one.protocol})" for one in other[:3])
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        raise UserError(f"a table holds one protocol, this one is of {protocol}; of another are {runs}{more}")
