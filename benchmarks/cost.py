"""What training and scoring cost beside plain loops, on one thread; writes cost.csv.

    OUTLIE_DATA=../shared/data python benchmarks/cost.py

- `outlie`: DTE-C and DDPM `paper` through Lightning, as `run train` does it.
- `bare`: the same network, batches and fused Adam in a loop without Lightning: what the framework costs.
- `as_released`: the loop as the released code has it (DataLoader, plain Adam, schedule looked up on the CPU each step,
  loss read each step; DDPM scoring embeds the time for every row at every step), written from its description.
Rounds are interleaved so that drift of the machine hits all alike; the median is kept.
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
from torch.utils.data import DataLoader, TensorDataset

from outlie import stages
from outlie.backbones.identity import Identity
from outlie.data.adbench import ADBench
from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.ddpm import DDPM
from outlie.detectors.dte import DTEC
from outlie.diffusion.samplers import posterior_mean_step
from outlie.lightning import Batches
from outlie.trainer import Options

PAPER = {"lr": 1e-4, "weight_decay": 5e-4, "batch_size": 64, "min_steps": 0, "decay_lr": False}
KINDS = {
    "DTE-C": lambda epochs: DTEC(loss="double_softmax", far=0, epochs=epochs, **PAPER),
    "DDPM": lambda epochs: DDPM(rec_start=250, steps=None, epochs=epochs, early_stop=False, **PAPER),
}


def cpu(work, *arguments) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    work(*arguments)
    return time.process_time() - start


def through_lightning(detector, views: Views) -> None:
    """As `run train` trains."""
    with tempfile.TemporaryDirectory() as folder:
        stages.train(detector, views, 0, Options(accelerator="cpu", threads=1), Path(folder))


def bare(detector, views: Views) -> None:
    """The same arithmetic without a framework."""
    optimizer, generator = detector.recipe.optimizer(detector), torch.Generator().manual_seed(0)
    detector.train()
    for _ in range(detector.recipe.epochs):
        for batch in Batches(views, detector.recipe.batch_size, detector.recipe.drop_last, lambda: generator):
            loss = detector.loss(batch, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()


def as_released(detector, views: Views) -> None:
    """The loop of the released code, from its description."""
    rows = TensorDataset(views.x.float())
    loader = DataLoader(rows, batch_size=64, shuffle=True, drop_last=detector.recipe.drop_last)
    optimizer = torch.optim.Adam(detector.parameters(), lr=1e-4, weight_decay=5e-4, foreach=False)
    abar, generator = detector.abar.clone(), torch.Generator().manual_seed(0)
    detector.train()
    for _ in range(detector.recipe.epochs):
        losses = []
        for (batch,) in loader:
            t = torch.randint(len(abar), (len(batch),))
            torch.take(abar, t).reshape(-1, 1)
            loss = detector.loss(Views(x=batch), generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())


@torch.no_grad()
def score_as_released(detector: DDPM, x: torch.Tensor) -> None:
    """250 steps on batches of 1000 rows; the time is embedded for every row at every step."""
    abar = detector.abar.double().tolist()
    for rows in x.float().split(1000):
        state = rows
        for t in range(249, -1, -1):
            shift = detector.net.embed_time(torch.full((len(rows),), t))
            state = posterior_mean_step(state, detector.net(state, shift), abar[t], abar[t - 1] if t else 1.0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for dataset, epochs in (("cardio", 40), ("satellite", 15)):
        split = ADBench(dataset).load(0)
        backbone = Identity()
        backbone.setup(split)
        views, test = backbone(split.train.x), backbone(split.tests["test"].x)
        spec = Spec({"x": tuple(views.x.shape[1:]), "features": tuple(views.x.shape[1:])})
        for _ in range(rounds):
            for name, kind in KINDS.items():
                for loop in (through_lightning, bare, as_released):
                    detector = set_up(kind(epochs), spec)
                    label = {"through_lightning": "outlie"}.get(loop.__name__, loop.__name__)
                    spent = cpu(loop, detector, views)
                    seconds.setdefault((dataset, f"train {name}, {epochs} epochs", label), []).append(spent)
                if name == "DDPM":
                    work = f"score DDPM, {len(test)} rows"
                    spent = cpu(stages.score, detector, test, torch.device("cpu"))
                    seconds.setdefault((dataset, work, "outlie"), []).append(spent)
                    spent = cpu(score_as_released, detector, test.x)
                    seconds.setdefault((dataset, work, "as_released"), []).append(spent)
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["dataset", "work", "loop", "cpu_s_median", "cpu_s_min", "outlie_over_this"])
        for (dataset, work, loop), spent in seconds.items():
            ratios = [ours / theirs for ours, theirs in zip(seconds[dataset, work, "outlie"], spent, strict=True)]
            row = [
                dataset,
                work,
                loop,
                *(f"{v:.2f}" for v in (statistics.median(spent), min(spent), statistics.median(ratios))),
            ]
            table.writerow(row)
            print(*row)
