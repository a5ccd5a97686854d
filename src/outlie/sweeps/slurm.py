"""Cells on a SLURM cluster: arrays of jobs through submitit, each of several cells; a lost job costs one attempt."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from outlie.errors import UserError
from outlie.options import NonNegativeInt, PositiveFloat, PositiveInt
from outlie.results import store
from outlie.results.words import last_line
from outlie.sweeps import chunk, local, runner
from outlie.sweeps.cells import Cell, Event, Tell

ARRAY = 1000  # jobs: SLURM's MaxArraySize is 1001 where nobody changed it
LOOKS = 5  # of reports a second, at most
FASTEST_S, SLOWEST_S = 0.5, 30.0  # between two looks
SQUEUE_S = 30.0  # between two calls of squeue, which is one process for the whole cluster
BUSY_S, BUSIEST_S = 5.0, 300.0  # before a cell that another process is at is tried again


@dataclass
class Slurm:
    """Jobs of a SLURM cluster whose nodes see this folder, in arrays; or the same jobs on this machine.

    Where the sweep itself is killed, its jobs go on; the same command finds what they finished and waits for what they
    are at. That rests on locks of files: a disk without them (NFS mounted with nolock) may have such a cell twice.

    Args:
        cluster: slurm, or local for the same jobs as processes of this machine, without SLURM
        partition: where jobs are queued; null = the cluster's default
        account: who pays; null = the user's default
        qos: quality of service; null = the default
        time: minutes of a job; one that reaches them is queued again, three times, and goes on where it was
        cpus: cores of a job, and its threads
        gpus: GPUs of a job
        memory_gib: memory of a job, in GiB
        parallel: jobs at once; null = 256, or on this machine as many as cores and memory allow
        cells_per_job: at most so many; a job takes six CPU seconds to begin: many small ones, but one that takes hours
        setup: shell lines before a job, such as "module load cuda"
        retries: how often a cell is tried again whose job died while computing it
    """

    cluster: Literal["slurm", "local"] = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: PositiveInt = 240
    cpus: PositiveInt = 2
    gpus: NonNegativeInt = 0
    memory_gib: PositiveFloat = 4.0
    parallel: PositiveInt | None = None
    cells_per_job: PositiveInt = 40
    setup: list[str] = field(default_factory=list)
    retries: NonNegativeInt = 1

    def run(self, cells: list[Cell], tell: Tell) -> None:
        """Compute the cells; an interrupted sweep cancels its jobs.

        Raises:
            UserError: where submitit or SLURM is missing, or sbatch refuses a job.
        """
        submitit = self._submitit()
        folder = Path(cells[0].config["output_dir"]).absolute() / "sweep" / "slurm"
        with store.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        executor = self._executor(submitit, folder)
        here = local.fitting(max(1, local.cores() // self.cpus), self.memory_gib)
        most = self.parallel or (256 if self.cluster == "slurm" else here)
        shared = self.parallel or self.cluster == "local"  # fewer than so many jobs would leave places empty
        chunks = chunk.divided(cells, min(self.cells_per_job, -(-len(cells) // most) if shared else len(cells)))
        left, jobs, queue = Left(self.retries, tell), [], Squeue()
        try:
            while chunks or jobs or left:
                if due := left.due():
                    chunks += chunk.divided(due, self.cells_per_job)
                room = ARRAY if self.cluster == "slurm" else most - len(jobs)
                jobs += self._submitted(executor, chunks[:room], folder)
                chunks = chunks[room:]
                if not chunks or len(jobs) >= most:
                    time.sleep(min(SLOWEST_S, max(FASTEST_S, len(jobs) / LOOKS)))
                over = queue.over(jobs) if self.cluster == "slurm" else {job.id for job in jobs if job.submitted.done()}
                for job in jobs:
                    left.hear(job, job.id in over)
                jobs = [job for job in jobs if not job.ended]
        except BaseException:
            for job in jobs:
                job.submitted.cancel(check=False)
            raise

    def _submitit(self) -> ModuleType:
        try:
            import submitit
        except ImportError as error:
            raise UserError("launcher=slurm needs submitit: pip install 'outlie[slurm]'") from error
        for program in ("sbatch", "srun", "squeue"):
            if self.cluster == "slurm" and shutil.which(program) is None:
                raise UserError(
                    f"launcher=slurm needs {program} on this machine: log in where jobs are submitted; "
                    "launcher.cluster=local runs the same jobs here"
                )
        return submitit

    def _executor(self, submitit: ModuleType, folder: Path) -> Any:
        executor = submitit.AutoExecutor(folder, cluster=self.cluster)
        executor.update_parameters(
            name="outlie", timeout_min=self.time, mem_gb=self.memory_gib, gpus_per_node=self.gpus or None,
            slurm_cpus_per_task=self.cpus, slurm_partition=self.partition, slurm_account=self.account,
            slurm_qos=self.qos, slurm_array_parallelism=self.parallel,
            slurm_srun_args=[f"--cpus-per-task={self.cpus}"],  # since SLURM 22.05, srun does not take it from sbatch
            **{f"{self.cluster}_setup": list(self.setup) or None},
        )  # fmt: skip
        return executor

    def _submitted(self, executor: Any, chunks: list[list[Cell]], folder: Path) -> list[Job]:
        if not chunks:
            return []
        reports = [folder / f"{os.urandom(6).hex()}.jsonl" for _ in chunks]
        asked = [chunk.Chunk(cells, report, self.cpus) for cells, report in zip(chunks, reports)]
        try:
            submitted = executor.submit_array(asked)
        except (RuntimeError, OSError) as error:
            said = last_line(str(error)) or type(error).__name__
            raise UserError(f"the jobs were not taken: {said}; see launcher.partition, account and qos") from error
        return [Job(cells, report, one) for cells, report, one in zip(chunks, reports, submitted)]


class Job:
    """A submitted job, and how far its report has been read."""

    def __init__(self, cells: list[Cell], report: Path, submitted: Any) -> None:
        self.id = str(submitted.job_id)
        self.submitted, self._report, self._start = submitted, report, 0
        self.cells = dict(enumerate(cells))
        self.open = dict(self.cells)  # nothing has been told of their end
        self.at: int | None = None  # the cell that it computes
        self.began = self.ended = False

    def lines(self) -> list[dict[str, Any]]:
        """What it said since the last time."""
        try:
            if self._report.stat().st_size == self._start:
                return []
        except FileNotFoundError:
            return []
        lines, self._start = chunk.read(self._report, self._start)
        return lines

    def last_words(self) -> str:
        """The last line of its error log."""
        try:
            words = last_line(self.submitted.stderr())
        except OSError:
            words = ""
        return f"; its last words: {words}" if words else f"; its logs are {self.submitted.paths.stderr.parent}"


class Left:
    """Cells that have to be given to another job: lost with one, never begun, or busy elsewhere."""

    def __init__(self, retries: int, tell: Tell) -> None:
        self.tell, self.retries = tell, retries
        self.lost: Counter[Path] = Counter()  # how often a job died at it
        self.busy: Counter[Path] = Counter()
        self.waiting: list[tuple[float, Cell]] = []  # not before that time

    def __bool__(self) -> bool:
        return bool(self.waiting)

    def due(self) -> list[Cell]:
        """The cells to submit now."""
        now = time.monotonic()
        ready = [cell for at, cell in self.waiting if at <= now]
        self.waiting = [(at, cell) for at, cell in self.waiting if at > now]
        return [cell for cell in ready if not self._stored(cell)]

    def hear(self, job: Job, over: bool) -> None:
        """What a job says; where it is over, what becomes of the cells that it did not end."""
        for line in job.lines():
            job.began = True
            if line["status"] == "end":
                over = True
            elif line["status"] == "started":
                job.at = line["cell"]
                self.tell(Event(job.cells[line["cell"]], "started"))
            else:
                job.at = None
                cell = job.open.get(line["cell"])
                if cell and line["status"] in chunk.ENDS:
                    del job.open[line["cell"]]
                    self.tell(Event(cell, line["status"], line["seconds"], line["cpu_s"], line["error"]))
        if not over:
            return
        job.ended = True
        died_at = set(job.open) if not job.began else {job.at}  # one that never began: every cell may be why
        for number, cell in job.open.items():
            if number in died_at:
                self._lost(cell, job)
            elif job.at is None:  # it ended by itself: another process is at the cell
                self.busy[cell.folder] += 1
                wait = min(BUSIEST_S, BUSY_S * 2 ** (self.busy[cell.folder] - 1))
                self.waiting.append((time.monotonic() + wait, cell))
            else:
                self.waiting.append((0.0, cell))

    def _lost(self, cell: Cell, job: Job) -> None:
        if self._stored(cell):
            return
        self.lost[cell.folder] += 1
        if self.lost[cell.folder] <= self.retries:
            self.waiting.append((0.0, cell))
        else:
            again = f" ({self.lost[cell.folder]} times)" if self.retries else ""
            self.tell(Event(cell, "failed", error=f"lost with its job {job.id}{again}{job.last_words()}"))

    def _stored(self, cell: Cell) -> bool:
        """Tell what the disk says of a cell, where it says something."""
        event = runner.found(cell)
        if event is not None:
            self.tell(event._replace(what="done") if event.what == "found" else event)
        return event is not None


class Squeue:
    """Which jobs SLURM knows no more: one call for all of them, which needs no accounting as sacct does."""

    def __init__(self) -> None:
        self._asked = time.monotonic()  # a job is in the queue before sbatch answers

    def over(self, jobs: list[Job]) -> set[str]:
        """Ids of the jobs that are not queued and do not run; none where it was asked a moment ago."""
        if time.monotonic() - self._asked < SQUEUE_S:
            return set()
        self._asked = time.monotonic()
        command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={getpass.getuser()}"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        except (OSError, subprocess.SubprocessError):  # the controller is busy: ask again later
            return set()
        return {job.id for job in jobs} - set(said.split())
