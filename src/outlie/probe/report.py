"""What the probes say: which cell is chosen, whether accuracy has one peak over the blocks; table, csv and picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from outlie.results.sample_plots import heat_map
from outlie.results.store import whole

Cell = Mapping[str, Any]  # a line of grid.csv: block, log_snr, ..., held_out_accuracy, test_accuracy


def best(cells: Sequence[Cell], by: str) -> Cell:
    """The cell with the highest accuracy of that kind; of equal ones the earliest block, the cheapest pass."""
    return max(cells, key=lambda cell: cell[by])  # the first of equal ones


def dip(values: Sequence[float]) -> float:
    """How far values fall before their peak, or rise after it; 0 = a single peak.

    >>> dip([1, 3, 2]), dip([1, 0, 3])
    (0, 1)
    """
    peak = max(range(len(values)), key=lambda i: values[i])
    rising, falling = values[: peak + 1], values[: peak - 1 if peak else None : -1]
    return max(max(side[: i + 1]) - side[i] for side in (rising, falling) for i in range(len(side)))


def findings(cells: Sequence[Cell], unit: str, test_rows: int) -> dict[str, Any]:
    """The choice by held-out rows, its accuracy on test rows, and what choosing on test rows would have reported."""
    chosen, peeked = best(cells, "held_out_accuracy"), best(cells, "test_accuracy")
    over_blocks = [cell["test_accuracy"] for cell in cells if cell["log_snr"] == chosen["log_snr"]]
    accuracy = chosen["test_accuracy"]
    fall = dip(over_blocks)
    return {
        "chosen": {name: chosen[name] for name in ("block", "log_snr", unit)},
        "accuracy": accuracy,
        "standard_error": math.sqrt(accuracy * (1 - accuracy) / test_rows),
        "held_out_accuracy": chosen["held_out_accuracy"],
        "accuracy_test_selected": peeked["test_accuracy"],
        "test_selected": {name: peeked[name] for name in ("block", "log_snr", unit)},
        "over_blocks": {"log_snr": chosen["log_snr"], "single_peak": fall == 0, "dip": fall},
    }


def write(result: Mapping[str, Any], folder: Path) -> None:
    """grid.csv and probe.png."""
    cells = result["grid"]
    with whole(folder / "grid.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(cells[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(cells)
    held_out = {(cell["block"], cell["log_snr"]): cell["held_out_accuracy"] for cell in cells}
    chosen = (result["chosen"]["block"], result["chosen"]["log_snr"])
    heat_map(held_out, folder / "probe.png", f"Linear probes on {result['dataset']}, held-out accuracy", chosen)


def render(result: Mapping[str, Any], folder: Path, console: Console | None = None) -> None:
    """Print held-out accuracy, blocks x levels, what was chosen by it, and how to use the choice."""
    console, cells, chosen = console or Console(highlight=False), result["grid"], result["chosen"]
    unit = next(name for name in ("t", "sigma") if name in chosen)
    levels = sorted({cell["log_snr"]: cell[unit] for cell in cells}.items(), reverse=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(f"held-out %, log-SNR\n{unit}", no_wrap=True)
    for level, time in levels:
        table.add_column(f"{level:.2f}\n{time:.3g}", justify="right", no_wrap=True)
    for block in dict.fromkeys(cell["block"] for cell in cells):
        of = {cell["log_snr"]: cell["held_out_accuracy"] for cell in cells if cell["block"] == block}
        best_here = block == chosen["block"]
        words = [
            Text(f"{100 * of[level]:.1f}", style="bold reverse" if best_here and level == chosen["log_snr"] else "")
            for level, _ in levels
        ]
        table.add_row(block, *words)
    console.print()
    rows = result["rows"]
    title = Text(f"Linear probes on {result['dataset']}", style="bold")
    console.print(title.append(f"  ({result['backbone']}, seed {result['seed']}, {rows['train']:,} training images)",
                               style="not bold"))  # fmt: skip
    console.print(table)
    for sentence in sentences(result):
        console.print(sentence, soft_wrap=True)
    console.print()
    console.print(Text("with these features: " + result["use"], style="bold"), soft_wrap=True)
    console.print(Text(str(folder), style="bold"), soft_wrap=True)
    console.print("result.json, grid.csv, probe.png\n")


def sentences(result: Mapping[str, Any]) -> list[str]:
    """The findings in words."""
    peeked, peak, rows = result["test_selected"], result["over_blocks"], result["rows"]
    error = 100 * result["standard_error"]
    shape = (
        "has a single peak"
        if peak["single_peak"]
        else f"has more than one peak: it falls and rises by {100 * peak['dip']:.2f} points"
    )
    return [
        f"Chosen on {rows['held_out']:,} held-out images: {_cell(result['chosen'])}; accuracy on {rows['test']:,} test "
        f"images {100 * result['accuracy']:.2f} % (standard error {error:.2f}).",
        f"Chosen on the test labels, as the published code does: {_cell(peeked)}, "
        f"{100 * result['accuracy_test_selected']:.2f} % (accuracy_test_selected).",
        f"Over the blocks at log-SNR {peak['log_snr']:g}, the test accuracy {shape}"
        + ("." if peak["single_peak"] else f", where one accuracy has a standard error of {error:.2f}."),
    ]


def _cell(cell: Mapping[str, Any]) -> str:
    unit = next(name for name in ("t", "sigma") if name in cell)
    return f"{cell['block']} at log-SNR {cell['log_snr']:g} ({unit} = {cell[unit]:.3g})"
