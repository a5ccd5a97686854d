"""Published beside ours: reads dte_cells.csv, writes dte_compare.csv and prints it as a Markdown table.

    python benchmarks/compare.py

`inside` = ours within the published mean +- 2 std, with a floor of 1.0 for 2 std; AUC-ROC in percent.
"""

import csv
import statistics
from pathlib import Path

from outlie.results import published

HERE = Path(__file__).parent
COLUMNS = [
    "dataset",
    "detector",
    "protocol",
    "seeds",
    "mean",
    "std",
    "published_mean",
    "published_std",
    "inside",
    "cpu_s",
]


def area(rows: list[dict[str, str]]) -> float:
    """Mean AUC-ROC over seeds."""
    return statistics.mean(float(row["auroc"]) for row in rows)


def cpu_s(rows: list[dict[str, str]]) -> float:
    """Mean CPU seconds of training and scoring over seeds."""
    return statistics.mean(float(row["train_cpu_s"]) + float(row["score_cpu_s"]) for row in rows)


if __name__ == "__main__":
    cells: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in csv.DictReader((HERE / "dte_cells.csv").open()):
        cells.setdefault((row["detector"], row["protocol"], row["dataset"]), []).append(row)
    with (HERE / "dte_compare.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for (detector, protocol, dataset), rows in sorted(cells.items()):
            values = [float(row["auroc"]) for row in rows]
            mean, std = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else float("nan")
            theirs = published.cell(f"adbench/{dataset}", detector, protocol).get("auroc")
            line = [dataset, detector, protocol, len(rows), f"{mean:.2f}", f"{std:.2f}"]
            if theirs:
                wanted, spread = 100 * theirs["mean"], 100 * theirs["std"]
                inside = "yes" if abs(mean - wanted) <= max(2 * spread, 1.0) else "no"
                line += [f"{wanted:.2f}", f"{spread:.2f}", inside]
            else:
                line += ["", "", ""]
            line.append(f"{cpu_s(rows):.1f}")
            table.writerow(line)
            print("|", " | ".join(map(str, line)), "|")
    print()
    for detector in ("dte_c", "diffusion", "dte_ig"):
        ours = {d: rows for (name, protocol, d), rows in cells.items() if (name, protocol) == (detector, "dte_semi")}
        paper = {d: cells[key] for d in ours if (key := (f"{detector}/paper", "dte_semi", d)) in cells}
        theirs = [published.cell(f"adbench/{d}", f"{detector}/paper", "dte_semi")["auroc"]["mean"] for d in ours]
        print(f"{detector}: mean over {len(ours)} datasets {statistics.mean(map(area, ours.values())):.2f},", end=" ")
        print(f"published {100 * statistics.mean(theirs):.2f}", end="")
        if paper:
            ratio = sum(cpu_s(ours[d]) for d in paper) / sum(map(cpu_s, paper.values()))
            print(f"; {ratio:.2f} of the CPU seconds of paper on the {len(paper)} where both ran", end="")
        print()
