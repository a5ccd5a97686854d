"""`run export run=RUN`: a finished run as one ONNX graph, refused where it differs from the original."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from outlie import distributed, log
from outlie.build import build
from outlie.commands.evaluate import finished, same_training
from outlie.commands.train import plain
from outlie.errors import UserError
from outlie.export import check, graph
from outlie.export.finished import Finished, opened, sha256, some_rows
from outlie.export.session import Exported
from outlie.metrics import cost
from outlie.results import store


def main(cfg: DictConfig) -> int:
    """Find or write the graph, check it and say where it is; exit code."""
    now, run = plain(cfg), Path(cfg.run)
    _, then = finished(run)
    refuse_changes(then, now)
    path, beside = places(now, run)
    if now["dry_run"]:
        print(OmegaConf.to_yaml(cfg, resolve=True), end="")
        print(
            f"# plan: {path}\n#   load {run / 'model.ckpt'}\n#   trace, translate, check on {now['rows']} rows, store"
        )
        return 0
    graph.check_installed()
    options = build(now["trainer"], list(now["allow"]))
    if options.threads:
        torch.set_num_threads(options.threads)
    done = read(beside)
    same = done and done["model_sha256"] == sha256(run / "model.ckpt") and done["opset"] == now["opset"]
    if done and same and not now["force"] and path.is_file() and sha256(path) == done["onnx_sha256"]:
        print(f"done already, on {done['finished']} (force=true starts again)", file=sys.stderr)
    else:
        with store.lock(path.parent), log.to(path.parent / "log.txt"):
            done = compute(now, opened(run, now["allow"]), path)
            store.write_json(beside, done)
    show(done, path)
    return 0


def places(now: dict[str, Any], run: Path) -> tuple[Path, Path]:
    """The graph, and the json that says what was measured."""
    if now["file"] is None:
        folder = Path(now["output_dir"]) / "export" / run.name
        return folder / "model.onnx", folder / "export.json"
    path = Path(now["file"]).expanduser()
    if path.suffix != ".onnx":
        raise UserError(f"file={path}: the name of a graph ends in .onnx: file={path.with_suffix('.onnx')}")
    return path, path.with_suffix(".json")


def refuse_changes(then: dict[str, Any], now: dict[str, Any]) -> None:
    """UserError where the overrides ask for another detector, backbone, seed or dataset than the run's."""
    try:
        same_training(then, now, ())
    except UserError as error:
        words = str(error).partition(" would need")[0]
        raise UserError(
            f"run export takes a run as it is: run train with {words} first, and export that run"
        ) from error
    if store.training_identity(now)["dataset"] != store.training_identity(then)["dataset"]:
        raise UserError("run export checks the graph on the data of the run: keep its dataset")


def compute(now: dict[str, Any], run: Finished, path: Path) -> dict[str, Any]:
    """Write and check the graph; what was measured. Where the check fails, there is no graph."""
    started = store.now()
    rows = some_rows(run.split(), now["rows"])
    threshold = (run.result.get("threshold") or {}).get("value")
    candidate = path.with_name(f".{path.stem}.unchecked.onnx")
    try:
        with cost.seconds() as exporting:
            said = graph.write(candidate, run, rows, now["opset"])
        log.log.info("graph     %.1f s, %.2f MB", exporting.wall, candidate.stat().st_size / 1e6)
        with cost.seconds() as checking:
            step = 64 if rows.ndim > 2 else 1024
            score = torch.cat([run.score(part) for part in rows.split(step)]).numpy()
            try:
                exported = Exported(candidate, torch.get_num_threads())
                found = check.compare(exported, rows.numpy(), score, threshold)
            except UserError as error:
                said_of = f"{run.result['detector']} is not exported: {error}"
                raise UserError(f"{said_of}; {graph.INSTEAD}") from error
        log.log.info("check     %.1f s", checking.wall)
        with store.writing(path):
            candidate.replace(path)
    finally:
        with contextlib.suppress(OSError):
            candidate.unlink(missing_ok=True)
    return {
        "schema": store.SCHEMA,
        "status": "done",
        **{name: value for name, value in said.items() if name != "calibration"},
        "file": str(path),
        "bytes": path.stat().st_size,
        "opset": now["opset"],
        "model_sha256": sha256(run.folder / "model.ckpt"),
        "onnx_sha256": sha256(path),
        "check": found,
        "cost": {"export_s": exporting.wall, "export_cpu_s": exporting.cpu, "check_s": checking.wall},
        "environment": store.environment("cpu") | versions(),
        "started": started,
        "finished": store.now(),
        "error": None,
    }


def versions() -> dict[str, str]:
    """Of the packages of the export extra."""
    from importlib import metadata

    return {name: metadata.version(name) for name in ("onnx", "onnxruntime", "onnxscript")}


def read(path: Path) -> dict[str, Any] | None:
    """A finished export.json, or None."""
    import json

    try:
        done = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return done if isinstance(done, dict) and "onnx_sha256" in done else None


def show(done: dict[str, Any], path: Path) -> None:
    """What was written, and how far it is from the original."""
    batches = done["check"]["batches"]
    worst = max(one["of_what_is_allowed"] for one in batches)
    print(f"{done['detector']} on {done['dataset']}: {done['bytes'] / 1e6:.2f} MB")
    print(
        f"scores of {done['check']['rows']} test rows: largest difference "
        f"{max(one['largest_difference'] for one in batches):.2g}, {worst:.2g} of what is allowed (1e-4 relative)"
    )
    if done["threshold"] is None:
        print("the run has no threshold, so the graph has no verdict")
    else:
        differ = max(one["verdicts_that_differ"] for one in batches)
        near = max(one["near_the_threshold"] for one in batches)
        words = f"verdicts: all equal at {done['threshold']:.6g}" if not differ else f"verdicts: {differ} differ"
        print(f"{words}; {near} rows lie within rounding of the threshold")
    print(path)


if __name__ == "__main__":
    sys.exit(distributed.work(main))
