"""What a sweep found: one line a setting, mean and spread over seeds; every cell in cells.csv."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from outlie.errors import UserError
from outlie.results import store
from outlie.results.words import last_line, seconds
from outlie.sweeps.cells import Cell, Event, varying

LINES = 40  # settings on the screen
METRICS = ("auroc", "average_precision", "recall_at_fpr01")
HEADS = {"auroc": "AUROC", "average_precision": "AP", "recall_at_fpr01": "recall"}
LEGEND = "per cent, mean ± standard deviation over seeds; recall at 1 % false alarms"


def show(ended: Mapping[Path, Event], folder: Path, console: Console | None = None) -> None:
    """Print the closing table and the failures, and write cells.csv into `folder`."""
    console = console or Console(highlight=False)
    results = {at: result for at, event in ended.items() if event.what != "failed" and (result := _read(at))}
    write_cells(folder / "cells.csv", ended, results)
    keys = varying([event.cell for event in ended.values()])
    rows = settings({at: event.cell for at, event in ended.items()}, results, keys)
    if rows:
        console.print(_table(rows, keys))
        console.print(Text(LEGEND, style="dim"))
    if len(rows) > LINES:
        console.print(Text(f"the best {LINES} of {len(rows)} settings; all of them in cells.csv", style="dim"))
    failed = [event for event in ended.values() if event.what == "failed"]
    for event in failed[:LINES]:
        line = f"failed: {event.cell.name}: {last_line(event.error)}"
        console.print(Text(line, style="bold red"), soft_wrap=True)
    count = {what: sum(event.what == what for event in ended.values()) for what in ("found", "done", "failed")}
    spent = sum(event.cpu_s for event in ended.values())
    said = [f"{count['found']} found", f"{count['done']} computed", f"{count['failed']} failed"]
    cost = f"; {seconds(spent)} of CPU" if spent else ""
    again = "; the same command tries the failed ones again" if failed else ""
    console.print(f"\n{len(ended)} cells: {', '.join(said)}{cost}{again}")
    console.print(Text(str(folder / "cells.csv"), style="bold"), soft_wrap=True)


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        return store.read_result(folder)
    except UserError:
        return None


def settings(
    cells: Mapping[Path, Cell], results: Mapping[Path, dict[str, Any]], keys: list[str]
) -> list[tuple[tuple[str, ...], dict[str, list[float]]]]:
    """(values of the keys, metric -> one number a seed) of each setting; the files of a dataset are averaged first."""
    shown = [key for key in keys if key not in ("seed", "dataset.part")]
    found: dict[tuple[str, ...], dict[str, dict[Any, list[float]]]] = {}
    for at, cell in cells.items():
        given = cell.given
        row = found.setdefault(tuple(given.get(key, "") for key in shown), {name: {} for name in METRICS})
        for name in METRICS:
            if (value := number(results.get(at), name)) is not None:
                row[name].setdefault(cell.config["seed"], []).append(value)
    return [
        (row, {name: [statistics.fmean(parts) for parts in by_seed.values()] for name, by_seed in numbers.items()})
        for row, numbers in found.items()
    ]


def number(result: dict[str, Any] | None, name: str) -> float | None:
    """A metric of a result: of its test set, or the mean over several."""
    values = [one.get(name) for one in ((result or {}).get("metrics") or {}).values()]
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _table(rows: list[tuple[tuple[str, ...], dict[str, list[float]]]], keys: list[str]) -> Table:
    shown = [key for key in keys if key not in ("seed", "dataset.part")]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    # datasets of one collection fit on a narrow screen without its name, which stands in the head
    folders = [common_folder(column) for column in zip(*(values for values, _ in rows), strict=True)]
    for key, folder in zip(shown, folders, strict=True):
        table.add_column(f"{key}\n{folder}" if folder else key, overflow="fold")
    if not shown:
        table.add_column("run")
    table.add_column("seeds", justify="right")
    for name in METRICS:
        table.add_column(HEADS[name], justify="right")
    many = len(rows) > LINES
    ordered = sorted(rows, key=lambda row: -_mean(row[1]["auroc"])) if many else rows
    best = {name: max((_mean(numbers[name]) for _, numbers in rows), default=0.0) for name in METRICS}
    for row, numbers in ordered[:LINES]:
        texts = [
            Text(in_words(numbers[name]), style="bold" if _mean(numbers[name]) == best[name] else "")
            for name in METRICS
        ]
        names = [value.removeprefix(folder) for value, folder in zip(row, folders, strict=True)]
        table.add_row(*(names or ["all"]), str(max(len(values) for values in numbers.values())), *texts)
    return table


def common_folder(values: Collection[str]) -> str:
    """'adbench/' of 'adbench/wine' and 'adbench/cardio'; '' of values that share none."""
    folders = {folder + slash for folder, slash, _ in (value.rpartition("/") for value in values)}
    return folders.pop() if len(folders) == 1 else ""


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else -1.0


def in_words(values: list[float]) -> str:
    """Mean ± standard deviation (ddof 1) in per cent."""
    if not values:
        return "-"
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{spread}"


def write_cells(path: Path, ended: Mapping[Path, Event], results: Mapping[Path, dict[str, Any]]) -> None:
    """cells.csv: a line a cell, with its words, what became of it, and every number of its test sets."""
    lines = []
    for at, event in ended.items():
        given = event.cell.given
        metrics = (results.get(at) or {}).get("metrics") or {}
        numbers = {f"{test}/{name}": value for test, one in metrics.items() for name, value in one.items()}
        lines.append({**given, "status": event.what, "error": event.error, **numbers, "folder": str(at)})
    columns = list(dict.fromkeys(key for line in lines for key in line if key not in ("status", "error", "folder")))
    with store.whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, "status", "error", "folder"])
        writer.writeheader()
        writer.writerows(lines)
