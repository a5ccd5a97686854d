"""Sweeps that are killed: 200 cells, undisturbed and with five kill -9 at random, by launcher; writes resume_sweep.csv.

    OUTLIE_DATA=../shared/data python benchmarks/resume_sweep.py [local|slurm|ray] ...

Four detectors, ten small tables of ADBench, five seeds. local: the sweep itself is killed and the same command started
again. slurm (submitit's local executor) and ray (a cluster of this machine): a process that computes is killed, the
sweep goes on. `rewritten` counts results that were there at a kill and are another file afterwards, `different` those
whose numbers or scores are not exactly those of the undisturbed sweep. `overhead_s` is the CPU time of the whole
undisturbed sweep, with the imports of every process, less what its cells took, by cell; what a cell took is the median
of its five seeds, as the first one in a process pays for imports. `load` is the machine's load average (it has 2
cores): other processes make the CPU seconds of the same work larger.
"""

import csv
import ctypes
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

KILLS = 5
TABLES = ("breastw", "cardio", "glass", "hepatitis", "ionosphere", "lymphography", "pima", "vertebral", "wbc", "wine")
WORDS = [
    "detector=knn,dte_np,lof,hbos", "dataset=" + ",".join(f"adbench/{name}" for name in TABLES), "seed=range(5)",
    "metrics=fast", "trainer.threads=1",
]  # fmt: skip
LAUNCHERS = {
    "local": ["launcher=local", "launcher.jobs=2"],
    "slurm": ["launcher=slurm", "launcher.cluster=local", "launcher.parallel=2", "launcher.cpus=1"],
    "ray": ["launcher=ray", "launcher.parallel=2"],
}
WORKERS = {"slurm": "submitit.core._submit", "ray": "ray::Worker"}
ADOPT = 36  # PR_SET_CHILD_SUBREAPER: whatever a sweep leaves behind becomes a child of this process, and is counted


def sweep(launcher: str, folder: str) -> None:
    """What `run train -m` does, and what the cells of this call took, as JSON."""
    from outlie.commands import sweep
    from outlie.sweeps import cells, runner

    made = cells.expand([*WORDS, f"output_dir={folder}"])
    ended = runner.compute(made, sweep.build(sweep.section("launcher", LAUNCHERS[launcher], ())))
    count = {what: sum(event.what == what for event in ended.values()) for what in ("found", "done", "failed")}
    alike: dict[tuple[str, ...], list[float]] = {}
    for event in ended.values():
        alike.setdefault(event.cell.words[:2], []).append(event.cpu_s)
    own = sum(len(seeds) * statistics.median(seeds) for seeds in alike.values())
    print(json.dumps(count | {"cpu_s": own}))


def start(launcher: str, folder: Path) -> subprocess.Popen[str]:
    """The sweep as a process of its own."""
    command = [sys.executable, __file__, "--sweep", launcher, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def descendants() -> dict[int, str]:
    """Processes below this one, and their command lines."""
    parents, lines = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            lines[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    found = {os.getpid()}
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
    return {one: lines[one] for one in found - {os.getpid()}}


def reap() -> None:
    """Wait for what was adopted, so that its CPU time is counted."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and descendants():
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        time.sleep(0.05)


def results(folder: Path) -> dict[str, Any]:
    """Run -> its result.json and when it was written."""
    paths = folder.glob("train/*/result.json")
    return {path.parent.name: (json.loads(path.read_text()), path.stat().st_mtime_ns) for path in paths}


def disturbed(launcher: str, folder: Path, total: int) -> tuple[int, set[str], int]:
    """Kill the sweep or one of its processes at random; kills, the runs that were written again, starts."""
    kills = sorted(random.sample(range(5, total - 10), KILLS))
    kept: dict[str, int] = {}
    killed, starts, process = 0, 1, start(launcher, folder)
    while True:
        here = sum(1 for _ in folder.glob("train/*/result.json"))
        if process.poll() is not None:
            if here >= total and killed >= KILLS:
                break
            starts, process = starts + 1, start(launcher, folder)
        if killed < KILLS and here >= kills[killed]:
            victims = [one for one, line in descendants().items() if WORKERS.get(launcher, "--sweep") in line]
            if victims:
                kept |= {name: at for name, (_, at) in results(folder).items() if name not in kept}
                os.kill(random.choice(victims), signal.SIGKILL)
                killed += 1
                if launcher == "local":
                    process.wait()
        time.sleep(0.1)
    reap()
    return killed, {name for name, at in kept.items() if results(folder)[name][1] != at}, starts


def compared(folder: Path, other: Path) -> int:
    """Runs whose metrics or scores are not exactly the same in two folders."""
    import polars as pl

    one, two = results(folder), results(other)
    assert one.keys() == two.keys()
    return sum(
        one[name][0]["metrics"] != two[name][0]["metrics"]
        or not pl.read_parquet(folder / "train" / name / "scores.parquet").equals(
            pl.read_parquet(other / "train" / name / "scores.parquet")
        )
        for name in one
    )


def cpu() -> float:
    """CPU seconds of every process that ended below this one."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def measured(launcher: str) -> dict[str, Any]:
    """A line of the csv."""
    with tempfile.TemporaryDirectory() as temporary:
        whole, broken = Path(temporary) / "whole", Path(temporary) / "broken"
        before, wall = cpu(), time.perf_counter()
        process = start(launcher, whole)
        said = json.loads(process.communicate()[0])
        reap()
        spent, wall = cpu() - before, time.perf_counter() - wall
        cells = said["done"]
        killed, rewritten, starts = disturbed(launcher, broken, cells)
        again = json.loads(start(launcher, broken).communicate()[0])
        return {
            "launcher": launcher, "cells": cells, "kills": killed, "starts": starts, "results": again["found"],
            "rewritten": len(rewritten), "different": compared(whole, broken), "cpu_s": round(spent, 1),
            "cells_cpu_s": round(said["cpu_s"], 1), "overhead_s": round((spent - said["cpu_s"]) / cells, 3),
            "wall_s": round(wall), "load": round(os.getloadavg()[0], 1),
        }  # fmt: skip


def main(launchers: list[str]) -> None:
    """One line a launcher; those that are not measured keep theirs."""
    ctypes.CDLL(None).prctl(ADOPT, 1, 0, 0, 0)
    path = Path(__file__).with_suffix(".csv")
    with path.open() if path.exists() else open(os.devnull) as file:
        rows = {row["launcher"]: row for row in csv.DictReader(file)}
    for launcher in launchers or LAUNCHERS:
        rows[launcher] = measured(launcher)
        print(rows[launcher], flush=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[launcher]))
            writer.writeheader()
            writer.writerows(rows.values())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--sweep"]:
        sweep(*sys.argv[2:4])
    else:
        main(sys.argv[1:])
