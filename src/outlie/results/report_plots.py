"""The pictures of a report: ROC, precision-recall, scores, recall against latency, training curves; SVG text."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from outlie.metrics import counts as curve
from outlie.metrics.ranking import ranked, roc
from outlie.results import trade_off
from outlie.results.evaluated import beside_id
from outlie.results.store import read_scores
from outlie.results.svg import Axis, Chart

Scores = tuple[NDArray[np.float64], NDArray[np.int64] | None]
MOST_POINTS = 400  # of a curve: more than pixels are not seen


def scores_of(folder: Path) -> dict[str, Scores]:
    """Test set -> scores and labels (None where unknown), an out-of-distribution set beside the ID rows."""
    stored = read_scores(folder)
    tests = beside_id({name: (label, score) for name, (_, label, score) in stored.items() if name != "calibration"})
    return {name: (score, label) for name, (label, score) in tests.items()}


def drawable(one: Scores) -> bool:
    """Whether both classes are there and every score is finite."""
    score, label = one
    return label is not None and bool(0 < label.sum() < len(label)) and bool(np.isfinite(score).all())


def roc_chart(scores: Mapping[str, Scores], styles: Mapping[str, str], row: str, log: bool) -> str:
    """Recall against the share of normal rows flagged; `log` shows the few false alarms that a user can bear."""
    least = max(float((label == 0).sum()) for _, label in scores.values() if label is not None)
    low = max(0.5 / least, 1e-5)
    x = Axis(low, 1, "false alarms (share of normal rows flagged)", log=True, percent=True)
    chart = Chart(x if log else x._replace(low=0.0, log=False), Axis(0, 1, "recall", percent=True))
    chance = np.geomspace(low, 1, 60) if log else np.array([0.0, 1.0])
    chart.line(chance, chance, "chance", "chance")
    for name, (score, label) in scores.items():
        fpr, recall, _ = roc(score, label)
        keep = _visible(chart.points(fpr, recall))
        chart.steps(fpr[keep], recall[keep], styles[name], name)
    return chart.text(f"ROC curves on {row}{', logarithmic in false alarms' if log else ''}: {', '.join(scores)}")


def precision_recall_chart(scores: Mapping[str, Scores], styles: Mapping[str, str], row: str) -> str:
    """Precision against recall, as steps; the dotted line is the prevalence, where chance lies."""
    chart = Chart(Axis(0, 1, "recall", percent=True), Axis(0, 1, "precision", percent=True))
    for name, (score, label) in scores.items():
        if not chart.marks:
            chart.line([0, 1], [label.mean()] * 2, "chance", f"prevalence {100 * label.mean():.3g} %")
        tp, fp, _ = curve.at_ends(ranked(score, label))
        recall, precision = tp / tp[-1], np.insert(tp[1:] / (tp[1:] + fp[1:]), 0, 1.0)
        keep = _visible(chart.points(recall, precision))
        chart.steps(recall[keep], precision[keep], styles[name], name, before=True)
    return chart.text(f"precision-recall curves on {row}: {', '.join(scores)}")


def _visible(at: NDArray[np.float64]) -> NDArray[np.int64]:
    """Points that move by half a pixel; of a very long curve, evenly chosen ones."""
    moved = np.flatnonzero(np.append(True, (np.diff(at, axis=0) != 0).any(1)))
    return moved[np.unique(np.linspace(0, len(moved) - 1, min(len(moved), MOST_POINTS)).astype(int))]


def histogram(one: Scores, name: str, row: str, threshold: float | None) -> str:
    """Shares of normal rows and of anomalies by score, with the threshold; all rows where labels are unknown."""
    score, label = one
    score = np.where(np.isfinite(score), score, np.nan)
    low, high = np.nanquantile(score, [0.002, 0.998])
    low, high = (low, high) if threshold is None else (min(low, threshold), max(high, threshold))
    log = bool(low > 0 and high > 30 * np.nanmedian(score))
    if low == high:
        low, high = low - 0.5, high + 0.5
    bins = int(np.clip(2 * np.sqrt(len(score)), 10, 40))
    edges = (np.geomspace if log else np.linspace)(low, high, bins + 1)
    parts = {"all": np.ones(len(score), bool)} if label is None else {"normal": label == 0, "anomaly": label == 1}
    shares = {}
    for word, mine in parts.items():
        found, _ = np.histogram(np.clip(score[mine & np.isfinite(score)], low, high), edges)
        if found.sum():
            shares[word] = found / found.sum()
    top = max((share.max() for share in shares.values()), default=1.0)
    x = Axis(float(low), float(high), "score, higher = more anomalous", log=log)
    chart = Chart(x, Axis(0, float(top) * 1.05, "share of class", percent=True), height=200)
    for word, share in shares.items():
        chart.bars(edges, share, word)
    if threshold is not None:
        chart.upright(threshold, "threshold")
    at = "" if threshold is None else f", threshold {threshold:.4g}"
    return chart.text(f"scores of {name} on {row}: {' and '.join(shares)}{at}")


def trade_off_chart(points: Mapping[str, tuple[float, float]], row: str) -> str:
    """Recall at 1 % false alarms against milliseconds a row; filled = on the front, numbered in this order."""
    best = dict(zip(points, trade_off.front(list(points.values()))))
    times = [ms for ms, _ in points.values()]
    low, high = min(times) / 1.6, max(times) * 1.6
    chart = Chart(Axis(low, high, "ms for one row, median", log=True), Axis(0, 1, "recall at 1 % FA", percent=True))
    front = sorted(points[name] for name, on in best.items() if on)
    front.append((high, front[-1][1]))  # slower and no better
    chart.steps([ms for ms, _ in front], [recall for _, recall in front], "chance", "front")
    for i, (name, (ms, recall)) in enumerate(points.items(), 1):
        title = f"{name}: {ms:.3g} ms, {100 * recall:.1f} %"
        chart.dot(ms, recall, "front" if best[name] else "behind", title, str(i))
    on = ", ".join(name for name, mine in best.items() if mine)
    return chart.text(f"recall at 1 % false alarms against latency on {row}; on the front: {on}")


def losses(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Name of a loss -> steps and finite values, of a run's metrics.csv; nothing where there is none to read."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for i, line in enumerate(csv.DictReader(file)):
                for name, text in line.items():
                    if name and "loss" in name and text and math.isfinite(value := float(text)):
                        steps, numbers = found.setdefault(name, ([], []))
                        steps.append(float(line.get("epoch") or line.get("step") or i))
                        numbers.append(value)
    except (OSError, ValueError):  # absent, or cut off in the middle of a number
        pass
    return found


def training_chart(runs: Mapping[str, Path], styles: Mapping[str, str], name: str) -> str:
    """The loss of each run by epoch, on training rows and, dashed, on rows held out; '' where nothing was trained."""
    every = {label: found for label, path in runs.items() if (found := losses(path))}
    numbers = [value for found in every.values() for _, some in found.values() for value in some]
    if not numbers:
        return ""
    low, high = min(numbers), max(numbers)
    log = low > 0 and high > 20 * low
    if not log:
        room = 0.04 * (high - low) or 0.5
        low, high = low - room, high + room
    last = max(steps[-1] for found in every.values() for steps, _ in found.values())
    chart = Chart(Axis(0, max(last, 1), "epoch"), Axis(low, high, "loss", log=log), height=220)
    for label, found in every.items():
        for key, (steps, some) in found.items():
            held_out = "validation" in key
            keep = _visible(chart.points(steps, some))[: MOST_POINTS // 2]
            keep = np.unique(np.linspace(0, len(steps) - 1, 150).astype(int)) if len(keep) > 150 else keep
            words = f"{label}{', held out' if held_out else ''}"
            style = [styles[label], *["held-out"] * held_out, *["thin"] * (len(every) > 4)]
            chart.line(np.take(steps, keep), np.take(some, keep), " ".join(style), words)
    return chart.text(f"training loss of {name}: {_some(list(every))}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
