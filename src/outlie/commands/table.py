"""`run table NAME`: a paper's table, what is missing computed first; published, ours, inside or not, ranks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from outlie import catalog, overrides
from outlie.errors import UserError, unknown
from outlie.loggers import open_loggers
from outlie.results import store, table, table_cells, table_numbers, table_text
from outlie.results.table import Line, Table
from outlie.results.table_numbers import View
from outlie.sweeps.cells import Cell

FORMATS: dict[str, tuple[str, Callable[[View], str]]] = {
    "markdown": ("md", table_text.markdown),
    "latex": ("tex", table_text.latex),
    "csv": ("csv", table_text.comma_separated),
    "html": ("html", table_text.html),
}
KEYS: dict[str, Any] = {
    "metric": None,  # of the table's; the first
    "seeds": None,  # so many, from 0; the table's
    "columns": None,  # some of the table's, in this order
    "rows": None,  # some of the table's, or a group of datasets: adbench/small
    "max_rows": None,  # datasets that are known to have at most so many rows
    "format": "terminal",  # what is printed
    "output": None,  # a file for it instead
    "compute": True,  # what is missing
    "intervals": False,  # a bootstrap interval of every cell, into cells.csv
    "leak_free": True,  # the protocol without the leak beside it
    "stats": True,  # Friedman, Wilcoxon-Holm, critical-difference diagram
    "output_dir": "outputs",  # where runs are, and the table's folder
}
FAST, INTERVALS = "metrics=fast", "metrics.latency=false"  # of a table's words, what it takes for intervals
SELECTS = ("seeds", "columns", "rows", "max_rows")
TYPES = {"seeds": int, "max_rows": int, "compute": bool, "intervals": bool, "leak_free": bool, "stats": bool}


def main(words: list[str], config_dirs: tuple[str, ...] = ()) -> int:
    """Compute what is missing, store the table in every format, print one; exit code 1 where a cell failed."""
    where = catalog.roots(config_dirs)
    if not words or "=" in words[0]:
        raise UserError(f"give a table: {', '.join(table.names(where))}. run table --help")
    name, *rest = words
    apart = [word for word in rest if word.startswith("launcher")]
    logger = [word for word in rest if word.startswith("logger")]
    options = read_options([word for word in rest if word not in (*apart, *logger)])
    found = table.load(name, where)
    chosen = select(found, options)
    if apart:  # a wrong launcher is told before anything is looked up
        from outlie.commands import sweep

        sweep.section("launcher", apart, config_dirs)
    tracker = tracked(logger, config_dirs) if logger else None
    view = collect(chosen, options, apart, config_dirs)
    folder = Path(options["output_dir"]) / "table" / folder_name(found, options)
    if options["stats"]:
        view.statistics = statistics(view, folder)
    write(view, folder)
    if tracker is not None:
        publish(tracker, view, folder)
    printed = options["format"]
    if printed == "terminal" and not options["output"]:
        from outlie.results import table_terminal

        table_terminal.render(view)
        print(folder)
        return _code(view)
    text = FORMATS["markdown" if printed == "terminal" else printed][1](view)
    if options["output"]:
        with store.whole(Path(options["output"])) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(options["output"])
    else:
        print(text, end="")
    return _code(view)


def folder_name(found: Table, options: dict[str, Any]) -> str:
    """NAME, NAME-METRIC for another metric than the first; a selection does not replace the whole table."""
    own = options["metric"] in (None, next(iter(found.metrics)))
    part = {key: options[key] for key in SELECTS if options[key] is not None}
    return "-".join([found.name, *([] if own else [options["metric"]]), *([store.digest(part)] if part else [])])


def tracked(words: list[str], config_dirs: tuple[str, ...]) -> Any:
    """The tracker of logger=; UserError where it keeps no artifacts."""
    from outlie.commands import sweep

    tracker = sweep.build(sweep.section("logger", words, config_dirs))
    if not hasattr(tracker, "artifact"):
        raise UserError(f"{words[0]} keeps no tables: logger=wandb does")
    return tracker


def publish(tracker: Any, view: View, folder: Path) -> None:
    """The table's files as an artifact; a tracker that fails is told and fails nothing."""
    trackers = open_loggers([tracker], folder, {"table": view.table.name, "metric": view.metric.name}, folder.name)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    trackers.artifact(f"table-{folder.name}", "table", files)
    trackers.close(ok=True)


def _code(view: View) -> int:
    return int(any(one.status == table_cells.FAILED for one in [*view.states, *view.leak_states]))


def read_options(words: list[str]) -> dict[str, Any]:
    """KEYS with the words' values; UserError for an unknown key or a value that does not fit."""
    options, problems = dict(KEYS), []
    for word in words:
        try:
            one = overrides.read(word)
        except overrides.TooRichError:
            one = overrides.read_rich(word)
        if one.key not in KEYS:
            raise UserError(unknown("key of run table", one.key, KEYS))
        kind = TYPES.get(one.key)
        fits = one.value is None or kind is None or (isinstance(one.value, kind) and type(one.value) is kind)
        if not fits or (kind is int and one.value is not None and one.value < 1):
            allowed = "an integer of at least 1" if kind is int else "true or false"
            problems.append(f"{word}: expected {allowed}")
        options[one.key] = one.value
    if options["format"] not in ("terminal", *FORMATS):
        problems.append(unknown("format", str(options["format"]), ("terminal", *FORMATS)))
    if problems:
        raise UserError("; ".join(problems))
    return options


