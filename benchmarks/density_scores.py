"""AUROC of every density score, Fashion-MNIST (in distribution) against MNIST, and the other way round.

    OUTLIE_DATA=../shared/data python benchmarks/density_scores.py 0 [OVERRIDES of experiment=fashion_density_cpu]

1,000 images of each. One training a direction and seed serves every score. Published numbers stand beside where there
are any (other networks: not a reproduction). typicality is also computed over groups of 2 and 10 rows of one set.
"""

import csv
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from trained import trained

from outlie.density.scores import typicality
from outlie.detectors.base import Views
from outlie.detectors.vae import DRAWS, VAE

IMAGES, ROWS = 1000, 100
SCORES = [
    "neg_elbo", "neg_iwae", "recon_prob", "recon_err", "recon_err_sir", "latent_kl", "bound_gap", "llr",
    "input_complexity", "regret", "waic", "typicality",
]  # fmt: skip
DIRECTIONS = {"fashion_mnist": "mnist", "mnist": "fashion_mnist"}
# src/outlie/results/published/iwae_tables.csv, ood_auroc_lpath
PUBLISHED = {("fashion_mnist", "neg_elbo"): 87, ("mnist", "neg_elbo"): 100, ("fashion_mnist", "regret"): 99}
COLUMNS = ["id", "ood", "seed", "score", "auroc", "published", "seconds_per_1000_rows", "code_version"]


def scored(detector: VAE, views: Views) -> np.ndarray:
    """Scores of all rows, some at a time."""
    with torch.no_grad():
        return torch.cat([detector.score(views[rows]) for rows in torch.arange(len(views)).split(ROWS)]).numpy()


def auroc(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """In percent, by scikit-learn."""
    label = np.repeat([0, 1], [len(normal), len(anomalous)])
    return round(100 * float(roc_auc_score(label, np.concatenate([normal, anomalous]))), 2)


if __name__ == "__main__":
    rows = []
    for seed in (int(word) for word in sys.argv[1].split(",")):
        for id_set, ood in DIRECTIONS.items():
            words = ["experiment=fashion_density_cpu", f"dataset.id={id_set}", f"dataset.far=[{ood}]", f"seed={seed}"]
            _, result, detector, backbone, sets = trained([*words, *sys.argv[2:]])
            tests, version = {name: backbone(part.x[:IMAGES]) for name, part in sets.items()}, result["code_version"]
            for name in SCORES:
                detector.score_by, detector.draws = name, DRAWS.get(name, 64)
                start = time.process_time()
                normal, anomalous = (scored(detector, tests[part]) for part in ("test", ood))
                cost = round((time.process_time() - start) * 1000 / (len(normal) + len(anomalous)), 1)
                found = {name: auroc(normal, anomalous)}
                if name == "neg_iwae":
                    for group in (2, 10):
                        sets = [torch.from_numpy(one) for one in (normal, anomalous)]
                        values = [typicality(one, detector.entropy.item(), group).numpy() for one in sets]
                        found[f"typicality of {group} rows"] = auroc(*values)
                for score, value in found.items():
                    line = {"id": id_set, "ood": ood, "seed": seed, "score": score, "auroc": value}
                    line |= {"published": PUBLISHED.get((id_set, score), ""), "seconds_per_1000_rows": cost}
                    rows.append(line | {"code_version": version})
                    print(rows[-1], flush=True)
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
