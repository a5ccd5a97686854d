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
            cpu = statistics.mean(float(row["train_cpu_s"]) + float(row["score_cpu_s"]) for row in rows)
            theirs = published.cell(f"adbench/{dataset}", detector, protocol).get("auroc")
            line = [dataset, detector, protocol, len(rows), f"{mean:.2f}", f"{std:.2f}"]
            if theirs:
                wanted, spread = 100 * theirs["mean"], 100 * theirs["std"]
                inside = "yes" if abs(mean - wanted) <= max(2 * spread, 1.0) else "no"
                line += [f"{wanted:.2f}", f"{spread:.2f}", inside]
            else:
                line += ["", "", ""]
            line.append(f"{cpu:.1f}")
            table.writerow(line)
            print("|", " | ".join(map(str, line)), "|")