def select(found: Table, options: dict[str, Any]) -> Table:
    """The table with the asked metric first, and the asked rows, columns and seeds only."""
    if (metric := options["metric"]) is not None and metric not in found.metrics:
        raise UserError(unknown(f"metric of table {found.name}", str(metric), found.metrics))
    metric = metric or next(iter(found.metrics))
    rows = _some("row", found, found.rows, options["rows"])
    if options["max_rows"] is not None:
        rows = tuple(line for line in rows if line.rows is not None and line.rows <= options["max_rows"])
        if not rows:
            raise UserError(f"max_rows={options['max_rows']}: every row of table {found.name} has more")
    return dataclasses.replace(
        found,
        metrics={metric: found.metrics[metric]},
        words=tuple(INTERVALS if options["intervals"] and word == FAST else word for word in found.words),
        rows=rows,
        columns=_some("column", found, found.columns, options["columns"]),
        seeds=options["seeds"] or found.seeds,
    )


def _some(kind: str, found: Table, lines: tuple[Line, ...], asked: Any) -> tuple[Line, ...]:
    if asked is None:
        return lines
    from outlie.sweeps import dataset_groups

    known = {line.name: line for line in lines}
    by_lower = {name.lower(): name for name in known}
    groups = dataset_groups.groups() if kind == "row" else {}
    chosen: list[str] = []
    for one in asked if isinstance(asked, list) else [asked]:
        name = str(one).removeprefix("adbench/")
        if str(one) in groups:
            chosen += [name for line in groups[str(one)] if (name := line.removeprefix("adbench/")) in known]
        elif name.lower() in by_lower:
            chosen.append(by_lower[name.lower()])
        else:
            raise UserError(unknown(f"{kind} of table {found.name}", str(one), [*known, *groups]))
    if not chosen:
        raise UserError(f"{kind}s=[] leaves nothing of table {found.name}")
    return tuple(known[name] for name in dict.fromkeys(chosen))


def collect(
    chosen: Table, options: dict[str, Any], apart: list[str] | None = None, config_dirs: tuple[str, ...] = ()
) -> View:
    """The table with its numbers; what is missing and whose data are here is computed first, unless compute=false."""
    metric = next(iter(chosen.metrics.values()))
    of_all, tried = [f"output_dir={options['output_dir']}"], set()
    small = [line for line in chosen.rows if line.rows is not None and line.rows < table_cells.LEAK_ROWS]
    without = [*of_all, f"dataset.protocol={chosen.leak_free}"]
    while True:
        states, leaking = table_cells.states(chosen, metric, config_dirs, of_all), []
        if chosen.leak_free and options["leak_free"]:
            leaking = table_cells.states(chosen, metric, config_dirs, without, small, chosen.leak_free)
        unsure = [one.cell for one in states if options["intervals"] and one.number is not None and not one.interval]
        todo = [*unsure, *(one.cell for one in [*states, *leaking] if one.status in table_cells.TO_COMPUTE)]
        todo = {cell.folder: cell for cell in todo if cell and cell.folder not in tried}
        if not (options["compute"] and todo):
            return table_numbers.view(chosen, metric, states, leaking)
        tried |= set(todo)  # once each; a second round is for those that waited for a teacher
        compute(list(todo.values()), apart or [], config_dirs)


def compute(cells: list[Cell], apart: list[str], config_dirs: tuple[str, ...]) -> None:
    """Compute the cells by the launcher of the words `apart`; a failed one is told and stops nothing."""
    from outlie.commands import sweep
    from outlie.sweeps import runner

    runner.compute(cells, sweep.build(sweep.section("launcher", apart, config_dirs)))


def statistics(view: View, folder: Path) -> dict[str, Any]:
    """Of the ranks, with cd.svg; found in statistics.json where the numbers are the same (SciPy takes a second)."""
    rows, columns = view.ranked
    numbers = table_numbers.matrix(view, rows, columns).tolist()
    known = store.digest([view.metric.name, view.metric.higher, rows, columns, numbers])
    path = folder / "statistics.json"
    try:
        stored = json.loads(path.read_text())
        if stored["of"] == known and ("p" not in stored or (folder / "cd.svg").is_file()):
            return stored
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = {"of": known, "metric": view.metric.name} | table_numbers.statistics(view)
    if "p" in found:
        draw(view, found, folder / "cd.svg")
    else:
        (folder / "cd.svg").unlink(missing_ok=True)  # of other numbers
    store.write_json(path, found)
    return found


def draw(view: View, found: dict[str, Any], path: Path) -> None:
    """The critical-difference diagram."""
    from outlie.results import rank_plots

    said = (
        f"{view.table.title}: average ranks by {view.metric.name} over {len(found['rows'])} rows; "
        "a bar: not told apart (Wilcoxon-Holm, 5 %)"
    )
    figure = rank_plots.critical_difference(found["columns"], found["ranks"], found["cliques"], said)
    with store.whole(path) as temporary:
        rank_plots.save(figure, temporary, path.suffix)


def write(view: View, folder: Path) -> None:
    """The table in every format, and its cells."""
    files = {f"{view.table.name}.{suffix}": form(view) for suffix, form in FORMATS.values()}
    for name, text in (files | {"cells.csv": table_text.cells_csv(view)}).items():
        with store.whole(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
