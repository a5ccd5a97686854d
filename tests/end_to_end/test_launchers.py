"""Sweeps on SLURM and Ray: a killed process costs its cell, the rest is computed once, to the same numbers."""

import csv
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from polars.testing import assert_frame_equal

from outlie.errors import UserError
from outlie.sweeps import cells, chunk, slurm, worker
from outlie.sweeps.ray_cluster import Ray, Worker, reach

from .conftest import QUICK, result_of, scores_of

HOLDING = '''"""A kNN that waits for the file `go`, and says who waits."""
import os, time
from pathlib import Path
from outlie.detectors.knn import KNN

class Holding(KNN):
    """Waits.

    Args:
        k: number of neighbours
    """

    def __init__(self, k: int = 5) -> None:
        super().__init__(k)

    def fit(self, train):
        with Path("fits").open("a") as file:
            file.write(f"{os.getpid()}\\n")
        deadline = time.monotonic() + 120
        while not Path("go").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        super().fit(train)
'''
SLURM = ("launcher=slurm", "launcher.cluster=local", "launcher.parallel=1", "launcher.cpus=1")
RAY = ("launcher=ray", "launcher.parallel=1", "launcher.memory_gib=0.1")
SEEDS = 6


@pytest.fixture
def sweep(run, table, tmp_path, monkeypatch):
    """`sweep(words)`: two detectors, one of which waits, and six seeds."""
    table()
    (tmp_path / "holding.py").write_text(HOLDING)
    (tmp_path / "configs" / "detector").mkdir(parents=True)
    (tmp_path / "configs" / "detector" / "holding.yaml").write_text("# waits\n_target_: holding.Holding\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else a token is left in the home folder
    mine = ("dataset=csv", "dataset.path=mine.csv", "dataset.label=label", "allow=[holding]", "--config-dir", "configs")
    words = ("train", "-m", "detector=knn,holding", f"seed=range({SEEDS})", *mine, *QUICK)
    return lambda *more: run(*words, *more)


@pytest.fixture
def kill(tmp_path):
    """Kills the first process that waits, then lets the others go on; its id."""
    killed = []

    def watch():
        fits = tmp_path / "fits"
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and not (fits.exists() and fits.read_text().endswith("\n")):
            time.sleep(0.02)
        killed.append(int(fits.read_text()))
        os.kill(killed[0], signal.SIGKILL)
        (tmp_path / "go").touch()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield killed
    thread.join(timeout=1)


def lines_of(folder: Path) -> list[dict[str, str]]:
    (path,) = (folder / "sweep").glob("train-*/cells.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


def runs(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in (folder / "train").iterdir()}


@pytest.mark.parametrize("words", [SLURM, RAY], ids=["slurm", "ray"])
def test_a_killed_process_costs_its_cell_and_the_same_command_computes_only_that(sweep, kill, tmp_path, words):
    pytest.importorskip({"slurm": "submitit", "ray": "ray"}[words[0].partition("=")[2]])
    broken = sweep(*words, "launcher.retries=0")
    assert broken.code == 1 and len(kill) == 1
    status = Counter(line["status"] for line in lines_of(tmp_path / "outputs"))
    assert status == {"done": 2 * SEEDS - 1, "failed": 1}
    (lost,) = (line for line in lines_of(tmp_path / "outputs") if line["status"] == "failed")
    assert lost["detector"] == "holding" and "lost with its " in lost["error"]
    assert not (tmp_path / lost["folder"] / "result.json").exists()
    before = {name: (path / "result.json").stat() for name, path in runs(tmp_path / "outputs").items()
              if (path / "result.json").exists()}  # fmt: skip
    assert len(before) == 2 * SEEDS - 1
    again = sweep()  # where does not matter: this machine is quicker
    assert again.code == 0 and f"{2 * SEEDS - 1} found, 1 computed" in again.out
    for name, status in before.items():
        assert (runs(tmp_path / "outputs")[name] / "result.json").stat().st_mtime_ns == status.st_mtime_ns
    whole = sweep("output_dir=whole")
    assert whole.code == 0
    assert runs(tmp_path / "outputs").keys() == runs(tmp_path / "whole").keys()
    for name, path in runs(tmp_path / "whole").items():
        assert result_of(path)["metrics"] == result_of(runs(tmp_path / "outputs")[name])["metrics"]
        assert_frame_equal(scores_of(path), scores_of(runs(tmp_path / "outputs")[name]), check_exact=True)


SBATCH = """#!/bin/bash
# runs the tasks of an array here, one after the other; remembers which are known to squeue
script=$1; last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' $script)
id=$((100 + $(ls "$FAKE"/*.sh 2>/dev/null | wc -l))); cp $script "$FAKE/$id.sh"
tasks=${last:+$(seq 0 $last)}; tasks=${tasks:-none}
for task in $tasks; do
  [ $task = none ] && name=$id || name=${id}_$task
  touch "$FAKE/$name.queued"
done
( for task in $tasks; do
    if [ $task = none ]; then name=$id; export SLURM_JOB_ID=$id
    else
      name=${id}_$task
      export SLURM_ARRAY_JOB_ID=$id SLURM_ARRAY_TASK_ID=$task SLURM_JOB_ID=$((id * 1000 + task))
    fi
    export SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
    bash "$FAKE/$id.sh"; rm "$FAKE/$name.queued"
  done ) >/dev/null 2>&1 &
echo "Submitted batch job $id"
"""
SRUN = """#!/bin/bash
# runs the command that follows the options; the first node is lost before it begins
if mkdir "$FAKE/lost" 2>/dev/null; then exit 1; fi
while [[ $1 == -* ]]; do case $1 in --output|--error) shift 2;; *) shift;; esac; done
exec "$@"
"""
SQUEUE = """#!/bin/bash
cd "$FAKE"; for one in *.queued; do echo "${one%.queued}"; done
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Programs with SLURM's names that run jobs on this machine; the folder where they keep what they know."""
    pytest.importorskip("submitit")
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "squeue": SQUEUE, "scancel": "#!/bin/bash\n"}.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    (tmp_path / "fake").mkdir()
    monkeypatch.setenv("FAKE", str(tmp_path / "fake"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setattr(slurm, "SQUEUE_S", 0.5)
    return tmp_path / "fake"


def test_an_array_on_a_cluster_whose_first_node_is_lost(sweep, cluster, tmp_path):
    (tmp_path / "go").touch()
    done = sweep(
        "launcher=slurm", "launcher.parallel=2", "launcher.cpus=1", "launcher.partition=long", "launcher.time=30",
        "launcher.memory_gib=2.5", "launcher.setup=[module load python]",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert {line["status"] for line in lines_of(tmp_path / "outputs")} == {"done"}
    array, alone = (path.read_text() for path in sorted(cluster.glob("*.sh")))
    for line in ("array=0-1%2", "time=30", "partition=long", "cpus-per-task=1", "mem=2560MB", "job-name=outlie"):
        assert f"#SBATCH --{line}\n" in array
    assert "\nmodule load python\n" in array and "--cpus-per-task=1" in array.splitlines()[-1]
    assert "--array" not in alone  # of the lost node's cells, all at once
    assert len((tmp_path / "fits").read_text().splitlines()) == SEEDS


def test_what_sbatch_refuses_is_said(sweep, cluster):
    (cluster.parent / "bin" / "sbatch").write_text(
        "#!/bin/bash\necho 'sbatch: error: invalid partition: lng' >&2\nexit 1\n"
    )
    done = sweep("launcher=slurm", "launcher.partition=lng")
    assert done.code == 2 and "the jobs were not taken: sbatch: error: invalid partition: lng" in done.err


def test_without_sbatch_the_local_cluster_is_named(sweep, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "/nowhere")
    done = sweep("launcher=slurm")
    assert done.code == 2
    assert "launcher=slurm needs sbatch on this machine" in done.err and "launcher.cluster=local" in done.err


@pytest.mark.parametrize(("launcher", "extra"), [("slurm", "submitit"), ("ray", "ray")])
def test_without_the_library_the_extra_is_named(sweep, monkeypatch, launcher, extra):
    monkeypatch.setitem(sys.modules, extra, None)
    done = sweep(f"launcher={launcher}")
    assert done.code == 2 and f"pip install 'outlie[{launcher}]'" in done.err


def test_an_address_where_nobody_listens(sweep):
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    began = time.monotonic()
    done = sweep("launcher=ray", f"launcher.address=127.0.0.1:{port}")
    assert done.code == 2 and f"cannot reach the Ray cluster launcher.address=127.0.0.1:{port}" in done.err
    assert time.monotonic() - began < 20


def test_an_address_where_something_else_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "127.0.0.1:" + str(server.getsockname()[1])

        def answer():
            other = server.accept()[0]
            other.recv(1000)
            other.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(UserError, match="something else than Ray listens there"):
            reach(address)


@pytest.mark.parametrize("address", ["head", "head:port", "ray://head:10001", ":6379"])
def test_an_address_that_is_none(address):
    with pytest.raises(UserError, match="is not host:port"):
        reach(address)


def test_places_of_a_cluster():
    total = {"CPU": 8.0, "GPU": 2.0, "memory": 10.0 * 2**30}
    assert Ray(cpus=2, memory_gib=1.0).places(total) == 4
    assert Ray(cpus=1, memory_gib=4.0).places(total) == 2
    assert Ray(cpus=1, memory_gib=1.0, gpus=0.5).places(total) == 4
    assert Ray(gpus=1.0).places({"CPU": 8.0, "memory": 2.0**40}) == 0


def cell(number: int, folder: Path, ground: int = 0) -> cells.Cell:
    config = {"dataset": {"part": None}, "backbone": ground, "seed": 0, "force": False, "number": number,
              "choices": {"dataset": "d", "detector": f"k{number}"}}  # fmt: skip
    return cells.Cell((f"k={number}",), config, folder / str(number))


def test_chunks_keep_a_ground_together(tmp_path):
    made = [cell(number, tmp_path, ground=number % 3) for number in range(9)]
    chunks = chunk.divided(made, 4)
    assert sorted(one.config["number"] for part in chunks for one in part) == list(range(9))
    assert [len(part) for part in chunks] == [4, 4, 1]
    grounds = [one.config["backbone"] for part in chunks for one in part]
    assert grounds == sorted(grounds)


def test_a_chunk_that_is_queued_again_skips_what_has_ended(tmp_path, monkeypatch):
    asked = []
    answer = {"status": "done", "seconds": 0.0, "cpu_s": 0.0, "error": ""}
    monkeypatch.setattr(worker, "compute", lambda command, config, data: asked.append(config["number"]) or answer)
    job = chunk.Chunk([cell(number, tmp_path) for number in range(3)], tmp_path / "report.jsonl", 1)
    for line in (started(0), ended(0, "failed"), started(1), ended(1, "busy"), started(2)):
        job._say(**line)
    job()
    assert asked == [1, 2]
    lines = chunk.read(job.report)[0]
    assert [line["status"] for line in lines[-5:]] == ["started", "done", "started", "done", "end"]


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path):
    missing = tmp_path / "outputs"
    assert f"does not see {missing}" in Worker().begin(str(tmp_path), str(missing), {}, 1)


class Submitted:
    """What the executor gives back."""

    job_id = "7_1"

    def stderr(self) -> str:
        return "first\nslurmstepd: error: *** JOB 7 CANCELLED DUE TO NODE FAILURE ***\n"


@pytest.fixture
def heard(tmp_path):
    """`heard(lines, over)`: what a job of three cells makes of them: events, and cells to submit again."""
    told: list[cells.Event] = []
    left = slurm.Left(1, told.append)

    def hear(*lines: dict[str, Any], over: bool = True) -> tuple[list[tuple[str, int]], list[int]]:
        report = tmp_path / f"{time.monotonic_ns()}.jsonl"
        job = slurm.Job([cell(number, tmp_path) for number in range(3)], report, Submitted())
        writer = chunk.Chunk([], report, 1)
        told.clear()
        for line in lines:
            writer._say(**line)
        left.hear(job, over)
        assert job.ended == (over or {"status": "end"} in lines)
        return [(one.what, one.cell.config["number"]) for one in told], [one.config["number"] for one in left.due()]

    hear.left = left
    hear.told = told
    return hear


def started(number: int) -> dict[str, Any]:
    return {"cell": number, "status": "started"}


def ended(number: int, status: str = "done") -> dict[str, Any]:
    return {"cell": number, "status": status, "seconds": 1.0, "cpu_s": 1.0, "error": ""}


def test_a_job_that_dies_costs_the_cell_in_progress_an_attempt(heard):
    lines = started(0), ended(0), started(1)
    said = [("started", 0), ("done", 0), ("started", 1)]
    assert heard(*lines) == (said, [1, 2])
    assert heard(*lines) == ([*said, ("failed", 1)], [2])  # a second time: it is the cell
    assert "lost with its job 7_1 (2 times)" in heard.told[-1].error and "NODE FAILURE" in heard.told[-1].error


def test_a_job_that_never_began_may_be_the_fault_of_any_cell(heard):
    assert heard() == ([], [0, 1, 2])
    assert heard() == ([("failed", 0), ("failed", 1), ("failed", 2)], [])


def test_a_job_that_goes_on_is_left_alone(heard):
    assert heard(started(0), over=False) == ([("started", 0)], [])


def test_a_busy_cell_waits(heard):
    lines = started(0), ended(0, "busy"), started(1), ended(1, "failed"), started(2), ended(2), {"status": "end"}
    assert heard(*lines) == ([("started", 0), ("started", 1), ("failed", 1), ("started", 2), ("done", 2)], [])
    ((at, waits),) = heard.left.waiting
    assert waits.config["number"] == 0 and 0 < at - time.monotonic() <= slurm.BUSY_S


def test_a_cell_that_ended_is_told_once_where_its_job_was_queued_again(heard):
    lines = started(0), ended(0), started(1), started(0), ended(0), ended(1), started(2), ended(2), {"status": "end"}
    events, again = heard(*lines)
    assert Counter(event for event in events if event[0] == "done") == {("done", 0): 1, ("done", 1): 1, ("done", 2): 1}
    assert again == []


def test_half_a_line_is_read_when_it_is_whole(tmp_path):
    report = tmp_path / "report.jsonl"
    report.write_text('{"status": "end"}\n{"sta')
    lines, start = chunk.read(report)
    assert lines == [{"status": "end"}] and start == 18
    report.write_text('{"status": "end"}\n{"status": "end"}\n')
    assert chunk.read(report, start) == ([{"status": "end"}], 36)
