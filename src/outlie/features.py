"""Views computed once: a backbone's forward pass over rows, kept in files under the hash of all that it depends on.

    key = sha256(network's code, settings and weights, rows, precision, torch's version)

An entry is a folder of raw arrays and a manifest.json. It appears whole, by a rename, and is checked before it is used.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import shutil
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import lightning as L
import numpy as np
import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from outlie.data.split import Rows
from outlie.detectors.base import Views
from outlie.errors import UserError
from outlie.gather import gather_shares, mean_over_ranks, rank_and_world, share
from outlie.lightning import Extract, make_trainer
from outlie.log import log
from outlie.stages import rows_at_once
from outlie.trainer import Options

VERSION = 1  # of the files, and of what `key` covers
PLAIN = bool | int | float | str | tuple | list | FunctionType | BuiltinFunctionType | None
Found = dict[str, Tensor | None]  # None = the network has no such view


def key(backbone: nn.Module, rows: Rows, precision: str) -> str:
    """Hex SHA-256 of what the views depend on; labels, device and number of processes are no part of it."""
    said: list[Any] = [VERSION, str(torch.__version__), precision, str(getattr(backbone, "transform_id", ""))]
    for name, module in backbone.named_modules():  # a stride or an input size is no weight, but as decisive
        public = {k: v for k, v in vars(module).items() if k[0] != "_" and k != "training" and isinstance(v, PLAIN)}
        said.append([name, str(type(module)), {k: getattr(v, "__qualname__", repr(v)) for k, v in public.items()}])
    # the code that is not torch's: who edits a `forward` wants new views
    code = {base.__module__ for module in backbone.modules() for base in type(module).__mro__}
    files = [getattr(sys.modules.get(name), "__file__", None) for name in sorted(code) if name.split(".")[0] != "torch"]
    said += [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files if file and Path(file).is_file()]
    tensors = {**backbone.state_dict(), **dict(backbone.named_buffers())}  # also buffers that are not saved
    if fingerprint := getattr(rows.x, "fingerprint", None):  # decoded when indexed
        said.append([*rows.x.shape, str(fingerprint())])
    else:
        tensors[" rows"] = rows.x
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        if not isinstance(value, Tensor):  # a state dict may hold anything
            value = torch.frombuffer(bytearray(repr(value).encode()), dtype=torch.uint8)
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        for part in value.detach().flatten().split(2**24):
            digest.update(part.cpu().view(torch.uint8).numpy())
    return digest.hexdigest()


def views(
    backbone: nn.Module, rows: Rows, options: Options, cache: Path, folder: Path,
    wanted: tuple[str, ...] = ("features", "logits"),
) -> Views:  # fmt: skip
    """The wanted views (features, logits, maps) of all rows, in order, on every rank, from the cache or computed now.

    Raises:
        UserError: the network's output is not finite.
    """
    entry = cache / "-".join((key(backbone, rows, options.precision), *sorted(wanted)))
    found = read(entry, len(rows), wanted)
    if not agreed(found is not None):
        with held(entry) as writable:
            found = read(entry, len(rows), wanted)  # what another process wrote while this one waited
            if not agreed(found is not None):
                keep = Keep(entry, wanted, rows, writable, options)
                found = compute(backbone, options, folder, keep) or read(entry, len(rows), wanted)
    readers = mean_over_ranks(torch.tensor(float(found is not None)))
    if found is None or readers < 1:  # the disk of a rank is another
        found = {view: agreed(found and found[view]) for view in wanted}
    return Views(y=rows.row_y, **found)


def read(entry: Path, n: int, wanted: tuple[str, ...]) -> Found | None:
    """The wanted views of an entry; None where anything is missing, cut short, changed or unreadable."""
    try:
        content = json.loads((entry / "manifest.json").read_text())
        told = content["views"]
        if (content["entry"], content["crc32"]) != (entry.stem, zlib.crc32(json.dumps(told).encode())):
            raise ValueError("the manifest was changed, or is another entry's")
        found = {view: told[view] and mapped(entry / f"{view}.bin", told[view], n) for view in wanted}
        with contextlib.suppress(OSError):
            (entry / "manifest.json").touch()  # used now: what prune takes last
    except Exception as error:  # whatever is wrong with it, it can be built again
        log.debug("views     %s is not used: %s: %s", entry, type(error).__name__, error)
        return None
    return found


def mapped(path: Path, told: dict[str, Any], n: int) -> Tensor:
    """A file as a tensor, if it is what the manifest told; copy-on-write, as a read-only one would end who writes."""
    shape, dtype, size, crc = tuple(told["shape"]), np.dtype(told["dtype"]), path.stat().st_size, 0
    if shape[0] != n or not int(np.prod(shape)) * dtype.itemsize == told["bytes"] == size:
        raise ValueError(f"{path.name} has {size} bytes, and should have {told['bytes']}, of {n} rows")
    with open(path, "rb") as file:
        while part := file.read(2**24):
            crc = zlib.crc32(part, crc)
    if crc != told["crc32"]:
        raise ValueError(f"{path.name} has another checksum than it should have")
    return torch.from_numpy(np.memmap(path, dtype, "c", shape=shape) if size else np.empty(shape, dtype))


def compute(backbone: nn.Module, options: Options, folder: Path, keep: Keep) -> Found | None:
    """One forward pass, in which each rank does its share; the views on rank 0, None on the others."""
    # Lightning would leave the network in float64; views that are read do not
    network = copy.deepcopy(backbone) if options.precision == "64-true" else backbone
    try:
        trainer = make_trainer(options, folder, callbacks=[keep])
        trainer.predict(Extract(network), shares(keep.x, keep.chunks), return_predictions=False)
        found = keep.finish() if keep.first else None
    except SystemExit as exit:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from exit
    finally:
        keep.clear()
    agreed(True)  # rank 0 has finished
    return found


def shares(x: Any, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
    """This rank's share of each chunk of rows; the next is decoded while the network works."""
    # a rank without a row in a small last chunk computes the first one: all must take part in collectives
    mine = [rows[share(len(rows))] if len(share(len(rows))) else rows[:1] for rows in chunks]
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(x.__getitem__, mine[0])
        for rows in mine[1:]:
            batch, coming = coming.result(), thread.submit(x.__getitem__, rows)
            yield batch
        yield coming.result()


