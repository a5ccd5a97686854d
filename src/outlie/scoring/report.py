"""What became of the alerts, period by period: how many, how many were right, false alarms, drift of the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from outlie.metrics.conformal import clopper_pearson
from outlie.results.store import whole
from outlie.scoring.alerts import VERDICTS
from outlie.scoring.drift import Counts, drift

UNKNOWN = "unknown"  # the period of a row whose time is missing or no date
COUNTED = ("rows", "anomalies", *VERDICTS, "flag_reviewed", "flag_right", "ask_reviewed", "ask_right")


class Report:
    """Counts by source (the input, or a feedback file with scores) and period."""

    def __init__(self, calibration: np.ndarray) -> None:
        self.calibration = calibration
        self.counts: dict[tuple[str, str], dict[str, int]] = {}
        self.scores: dict[tuple[str, str], Counts] = {}

    def add(self, source: str, frame: pl.DataFrame) -> None:
        """Count rows; `frame` has period, score, verdict and label (null = not reviewed)."""
        for (period,), part in frame.group_by("period", maintain_order=True):
            key = (source, str(period))
            if key not in self.counts:
                self.counts[key], self.scores[key] = dict.fromkeys(COUNTED, 0), Counts(self.calibration)
            self.scores[key].add(part["score"].to_numpy())
            label, verdict, count = part["label"], part["verdict"], self.counts[key]
            count["rows"] += len(part)
            count["anomalies"] += int((label == 1).sum())
            for name in VERDICTS:
                count[name] += int((verdict == name).sum())
            for name in ("flag", "ask"):
                count[f"{name}_reviewed"] += int(((verdict == name) & label.is_not_null()).sum())
                count[f"{name}_right"] += int(((verdict == name) & (label == 1)).sum())

    def rows(self) -> list[dict[str, Any]]:
        """One row a source and period, in order."""
        found = []
        for key in sorted(self.counts):
            moved = drift(self.scores[key])
            one: dict[str, Any] = {
                "source": key[0],
                "period": key[1],
                **self.counts[key],
                **of_alerts(self.counts[key]),
            }
            found.append(one | {
                "ks": moved.ks if moved else None, "ks_p": moved.ks_p if moved else None,
                "psi": moved.psi if moved else None,
            })  # fmt: skip
        return found


def of_alerts(count: dict[str, int]) -> dict[str, float | None]:
    """Precision of the reviewed flags and the realised false-alarm rate, each with an exact 95 % interval.

    The rate is false alarms / rows that nobody found to be anomalies. Where not every flagged row was reviewed, the
    interval reaches from none of the others being wrong to all of them, and there is no single number.
    """
    reviewed, right = count["flag_reviewed"], count["flag_right"]
    names = ("precision", "false_alarm_rate")
    found: dict[str, float | None] = {f"{name}{end}": None for name in names for end in ("", "_low", "_high")}
    if reviewed:
        found["precision"] = right / reviewed
        found["precision_low"], found["precision_high"] = clopper_pearson(right, reviewed)
    normal, wrong, open_ = count["rows"] - count["anomalies"], reviewed - right, count["flag"] - reviewed
    if normal and (reviewed or not count["flag"]):
        found["false_alarm_rate_low"] = clopper_pearson(wrong, normal)[0]
        found["false_alarm_rate_high"] = clopper_pearson(wrong + open_, normal)[1]
        found["false_alarm_rate"] = None if open_ else wrong / normal
    return found


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """The report as CSV."""
    with whole(path) as temporary:
        pl.DataFrame(rows, infer_schema_length=None).write_csv(temporary)


def show(rows: list[dict[str, Any]]) -> None:
    """The report as a table in the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Alerts by period", title_justify="left")
    for name in ("period", "rows", "flag", "right", "precision", "ask", "right", "false-alarm rate", "PSI", "KS p"):
        table.add_column(name, justify="left" if name == "period" else "right")
    for row in rows:
        where = row["period"] if row["source"] == "input" else f"{row['period']} ({row['source']})"
        table.add_row(
            where, f"{row['rows']:,}", str(row["flag"]), f"{row['flag_right']} of {row['flag_reviewed']}",
            _rate(row, "precision"), str(row["ask"]), f"{row['ask_right']} of {row['ask_reviewed']}",
            _rate(row, "false_alarm_rate"), _number(row["psi"]), _number(row["ks_p"]),
        )  # fmt: skip
    Console(highlight=False).print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _rate(row: dict[str, Any], name: str) -> str:
    low, high, value = row[f"{name}_low"], row[f"{name}_high"], row[name]
    if low is None:
        return "-"
    within = f"[{100 * low:.2g}, {100 * high:.2g}] %"
    return within if value is None else f"{100 * value:.2g} {within}"


def draw(rows: list[dict[str, Any]], fpr: float, path: Path) -> None:
    """Alerts, precision, false-alarm rate and drift against the period, as PNG."""
    from matplotlib.figure import Figure  # drawn without pyplot, so there is no global state and no display

    from outlie.results.plots import ANOMALY, GREY, NORMAL

    names = [row["period"] if row["source"] == "input" else f"{row['period']}\n({row['source']})" for row in rows]
    at = np.arange(len(rows))
    figure = Figure(figsize=(10, 7), dpi=110, layout="constrained")
    (alerts, precision), (rate, moved) = figure.subplots(2, 2)
    flags, asks = (np.array([row[name] for row in rows]) for name in ("flag", "ask"))
    alerts.bar(at, flags, color=ANOMALY, label="flag")
    alerts.bar(at, asks, bottom=flags, color=GREY, label="ask")
    alerts.set_title("alerts")
    alerts.legend()
    for axes, name, title in ((precision, "precision", "share of reviewed flags that were right"),
                              (rate, "false_alarm_rate", "false-alarm rate, 95 %")):  # fmt: skip
        for i, row in enumerate(rows):
            if row[f"{name}_low"] is not None:
                axes.plot([i, i], [row[f"{name}_low"], row[f"{name}_high"]], color=NORMAL, lw=2)
            if row[name] is not None:
                axes.plot(i, row[name], "o", color=NORMAL)
        axes.set_title(title)
        axes.set_ylim(bottom=0)
    precision.set_ylim(0, 1.02)
    rate.axhline(fpr, color=ANOMALY, ls="--", lw=1, label=f"budget {100 * fpr:g} %")
    rate.legend()
    moved.bar(at, [row["psi"] or 0 for row in rows], color=NORMAL)
    moved.axhline(0.25, color=ANOMALY, ls="--", lw=1, label="0.25: commonly called a shift")
    moved.set_title("drift of the scores (PSI against calibration rows)")
    moved.legend()
    for axes in (alerts, precision, rate, moved):
        axes.set_xticks(at, names, rotation=30 if len(rows) > 4 else 0, ha="right" if len(rows) > 4 else "center")
        axes.set_xlim(-0.6, len(rows) - 0.4)
        axes.spines[["top", "right"]].set_visible(False)
    with whole(path) as temporary:
        figure.savefig(temporary, format="png")
