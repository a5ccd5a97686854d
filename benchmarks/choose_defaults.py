"""How the recommended settings were chosen: no anomaly label and no test row is read.

Of each dataset only the normal rows that `dte_semi_noleak` trains on are used. 70 % of them fit the detector; the rest
are the normals of a made-up test, against anomalies made from them in four ways: jitter (0.5 standard deviations of
noise), box (uniform over the range of the training rows), dependency (each column shuffled on its own) and shift (a
fifth of the columns moved by 2 standard deviations). A setting is judged by its mean AUROC over the four, and by CPU.

    OUTLIE_DATA=../shared/data python benchmarks/choose_defaults.py ddpm|dte_c|dte_ig [DATASET,DATASET]

Rows are added to choose_defaults_<detector>.csv; a dataset that is in it already is skipped.
"""

import csv
import math
import os
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from outlie import stages
from outlie.data.adbench import ADBench
from outlie.detectors.base import Detector, Spec, Views, set_up
from outlie.detectors.ddpm import DDPM
from outlie.detectors.dte import DTEC, DTEIG
from outlie.metrics.ranking import auroc
from outlie.trainer import Options

# small tables first
DATASETS = (
    *("glass", "wdbc", "ionosphere", "vertebral", "pima", "breastw", "yeast", "cardio", "fault", "letter", "thyroid"),
    *("satellite", "optdigits", "pageblocks"),
)
MOST_ROWS = 1200
KINDS = ("jitter", "box", "dependency", "shift")


def made_up_test(name: str) -> tuple[Views, Views, dict[str, np.ndarray]]:
    """Views to fit on, held-out normals, and four kinds of made-up anomalies; standardised."""
    rows = ADBench(name, protocol="dte_semi_noleak").load(0).train.x.numpy()
    random = np.random.default_rng(0)
    rows = rows[random.permutation(len(rows))[:MOST_ROWS]]
    cut = round(0.7 * len(rows))
    mean, scale = rows[:cut].mean(0), rows[:cut].std(0)
    z = (rows - mean) / np.where(scale < 1e-12, 1, scale)
    train, held_out = z[:cut], z[cut:]
    low, high = train.min(0), train.max(0)
    moved = random.random(held_out.shape) < 0.2
    moved[np.arange(len(moved)), random.integers(0, z.shape[1], len(moved))] = True
    anomalies = {
        "jitter": held_out + 0.5 * random.standard_normal(held_out.shape),
        "box": random.uniform(low - 0.05 * (high - low), high + 0.05 * (high - low), held_out.shape),
        "dependency": random.permuted(held_out, axis=0),
        "shift": held_out + 2 * moved * np.sign(random.standard_normal(held_out.shape)),
    }
    return views(train), views(held_out), anomalies


def views(rows: np.ndarray) -> Views:
    """Rows as the identity backbone hands them on."""
    return Views(x=torch.from_numpy(rows), features=torch.from_numpy(rows))


def judged(name: str, which: str) -> list[list]:
    """A row for every candidate on one dataset."""
    train, held_out, anomalies = made_up_test(name)
    shape = tuple(train.x.shape[1:])
    rows = []
    for kind, options, scorings in candidates(which):
        if 0 < options["min_steps"] <= options["epochs"] * math.ceil(len(train) / 64):
            continue  # the same training as without it
        detector = set_up(kind(**options), Spec({"x": shape, "features": shape}))
        with tempfile.TemporaryDirectory() as folder:
            spent = stages.train(detector, train, 0, Options(accelerator="cpu", threads=1), Path(folder))
        for scoring in scorings:
            detector.__dict__.update(scoring)
            start = time.process_time()
            normal = stages.score(detector, held_out, torch.device("cpu")).numpy()
            taken = time.process_time() - start
            made = [stages.score(detector, views(anomalies[kind]), torch.device("cpu")).numpy() for kind in KINDS]
            areas = [auroc(np.r_[normal, s], np.r_[np.zeros(len(normal)), np.ones(len(s))]) for s in made]
            numbers = [round(100 * value, 2) for value in (*areas, float(np.mean(areas)))]
            rows.append([name, options, scoring, *numbers, round(spent["train_cpu_s"], 3), round(taken, 3)])
    return rows


def candidates(which: str) -> list[tuple[type[Detector], dict, list[dict]]]:
    """(class, training options, scoring options to try on the trained detector)."""
    common = {"batch_size": 64, "decay_lr": True}
    if which == "ddpm":
        scoring = [{"rec_start": start, "steps": steps} for start, steps in product((50, 100, 250), (5, 10))]
        scoring += [{"rec_start": start, "steps": None} for start in (100, 250)]
        training = [
            {"lr": lr, "epochs": 20, "min_steps": least, "weight_decay": decay, "early_stop": False, **common}
            for lr, least, decay in product((1e-3, 3e-3), (0, 300, 1000), (0.0, 5e-4))
        ]
        return [(DDPM, options, scoring) for options in training]
    training = [
        {"lr": lr, "epochs": epochs, "min_steps": least, "dropout": dropout, **common}
        for lr, epochs, least, dropout in product((1e-3, 3e-3), (30,), (0, 1000), (0.1, 0.5))
    ]
    kind = DTEC if which == "dte_c" else DTEIG
    return [(kind, options, [{}]) for options in training]


if __name__ == "__main__":
    which, names = sys.argv[1], sys.argv[2].split(",") if len(sys.argv) > 2 else DATASETS
    torch.set_num_threads(1)
    path = Path(__file__).with_name(f"choose_defaults_{which}.csv")
    done = {row["dataset"] for row in csv.DictReader(path.open())} if path.exists() else set()
    with path.open("a", newline="") as file:
        table = csv.writer(file)
        if not done:
            table.writerow(["dataset", "training", "scoring", *KINDS, "mean", "train_cpu_s", "score_cpu_s"])
        for name in [name for name in names if name not in done]:
            table.writerows(judged(name, which))
            file.flush()
            print(name, flush=True)
