"""How well gaps are filled: means, MIWAE and not-MIWAE on scikit-learn's tables; writes iwae_missing.csv.

    python benchmarks/iwae_missing.py [wine|breast_cancer mcar|mnar]

A share of the values is hidden, models are trained on what is left, standardised by what is left, and fill the same
rows (the protocol of Ipsen et al. 2021). The error is in standard deviations of the complete columns.

    mcar   30 % of all values, at random
    mnar   values above the column's mean, in the first half of the columns (self-masking)

`miwae`, `not_miwae`: the yamls as they are. `miwae_gaussian`: not_miwae without its model of the absence.
Three seeds: of the rows' order, of what is hidden (mcar), of the weights and the batches. Rows of the csv that are
computed again are replaced. About 4 CPU minutes for everything, 3 of them for breast_cancer.
"""

import csv
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from omegaconf import OmegaConf
from sklearn.datasets import load_breast_cancer, load_wine
from torch import Tensor

from outlie import stages
from outlie.build import build
from outlie.compose import compose
from outlie.data.protocols import standardisation
from outlie.density.missing import impute
from outlie.detectors.base import Spec, Views, set_up
from outlie.results import store
from outlie.trainer import Options

TABLES = {"wine": load_wine, "breast_cancer": load_breast_cancer}
SEEDS, SAMPLES = 3, 1000
OPTIONS = Options(accelerator="cpu", threads=1, progress="off")
GAUSSIAN = {"likelihood": "gaussian", "hide": 0.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "miwae": ("miwae", {}), "miwae_gaussian": ("miwae", GAUSSIAN), "not_miwae": ("not_miwae", {}),
}  # fmt: skip
COLUMNS = ["table", "absence", "method", "seeds", "rmse_mean", "rmse_std", "train_cpu_s", "code_version"]


def hidden(table: str, absence: str, seed: int) -> tuple[Tensor, Tensor]:
    """(n, D) complete rows in standard deviations of their columns, and which values are hidden."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(TABLES[table](return_X_y=True)[0])
    x = ((x - x.mean(0)) / x.std(0, correction=0))[torch.randperm(len(x), generator=generator)]
    if absence == "mcar":
        return x, torch.rand(x.shape, generator=generator) < 0.3
    return x, (x > 0) & (torch.arange(x.shape[1]) < x.shape[1] // 2)


def measure(method: str, x: Tensor, gone: Tensor, seed: int) -> tuple[float, float]:
    """RMSE of the hidden values, and CPU seconds of the training."""
    rows = x.masked_fill(gone, torch.nan)
    mean, scale = map(torch.from_numpy, standardisation(rows.numpy()))
    filled, spent = torch.zeros_like(x), 0.0
    if method != "mean":
        name, more = MODELS[method]
        section = OmegaConf.to_container(compose("train", [f"detector={name}"]).detector)
        assert isinstance(section, dict)
        detector: Any = build({**section, **more})
        set_up(detector, Spec({"x": tuple(x.shape[1:])}, seed))
        views, start = Views(x=(rows - mean) / scale), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            stages.train(detector, views, seed, OPTIONS, Path(folder))
        spent = time.process_time() - start
        filled = impute(detector.eval().model, (rows - mean) / scale, SAMPLES, seed)
    return (filled * scale + mean - x)[gone].square().mean().sqrt().item(), spent


if __name__ == "__main__":
    out = Path(__file__).with_suffix(".csv")
    known = {tuple(row.values())[:3]: row for row in csv.DictReader(out.open())} if out.exists() else {}
    tables, absences = ([word] for word in sys.argv[1:3]) if sys.argv[1:] else (list(TABLES), ["mcar", "mnar"])
    for table, absence, method in itertools.product(tables, absences, ("mean", *MODELS)):
        cells = [measure(method, *hidden(table, absence, seed), seed) for seed in range(SEEDS)]
        errors, spent = zip(*cells)
        numbers = [f"{statistics.mean(errors):.3f}", f"{statistics.stdev(errors):.3f}", f"{statistics.mean(spent):.1f}"]
        row = dict(zip(COLUMNS, (table, absence, method, str(SEEDS), *numbers, store.code_version())))
        known[table, absence, method] = row
        with store.whole(out) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(known.values())
        print(*row.values(), flush=True)