class Keep(L.Callback):
    """Takes the views of a pass on rank 0, batch by batch: into files, or into memory once the disk takes no more."""

    def __init__(self, entry: Path, wanted: tuple[str, ...], rows: Rows, writable: bool, options: Options) -> None:
        self.entry, self.wanted, self.x, self.done = entry, wanted, rows.x, 0
        self.chunks = torch.arange(len(rows)).split(rank_and_world()[1] * rows_at_once(tuple(rows.x.shape[1:])))
        self.first, self.started = rank_and_world()[0] == 0, time.monotonic()
        self.told: dict[str, Any] = dict.fromkeys(wanted)  # what the manifest will tell; None = no such view
        self.arrays: dict[str, np.ndarray] = {}  # where they go when they cannot go to the disk
        self.partial = entry.with_suffix(".partial") if writable and self.first else None
        shown = self.first and options.progress != "off" and sys.stderr.isatty()
        self.bar = Progress(
            TextColumn("views"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} rows"),
            TextColumn("{task.fields[speed]:.0f}/s"), TimeRemainingColumn(), console=Console(stderr=True),
            transient=True, disable=not shown,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=len(rows), speed=0.0)

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        n, parts = len(self.chunks[batch_idx]), {}
        for view in self.wanted:
            if (part := getattr(outputs, view)) is None:
                continue
            if len(part) != len(batch):
                raise UserError(f"the network made {len(part)} rows of {view} from {len(batch)} rows")
            half = part.dtype in (torch.float16, torch.bfloat16)  # detectors are given float32 or float64
            part = gather_shares((part.float() if half else part).cpu()[: len(share(n))], n).contiguous()
            if wrong := int((~part.isfinite()).flatten(1).any(1).sum()):
                raise UserError(
                    f"{view} of the network are NaN or Inf in {wrong} of the rows {self.done} to {self.done + n - 1}; "
                    "look at its weights and at the data, or set trainer.precision=32-true"
                )
            parts[view] = part.numpy()
        self.take(parts if self.first else {})
        self.done += n
        if (elapsed := time.monotonic() - self.started) > 1:
            self.bar.start()
            self.bar.update(self.task, completed=self.done, speed=self.done / elapsed)

    def take(self, parts: dict[str, np.ndarray]) -> None:
        """Append rows to each view."""
        for view, part in parts.items():
            if view not in self.arrays:
                shape = (len(self.x), *part.shape[1:])
                self.arrays[view] = whole = np.empty(shape, part.dtype)  # takes no memory until it is written to
                self.told[view] = {"shape": shape, "dtype": part.dtype.str, "bytes": whole.nbytes, "crc32": 0}
        try:  # written, not mapped: a full disk ends a process that writes to a mapping
            if self.partial and not self.done:
                shutil.rmtree(self.partial, ignore_errors=True)  # of a process that was killed
                self.partial.mkdir()
            for view, part in parts.items() if self.partial else ():
                with open(self.partial / f"{view}.bin", "ab") as file:
                    file.write(part)
                self.told[view]["crc32"] = zlib.crc32(part, self.told[view]["crc32"])
        except OSError as error:
            self.give_up(error)
        for view, part in parts.items() if not self.partial else ():
            self.arrays[view][self.done : self.done + len(part)] = part

    def give_up(self, error: OSError) -> None:
        """Go on in memory, with what the files hold already."""
        log.info("finding   the cache takes no more (%s): views stay in memory, the next run computes them anew", error)
        for view, whole in self.arrays.items() if self.done else ():
            path, shape = self.partial / f"{view}.bin", (self.done, *whole.shape[1:])
            whole[: self.done] = np.memmap(path, whole.dtype, "r", shape=shape)
        self.clear()

    def finish(self) -> Found:
        """The views, from their files if these could be renamed into place."""
        told = {"views": self.told, "crc32": zlib.crc32(json.dumps(self.told).encode())}
        try:
            if self.partial:
                (self.partial / "manifest.json").write_text(json.dumps({"entry": self.entry.name, **told}))
                found = read(self.partial, self.done, self.wanted)
                if found is None:
                    raise UserError(f"{self.partial} is not what was written there; set another cache folder")
                shutil.rmtree(self.entry, ignore_errors=True)  # it was no longer what it should be
                self.partial.rename(self.entry)
                return found
        except OSError as error:
            self.give_up(error)
        return {view: told and torch.from_numpy(self.arrays[view]) for view, told in self.told.items()}

    def clear(self) -> None:
        """Leave nothing half done."""
        self.bar.stop()
        if self.partial:
            shutil.rmtree(self.partial, ignore_errors=True)
        self.partial = None


