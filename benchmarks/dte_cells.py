"""Cells of the DTE tables, five seeds each, as `run train` computes and stores them; the csv beside it is the result.

    OUTLIE_DATA=../shared/data python benchmarks/dte_cells.py dte_c/paper,diffusion/paper breastw,cardio 0-4

Cells done are found, not done again. One thread, so that CPU seconds compare with reference/dte_official_run.csv.
"""

import contextlib
import csv
import io
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from outlie.cli import main
from outlie.commands.train import plain
from outlie.compose import compose
from outlie.results import store

OUTPUT = "outputs/benchmarks"
COLUMNS = [
    "dataset", "detector", "protocol", "seed", "auroc", "average_precision", "f1_at_k", "epochs",
    "train_cpu_s", "score_cpu_s", "code_version",
]  # fmt: skip


def cell(detector: str, dataset: str, seed: int, protocol: str) -> dict:
    """One cell's row, computed or found."""
    words = [f"detector={detector}", f"dataset=adbench/{dataset}", f"dataset.protocol={protocol}", f"seed={seed}"]
    words += ["metrics=fast", "trainer.progress=off", "trainer.threads=1", f"output_dir={OUTPUT}"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(["train", *words])
    if code:
        raise SystemExit(f"{detector} {dataset} {seed}: {said.getvalue()}")
    result = store.read_result(store.run_folder(plain(compose("train", words))))
    curve = Path(store.run_folder(plain(compose("train", words))), "metrics.csv").read_text().splitlines()
    row = {"dataset": dataset, "detector": detector, "protocol": protocol, "seed": seed, "epochs": len(curve) - 1}
    row |= {name: round(100 * result["metrics"]["test"][name], 4) for name in ("auroc", "average_precision", "f1_at_k")}
    row |= {name: round(result["cost"].get(name) or 0.0, 3) for name in ("train_cpu_s", "score_cpu_s")}
    return row | {"code_version": result["code_version"]}


if __name__ == "__main__":
    detectors, datasets, seeds = sys.argv[1].split(","), sys.argv[2].split(","), sys.argv[3].split("-")
    protocol = sys.argv[4] if len(sys.argv) > 4 else "dte_semi"
    table = Path(__file__).with_suffix(".csv")
    for dataset in datasets:
        for detector in detectors:
            for seed in range(int(seeds[0]), int(seeds[-1]) + 1):
                row = cell(detector, dataset, seed, protocol)
                known = {}
                if table.exists():
                    known = {tuple(r[c] for c in COLUMNS[:4]): r for r in csv.DictReader(table.open())}
                known[tuple(str(row[c]) for c in COLUMNS[:4])] = row
                with store.whole(table) as temporary, temporary.open("w", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS)
                    writer.writeheader()
                    writer.writerows(known[name] for name in sorted(known))
                print(*(row[c] for c in COLUMNS[:5]), flush=True)
