"""CPU seconds of published trainings whose denormal numbers are kept beside the same with 0 for them.

    OUTLIE_DATA=../shared/data OMP_NUM_THREADS=1 python benchmarks/denormal.py [seeds]

Contaminated data, whole trainings, one thread, kept and flushed in turns. `denormal` is the share of the weights that
ended below 1e-38 and are not 0. The two are equal until such a weight matters, then two trainings of one network:
so AUROC is given for both, seed by seed. The csv beside it is the result.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import stored
import torch

from outlie import compose, stages
from outlie.backbones.identity import Identity
from outlie.build import build
from outlie.data.adbench import ADBench
from outlie.detectors.base import Detector, Spec, set_up
from outlie.metrics.ranking import auroc
from outlie.trainer import Options

CELLS = [("dte_c/paper", "cardio"), ("dte_c/paper", "thyroid"), ("dte_ig/paper", "cardio"), ("diffusion/paper", "wine")]
SMALLEST_NORMAL = 2.0**-126


def denormal(detector: Detector) -> float:
    """Share of the weights that are neither 0 nor normal numbers."""
    weights = torch.cat([p.detach().flatten() for p in detector.parameters()])
    return ((weights != 0) & (weights.abs() < SMALLEST_NORMAL)).double().mean().item()


def measure(name: str, dataset: str, seed: int, flushed: bool) -> dict[str, float]:
    """CPU seconds of a training, what became of its weights, and AUROC in per cent."""
    split = ADBench(dataset, protocol="dte_unsup").load(seed)
    test = split.tests["test"]
    assert test.label is not None
    backbone = Identity()
    backbone.setup(split)
    train, rows = backbone(split.train.x), backbone(test.x)
    section = compose.composed("train", [f"dataset=adbench/{dataset}", f"detector={name}"])["detector"]
    detector = set_up(build(section), Spec({"x": tuple(split.train.x.shape[1:])}, seed=seed))
    usual = stages.training_steps
    stages.training_steps = usual if flushed else stages.threads
    try:
        with tempfile.TemporaryDirectory() as folder:
            cost = stages.train(detector, train, seed, Options(accelerator="cpu", threads=1), Path(folder))
    finally:
        stages.training_steps = usual
    started = time.process_time()
    score = stages.score(detector, rows, torch.device("cpu"))
    return {
        "train_cpu_s": cost["train_cpu_s"],
        "score_cpu_s": time.process_time() - started,
        "denormal": denormal(detector),
        "auroc": 100 * auroc(score.double().numpy(), test.label.numpy()),
    }


def main() -> None:
    """Measure, print, store."""
    torch.set_num_threads(1)
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    rows = []
    for name, dataset in CELLS:
        for seed in range(seeds):
            kept, zero = (measure(name, dataset, seed, flushed) for flushed in (False, True))
            row: dict[str, object] = {"detector": name, "dataset": dataset, "seed": seed}
            for key in kept:
                row |= {f"{key}_kept": round(kept[key], 4), f"{key}_flushed": round(zero[key], 4)}
            row["train_ratio"] = round(zero["train_cpu_s"] / kept["train_cpu_s"], 3)
            rows.append(row)
            print(row, flush=True)
    stored.table(__file__, rows)


if __name__ == "__main__":
    main()
