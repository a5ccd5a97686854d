"""The summary's table of several out-of-distribution sets."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

SETS = {
    "auroc": "auroc",
    "average_precision": "average precision",
    "fpr95_ood_positive": "fpr95 ood positive",
    "fpr95_id_positive": "fpr95 id positive",
    "recall_at_fpr01": "recall at fpr01",
}


def table(result: Mapping[str, Any]) -> Table:
    """One line for each out-of-distribution set, the unweighted mean below the sets of each protocol."""
    metrics, means, counts = result["metrics"], result.get("means") or {}, result.get("counts") or {}
    shown = [key for key in SETS if any(key in values for values in metrics.values())]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("\n% (rows)", no_wrap=True)
    for key in shown:
        table.add_column("\n".join(SETS[key].split(" ", 1)), justify="right")

    def line(name: str, values: Mapping[str, Any], style: str = "") -> None:
        cells = ["-" if values.get(key) is None else f"{100 * values[key]:.2f}" for key in shown]
        table.add_row(Text(name), *cells, style=style)

    for protocol in means:
        for name, own in result["protocols"].items():
            if own == protocol:
                line(f"{name} ({(counts.get(name) or {}).get('anomalies') or 0:,})", metrics[name])
        line(f"{protocol}, mean", means[protocol], "bold")
        table.add_section()
    return table
