"""Many detectors side by side: a table for the terminal and a picture, from their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from outlie.results.plots import GREY, LINES
from outlie.results.store import whole

Result = Mapping[str, Any]
SHOWN = {"auroc": "AUROC", "fpr95_id_positive": "FPR95", "recall_at_fpr01": "recall@1%"}
LEGEND = (
    "AUROC: higher is better. FPR95: share of OOD rows accepted where 95 % of ID rows are (fpr95_id_positive), lower "
    "is better. recall@1%: share of OOD rows found at 1 % false alarms."
)

NFE_LEGEND = " NFE: network evaluations a row, a truncated one counts as one; ms a row: network and detector."


def columns_of(results: Sequence[Result]) -> dict[str, dict[str, Mapping[str, float | None]]]:
    """Column title -> detector -> metrics: each test set where there are at most two, else the means by protocol."""
    sets = list(dict.fromkeys(name for one in results for name in one["metrics"]))
    protocols = list(dict.fromkeys(name for one in results for name in one.get("means") or {}))
    if protocols and len(sets) > 2:
        return {
            name: {one["detector"]: (one.get("means") or {}).get(name, {}) for one in results} for name in protocols
        }
    return {name: {one["detector"]: one["metrics"].get(name, {}) for one in results} for name in sets}


def mean_auroc(result: Result) -> float:
    """The unweighted mean over all test sets; -1 where there is none."""
    values = [metrics.get("auroc") for metrics in result["metrics"].values()]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else -1.0


def milliseconds(result: Result) -> float | None:
    """Of a row at batch 1: the detector's part, or all of it where each detector asks the network in its own way."""
    latency = result.get("latency") or {}
    return latency.get("latency_p50_ms" if nfe(result) else "detector_p50_ms")


def nfe(result: Result) -> int | None:
    """Network evaluations that a row takes; None where a pass is shared by all."""
    return (result.get("cost") or {}).get("nfe")


def render(results: Sequence[Result], folder: Path, console: Console | None = None) -> None:
    """Print the detectors by mean AUROC; what failed comes last, with the reason."""
    console = console or Console(highlight=False)
    good = sorted((one for one in results if one["status"] == "done"), key=mean_auroc, reverse=True)
    columns = columns_of(good)
    shown = [key for key in SHOWN if any(key in metrics for column in columns.values() for metrics in column.values())]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("%\ndetector", no_wrap=True)
    for title in columns:
        for i, key in enumerate(shown):
            table.add_column(f"{'' if i else title}\n{SHOWN[key]}", justify="right", no_wrap=True)
    counted = any(nfe(one) for one in good)
    if counted:
        table.add_column("\nNFE", justify="right", no_wrap=True)
    table.add_column("\nms a row", justify="right", no_wrap=True)
    for one in good:
        cells = [_percent(column[one["detector"]].get(key)) for column in columns.values() for key in shown]
        cells += [str(nfe(one) or "-")] if counted else []
        latency = milliseconds(one)
        table.add_row(one["detector"], *cells, "-" if latency is None else f"{latency:.2g}")
    console.print()
    if results:
        about = results[0]
        title = f"{len(good)} detectors on {about['dataset']}"
        accuracy = (about.get("classifier") or {}).get("accuracy")
        words = f"  (one {about['backbone']}, seed {about['seed']}" + (
            f", {100 * accuracy:.2f} % accurate)" if accuracy is not None else ")"
        )
        console.print(Text(title, style="bold").append(words, style="not bold"))
    console.print(table)
    console.print(Text(LEGEND + (NFE_LEGEND if counted else ""), style="dim"))
    for one in results:
        if one["status"] != "done":
            console.print(Text(f"failed: {one['detector']}: {one['error']}", style="bold red"))
    findings = dict.fromkeys(text for one in good for text in one.get("findings") or [])
    shared = [text for text in findings if sum(text in (one.get("findings") or []) for one in good) > 1]
    for text in shared:
        console.print(Text(f"! {text}", style="yellow"))
    for one in good:
        for text in one.get("findings") or []:
            if text not in shared:
                console.print(Text(f"! {one['detector']}: {text}", style="yellow"))
    console.print()
    console.print(Text(str(folder), style="bold"), soft_wrap=True)
    console.print("comparison.csv, comparison.png; each detector's result.json and scores.parquet below it\n")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def draw(results: Sequence[Result], path: Path) -> None:
    """AUROC of every detector on every test set, and mean AUROC against the time it takes."""
    from matplotlib.figure import Figure

    good = sorted((one for one in results if one["status"] == "done" and one["metrics"]), key=mean_auroc)
    figure = Figure(figsize=(12, max(4.0, 1.2 + 0.28 * len(good))), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    if good:
        figure.suptitle(f"{good[0]['dataset']}, {good[0]['backbone']}, seed {good[0]['seed']}", fontsize=13)
    sets = list(dict.fromkeys(name for one in good for name in one["metrics"]))
    for i, name in enumerate(sets):
        aurocs = [one["metrics"].get(name, {}).get("auroc") for one in good]
        points = [(100 * value, row) for row, value in enumerate(aurocs) if value is not None]
        if not points:  # AUROC was not asked for, or the set has one class
            continue
        protocol = good[0]["protocols"].get(name)
        label = f"{name} ({protocol})" if protocol else name
        left.plot(*zip(*points, strict=True), "osD^vP*X"[i % 8], color=LINES[i % len(LINES)], label=label, markersize=6)
    left.set_yticks(range(len(good)), [one["detector"] for one in good], fontsize=9)
    left.set(title="AUROC by test set", xlabel="AUROC, % (50 = chance, dotted)")
    left.axvline(50, color=GREY, linestyle=":", linewidth=1)
    left.grid(axis="both", alpha=0.2)
    if len(left.lines) > 1:  # one is chance
        left.legend(frameon=False, fontsize=9, loc="best")
    timed = [
        (taken, 100 * mean_auroc(one), one) for one in good if (taken := milliseconds(one)) and mean_auroc(one) >= 0
    ]
    part = "network and detector" if any(nfe(one) for one in good) else "detector alone"
    right.set(title="What it costs", xlabel=f"{part}, ms a row at batch 1", ylabel="mean AUROC, %")
    if timed:
        right.set_xscale("log")
        right.plot([ms for ms, _, _ in timed], [auroc for _, auroc, _ in timed], "o", color=LINES[1], markersize=5)
        for ms, auroc, one in timed:
            right.annotate(one["detector"], (ms, auroc), xytext=(4, 3), textcoords="offset points", fontsize=7)
    right.grid(alpha=0.2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    with whole(path) as temporary:
        figure.savefig(temporary, format="png")
