"""Cells on a Ray cluster: an actor for each place, given the next cell when it has done one; a lost one is replaced."""

from __future__ import annotations

import os
import socket
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from outlie.errors import UserError
from outlie.options import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from outlie.results import store
from outlie.sweeps import local, runner
from outlie.sweeps.cells import Cell, Event, Tell

REACH_S = 5.0  # seconds in which a cluster's address has to answer
STILLBORN = 3  # actors in a row that die before they begin: it is not the cells
STORE_BYTES = 100 * 2**20  # of Ray's object store on this machine: nothing but answers goes through it
SETTINGS = b"\x04"  # RFC 9113: the type of the frame that an HTTP/2 server, as every gRPC server is, sends first
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + SETTINGS + bytes(5)
CARRIED = ("OUTLIE_", "XDG_CACHE_HOME", "WANDB_")  # environment that a run reads


@dataclass
class Ray:
    """Processes of a Ray cluster whose nodes see this folder, or of one that is started here for the sweep.

    A cluster started here ends with the sweep, however that ends. Ray asks for a token between its processes and keeps
    it in ~/.ray/auth_token; RAY_AUTH_MODE=disabled does without.

    Args:
        address: host:port of the cluster's head, or auto for the one of this node; null = start one on this machine
        parallel: cells at once; null = as many as the cluster has room for
        cpus: cores of a cell, and its threads
        gpus: GPUs of a cell; 0.5 = two share one
        memory_gib: memory of a cell, in GiB
        retries: how often a cell is tried again whose process or node was lost
    """

    address: str | None = None
    parallel: PositiveInt | None = None
    cpus: PositiveInt = 1
    gpus: NonNegativeFloat = 0.0
    memory_gib: PositiveFloat = 1.5
    retries: NonNegativeInt = 1

    def run(self, cells: list[Cell], tell: Tell) -> None:
        """Compute the cells.

        Raises:
            UserError: where Ray is missing, the cluster out of reach or lost, or a node does not see the folder.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise UserError("launcher=ray needs Ray: pip install 'outlie[ray]'") from error
        folder = Path(cells[0].config["output_dir"]).absolute()
        with store.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._connect(ray)
        try:
            _Pool(ray, self, cells, tell, folder).run()
        finally:
            ray.shutdown()

    def _connect(self, ray: ModuleType) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
        if self.address is None:
            options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES, "num_cpus": local.cores()}
            options |= {"num_gpus": len(local.gpus())}
        elif address := last_cluster() if self.address == "auto" else self.address:
            reach(address)
        try:
            ray.init(address=self.address or "local", **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())
            raise UserError(f"cannot reach the Ray cluster launcher.address={self.address}: {said}") from error

    def places(self, total: dict[str, float]) -> int:
        """How many cells the resources of a cluster hold."""
        needs = {"CPU": float(self.cpus), "GPU": self.gpus, "memory": self.memory_gib * 2**30}
        return min(int(total.get(name, 0.0) / need) for name, need in needs.items() if need)


def last_cluster() -> str | None:
    """What auto stands for: RAY_ADDRESS, or what the last `ray start` of this node left, which may be gone."""
    left = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    return os.environ.get("RAY_ADDRESS") or (left.read_text().strip() if left.is_file() else None)


def reach(address: str) -> None:
    """UserError where no Ray listens at host:port; ray.init would try for ever, and take no Ctrl-C."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise UserError(f"launcher.address={address} is not host:port of a Ray cluster's head, nor auto")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S) as asked:
            asked.sendall(HTTP2)
            if os.environ.get("RAY_USE_TLS", "0") == "0" and asked.recv(9)[3:4] != SETTINGS:
                raise OSError("something else than Ray listens there")
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cannot reach the Ray cluster launcher.address={address}: {error}; "
            "`ray status` on its head says the address, launcher.address=null starts one here"
        ) from error


class Worker:
    """Lives in a process of the cluster."""

    def begin(self, folder: str, outputs: str, environment: dict[str, str], threads: int) -> str:
        """Stand where the sweep stands; why that cannot be, or nothing."""
        for needed in (folder, outputs):
            if not Path(needed).is_dir():
                return f"node {socket.gethostname()} does not see {needed}: a sweep needs a disk that all nodes share"
        os.chdir(folder)
        os.environ.update(environment)
        import torch

        from outlie.sweeps import worker

        torch.set_num_threads(threads)
        self._data = worker.Data()
        return ""

    def compute(self, command: str, config: dict[str, Any]) -> dict[str, Any]:
        """One cell."""
        from outlie.sweeps import worker

        return worker.compute(command, config, self._data)


