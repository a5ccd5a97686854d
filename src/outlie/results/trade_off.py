"""Recall at 1 % false alarms against latency: table, csv and picture of measured runs, with the Pareto front."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from outlie.results.plots import GREY, LINES
from outlie.results.store import whole

Row = Mapping[str, Any]
RECALL = "recall_at_fpr01"


def groups(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """(dataset, protocol, test set) -> its rows: a recall is compared with others of the same test only."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["dataset"], row["protocol"], row["measured_on"] or "no labels"), []).append(row)
    return found


def front(points: Sequence[tuple[float, float] | None]) -> list[bool]:
    """Whether each (latency, recall) is best: none is as fast and as good, and better in one; None = no point.

    >>> front([(1.0, 0.5), (2.0, 0.9), (3.0, 0.8), None])
    [True, True, False, False]
    """

    def beaten(point: tuple[float, float]) -> bool:
        return any(
            other is not None and other != point and other[0] <= point[0] and other[1] >= point[1] for other in points
        )

    return [point is not None and not beaten(point) for point in points]


def point(row: Row) -> tuple[float, float] | None:
    """Latency in ms at the smallest batch and recall at 1 % false alarms; None where there is no recall."""
    recall, latency = row["metrics"].get(RECALL), row["timings"][0]["p50_ms"]
    return None if recall is None or latency is None else (latency, recall)


def marked(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows with `on_front`, each group on its own, fastest first."""
    done: list[dict[str, Any]] = []
    for some in groups(rows).values():
        for row, best in zip(some, front([point(row) for row in some])):
            done.append({**row, "on_front": best})
    return sorted(done, key=lambda row: (row["dataset"], row["protocol"], row["timings"][0]["p50_ms"] or 0))


def render(rows: Sequence[Row], console: Console | None = None) -> None:
    """A table for each group."""
    console = console or Console(highlight=False)
    for (dataset, protocol, on), some in groups(rows).items():
        console.print()
        console.print(Text(f"{dataset}", style="bold").append(f"  ({protocol}, {on})", style="not bold"))
        sizes = [one["batch"] for one in some[0]["timings"]]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("\n  run", no_wrap=True)
        largest = sizes[-1]
        titles = ("recall\n@1%", "\nAUROC", f"p50 ms\nb={sizes[0]}", f"p99 ms\nb={sizes[0]}", f"rows/s\nb={largest}")
        for title in (*titles, "\nparams", "\nFLOPs", "\nMB"):
            table.add_column(title, justify="right", no_wrap=True)
        for row in some:
            first, last = row["timings"][0], row["timings"][-1]
            metrics = row["metrics"]
            table.add_row(
                ("* " if row["on_front"] else "  ") + row["label"],
                _percent(metrics.get(RECALL)), _percent(metrics.get("auroc")), _number(first["p50_ms"]),
                _number(first["p99_ms"]), _count(last["rows_per_s"]), _count(row["parameters"]),
                _count(row["flops_per_row"]), _number(row["memory_mb"]),
            )  # fmt: skip
        console.print(table)
    console.print(
        Text(
            "ms of a call at batch b, raw rows to scores; * = on the front of recall@1% and latency, of its test set; "
            "MB: what a call at the largest batch adds to the process",
            style="dim",
        )
    )


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """bench.csv: one line a run and batch size."""
    names = ("label", "kind", "run", "dataset", "protocol", "measured_on", "detector", "backbone", "seed", "on_front")
    last = ("parameters", "buffers", "flops_per_row", "memory_mb")
    lines = [
        {name: row[name] for name in names}
        | {RECALL: row["metrics"].get(RECALL), "auroc": row["metrics"].get("auroc")}
        | timing
        | {name: row[name] for name in last}
        for row in rows
        for timing in row["timings"]
    ]
    with whole(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Recall at 1 % false alarms against latency at the smallest batch, a panel a group; fronts as steps."""
    from matplotlib.figure import Figure

    parts = {key: some for key, some in groups(rows).items() if any(point(row) for row in some)}
    figure = Figure(figsize=(8, max(1, len(parts)) * 4.6), dpi=110, layout="constrained")
    panels = figure.subplots(max(1, len(parts)), 1, squeeze=False)[:, 0]
    if not parts:
        panels[0].text(0.5, 0.5, "no run has a recall: no labels", ha="center", color=GREY)
    for axes, ((dataset, protocol, on), some) in zip(panels, parts.items()):
        points = [(found, row) for row in some if (found := point(row))]
        best = sorted(found for found, row in points if row["on_front"])
        best.append((max(ms for (ms, _), _ in points), best[-1][1]))  # slower and no better
        axes.step([ms for ms, _ in best], [100 * recall for _, recall in best], where="post", color=GREY, zorder=1)
        for (ms, recall), row in points:
            colour = LINES[0] if row["on_front"] else LINES[1]
            axes.plot(ms, 100 * recall, "s" if row["kind"] == "onnx" else "o", color=colour, markersize=6)
            axes.annotate(row["label"], (ms, 100 * recall), xytext=(5, 4), textcoords="offset points", fontsize=8)
        batch = some[0]["timings"][0]["batch"]
        axes.set_xscale("log")
        axes.margins(x=0.25, y=0.15)
        axes.set(title=f"{dataset} ({protocol}, {on})", xlabel=f"ms a call at batch {batch}, median")
        axes.set(ylabel="recall at 1 % false alarms, %")
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    with whole(path) as temporary:
        figure.savefig(temporary, format="png")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _count(value: float | None) -> str:
    if value is None:
        return "-"
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.3g}"
