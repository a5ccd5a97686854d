"""`run bench runs=[...]`: latency, throughput, memory, parameters and FLOPs of finished runs and of their exports."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from outlie import cell, distributed, log, runs
from outlie.build import build
from outlie.commands.evaluate import finished
from outlie.commands.export import read
from outlie.commands.train import plain
from outlie.errors import UserError
from outlie.export import timing
from outlie.export.finished import Finished, headline, opened, sha256, some_rows
from outlie.export.session import Exported
from outlie.metrics import cost
from outlie.results import store, trade_off

DRIFT = 0.1  # between the first and the last third of the time, from which on it is said


@dataclass
class Candidate:
    """What is measured, with what is known of it before."""

    about: dict[str, Any]
    timed: timing.Timed


class UnderRuntime:
    """An exported graph as a scorer: what it is handed are raw rows."""

    def __init__(self, exported: Exported) -> None:
        self.exported = exported

    def score(self, rows: Tensor) -> Tensor:
        """(B,) scores."""
        return torch.from_numpy(self.exported.score(rows.numpy()))


def main(cfg: DictConfig) -> int:
    """Find or measure the trade-off of the runs and show it; exit code."""
    now = plain(cfg)
    options = build(now["trainer"], list(now["allow"]))
    folders, files, left = named(now)
    if now["threads"]:
        torch.set_num_threads(now["threads"])
    device = distributed.device(options)
    where = store.environment(str(device))
    seen = [f"{folder.name} {finished(folder)[0]['finished']}" for folder in folders]
    exports = [export_of(folder, now) for folder in folders]
    seen += [sha256(file) for file in (*files, *exports) if file]
    asked = {name: now[name] for name in ("batch_sizes", "rounds", "seconds", "threads", "seed")}
    folder = Path(now["output_dir"]) / "bench" / store.digest([seen, asked, where])
    if now["dry_run"]:
        print(OmegaConf.to_yaml(cfg, resolve=True), end="")
        print(f"# plan: {folder}\n" + "\n".join(f"#   time {one}" for one in (*folders, *files)))
        return 0
    result = stored(folder)
    if result and not now["force"]:
        print(f"done already, on {result['finished']} (force=true starts again)", file=sys.stderr)
    else:
        with store.lock(folder), log.to(folder / "log.txt"):
            result = compute(now, folders, files, left, device, options, folder) | {"environment": where}
            store.write_json(folder / "bench.json", result)
    trade_off.render(result["runs"])
    for name, reason in result["left_out"].items():
        print(f"left out: {name}: {reason}")
    for finding in result["findings"]:
        print(f"! {finding}")
    print(f"{folder}: bench.png, bench.csv, bench.json")
    return 0


def named(now: dict[str, Any]) -> tuple[list[Path], list[Path], dict[str, str]]:
    """Folders of runs, exported files, and what of `all` is left out and why; UserError for a name of no run."""
    asked = [now["runs"]] if isinstance(now["runs"], str | int) else list(now["runs"])
    left: dict[str, str] = {}
    if asked == ["all"]:
        folders = []
        for name in runs.names(now["output_dir"]):
            folder = runs.find(name, now["output_dir"])
            if (store.read_result(folder) or {}).get("status") == "done":
                folders.append(folder)
            else:
                left[name] = "not finished"
        if not folders:
            raise UserError(f"runs=all: there is no finished run in {now['output_dir']}; run train makes one")
        return folders, [], left
    if not asked:
        raise UserError("runs=[] names no run: runs=[NAME,HASH], or runs=all")
    files = [Path(str(name)).expanduser() for name in asked if str(name).endswith(".onnx")]
    folders = [runs.find(str(name), now["output_dir"]) for name in asked if not str(name).endswith(".onnx")]
    for folder in folders:
        finished(folder)
    for file in files:
        if not file.is_file():
            raise UserError(f"no file {file}; run export run=RUN makes one")
    return list(dict.fromkeys(folders)), list(dict.fromkeys(files)), left


def export_of(folder: Path, now: dict[str, Any]) -> Path | None:
    """The run's own export, where there is one of its present weights."""
    file = Path(now["output_dir"]) / "export" / folder.name / "model.onnx"
    done = read(file.with_name("export.json"))
    fresh = done and file.is_file() and done["model_sha256"] == sha256(folder / "model.ckpt")
    return file if fresh else None


