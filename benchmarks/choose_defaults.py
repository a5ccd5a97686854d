"""How the recommended settings were chosen: on ten large datasets, none of which is among those they are judged on.

The labels of these ten (more than 10,000 rows each, cut to 3,000 and to 600 by the protocol's own sampling) are read;
those of the small and medium datasets that docs/diffusion.md reports are not. A setting is judged by its mean AUROC and
its CPU seconds.

    OUTLIE_DATA=../shared/data python benchmarks/choose_defaults.py ddpm|dte_c|dte_ig [ROWS]

With 3,000 rows (the default) the learning rate, the epochs, the loss and the scoring are compared; with 600 the least
number of optimiser steps, which is what a small table needs.
Rows are added to choose_defaults_<detector>_<rows>.csv; a dataset that is in it already is skipped.
"""

import csv
import os
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from outlie import stages
from outlie.backbones.identity import Identity
from outlie.data.adbench import ADBench
from outlie.detectors.base import Detector, Spec, set_up
from outlie.detectors.ddpm import DDPM
from outlie.detectors.dte import DTEC, DTEIG
from outlie.metrics.ranking import auroc
from outlie.trainer import Options

DATASETS = (
    *("mammography", "shuttle", "magic_gamma", "campaign", "http", "cover", "donors", "skin", "aloi", "celeba"),
)
FAST = {"batch_size": 64, "decay_lr": True, "min_steps": 0}


def candidates(which: str, rows: int) -> list[tuple[type[Detector], dict, list[dict]]]:
    """(class, training options, scoring options to try on the trained detector)."""
    if rows < 1000:
        least = [FAST | {"min_steps": steps} for steps in (0, 300, 600, 1000)]
        if which == "ddpm":
            best = {"lr": 3e-4, "epochs": 20, "early_stop": False}
            return [(DDPM, best | steps, [{"rec_start": 250, "steps": 5}]) for steps in least]
        kind, best = (DTEC, {}) if which == "dte_c" else (DTEIG, {"dropout": 0.1})
        return [(kind, {"lr": 1.3e-3, "epochs": 60} | best | steps, [{}]) for steps in least]
    if which == "ddpm":
        scoring = [{"rec_start": start, "steps": steps} for start, steps in product((50, 100, 250), (5, 10))]
        scoring += [{"rec_start": 250, "steps": None}]
        return [(DDPM, {"lr": lr, "epochs": 20, "early_stop": False, **FAST}, scoring) for lr in (3e-4, 1e-3, 3e-3)]
    schedules = [(5e-4, 60), (1.3e-3, 60), (3e-3, 30)]
    if which == "dte_c":
        return [
            (DTEC, {"loss": loss, "lr": lr, "epochs": epochs, **FAST}, [{}])
            for loss, (lr, epochs) in product(("logits", "double_softmax"), schedules)
        ]
    return [
        (DTEIG, {"lr": lr, "epochs": epochs, "dropout": dropout, **FAST}, [{}])
        for dropout, (lr, epochs) in product((0.1, 0.5), schedules)
    ]


def judged(name: str, which: str, most_rows: int) -> list[list]:
    """A row for every candidate on one dataset."""
    split = ADBench(name, max_rows=most_rows).load(0)
    backbone = Identity()
    backbone.setup(split)
    train, test = backbone(split.train.x), backbone(split.tests["test"].x)
    shape = tuple(train.x.shape[1:])
    rows = []
    for kind, options, scorings in candidates(which, most_rows):
        detector = set_up(kind(**options), Spec({"x": shape, "features": shape}))
        with tempfile.TemporaryDirectory() as folder:
            spent = stages.train(detector, train, 0, Options(accelerator="cpu", threads=1), Path(folder))
        for scoring in scorings:
            detector.__dict__.update(scoring)
            start = time.process_time()
            area = 100 * auroc(stages.score(detector, test, torch.device("cpu")).numpy(), split.tests["test"].label)
            taken = time.process_time() - start
            rows.append([name, options, scoring, f"{area:.2f}", f"{spent['train_cpu_s']:.2f}", f"{taken:.2f}"])
    return rows


if __name__ == "__main__":
    which, rows = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3000
    torch.set_num_threads(1)
    path = Path(__file__).with_name(f"choose_defaults_{which}_{rows}.csv")
    done = {row["dataset"] for row in csv.DictReader(path.open())} if path.exists() else set()
    with path.open("a", newline="") as file:
        table = csv.writer(file)
        if not done:
            table.writerow(["dataset", "training", "scoring", "auroc", "train_cpu_s", "score_cpu_s"])
        for name in [name for name in DATASETS if name not in done]:
            table.writerows(judged(name, which, rows))
            file.flush()
            print(name, flush=True)
