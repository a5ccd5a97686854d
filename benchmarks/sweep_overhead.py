"""What a sweep itself costs: CPU of scheduling a small cell, and of a finished sweep's answer.

    python benchmarks/sweep_overhead.py [CELLS] [FOLDER]

CELLS runs of detector=knn,dte_np on wine (scikit-learn; 178 rows) in one process of launcher=local; then the same
command again. Overhead = CPU seconds of everything, less what the stages of the cells took (fit, score: result.json's
cost), divided by the cells; the imports of the one worker are shown apart. The csv beside it is the result.
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import stored

from outlie.results import store


def cpu(words: list[str]) -> tuple[float, str]:
    """CPU seconds of a command with its children, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "outlie.cli", *words], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def main() -> None:
    """Measure, print, store."""
    cells = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp())
    words = ["train", "-m", "detector=knn,dte_np", "dataset=wine", "metrics=fast", "launcher.jobs=1"]
    one, _ = cpu([*words, "seed=range(1)", "detector=knn", f"output_dir={folder / 'one'}"])
    words += [f"seed=range({cells // 2})", f"output_dir={folder}"]
    first, _ = cpu(words)
    again, said = cpu(words)
    assert f"{cells} cells: {cells} found" in said, said
    results = [json.loads(path.read_text()) for path in folder.glob("train/*/result.json")]
    stages = sum(result["cost"]["fit_cpu_s"] + result["cost"]["score_cpu_s"] for result in results)
    row = {
        "cells": len(results),
        "cpu_s": round(first, 2),
        "imports_and_first_cell_cpu_s": round(one, 2),
        "stages_cpu_s": round(stages, 2),
        "overhead_a_cell_cpu_s": round((first - one - stages) / len(results), 4),
        "overhead_with_imports_cpu_s": round((first - stages) / len(results), 4),
        "finished_again_cpu_s": round(again, 2),
        "code_version": store.code_version(),
    }
    print(row)
    stored.table(__file__, [row])


if __name__ == "__main__":
    main()
