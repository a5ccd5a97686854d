"""How to run, not what to compute: devices, precision, how long, how chatty."""

from dataclasses import dataclass
from typing import Literal

from outlie.options import NonNegativeFloat, PositiveInt


@dataclass(frozen=True)
class Options:
    """Where and how training runs; no option but precision, max_epochs and the number of processes can change a number.

    Args:
        accelerator: auto takes a GPU where there is one
        devices: processes on each node, or auto for as many as there are devices
        num_nodes: machines
        strategy: any Lightning strategy: auto, ddp, fsdp, ...
        precision: of the training arithmetic; scores and metrics stay float64 where they are defined so
        max_epochs: a cap for every training stage; null leaves each stage its own number
        threads: most CPU threads; null leaves torch's choice; work too small to share takes one
        compile: torch.compile the training step
        checkpoint_seconds: at least this long between two checkpoints of an unfinished training, and fifty times as
            long as the last one took to write; 0 = at the end of every epoch
        progress: bars; auto shows them on a terminal only
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: PositiveInt | Literal["auto"] = 1
    num_nodes: PositiveInt = 1
    strategy: str = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = "32-true"
    max_epochs: PositiveInt | None = None
    threads: PositiveInt | None = None
    compile: bool = False
    checkpoint_seconds: NonNegativeFloat = 10
    progress: Literal["auto", "on", "off"] = "auto"
