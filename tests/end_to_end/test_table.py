"""`run table` computes what is missing, once, and puts it beside what was published."""

import csv
import json
import os
import subprocess
import sys


def test_a_missing_cell_is_computed_once(adbench_dir, tmp_path):
    words = ["table", "dte_semi", "rows=wine", "columns=KNN", "seeds=1", "stats=false", "launcher.jobs=1"]
    start = [sys.executable, "-m", "outlie.cli", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    first, second = (
        subprocess.run(start, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=250) for _ in "ab"
    )
    assert first.returncode == second.returncode == 0, first.stderr
    assert "of 2 cells" in first.stderr and "cells" not in second.stderr  # the protocol without the leak is the other
    assert first.stdout == second.stdout
    (paper,) = (
        result
        for path in (tmp_path / "outputs" / "train").glob("*/result.json")
        if (result := json.loads(path.read_text()))["protocol"] == "dte_semi"
    )
    auroc = paper["metrics"]["test"]["auroc"]
    assert f"{100 * auroc:.2f}" in first.stdout and "99.19±0.22" in first.stdout
    assert abs(100 * auroc - 99.19) < 1  # one seed, published over five
    assert "dte_semi_noleak" in first.stdout and "1 of 1 (100 %)" in first.stdout

    done = subprocess.run(
        [*start, "intervals=true", "leak_free=false"], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    (cells,) = (tmp_path / "outputs" / "table").glob("*/cells.csv")
    (cell,) = csv.DictReader(cells.open())
    assert float(cell["low"]) < float(cell["number"]) < float(cell["high"])
    assert float(cell["number"]) == 100 * auroc  # measured again from the stored scores, not computed again
