"""What `run eval run=RUN detectors=all` costs beside one bare forward pass of the network; writes one_pass.csv.

    run train dataset=fashion_ood backbone=resnet10/narrow detector=neco backbone.epochs=1 metrics=fast
    OUTLIE_DATA=../shared/data python benchmarks/one_pass.py RUN_FOLDER [ROUNDS]
    MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483647 OUTLIE_DATA=... the same once more

CPU seconds on one thread, of one process that has imported everything before. `bare forward pass` is a loop over the
rows of all sets, in the same batches: decode, normalise, network, nothing kept; once before and once after each `eval`,
their mean, as the machine's load changes. `eval` is the command with metrics=fast and an empty cache, less what its
detectors say that they took to fit and score. The lines of two spaces are its parts: functions that are timed, without
the others that they call. The median over the rounds is kept, of the ratios too.

glibc's allocator may give the memory of activations back after each batch and ask for it again (about 60 page faults a
row here, a quarter of the pass), or not, as the heap happens to lie: the same loop takes 0.33 or 0.46 ms a row. The
second command makes it keep them, which takes this chance out of the ratio; the column `allocator` tells which it was,
and lines of the other one stay in the csv.
"""

import csv
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import polars  # noqa: F401
import torch
from omegaconf import OmegaConf

from outlie import cell, cli, features, stages
from outlie.build import build
from outlie.commands import compare
from outlie.results import checkpoint, classified, comparison, evaluated, store

IMPORTED = time.process_time()  # of the interpreter and everything above

COLUMNS = ("allocator", "what", "median", "min", "max", "rounds", "load")
FORWARD = "views: forward pass into files"
PARTS = {
    "load data": (cell, "load"),
    "views: hash the key": (features, "key"),
    FORWARD: (features, "compute"),
    "views: check and map the files": (features, "read"),
    "accuracy and neural collapse": (classified, "report"),
    "compose detector sections": (compare, "section_of"),
    "sizes and setup": (cell.Ground, "spec"),
    "batch lint": (stages, "batch_lint"),
    "metrics": (evaluated, "evaluate_scores"),
    "scores.parquet": (store, "write_scores"),
    "picture": (comparison, "draw"),
    "table": (comparison, "render"),
}


def timed(work: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    """The function, its CPU seconds added to `spent`, without those of timed functions that it calls."""

    @wraps(work)
    def call(*arguments: Any, **options: Any) -> Any:
        start, others = time.process_time(), sum(spent.values())
        try:
            return work(*arguments, **options)
        finally:
            spent[name] += time.process_time() - start - (sum(spent.values()) - others)

    return call


def bare(parts: dict[str, Any], backbone: Any) -> float:
    """CPU seconds of the network on every row."""
    start = time.process_time()
    with torch.no_grad():
        for rows in parts.values():
            for some in torch.arange(len(rows)).split(stages.rows_at_once(tuple(rows.x.shape[1:]))):
                backbone(rows.x[some])
    return time.process_time() - start


def evaluation(run: Path) -> dict[str, float]:
    """CPU seconds of the command and of its parts."""
    spent: dict[str, float] = defaultdict(float)
    kept = {name: getattr(*place) for name, place in PARTS.items()}
    with tempfile.TemporaryDirectory() as folder:
        for name, (owner, function) in PARTS.items():
            setattr(owner, function, timed(kept[name], name, spent))
        try:
            words = [f"run={run}", "detectors=all", "metrics=fast", "trainer.threads=1", f"output_dir={folder}"]
            start = time.process_time()
            code = cli.main(["eval", *words])
            whole = time.process_time() - start
        finally:
            for name, (owner, function) in PARTS.items():
                setattr(owner, function, kept[name])
        results = [store.read_result(path.parent) for path in Path(folder).glob("eval/*/*/result.json")]
    assert code == 0 and results
    detectors = sum(one["cost"].get("fit_cpu_s", 0.0) + one["cost"]["score_cpu_s"] for one in results if one)
    spent["everything else"] = whole - detectors - sum(spent.values())
    parts = {f"  {name}": value for name, value in spent.items()}
    return {"eval, whole": whole, "detectors' fit and score": detectors, "eval": whole - detectors, **parts}


if __name__ == "__main__":
    torch.set_num_threads(1)
    run, rounds = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 3
    cfg = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"), resolve=True)
    assert isinstance(cfg, dict)
    split = cell.load(cfg["dataset"], cfg["choices"]["dataset"], cfg["seed"], [])
    backbone = build(cfg["backbone"], [])
    backbone.setup(split)
    checkpoint.load_backbone(run / "model.ckpt", backbone)
    parts = cell.Ground(split, backbone.eval(), None, run, run).parts  # pyright: ignore[reportArgumentType]
    readings: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        before, one, after = bare(parts, backbone), evaluation(run), bare(parts, backbone)
        loop = one["bare forward pass"] = (before + after) / 2
        forward = one[f"  {FORWARD}"]
        one |= {"ratio: eval / bare": one["eval"] / loop, "ratio: its forward pass / bare": forward / loop}
        one["ratio: all but its forward pass / bare"] = (one["eval"] - forward) / loop
        for name, value in one.items():
            readings[name].append(value)
    allocator = "keeps memory" if "MALLOC_TRIM_THRESHOLD_" in os.environ else "default"
    path, lines = Path(__file__).with_suffix(".csv"), []
    if path.exists():
        with path.open(newline="") as file:
            lines = [row for row in csv.DictReader(file) if row["allocator"] != allocator]
    readings["imports, not counted"] = [IMPORTED]
    for name, values in readings.items():
        numbers = (f"{value:.3f}" for value in (statistics.median(values), min(values), max(values)))
        lines.append(
            dict(zip(COLUMNS, (allocator, name, *numbers, len(values), f"{os.getloadavg()[0]:.1f}"), strict=True))
        )
        print(*lines[-1].values())
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(lines)
