"""Teacher and student beside each other: their numbers, and the table of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

QUALITY = ("accuracy", "miou", "pixel_accuracy", "auroc", "recall_at_fpr01", "recall_at_fpr05")


def numbers(result: Mapping[str, Any]) -> dict[str, Any]:
    """Quality by test set, size and speed of a run, flat: auroc of test set far is `far/auroc`."""
    found: dict[str, Any] = {}
    for section in ("classifier", "segmentation"):
        found |= {name: value for name, value in (result.get(section) or {}).items() if name in QUALITY}
    for test, metrics in (result.get("metrics") or {}).items():
        found |= {f"{test}/{name}": metrics[name] for name in QUALITY if metrics.get(name) is not None}
    cost = result.get("cost") or {}
    found |= {name: cost[name] for name in ("parameters", "flops_per_row", "nfe") if cost.get(name) is not None}
    times = result.get("latency") or {}
    return found | {name: times[name] for name in ("latency_p50_ms", "throughput_per_s") if name in times}


def table(distillation: Mapping[str, Any]) -> Table:
    """Teacher, student and the difference, or how many times less, a line each."""
    teacher, student = distillation["teacher"], distillation["student"]
    shown = Table("", "teacher", "student", "difference", box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for column in shown.columns[1:]:
        column.justify = "right"
    for name in dict.fromkeys([*student, *teacher]):
        theirs, ours = teacher.get(name), student.get(name)
        if name.rpartition("/")[2] in QUALITY:
            both = theirs is not None and ours is not None
            words = [*("-" if one is None else f"{100 * one:.2f} %" for one in (theirs, ours))]
            shown.add_row(name, *words, f"{100 * (ours - theirs):+.2f}" if both else "")
        else:
            times = theirs / ours if theirs and ours else None
            if name == "throughput_per_s" and times:
                times = 1 / times
            words = [*("-" if one is None else f"{one:,.4g}" if one < 1e5 else f"{one:,.3g}" for one in (theirs, ours))]
            shown.add_row(name, *words, f"{times:,.3g} x" if times else "")
    return shown
