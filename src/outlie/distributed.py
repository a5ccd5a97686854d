"""Several processes for one run: started by outlie itself, by torchrun or by SLURM; all ranks walk the same stages."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf

from outlie.errors import UserError
from outlie.trainer import Options

GRACE_S = 10  # that the others have to say what happened, once one process has failed


def started() -> bool:
    """True inside a process group's process: torchrun and SLURM's launchers set these."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def wanted(options: Options) -> int:
    """Processes on this node; `auto` = one a GPU, one without."""
    if options.devices == "auto":
        return torch.cuda.device_count() if options.accelerator in ("auto", "gpu") else 1
    return int(options.devices)


def launch(cfg: DictConfig, module: str, processes: int) -> int:
    """Run `python -m module CONFIG` in so many processes, end all when one fails, and return the exit code.

    torchrun would do, but it hides a user's mistake in forty lines of its own and imports torch once more.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else the processes would outlive this one
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as files:
        config = Path(folder) / "config.yaml"
        OmegaConf.save(cfg, config)
        said = [files.enter_context(open(Path(folder) / f"{rank}.txt", "w+")) for rank in range(processes)]
        shared = {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)), **os.environ,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes),
        }  # fmt: skip
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", module, str(config)], stderr=said[rank] if rank else None,
                env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(processes)
        ]  # fmt: skip
        try:
            return wait(ranks, said)
        finally:
            end(ranks)


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait(ranks: list[subprocess.Popen[bytes]], said: list[IO[str]]) -> int:
    """The exit code once all are done, or soon after one failed; with the words of those to blame."""
    while not any(codes := [rank.poll() for rank in ranks]):
        if None not in codes:
            return 0
        time.sleep(0.05)
    first = next(rank for rank, code in enumerate(codes) if code)
    with contextlib.suppress(subprocess.TimeoutExpired):
        for rank in ranks:
            rank.wait(GRACE_S)
    codes = [rank.poll() for rank in ranks]
    blamed = codes.index(2) if 2 in codes else first
    code = codes[blamed] or 1
    for rank in range(1, len(ranks)):  # rank 0 speaks for itself, and the others may only have lost their connection
        said[rank].seek(0)
        if codes[rank] and (rank == blamed or code != 2) and (words := said[rank].read().strip()):
            print(f"process {rank}: {words}", file=sys.stderr)
    if code < 0:
        print(f"error: process {blamed} of {len(ranks)} was ended by signal {-code}", file=sys.stderr)
    return max(code, 1)


def end(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Leave no process behind: a Ctrl-C has reached them too, so they may be about to end by themselves."""
    for ask in (lambda rank: None, lambda rank: rank.terminate(), lambda rank: rank.kill()):
        for rank in ranks:
            if rank.poll() is None:
                ask(rank)
        with contextlib.suppress(subprocess.TimeoutExpired):
            for rank in ranks:
                rank.wait(3)


def work(main: Callable[[DictConfig], int]) -> int:
    """What a process that `launch` started does: the config's run; the exit code, mistakes without a traceback."""
    cfg = OmegaConf.load(sys.argv[1])
    assert isinstance(cfg, DictConfig)
    try:
        return main(cfg)
    except UserError as error:
        code, text = 2, str(error)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if cfg.debug:
            raise
        code, text = 1, f"{type(error).__name__}: {' '.join(str(error).split())}\ndebug=true shows the traceback"
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    print(f"error: {text}", file=sys.stderr)
    return code


def join(options: Options) -> None:
    """Enter the process group that the environment describes, once."""
    if started() and not dist.is_initialized():
        on_gpu = device(options).type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device(options))
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")  # scores are gathered on the CPU


def device(options: Options) -> torch.device:
    """Where this process scores: its GPU if there is one and the options allow it."""
    if options.accelerator in ("auto", "gpu") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")
