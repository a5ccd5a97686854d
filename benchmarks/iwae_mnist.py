"""Test NLL of VAE and IWAE on MNIST, L_5000 on 2,000 binarised test images, beside the published numbers.

    OUTLIE_DATA=../shared/data python benchmarks/iwae_mnist.py 0,1 50,5,1 [OVERRIDES of experiment=mnist_iwae_cpu]

Models trained already are found, not trained again. One thread. The published schedule is 3,280 epochs; ours is the
experiment's.
Standard errors are over the images; one binarisation, seed 123, as in the official evaluation.
"""

import csv
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from trained import trained

from outlie.density.scores import bound
from outlie.results import store

K, IMAGES, ROWS = 5000, 2000, 200
# Burda et al. 2016, table 1 (src/outlie/results/published/iwae_tables.csv): MNIST, dynamic binarisation, one layer
PUBLISHED = {1: 86.76, 5: 85.54, 50: 84.78}
COLUMNS = [
    "k", "seed", "epochs", "batch_size", "test_nll_5000", "standard_error", "images", "published_3280_epochs",
    "train_cpu_s", "code_version",
]  # fmt: skip


def measure(k: int, seed: int, more: list[str]) -> dict:
    """Train (or find) one model and evaluate it."""
    words = ["experiment=mnist_iwae_cpu", f"detector.k={k}", f"seed={seed}", *more]
    cfg, result, detector, backbone, tests = trained(words)
    x = backbone(tests["test"].x[:IMAGES]).x
    x = (torch.from_numpy(np.random.RandomState(123).rand(*x.shape)) < x).float()
    with torch.no_grad():
        nll = -torch.cat([bound(detector.model, rows, K, 123 + i) for i, rows in enumerate(x.split(ROWS))])
    return {
        "k": k, "seed": seed, "epochs": cfg["detector"]["epochs"], "batch_size": cfg["detector"]["batch_size"],
        "test_nll_5000": round(float(nll.mean()), 3), "standard_error": round(float(nll.std() / len(nll) ** 0.5), 3),
        "images": len(nll), "published_3280_epochs": PUBLISHED.get(k, ""),
        "train_cpu_s": round(result["cost"]["train_cpu_s"]), "code_version": result["code_version"],
    }  # fmt: skip


if __name__ == "__main__":
    seeds, sizes = ([int(word) for word in argument.split(",")] for argument in sys.argv[1:3])
    table = Path(__file__).with_suffix(".csv")
    for seed in seeds:
        for k in sizes:
            row = measure(k, seed, sys.argv[3:])
            known = {}
            if table.exists():
                known = {tuple(r[c] for c in COLUMNS[:4]): r for r in csv.DictReader(table.open())}
            known[tuple(str(row[c]) for c in COLUMNS[:4])] = row
            with store.whole(table) as temporary, temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(known[name] for name in sorted(known, key=lambda n: (int(n[0]), int(n[1]))))
            print(row, flush=True)
