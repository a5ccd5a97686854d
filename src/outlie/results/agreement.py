"""A student's scores beside its teacher's on the same rows: rank correlation of each class, and what AUROC it costs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy.stats import rankdata

from outlie.metrics import bootstrap, ranking
from outlie.results.evaluated import Scores, beside_id
from outlie.results.plots import GREY, LINES
from outlie.results.store import whole

Agreement = dict[str, dict[str, Any]]  # test set -> what COLUMNS name
COLUMNS = (
    "rows_id", "rows_ood", "spearman_id", "spearman_ood", "auroc_student", "auroc_teacher", "delta_auroc", "delta_low",
    "delta_high",
)  # fmt: skip
LEGEND = (
    "rho: Spearman's correlation of the student's scores with the teacher's, on ID rows and on OOD rows alone. "
    "delta: AUROC of the student less that of the teacher on the same rows, in points, with its 95 % interval (both "
    "are resampled together); an interval that holds 0 tells no difference."
)


def agreement(student: Scores, teacher: Scores, resamples: int, seed: int) -> Agreement:
    """What `COLUMNS` name for every labelled test set of the rows that both scored; None where it has no value.

    Args:
        resamples: of the paired bootstrap; 0 = no intervals.
    """
    joined = same_rows(student, teacher)
    pairs = {name: (label, np.stack([s, t], 1)) for name, (label, s, t) in joined.items()}
    return {
        name: of_set(label, both[:, 0], both[:, 1], resamples, seed)
        for name, (label, both) in beside_id(pairs).items()
        if label is not None and len(label)
    }


def same_rows(student: Scores, teacher: Scores) -> dict[str, tuple[Any, Any, Any]]:
    """Test set -> (label or None, the student's scores, the teacher's) of the rows whose index is in both."""
    joined = {}
    for name in student:
        if name != "calibration" and name in teacher:
            (index, label, score), (other_index, _, other) = student[name], teacher[name]
            _, mine, theirs = np.intersect1d(index, other_index, return_indices=True)
            joined[name] = (None if label is None else label[mine], score[mine], other[theirs])
    return joined


def of_set(label: NDArray, student: NDArray, teacher: NDArray, resamples: int, seed: int) -> dict[str, Any]:
    """One test set's line: correlations within each class, both AUROCs and the interval of their difference."""
    ood = np.asarray(label) == 1
    found: dict[str, Any] = dict.fromkeys(COLUMNS)
    found |= {"rows_id": int((~ood).sum()), "rows_ood": int(ood.sum())}
    found |= {
        "spearman_id": spearman(student[~ood], teacher[~ood]),
        "spearman_ood": spearman(student[ood], teacher[ood]),
    }
    if ood.all() or not ood.any():
        return found
    of_student, of_teacher = (ranking.auroc(score, label) for score in (student, teacher))
    found |= {"auroc_student": of_student, "auroc_teacher": of_teacher, "delta_auroc": of_student - of_teacher}
    if resamples:
        low, high = np.quantile(paired_differences(label, student, teacher, resamples, seed), [0.025, 0.975])
        found |= {"delta_low": float(low), "delta_high": float(high)}
    return found


def paired_differences(
    label: NDArray, student: NDArray, teacher: NDArray, resamples: int, seed: int
) -> NDArray[np.float64]:
    """(resamples,) AUROC of the student less the teacher's on the same resample: rows are drawn by their place."""
    drawn = [
        bootstrap.resample(score, label, ["auroc"], resamples, np.random.default_rng(seed))["auroc"]
        for score in (student, teacher)
    ]
    return drawn[0] - drawn[1]


def spearman(a: NDArray, b: NDArray) -> float | None:
    """Pearson's correlation of the ranks, ties sharing theirs; None where one of them is constant."""
    ranks = rankdata(a), rankdata(b)
    if len(a) < 2 or min(np.ptp(r) for r in ranks) == 0:
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def mean(found: Agreement, key: str) -> float | None:
    """The unweighted mean of a column over test sets; None where none has a value."""
    values = [line[key] for line in found.values() if line[key] is not None]
    return float(np.mean(values)) if values else None


def write(path: Path, agreements: Mapping[str, Agreement]) -> None:
    """agreement.csv: one line a detector and test set."""
    with whole(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, ["detector", "set", *COLUMNS], lineterminator="\n")
        writer.writeheader()
        for detector, found in agreements.items():
            writer.writerows({"detector": detector, "set": name, **line} for name, line in found.items())