def compute(
    now: dict[str, Any], folders: list[Path], files: list[Path], left: dict[str, str], device: torch.device,
    options: Any, folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """Open everything, time it in rounds; writes bench.csv and bench.png, returns the result."""
    started, largest = store.now(), max(now["batch_sizes"])
    candidates: list[Candidate] = []
    for one in (*folders, *files):
        name = one.name if one in folders else str(one)
        try:
            found = of_run(one, now, largest, device) if one in folders else [of_file(one, now, largest)]
        except UserError as error:
            left[name] = str(error)
            continue
        candidates += found
    if not candidates:
        raise UserError("nothing to measure:\n" + "\n".join(f"  - {name}: {why}" for name, why in left.items()))
    for label in labels(candidates):
        log.log.info("measure   %s", label)
    turns = len(candidates) * len(now["batch_sizes"]) * now["rounds"]
    with progress(cell.bar_title(options, "bench"), turns) as advance:
        timed = [one.timed for one in candidates]
        with cost.seconds() as spent:
            timing.measure(timed, now["batch_sizes"], now["rounds"], now["seconds"], now["seed"], advance)
    rows = []
    for label, one in zip(labels(candidates), candidates):
        most = max(size for size, readings in one.timed.readings.items() if readings)
        timings = timing.summary(one.timed, now["batch_sizes"])
        rows.append(one.about | {"label": label, "timings": timings, "memory_mb": timing.memory(one.timed, most)})
    rows = trade_off.marked(rows)
    trade_off.write_csv(rows, folder / "bench.csv")
    trade_off.draw(rows, folder / "bench.png")
    return {
        "schema": store.SCHEMA,
        "status": "done",
        "runs": rows,
        "left_out": left,
        "findings": findings(rows),
        "asked": {name: now[name] for name in ("batch_sizes", "rounds", "seconds", "threads", "seed")},
        "cost": {"measure_s": spent.wall, "measure_cpu_s": spent.cpu, **cost.peak_memory(device)},
        "code_version": store.code_version(),
        "started": started,
        "finished": store.now(),
    }


def of_run(folder: Path, now: dict[str, Any], largest: int, device: torch.device) -> list[Candidate]:
    """The run, and beside it its export, where there is one: both on rows of its own test sets."""
    run = opened(folder, now["allow"])
    rows = few(run, largest)
    run.backbone.to(device)
    run.detector.to(device)
    with torch.no_grad():
        flops = cost.flops(run.front, run.detector, rows[:1].to(device))
    on, metrics = headline(run.result)
    about = {
        "kind": "run",
        "run": folder.name,
        **{name: run.result[name] for name in ("dataset", "protocol", "detector", "backbone", "seed")},
        "measured_on": on,
        "metrics": metrics,
        **cost.stored(run.backbone, run.detector),
        "flops_per_row": flops,
        "device": str(device),
    }
    found = [Candidate(about, timing.Timed(run.front, run.detector, rows.to(device)))]
    if file := export_of(folder, now):
        scorer = UnderRuntime(Exported(file, now["threads"]))
        found.append(Candidate(about | {"kind": "onnx", "device": "cpu"}, timing.Timed(_same, scorer, rows)))
    return found


def of_file(file: Path, now: dict[str, Any], largest: int) -> Candidate:
    """An exported file, on rows of its run where that is here, else on drawn ones of the right shape."""
    exported = Exported(file, now["threads"])
    try:
        rows = few(opened(runs.find(exported.info["run"], now["output_dir"]), now["allow"]), largest)
    except UserError:
        generator = torch.Generator().manual_seed(now["seed"])
        rows = torch.rand(largest, *exported.input_shape, generator=generator, dtype=torch.float64)
        rows = (255 * rows).to(torch.uint8) if exported.dtype == "uint8" else rows.numpy().astype(exported.dtype)
        rows = torch.as_tensor(rows)
    names = ("run", "dataset", "protocol", "detector", "backbone", "seed", "measured_on", "metrics", "parameters")
    about = {name: exported.info[name] for name in (*names, "buffers", "flops_per_row")}
    return Candidate(about | {"kind": "onnx", "device": "cpu"}, timing.Timed(_same, UnderRuntime(exported), rows))


def few(run: Finished, largest: int) -> Tensor:
    """Raw test rows for a few batches of the largest size; UserError where the data are gone, whatever was raised."""
    try:
        return some_rows(run.split(), timing.BATCHES * largest)
    except (OSError, ValueError) as error:
        raise UserError(f"its data cannot be read: {error}") from error


def labels(candidates: list[Candidate]) -> list[str]:
    """Short names, all different: the detector, with backbone or hash where that is not enough."""
    made: list[str] = []
    tries = ("{detector}", "{detector} on {backbone}", "{detector} on {dataset}", "{detector} {hash}")
    for form in tries:
        made = [
            form.format(**one.about, hash=one.about["run"].rpartition("-")[2])
            + (" (onnx)" if one.about["kind"] == "onnx" else "")
            for one in candidates
        ]
        if len(set(made)) == len(made):
            return made
    return [f"{name} [{i}]" for i, name in enumerate(made)]


def findings(rows: list[dict[str, Any]]) -> list[str]:
    """What is to be said about the measurement: drift, batch sizes left out, runs without a recall."""
    said = []
    drifts = [(abs(t["drift"]), row["label"], t) for row in rows for t in row["timings"] if t["p50_ms"] is not None]
    worst, label, one = max(drifts, key=lambda drift: drift[0])
    if worst > DRIFT:
        said.append(
            f"the machine was not steady: {label} at batch {one['batch']} took {100 * one['drift']:+.0f} % from the "
            "first to the last third of the session; each round has every run, so that it hits all alike"
        )
    for row in rows:
        for timing_of in row["timings"]:
            if timing_of["p50_ms"] is None:
                said.append(f"{row['label']}: batches of {timing_of['batch']} take too long and were not timed")
        if row["metrics"].get(trade_off.RECALL) is None:
            said.append(f"{row['label']} has no recall at 1 % false alarms, so it is no point of the picture")
    return said


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr, or none without a title; what is called after each turn."""
    columns = (TextColumn(title), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    shown = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True, disable=not title)
    task = shown.add_task("", total=total)
    with shown:
        yield lambda: shown.advance(task)


def stored(folder: Path) -> dict[str, Any] | None:
    """A finished bench.json, or None."""
    try:
        return json.loads((folder / "bench.json").read_text())
    except (OSError, ValueError):
        return None


def _same(rows: Tensor) -> Tensor:
    return rows


if __name__ == "__main__":
    sys.exit(distributed.work(main))