@contextlib.contextmanager
def held(entry: Path) -> Iterator[bool]:
    """Have the entry's lock, on every rank once rank 0 has it, or false: there is none. A killed process lets it go."""
    lock, state, wait = FileLock(entry.with_suffix(".lock")), "", 0
    while not state:
        try:
            if rank_and_world()[0] == 0:
                entry.parent.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=wait)
            state = "held"
        except Timeout:
            if not wait:
                log.info("waiting   for another process that computes the same views")
            wait = 60  # then the other ranks hear of it: they wait for half an hour at most
        except (OSError, NotImplementedError) as error:
            log.info("finding   the cache cannot be written (%s): views stay in memory", error)
            state = "refused"
        state = agreed(state)
    try:
        yield state == "held"
    finally:
        lock.release()


def agreed(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    told = [value]
    if rank_and_world()[1] > 1:
        torch.distributed.broadcast_object_list(told, 0)
    return told[0]


def kept_in(cache: Path) -> list[tuple[float, int, Path]]:
    """(last use, bytes, folder) of every entry, oldest first; what a killed process left was never used."""
    kept = []
    for folder in cache.glob("*/"):
        with contextlib.suppress(OSError):  # removed in the meantime
            manifest, size = folder / "manifest.json", sum(file.stat().st_size for file in folder.iterdir())
            kept.append((manifest.stat().st_mtime if manifest.exists() else 0.0, size, folder))
    return sorted(kept)


def size_of(cache: Path) -> tuple[int, int]:
    """Number of entries and their bytes."""
    kept = kept_in(cache)
    return len(kept), sum(size for _, size, _ in kept)


def prune(cache: Path, keep_bytes: int) -> None:
    """Remove the entries used longest ago until so many bytes are left; not those that a process works on."""
    _, total = size_of(cache)
    for _, size, folder in kept_in(cache):
        if total > keep_bytes:
            with contextlib.suppress(OSError), FileLock(folder.with_suffix(".lock"), timeout=0):
                shutil.rmtree(folder)
                total -= size