def render(
    agreements: Mapping[str, Agreement], teacher: Path, lacking: Sequence[str], console: Console | None = None
) -> None:
    """Print the detectors, smallest loss first: each set where there are at most two, else the means over all."""
    console = console or Console(highlight=False)
    console.print(Text("Agreement with the teacher", style="bold").append(f"  ({teacher})", style="not bold"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    sets = list(dict.fromkeys(name for found in agreements.values() for name in found))
    table.add_column("\ndetector", no_wrap=True)
    for name in sets if len(sets) <= 2 else [f"mean of {len(sets)} sets"]:
        for i, title in enumerate(("rho ID", "rho OOD", "AUROC %", "teacher", "delta")):
            table.add_column(f"{'' if i else name}\n{title}", justify="right", no_wrap=True)
    for detector in by_loss(agreements):
        found = agreements[detector]
        if len(sets) <= 2:
            lines = [found.get(name) or dict.fromkeys(COLUMNS) for name in sets]
        else:
            lines = [{key: mean(found, key) for key in COLUMNS} | {"delta_low": None, "delta_high": None}]
        table.add_row(detector, *(cell for line in lines for cell in _cells(line)))
    console.print(table)
    console.print(Text(LEGEND, style="dim"))
    if len(sets) > 2:
        console.print(Text("agreement.csv has each set with its interval.", style="dim"))
    if lacking:
        console.print(Text(f"! without the teacher's score: {', '.join(lacking)}", style="yellow"))
    console.print("agreement.csv, agreement.png; the teacher's scores are in its own comparison\n")


def by_loss(agreements: Mapping[str, Agreement]) -> list[str]:
    """Detectors by mean difference of AUROC, the best for the student first; those without one last."""
    means = {name: mean(found, "delta_auroc") for name, found in agreements.items()}
    return sorted(means, key=lambda name: -np.inf if (value := means[name]) is None else value, reverse=True)


def _cells(line: Mapping[str, Any]) -> list[str]:
    def number(key: str, form: str, factor: float = 1.0) -> str:
        return "-" if line[key] is None else format(factor * line[key], form)

    delta = number("delta_auroc", "+.2f", 100)
    if line["delta_low"] is not None:
        delta += f" ({number('delta_low', '+.2f', 100)} to {number('delta_high', '+.2f', 100)})"
    return [
        number("spearman_id", ".3f"), number("spearman_ood", ".3f"), number("auroc_student", ".2f", 100),
        number("auroc_teacher", ".2f", 100), delta,
    ]  # fmt: skip


def draw(agreements: Mapping[str, Agreement], path: Path) -> None:
    """Difference of AUROC with its interval, and rank correlations, of every detector on every test set."""
    from matplotlib.figure import Figure

    names = by_loss(agreements)[::-1]
    sets = list(dict.fromkeys(name for found in agreements.values() for name in found))
    figure = Figure(figsize=(12, max(4.0, 1.4 + 0.3 * len(names))), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for i, name in enumerate(sets):
        colour, marker = LINES[i % len(LINES)], "osD^vP*X"[i % 8]
        offset = 0.5 * ((i + 0.5) / len(sets) - 0.5)
        lines = [(row + offset, agreements[detector].get(name)) for row, detector in enumerate(names)]
        known = [(row, line) for row, line in lines if line and line["delta_auroc"] is not None]
        left.plot(
            [100 * line["delta_auroc"] for _, line in known],
            [row for row, _ in known],
            marker,
            color=colour,
            label=name,
        )
        for row, line in known:
            if line["delta_low"] is not None:
                left.plot([100 * line["delta_low"], 100 * line["delta_high"]], [row, row], color=colour, linewidth=1.5)
        for key, filled in (("spearman_id", "none"), ("spearman_ood", colour)):
            values = [(line[key], row) for row, line in lines if line and line[key] is not None]
            right.plot(*(zip(*values) if values else ((), ())), marker, color=colour, markerfacecolor=filled)
    left.axvline(0, color=GREY, linestyle=":", linewidth=1)
    left.set_yticks(range(len(names)), names, fontsize=9)
    left.set(title="What the student's AUROC gains or loses", xlabel="student - teacher, points; line = 95 % interval")
    right.set(title="Agreement: hollow = ID rows, filled = OOD rows", xlabel="Spearman's correlation")
    if names and sets:
        left.legend(frameon=False, fontsize=9, loc="best")
    for axes in (left, right):
        axes.grid(axis="both", alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    with whole(path) as temporary:
        figure.savefig(temporary, format="png")
