"""CPU seconds of five seeds trained as one beside five trained one by one, and whether they are the same networks.

    OUTLIE_DATA=../shared/data OMP_NUM_THREADS=1 python benchmarks/batched_seeds.py 20     epochs, and 3 rounds

Published settings on cardio; rounds are interleaved. `largest_difference` is over all weights and buffers of all seeds.
`overhead_over_one` is a step of five on two rows of a network so narrow that arithmetic costs nothing, over such a step
of one through Lightning: calls only. On a GPU, which has no layers taken seed by seed, it is less; not measured there.
Writes batched_seeds.csv.
"""

import csv
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from outlie import compose, stages
from outlie.backbones.identity import Identity
from outlie.build import build
from outlie.data.adbench import ADBench
from outlie.detectors.base import Spec, Views, set_up
from outlie.stacked import train_together
from outlie.trainer import Options

SEEDS = list(range(5))


def fresh(section: dict, views: list[Views]) -> list:
    """A detector for each seed, as a run sets it up."""
    return [set_up(build(section), Spec({"x": tuple(one.x.shape[1:])}, seed=seed)) for seed, one in enumerate(views)]


def apart(detectors: list, views: list[Views], options: Options) -> float:
    """CPU seconds, one by one through Lightning."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        for seed, (detector, one) in enumerate(zip(detectors, views, strict=True)):
            stages.train(detector, one, seed, options, Path(folder) / str(seed))
    return time.process_time() - start


def as_one(detectors: list, views: list[Views], options: Options) -> float:
    """CPU seconds of one training of all."""
    start = time.process_time()
    train_together(detectors, views, list(range(len(views))), options)
    return time.process_time() - start


def overhead(section: dict) -> float:
    """Seconds of five seeds as one over those of one alone, where only the number of calls counts."""
    narrow = section | ({"hidden": [2, 2, 2]} if "hidden" in section else {}) | {"batch_size": 2}
    views = [Views(x=torch.randn(200, 3, dtype=torch.float64)) for _ in SEEDS]
    options = Options(accelerator="cpu", max_epochs=2)
    as_one(fresh(narrow, views), views, options)  # what is set up once
    one = apart(fresh(narrow, views[:1]), views[:1], options)
    return as_one(fresh(narrow, views), views, options) / one


if __name__ == "__main__":
    torch.set_num_threads(1)
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    options = Options(accelerator="cpu", max_epochs=epochs)
    views = []
    for seed in SEEDS:
        split, backbone = ADBench("cardio").load(seed), Identity()
        backbone.setup(split)
        views.append(backbone(split.train.x))
    table = [
        [
            "detector",
            "epochs",
            "five_apart_cpu_s",
            "five_as_one_cpu_s",
            "ratio",
            "largest_difference",
            "overhead_over_one",
        ]
    ]
    for name in ("dte_c/paper", "diffusion/paper"):
        section = compose.composed("train", ["dataset=adbench/cardio", f"detector={name}"])["detector"]
        times, difference = [], 0.0
        for _ in range(rounds):
            theirs, ours = fresh(section, views), fresh(section, views)
            times.append((apart(theirs, views, options), as_one(ours, views, options)))
            for a, b in zip(theirs, ours, strict=True):
                pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
                difference = max(difference, *(float((x - y).abs().max()) for x, y in pairs))
        numbers = [statistics.median(column) for column in zip(*times, strict=True)]
        ratio = statistics.median(together / one_by_one for one_by_one, together in times)
        calls = statistics.median(overhead(section) for _ in range(rounds))
        table.append(
            [name, epochs, *(f"{s:.2f}" for s in numbers), f"{ratio:.2f}", f"{difference:.1e}", f"{calls:.2f}"]
        )
        print(*table[-1], flush=True)
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)
