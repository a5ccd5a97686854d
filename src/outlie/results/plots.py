"""One picture of a run, summary.png: ROC, precision-recall, scores with the threshold, training curve or metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from outlie.metrics import counts as curve
from outlie.metrics.ranking import ranked, roc
from outlie.results.evaluated import beside_id
from outlie.results.store import whole

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which colour-blind readers can tell apart.
NORMAL, ANOMALY, POINT, GREY = "#0072B2", "#D55E00", "#000000", "#999999"
LINES = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":")

TestSets = dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]


def figure(scores: pl.DataFrame, result: Mapping[str, Any], run_dir: Path, log_fpr: bool = True) -> Path:
    """Draw the run and write `run_dir/summary.png`.

    Args:
        scores: as scores.parquet: split, label (0, 1; null where unknown), score
        log_fpr: whether the ROC curve shows low false-positive rates on a logarithmic axis
    """
    from matplotlib.figure import Figure  # drawn without pyplot, so there is no global state and no display

    sets = sets_of(scores)
    drawing = Figure(figsize=(11, 8), dpi=110, layout="constrained")
    (top_left, top_right), (low_left, low_right) = drawing.subplots(2, 2)
    drawing.suptitle(f"{result.get('detector')} on {result.get('dataset')} ({result.get('protocol')})", fontsize=13)
    draw_roc(top_left, sets, result, log_fpr)
    draw_precision_recall(top_right, sets)
    draw_scores(low_left, each_once(scores), result)
    losses = training_curve(run_dir / "metrics.csv")
    if losses is None:
        draw_metrics(low_right, result)
    else:
        draw_training(low_right, *losses)
    for axes in drawing.axes:
        axes.spines[["top", "right"]].set_visible(False)
    path = run_dir / "summary.png"
    with whole(path) as temporary:
        drawing.savefig(temporary, format="png")
    return path


def each_once(scores: pl.DataFrame) -> TestSets:
    """Scores and labels by test set, without calibration rows and rows of unknown label."""
    known = scores.filter(scores["label"].is_in([0, 1]) & (scores["split"] != "calibration"))
    parts = known.partition_by("split", as_dict=True, maintain_order=True)
    return {str(name): (part["score"].to_numpy(), part["label"].to_numpy()) for (name,), part in parts.items()}


def sets_of(scores: pl.DataFrame) -> TestSets:
    """The same, each out-of-distribution set beside the in-distribution rows."""
    tests = {name: (label, score) for name, (score, label) in each_once(scores).items()}
    return {name: (score, label) for name, (label, score) in beside_id(tests).items()}


def draw_roc(axes: Axes, sets: TestSets, result: Mapping[str, Any], log_fpr: bool) -> None:
    """Recall against false-positive rate, with the calibrated operating point of each test set."""
    axes.set(title="ROC", xlabel="false-positive rate (share of normals flagged)", ylabel="recall", ylim=(0, 1.02))
    drawable = _with_both_classes(axes, sets)
    left = 0.5 / max([int((label == 0).sum()) for _, label in drawable.values()] or [1])
    for i, (name, (score, label)) in enumerate(drawable.items()):
        fpr, recall, _ = roc(score, label)
        axes.plot(np.maximum(fpr, left) if log_fpr else fpr, recall, drawstyle="steps-post", label=name, **_line(i))
        point = (result.get("threshold") or {}).get("realised", {}).get(name) or {}
        if point.get("fpr") is not None and point.get("recall") is not None:
            at = max(point["fpr"], left) if log_fpr else point["fpr"]
            axes.plot(at, point["recall"], "o", color=POINT, markersize=7, zorder=3)
            if i == 0:
                words = f"threshold: {100 * point['fpr']:.2g} % false alarms,\n{100 * point['recall']:.3g} % recall"
                right = at > (0.1 if log_fpr else 0.5)
                axes.annotate(
                    words,
                    (at, point["recall"]),
                    xytext=(-12 if right else 12, -12 if point["recall"] > 0.3 else 12),
                    textcoords="offset points",
                    ha="right" if right else "left",
                    va="top" if point["recall"] > 0.3 else "bottom",
                    fontsize=9,
                )
    chance = np.geomspace(left, 1, 200) if log_fpr else np.linspace(0, 1, 2)
    axes.plot(chance, chance, color=GREY, linewidth=1, linestyle=":", label="chance")
    if log_fpr:
        axes.set_xscale("log")
        axes.set_xlim(left, 1)
    if drawable:
        axes.legend(frameon=False, fontsize=9, loc="best")


def draw_precision_recall(axes: Axes, sets: TestSets) -> None:
    """Precision against recall, as steps; the dotted line is the prevalence, where chance lies."""
    axes.set(title="Precision and recall", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    drawable = _with_both_classes(axes, sets)
    for i, (name, (score, label)) in enumerate(drawable.items()):
        tp, fp, _ = curve.at_ends(ranked(score, label))
        recall, precision = tp / tp[-1], np.insert(tp[1:] / (tp[1:] + fp[1:]), 0, 1.0)
        average = float(curve.average_precision(ranked(score, label)))
        axes.plot(recall, precision, drawstyle="steps-pre", label=f"{name}: AP {100 * average:.1f} %", **_line(i))
        axes.axhline(label.mean(), linewidth=1, linestyle=":", color=_line(i)["color"])
    if drawable:
        axes.legend(frameon=False, fontsize=9, loc="lower left")


def draw_scores(axes: Axes, sets: TestSets, result: Mapping[str, Any]) -> None:
    """Histograms of the scores of normals and of anomalies, all test sets together, with the threshold."""
    axes.set(title="Scores", ylabel="share of class in bin")
    if not sets:
        return
    score = np.concatenate([s for s, _ in sets.values()])
    label = np.concatenate([y for _, y in sets.values()])
    value = (result.get("threshold") or {}).get("value")
    low, high = np.quantile(score, [0.002, 0.998])
    low, high = (low, high) if value is None else (min(low, value), max(high, value))
    logarithmic = low > 0 and high > 30 * np.median(score)
    if low == high:
        low, high = low - 0.5, high + 0.5
    bins = int(np.clip(2 * np.sqrt(len(score)), 10, 60))
    edges = (np.geomspace if logarithmic else np.linspace)(low, high, bins + 1)
    for anomalous, colour, name in ((0, NORMAL, "normal"), (1, ANOMALY, "anomaly")):
        mine = np.clip(score[label == anomalous], low, high)
        if len(mine):
            share = np.full(len(mine), 1 / len(mine))
            text = f"{name} ({len(mine):,})"
            axes.hist(mine, edges, weights=share, color=colour, alpha=0.55, label=text)
            axes.hist(mine, edges, weights=share, color=colour, histtype="step", linewidth=1.2)
    if value is not None:
        axes.axvline(value, color=POINT, linestyle="--", linewidth=1.2, label="threshold")
    if logarithmic:
        axes.set_xscale("log")
    outside = int(((score < low) | (score > high)).sum())
    note = f"; {outside:,} beyond the ends" if outside else ""
    axes.set_xlabel(f"score (higher = more anomalous{note})")
    axes.legend(frameon=False, fontsize=9)


def draw_training(axes: Axes, step_name: str, loss_name: str, step: NDArray, loss: NDArray) -> None:
    """Training loss by epoch or step."""
    axes.plot(step, loss, color=NORMAL, linewidth=1.5, marker="o" if len(step) == 1 else None)
    axes.set(title="Training", xlabel=step_name, ylabel=loss_name)
    if loss.min() > 0 and loss.max() > 20 * loss.min():
        axes.set_yscale("log")


def draw_metrics(axes: Axes, result: Mapping[str, Any]) -> None:
    """The metrics of the first test set with their intervals, where there was no training to show."""
    axes.set(title="Metrics with 95 % intervals", xlabel="%", xlim=(-2, 102))
    name, metrics = next(iter((result.get("metrics") or {}).items()), ("", {}))
    shown = [(key, value) for key, value in metrics.items() if value is not None][::-1]
    intervals = (result.get("intervals") or {}).get(name) or {}
    for row, (key, value) in enumerate(shown):
        low, high = intervals.get(key) or (value, value)
        axes.plot([100 * low, 100 * high], [row, row], color=NORMAL, linewidth=2, alpha=0.6)
        axes.plot(100 * value, row, "o", color=NORMAL, markersize=6)
    axes.set_yticks(range(len(shown)), [key for key, _ in shown], fontsize=9)
    axes.grid(axis="x", alpha=0.25)


def training_curve(path: Path) -> tuple[str, str, NDArray, NDArray] | None:
    """x name, y name, x and y of metrics.csv: epoch or step against the first loss; None if there is none."""
    import polars as pl

    if not path.is_file() or path.stat().st_size == 0:
        return None
    table = pl.read_csv(path)
    losses = [name for name in table.columns if "loss" in name.lower()]
    steps = [name for name in table.columns if name.lower() in ("epoch", "step")]
    if not losses:
        return None
    table = table.drop_nulls(losses[0])
    loss = table[losses[0]].cast(pl.Float64).to_numpy()
    keep = np.isfinite(loss)
    if not keep.any():
        return None
    step = table[steps[0]].to_numpy() if steps else np.arange(len(loss))
    return steps[0] if steps else "row", losses[0], step[keep], loss[keep]


def _with_both_classes(axes: Axes, sets: TestSets) -> TestSets:
    drawable = {name: part for name, part in sets.items() if 0 < part[1].sum() < len(part[1])}
    if not drawable:
        words = "no labelled test set with both classes"
        axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", color=GREY)
    return drawable


def _line(i: int) -> dict[str, Any]:
    return {"color": LINES[i % len(LINES)], "linestyle": STYLES[i // len(LINES) % len(STYLES)], "linewidth": 1.8}
