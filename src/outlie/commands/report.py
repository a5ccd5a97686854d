"""`run report`: one HTML file over any selection of runs: numbers, curves, scores, ranks, configs, commands."""

from __future__ import annotations

import shlex
from collections.abc import Sized
from pathlib import Path

from outlie import catalog, runs
from outlie.cli import version
from outlie.errors import UserError, unknown
from outlie.results import report, report_pictures, report_ranks, report_runs, report_tables, store
from outlie.results.page import Page

KEYS = ("runs", "table", "output", "title", "output_dir")


def main(words: list[str], config_dirs: tuple[str, ...] = ()) -> int:
    """Write the page and say what is on it; exit code."""
    given = options(words)
    output_dir = given.get("output_dir", "outputs")
    path = Path(given.get("output", Path(output_dir, "report.html"))).expanduser()
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"output={path}: the page is one HTML file: output=NAME.html")
    asked, tables = several(given.get("runs", "")), several(given.get("table", ""))
    nothing = tables and not asked and not runs.names(output_dir)
    selection = report.collect([] if nothing else report.find(asked, output_dir))
    if not selection.runs and not tables:
        first = selection.left[0]
        raise UserError(
            f"none of the {len(selection.left)} selected runs is finished; "
            f"{first.folder.name} is {first.state}: {first.reason}"
        )
    counted = f"{_count(selection.runs, 'run')} on {_count({row.dataset for row in selection.cells}, 'dataset')}"
    about = f"{shlex.join(['run', 'report', *words])}, {store.now()}, outlie {version()}"
    page = Page(given.get("title", counted if selection.runs else f"Table {tables[0]}"), about)
    report_tables.summary(page, selection, asked)
    for name in tables:
        embed(page, name, output_dir, config_dirs)
    report_pictures.datasets(page, selection)
    report_pictures.latency(page, selection)
    report_ranks.ranks(page, selection)
    report_pictures.training(page, selection)
    report_runs.runs(page, selection, config_dirs)
    with store.whole(path) as temporary:
        temporary.write_text(page.html(), encoding="utf-8")
    print(f"{path}: {counted}, {path.stat().st_size / 1e6:.2g} MB")
    if selection.left:
        print(f"! {report_tables.in_states(selection.left)}: the page says why")
    return 0


def _count(things: Sized, name: str) -> str:
    return f"{len(things):,} {name}{'' if len(things) == 1 else 's'}"


def options(words: list[str]) -> dict[str, str]:
    """KEY=VALUE words; UserError for anything else."""
    given = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"'{word}' is not KEY=VALUE; did you mean 'runs={word}'? run report --help")
        if key not in KEYS:
            raise UserError(f"{unknown('key', key, KEYS)}. run report --help")
        if not value:
            raise UserError(f"{key}= is empty; leave it out, or give a value. run report --help")
        given[key] = value
    return given


def several(value: str) -> list[str]:
    """The words of NAME,NAME or [NAME,NAME]; a path that exists is one word.

    >>> several("[knn-1a2b, 'adbench_*']")
    ['knn-1a2b', 'adbench_*']
    """
    if not value or Path(value).exists():
        return [value] * bool(value)
    inner = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    return [one.strip().strip("'\"") for one in inner.split(",") if one.strip()]


def embed(page: Page, name: str, output_dir: str, config_dirs: tuple[str, ...]) -> None:
    """Add a section with a paper's table beside the runs that are there; computes nothing."""
    from outlie.commands import table as command
    from outlie.results import table, table_numbers, table_text
    from outlie.results.page import text

    asked = command.read_options(["compute=false"]) | {"output_dir": output_dir}
    view = command.collect(command.select(table.load(name, catalog.roots(config_dirs)), asked), asked, [], config_dirs)
    view.statistics = known = table_numbers.statistics(view)
    heading = page.heading(2, f"Table {name}")
    diagram = ""
    if "p" in known:
        title = f"{view.table.title}: average ranks by {view.metric.name} on {len(known['rows'])} rows"
        diagram = report_ranks.diagram(page, known["columns"], known["ranks"], known["cliques"], title)
    box = f'<div class="scroll" tabindex="0" role="region" aria-label="{text(name)}">'
    fragment = table_text.html(view).replace('<div class="scroll">', box)
    page.add(heading, f"<p>{text(view.table.title)}</p>", fragment, diagram)