class _Place:
    """An actor, or the one that replaces it, and the cell that it is at."""

    def __init__(self) -> None:
        self.actor: Any = None
        self.cell: Cell | None = None
        self.ground = ""


class _Pool:
    """The actors of a sweep."""

    def __init__(self, ray: ModuleType, launcher: Ray, cells: list[Cell], tell: Tell, folder: Path) -> None:
        self.ray, self.launcher, self.tell, self.folder = ray, launcher, tell, folder
        self.queue, self.count = local.Queue(cells), len(cells)
        self.lost: Counter[Path] = Counter()
        self.stillborn = 0
        self.pending: dict[Any, _Place] = {}  # what is awaited of whom
        self.idle: list[_Place] = []
        self.environment = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
        self.actors = ray.remote(Worker).options(
            num_cpus=launcher.cpus, num_gpus=launcher.gpus, memory=int(launcher.memory_gib * 2**30)
        )

    def run(self) -> None:
        total = self.ray.cluster_resources()
        places = min(self.launcher.places(total), self.launcher.parallel or self.count, self.count)
        if not places:
            cpus, gpus, gib = total.get("CPU", 0), total.get("GPU", 0), total.get("memory", 0) / 2**30
            raise UserError(
                f"the Ray cluster ({cpus:g} CPUs, {gpus:g} GPUs, {gib:.1f} GiB) has no room for a cell; "
                "lower launcher.cpus, launcher.gpus or launcher.memory_gib"
            )
        for _ in range(places):
            self._begin(_Place())
        while self.queue or any(place.cell for place in self.pending.values()):
            ready, _ = self.ray.wait(list(self.pending), timeout=local.BUSY_S)
            for reference in ready:
                self._hear(reference, self.pending.pop(reference))
            waiting, self.idle = self.idle, []
            for place in waiting:
                self._next(place)

    def _begin(self, place: _Place) -> None:
        place.actor = self.actors.remote()
        begun = place.actor.begin.remote(os.getcwd(), str(self.folder), self.environment, self.launcher.cpus)
        self.pending[begun] = place

    def _next(self, place: _Place) -> None:
        cell = place.cell = self.queue.next(place.ground)
        if cell is None:
            self.idle.append(place)
            return
        place.ground = cell.ground
        self.tell(Event(cell, "started"))
        self.pending[place.actor.compute.remote(cell.command, cell.config)] = place

    def _hear(self, reference: Any, place: _Place) -> None:
        try:
            answer = self.ray.get(reference)
        except self.ray.exceptions.RayActorError as error:
            self._replace(place, " ".join(str(error).split()))
            return
        except self.ray.exceptions.RayError as error:
            raise UserError(f"the Ray cluster is lost: {error}; the same command goes on") from error
        cell, place.cell = place.cell, None
        self.idle.append(place)
        if cell is None:  # it has begun
            if answer:
                raise UserError(answer)
            self.stillborn = 0
        elif answer["status"] == "busy":
            self.queue.later(cell)
        else:
            self.tell(Event(cell, answer["status"], answer["seconds"], answer["cpu_s"], answer["error"]))

    def _replace(self, place: _Place, why: str) -> None:
        """Another actor for one that died, and another try for its cell."""
        cell, place.cell = place.cell, None
        self.ray.kill(place.actor)  # it may be alive where only the network was lost
        if cell is None:
            self.stillborn += 1
            if self.stillborn >= STILLBORN:
                raise UserError(f"no process of the Ray cluster begins: {why}; is outlie installed on every node?")
        elif (event := runner.found(cell)) is not None:
            self.tell(event._replace(what="done") if event.what == "found" else event)
        else:
            self.lost[cell.folder] += 1
            if self.lost[cell.folder] <= self.launcher.retries:
                self.queue.later(cell)
            else:
                again = f" ({self.lost[cell.folder]} times)" if self.launcher.retries else ""
                self.tell(Event(cell, "failed", error=f"lost with its process on the Ray cluster{again}: {why}"))
        self._begin(place)
