"""`run table` as a user meets it: mistakes in one line, published numbers without a run, a finished table at once."""

import json
import subprocess
import sys

import pytest

from outlie.cli import main
from outlie.results import store
from outlie.sweeps import cells as sweep_cells

TABLE = ["table", "dte_semi", "compute=false", "rows=[wine,breastw]", "columns=[KNN,IForest,LOF]"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """In an empty folder, and nothing is ever computed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("outlie.sweeps.runner.compute", lambda *_: pytest.fail("it began to compute"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give a table: "),
        (["metric=auroc"], "give a table: "),
        (["dte_smi"], "unknown table 'dte_smi' (did you mean 'dte_semi'?)"),
        (["dte_semi", "colums=[KNN]"], "unknown key of run table 'colums' (did you mean 'columns'?)"),
        (["dte_semi", "columns=[DTE_C]"], "unknown column of table dte_semi 'DTE_C' (did you mean 'DTE-C'?)"),
        (["dte_semi", "columns=[]"], "columns=[] leaves nothing"),
        (["dte_semi", "rows=[win]"], "did you mean 'wine'?"),
        (["dte_semi", "rows=adbench/smal"], "did you mean 'adbench/small'?"),
        (["dte_semi", "max_rows=10"], "every row of table dte_semi has more"),
        (["dte_semi", "metric=aurocc"], "did you mean 'auroc'?"),
        (["dte_unsup", "metric=f1_at_k"], "unknown metric of table dte_unsup 'f1_at_k'"),
        (["dte_semi", "seeds=0"], "seeds=0: expected an integer of at least 1"),
        (["dte_semi", "seeds=many", "compute=maybe"], "compute=maybe: expected true or false"),
        (["dte_semi", "format=pdf"], "unknown format 'pdf'"),
        (["dte_semi", "launcher=slurmm"], "unknown launcher 'slurmm'"),
    ],
)
def test_mistakes(words, says, capsys, tmp_path):
    assert main(["table", *words]) == 2
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_published_numbers_without_any_run(capsys, tmp_path):
    assert main(TABLE) == 0
    shown = capsys.readouterr().out
    assert "99.19±0.22" in shown and ("Missing: " in shown or "Absent: " in shown)
    (folder,) = (tmp_path / "outputs/table").iterdir()
    assert folder.name.startswith("dte_semi-")  # a selection does not replace the whole table
    written = {path.name for path in folder.iterdir()}
    assert written == {"dte_semi.csv", "dte_semi.md", "dte_semi.tex", "dte_semi.html", "cells.csv", "statistics.json"}


def test_formats_and_files(capsys, tmp_path):
    assert main([*TABLE, "format=latex"]) == 0
    text = capsys.readouterr().out
    (stored,) = tmp_path.glob("outputs/table/dte_semi-*/dte_semi.tex")
    assert text.startswith("%") and text == stored.read_text()
    assert main([*TABLE, "format=csv", "metric=average_precision", "output=here.csv"]) == 0
    assert capsys.readouterr().out == "here.csv\n"
    (stored,) = tmp_path.glob("outputs/table/dte_semi-average_precision-*/dte_semi.csv")
    assert (tmp_path / "here.csv").read_text() == stored.read_text()


def test_a_disk_that_takes_nothing_is_told(capsys, tmp_path):
    (tmp_path / "outputs").write_text("a file where the folder should be")
    assert main(TABLE) == 2
    assert "outputs" in capsys.readouterr().err


def fake(row: str, detector: str, aurocs: list[float], **changes) -> None:
    """Results that `run train` would have written, a seed each."""
    (first,) = sweep_cells.expand(
        [f"dataset=adbench/{row}", f"detector={detector}", "dataset.protocol=dte_semi", "metrics=fast"]
    )
    for seed, auroc in enumerate(aurocs):
        folder = store.run_folder(first.config | {"seed": seed})
        folder.mkdir(parents=True, exist_ok=True)
        result = {"schema": 1, "status": "done", "protocol": "dte_semi", "metrics": {"test": {"auroc": auroc}}}
        (folder / "result.json").write_text(json.dumps(result | changes))


def test_a_failed_cell_is_told_and_is_exit_code_1(capsys):
    fake("wine", "iforest", [0.9], status="failed", error="Traceback...\nMemoryError: too much")
    assert main(TABLE) == 1
    assert "Failed: 1 cells of IForest (wine)" in (shown := capsys.readouterr().out) and "MemoryError" in shown


GUARD = """
import sys, time
from outlie.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "hydra", "omegaconf", "lightning", "sklearn", "scipy.stats", "matplotlib"} & set(sys.modules)
print("HEAVY", sorted(heavy), time.process_time(), file=sys.stderr)
sys.exit(code)
"""
ROWS = [
    "wine", "breastw", "cardio", "glass", "pima", "letter", "vowels", "wbc", "wdbc", "wpbc", "yeast", "fault", "stamps",
    "thyroid", "musk", "mnist", "speech", "wilt", "landsat", "pendigits",
]  # fmt: skip
DETECTORS = {"KNN": "knn/paper", "IForest": "iforest", "LOF": "lof", "PCA": "pca", "ECOD": "ecod"}
DETECTORS |= {"COPOD": "copod", "HBOS": "hbos", "OCSVM": "ocsvm", "LODA": "loda", "MCD": "mcd"}


def test_a_finished_table_of_1000_cells_takes_3_cpu_seconds_and_nothing_heavy():
    for i, row in enumerate(ROWS):
        for j, detector in enumerate(DETECTORS.values()):
            fake(row, detector, [0.5 + ((7 * i + 3 * j + seed) % 40) / 100 for seed in range(5)])
    words = ["table", "dte_semi", f"rows=[{','.join(ROWS)}]", f"columns=[{','.join(DETECTORS)}]", "leak_free=false"]
    first = subprocess.run([sys.executable, "-c", GUARD, *words], capture_output=True, text=True, timeout=100)
    assert first.returncode == 0 and "1000 cells" in first.stdout and "Friedman of ours" in first.stdout
    second = subprocess.run([sys.executable, "-c", GUARD, *words], capture_output=True, text=True, timeout=100)
    assert second.stdout == first.stdout
    heavy, seconds = second.stderr.rsplit("HEAVY", 1)[1].rsplit(maxsplit=1)
    assert heavy.strip() == "[]" and float(seconds) < 3
