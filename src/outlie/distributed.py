"""Several processes for one run: started by outlie itself, by torchrun or by SLURM; all ranks walk the same stages."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf

from outlie.trainer import Options


def started() -> bool:
    """True inside a process group's process: torchrun and SLURM's launchers set these."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def wanted(options: Options) -> int:
    """Processes on this node; `auto` = one a GPU, one without."""
    if options.devices == "auto":
        return torch.cuda.device_count() if options.accelerator in ("auto", "gpu") else 1
    return int(options.devices)


def launch(cfg: DictConfig, module: str, processes: int) -> int:
    """Run `python -m module CONFIG` in so many processes under torchrun and return its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        OmegaConf.save(cfg, config)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)), **os.environ}
        return subprocess.run([*torchrun, "-m", module, str(config)], env=environment).returncode


def join() -> None:
    """Enter the process group that the environment describes, once."""
    if started() and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def device(options: Options) -> torch.device:
    """Where this process scores: its GPU if there is one and the options allow it."""
    if options.accelerator in ("auto", "gpu") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")
