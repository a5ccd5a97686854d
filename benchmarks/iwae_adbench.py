"""Recommended VAE and IWAE beside the published VAE column (PyOD's VAE) of Livernoche et al. 2024: AUC-ROC, dte_semi.

OUTLIE_DATA=../shared/data python benchmarks/dte_cells.py iwae,vae breastw,cardio,... 0-0      computes the cells
python benchmarks/iwae_adbench.py                                                              this table of them
"""

import csv
import statistics
from pathlib import Path

HERE = Path(__file__).parent
PUBLISHED = HERE.parent / "src/outlie/results/published/dte_adbench_semi_aucroc.csv"
DETECTORS = ("iwae", "vae")

if __name__ == "__main__":
    with PUBLISHED.open() as file:
        published = {row["dataset"]: float(row["mean"]) for row in csv.DictReader(file) if row["method"] == "VAE"}
    cells: dict[str, dict[str, list[float]]] = {}
    with (HERE / "dte_cells.csv").open() as file:
        for row in csv.DictReader(file):
            if row["detector"] in DETECTORS and row["protocol"] == "dte_semi":
                cells.setdefault(row["dataset"], {}).setdefault(row["detector"], []).append(float(row["auroc"]))
    rows = [
        {"dataset": name, **{one: round(statistics.mean(found[one]), 2) for one in DETECTORS},
         "seeds": min(map(len, found.values())), "published_vae": published[name]}
        for name, found in sorted(cells.items()) if set(found) == set(DETECTORS)
    ]  # fmt: skip
    mean = {key: round(statistics.mean(row[key] for row in rows), 2) for key in (*DETECTORS, "published_vae")}
    rows.append({"dataset": f"mean of {len(rows)}", "seeds": "", **mean})
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["dataset", *DETECTORS, "seeds", "published_vae"], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    print(Path(__file__).with_suffix(".csv").read_text())
