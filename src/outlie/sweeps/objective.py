"""What a search may look at: rows held out of training, rows kept for choosing, what a score costs. Never test rows."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from outlie.errors import UserError, unknown
from outlie.results import store

LOSS = "validation_loss"
ROWS = "validation"  # the set of protocol split_validation
PROTOCOL = "split_validation"
COSTS = {  # name -> the section of a result that it is in
    "latency_p50_ms": "latency",
    "latency_p99_ms": "latency",
    "throughput_per_s": "latency",
    "flops_per_row": "cost",
    "parameters": "cost",
    "buffers": "cost",
}
LESS_IS_MORE = ("fpr95_ood_positive", "fpr95_id_positive", "detection_error")


class Objective(NamedTuple):
    """A number of a run, and which way is better."""

    name: str
    direction: Literal["minimize", "maximize"]

    @property
    def metric(self) -> str:
        """validation/auroc -> auroc; '' of a loss or a cost."""
        return self.name.partition("/")[2]

    @property
    def timed(self) -> bool:
        """Whether other processes at work would change it."""
        return COSTS.get(self.name) == "latency"


def metrics() -> tuple[str, ...]:
    """Ranking metrics by name."""
    from outlie.metrics.evaluation import MetricName

    return get_args(MetricName)


def read(names: str | list[str]) -> list[Objective]:
    """The objectives by name; UserError for one on test rows, an unknown one, or costs alone."""
    names = [names] if isinstance(names, str) else names
    if not names or len(set(names)) < len(names):
        raise UserError(f"search.objective={names}: give one objective, or several different ones")
    found = [_read(name) for name in names]
    if all(one.name in COSTS for one in found):
        raise UserError(
            f"search.objective={names} is a cost: the cheapest setting may detect nothing; "
            f"add what it should be good at: search.objective=[{ROWS}/recall_at_fpr01,{names[0]}]"
        )
    return found


def _read(name: str) -> Objective:
    if name == LOSS:
        return Objective(name, "minimize")
    if name in COSTS:
        return Objective(name, "maximize" if name == "throughput_per_s" else "minimize")
    rows, slash, metric = name.partition("/")
    if not slash and name in metrics():
        raise UserError(f"search.objective={name} does not say of which rows: search.objective={ROWS}/{name}")
    if slash and rows != ROWS:
        raise UserError(
            f"search.objective={name} is measured on test rows. The best of many settings on some rows looks better on "
            "them than it is, so rows that choose cannot test: "
            f"search.objective={ROWS}/{metric} with dataset.protocol={PROTOCOL}, or search.objective={LOSS}"
        )
    if slash and metric in metrics():
        return Objective(name, "minimize" if metric in LESS_IS_MORE else "maximize")
    raise UserError(unknown("objective", name, [LOSS, *COSTS, *(f"{ROWS}/{one}" for one in metrics())]))


def check(objectives: list[Objective], config: dict[str, Any], pruned: bool = False) -> list[str]:
    """Why a run of this config would not have these numbers, or not honestly; [] where it has them.

    Args:
        pruned: trainings are stopped by their validation loss.
    """
    dataset, measured, found = config["dataset"], config["metrics"], []
    chosen = {group: config["choices"].get(group) for group in ("dataset", "detector")}
    for one in objectives:
        if one.metric and dataset.get("protocol") != PROTOCOL:
            fix = f"add dataset.protocol={PROTOCOL}" if "protocol" in dataset else "that is for tables"
            found.append(
                f"{one.name}: {chosen['dataset']} has labelled rows in its test sets only, and these may not choose; "
                f"{fix}, or search.objective={LOSS}"
            )
        if one.metric and one.metric not in measured.get("names", ()):
            found.append(f"{one.name}: metrics.names={measured.get('names')} leaves it out; add it")
        if one.timed and not measured.get("latency"):
            found.append(f"{one.name}: nothing is timed with metrics.latency=false; add metrics.latency=true")
    if (pruned or any(one.name == LOSS for one in objectives)) and not _validates(config["detector"]):
        who = f"search=asha stops a training by its {LOSS}" if pruned else LOSS
        found.append(
            f"{who}, and {chosen['detector']} holds no training rows out: set detector.validation=0.1 if it has that "
            f"option (vae, iwae, stfpm), or search=tpe search.objective={ROWS}/auroc with dataset.protocol={PROTOCOL}"
        )
    return found


def _validates(detector: dict[str, Any]) -> bool:
    share = detector.get("validation")
    return isinstance(share, int | float) and share > 0


def value(objective: Objective, folders: list[Path]) -> float:
    """The mean of a number over the runs of a setting; UserError naming a run without it."""
    return statistics.fmean([_value(objective, folder) for folder in folders])


def _value(objective: Objective, folder: Path) -> float:
    result = store.read_result(folder) or {}
    if objective.name == LOSS:
        found = least_loss(folder / "metrics.csv")
    elif objective.metric:
        found = (result.get("metrics") or {}).get(ROWS, {}).get(objective.metric)
    else:
        found = (result.get(COSTS[objective.name]) or {}).get(objective.name)
    if found is None or found != found:
        hint = "; it was stored by a command that did not measure it: remove that folder" if objective.timed else ""
        raise UserError(f"{folder} has no {objective.name}{hint}")
    return float(found)


def least_loss(path: Path) -> float | None:
    """The validation loss of the epoch whose weights were kept; None where no rows were held out."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            losses = [float(row[LOSS]) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, TypeError):
        return None
    return min((loss for loss in losses if loss == loss), default=None)
