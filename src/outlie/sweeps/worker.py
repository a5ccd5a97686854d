"""A process that computes cells, one after the other, as it is told on stdin: imports and data are shared by all.

In: a line of JSON for each cell, {"command", "config", "together"}.
Out: one for each, {"status", "seconds", "cpu_s", "error"}.
When the other side is gone, so is this process: nobody would take its results.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import queue
import sys
import threading
import time
from typing import IO, Any

KEPT = 2  # datasets in memory


def main() -> int:
    """Serve until stdin ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes where errors go
    cells: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin, cells), daemon=True).start()
    importlib.import_module("outlie.commands.distill")  # before the first cell, not on its clock
    data = Data()
    while True:
        asked = json.loads(cells.get())
        answer = compute(asked["command"], asked["config"], data, asked["together"])
        print(json.dumps(answer), file=out, flush=True)


def _listen(source: IO[str], cells: queue.Queue[str]) -> None:
    for line in source:
        cells.put(line)
    os._exit(0)  # in the middle of a cell, too: it is computed again, from its last checkpoint


class Data:
    """Keeps the last datasets: the next cell is mostly one of the same."""

    def __init__(self) -> None:
        import torch

        self._kept: dict[str, Any] = {}
        self.threads = torch.get_num_threads()  # of a cell that asks for no number

    def load(self, section: dict[str, Any], name: str, seed: int, allow: list[str]) -> Any:
        """As `cell.load`, from memory where it is there."""
        from outlie import cell

        key = json.dumps([section, seed, allow], sort_keys=True)
        split = self._kept.pop(key, None) or cell.load(section, name, seed, allow)
        self._kept[key] = split  # the last one is the youngest
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return split


def compute(
    command: str, config: dict[str, Any], data: Data, together: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """One cell, whatever happens: status done, failed or busy (another process is at it), and what it cost.

    Args:
        together: configs of cells that differ in the seed only, this one among them: their training comes first.
    """
    from outlie.errors import BusyError, UserError

    wall, cpu = time.perf_counter(), time.process_time()
    status, error = "done", ""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if together:
                from outlie import batched

                batched.prepare(together, data.load)
            _run(command, config, data)
    except BusyError as busy:
        status, error = "busy", str(busy)
    except UserError as mistake:
        status, error = "failed", str(mistake)
    except Exception as broken:
        status, error = "failed", f"{type(broken).__name__}: {' '.join(str(broken).split())}"
    return {
        "status": status,
        "error": error,
        "seconds": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
    }


def _run(command: str, config: dict[str, Any], data: Data) -> None:
    import torch

    from outlie import distributed, hydra_route
    from outlie.build import build
    from outlie.commands import distill, train
    from outlie.errors import UserError
    from outlie.results import store
    from outlie.results.words import last_line
    from outlie.sweeps import pruning

    watch = pruning.watch(config.pop(pruning.KEY, None))
    if command == "distill":
        distill.check(config)
    options = build(config["trainer"], config["allow"])
    if distributed.wanted(options) > 1:  # processes of its own
        if train.main(hydra_route.frozen(config)):
            error = (store.read_result(store.run_folder(config)) or {}).get("error")
            raise UserError(last_line(error) or "a process of it failed")
        return
    torch.set_num_threads(options.threads or data.threads)
    train.run_cell(config, options, config["allow"], data.load, alone=False, watch=watch)


if __name__ == "__main__":
    sys.exit(main())
