"""`run score` on a table larger than its memory: peak RSS and CPU seconds, into score_stream.csv.

    python benchmarks/score_stream.py FOLDER [--rows 10000000] [--detector ecod] [--format parquet csv]

The table is written in parts, as it would be by whatever made it; every command is a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl

COLUMNS = [f"v{j}" for j in range(20)]
AT_ONCE = 200_000
RESULT = Path(__file__).with_suffix(".csv")


def rows(n: int, seed: int) -> pl.DataFrame:
    """n correlated normal rows, three decimals."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, len(COLUMNS))) + rng.normal(size=(n, 1))
    return pl.DataFrame(x.round(3), schema=COLUMNS)


def write(path: Path, n: int) -> None:
    """A table of n rows, never more than a part of it in memory."""
    parts = [(start, min(AT_ONCE, n - start)) for start in range(0, n, AT_ONCE)]
    if path.suffix == ".csv":
        with open(path, "wb") as file:
            for start, size in parts:
                rows(size, start).write_csv(file, include_header=start == 0)
        return
    folder = path.with_suffix(".parts")
    folder.mkdir(exist_ok=True)
    for start, size in parts:
        rows(size, start).write_parquet(folder / f"{start:010d}.parquet")
    pl.scan_parquet(sorted(folder.iterdir())).sink_parquet(path, engine="streaming")
    for one in folder.iterdir():
        one.unlink()
    folder.rmdir()


def measured(words: list[str], folder: Path) -> dict[str, float]:
    """CPU and wall seconds and peak RSS of one command, and of nothing before it: a process of its own waits for it."""
    command = [sys.executable, "-m", "outlie.cli", *words]
    clock = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)} ended with {status}")
    return {
        "wall_s": round(time.perf_counter() - clock, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_rss_mib": round(usage.ru_maxrss / 1024),
    }


def main() -> None:
    """Write the tables, train, score, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--detector", default="ecod")
    parser.add_argument("--format", nargs="+", default=["parquet", "csv"])
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    rows(2000, 1).write_csv(asked.folder / "train.csv")
    train = ["train", "dataset=csv", "dataset.path=train.csv", f"detector={asked.detector}", "metrics=fast"]
    measured([*train, "trainer.threads=1", "force=true"], asked.folder)
    run = next((asked.folder / "outputs" / "train").glob(f"csv-{asked.detector}-*")).name
    found = []
    for kind in asked.format:
        table = asked.folder / f"new.{kind}"
        write(table, asked.rows)
        words = ["score", f"run={run}", f"input={table.name}", f"output=scored.{kind}", "force=true", "review=0.05"]
        cost = measured([*words, "trainer.threads=1"], asked.folder)
        size = round(table.stat().st_size / 2**20)
        found.append({"format": kind, "rows": asked.rows, "columns": len(COLUMNS), "file_mib": size,
                      "detector": asked.detector, **cost})  # fmt: skip
        print(found[-1])
        table.unlink()
    pl.DataFrame(found).write_csv(RESULT)


if __name__ == "__main__":
    main()
