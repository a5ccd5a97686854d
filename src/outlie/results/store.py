"""Run folders: identity by content, files written whole or not at all, one process at a time."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from polars.exceptions import PolarsError

from outlie import signatures
from outlie.errors import BusyError, UserError

SCHEMA = 1
# what a stored number cannot depend on: metrics come from stored scores, the rest is where and how loud
NO_NUMBER = {
    "metrics",
    "logger",
    "output_dir",
    "force",
    "dry_run",
    "debug",
    "allow",
    "choices",
    "experiment",
    "run",
    "explain",
    "detectors",
    "search",
}
TRAINER_NUMBERS = {"precision", "max_epochs"}


def identity(cfg: dict[str, Any]) -> dict[str, Any]:
    """What a run's numbers depend on: no paths, logger, devices or metrics; a file counts by its content."""
    kept = {name: section for name, section in cfg.items() if name not in NO_NUMBER}
    if "teacher" in kept:  # a folder, whose name ends in the hash of what its numbers depend on
        kept["teacher"] = Path(kept["teacher"]).name
    if isinstance(cfg.get("trainer"), dict):
        kept["trainer"] = {name: value for name, value in cfg["trainer"].items() if name in TRAINER_NUMBERS}
    for section in ("dataset", "backbone", "detector"):
        signature = signatures.read(kept[section]["_target_"]) if section in kept else None
        paths = {p.name for p in signature.parameters if "Path" in (p.annotation or "")} if signature else set()
        if section in kept:
            kept[section] = {
                name: _files_by_content(value) if name in paths else value for name, value in kept[section].items()
            }
    return kept


def training_identity(cfg: dict[str, Any]) -> dict[str, Any]:
    """What trained weights depend on: a run's identity, less the options of the dataset that choose its test sets."""
    depends = identity(cfg)
    signature = signatures.read(cfg["dataset"]["_target_"])
    tests = signature.scoring if signature else ()
    return depends | {"dataset": {name: value for name, value in depends["dataset"].items() if name not in tests}}


def _files_by_content(value: Any) -> Any:
    if isinstance(value, dict):  # dataset.ood: name -> file
        return {name: _files_by_content(inner) for name, inner in value.items()}
    if isinstance(value, str) and os.path.isfile(value):
        with open(value, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if isinstance(value, str) and os.path.isdir(value):
        return _listing(value)
    return value


def _listing(folder: str) -> str:
    """SHA-256 of the names below a folder, with sizes and times of change: reading a million images takes too long."""
    digest = hashlib.sha256()
    for where, below, names in os.walk(folder, followlinks=True):
        below.sort()
        for name in sorted(names):
            status = os.stat(os.path.join(where, name))
            place = os.path.relpath(os.path.join(where, name), folder)
            digest.update(f"{place} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def digest(content: Any) -> str:
    """Ten characters that stand for the content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def run_folder(cfg: dict[str, Any]) -> Path:
    """outputs/train/<dataset>-<detector>-<hash>, or outputs/distill/... of a student."""
    command = "distill" if "teacher" in cfg else "train"
    names = [cfg["choices"][group].replace("/", "_") for group in ("dataset", "detector")]
    if part := cfg["dataset"].get("part"):
        names[0] += f"_{part}"
    return Path(cfg["output_dir"]) / command / f"{names[0]}-{names[1]}-{digest(identity(cfg))}"


def eval_folder(cfg: dict[str, Any], run: Path) -> Path:
    """outputs/eval/<the run's name>-<hash of what is asked of it>."""
    return Path(cfg["output_dir"]) / "eval" / f"{run.name}-{digest(identity(cfg))}"


def comparison_folder(cfg: dict[str, Any], run: Path) -> Path:
    """outputs/eval/<the run's name>-detectors-<hash of what all detectors share>."""
    shared = {name: value for name, value in identity(cfg).items() if name != "detector"}
    return Path(cfg["output_dir"]) / "eval" / f"{run.name}-detectors-{digest(shared)}"


def detector_name(choice: str, section: dict[str, Any]) -> str:
    """<detector>-<hash of its options>, the folder of one detector in a comparison."""
    return f"{choice.replace('/', '_')}-{digest(section)}"


def stage_folder(cfg: dict[str, Any], scoring: tuple[str, ...]) -> Path:
    """Where the trained weights lie: shared by all runs whose detectors differ in scoring options only."""
    depends = training_identity(cfg)
    depends["detector"] = {name: value for name, value in depends["detector"].items() if name not in scoring}
    name = depends["detector"]["_target_"].rsplit(".", 1)[-1].lower()
    return Path(cfg["output_dir"]) / "stages" / f"{name}-{digest(depends)}"


def backbone_folder(cfg: dict[str, Any]) -> Path:
    """Where a backbone's trained weights lie: shared by all runs on the same training rows, whatever the detector."""
    depends = {name: value for name, value in training_identity(cfg).items() if name != "detector"}
    signature = signatures.read(cfg["backbone"]["_target_"])
    after = signature.scoring if signature else ()  # how features are taken: trains nothing
    depends["backbone"] = {name: value for name, value in depends["backbone"].items() if name not in after}
    name = cfg["choices"]["backbone"].replace("/", "_")
    return Path(cfg["output_dir"]) / "stages" / f"{name}-{digest(depends)}"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """UserError where the disk does not take `path`; on a full one torch and polars raise errors of their own."""
    try:
        yield
    except (OSError, RuntimeError, PolarsError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        said = " ".join(str(error).split()) or type(error).__name__
        reason = reason or f"the disk took only a part ({said})"
        raise UserError(f"cannot write {path}: {reason}; free space or choose another output_dir=") from error


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends well, and vanishes when it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the folder; BusyError for a second process that wants it. A killed process lets go by itself."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115 (held for the whole block)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another output_dir=") from error
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no POSIX locks here: two equal commands at once are the user's to avoid
            pass
        except OSError as error:
            raise BusyError(f"another process is computing {folder}; wait for it, or stop it") from error
        yield


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a small file whole."""
    with whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, default=str) + "\n")


def read_result(folder: Path) -> dict[str, Any] | None:
    """result.json, or None where there is none, or a truncated one; UserError for a schema that is not ours."""
    try:
        result = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(result, dict) or "status" not in result:
        return None
    if (schema := result.get("schema")) != SCHEMA:
        raise UserError(
            f"{folder / 'result.json'} has schema {schema}, this outlie reads {SCHEMA}: read it with the version that "
            "wrote it, choose another output_dir=, or compute it again with force=true"
        )
    return result


ABOUT = ("kind", "group")  # columns of scores.parquet beside the four that are always there


def write_scores(
    path: Path, splits: dict[str, tuple[Any, Any, Any]], about: dict[str, dict[str, Any]] | None = None
) -> None:
    """scores.parquet: one row a sample; `splits` maps a name to (index, label or None, score).

    Args:
        about: name -> column -> values, for what else is known of the rows: kind (of anomaly), group.
    """
    import polars as pl

    more = {name for columns in (about or {}).values() for name in columns}
    schema = {"kind": pl.String, "group": pl.Int64}
    frames = [
        pl.DataFrame(
            {
                "split": [name] * len(score),
                "index": index,
                "label": [None] * len(score) if label is None else label,
                "score": score,
            },
            schema={"split": pl.String, "index": pl.Int64, "label": pl.Int8, "score": pl.Float64},
        ).with_columns(
            pl.Series(column, (about or {}).get(name, {}).get(column, [None] * len(score)), schema[column])
            for column in ABOUT
            if column in more
        )
        for name, (index, label, score) in splits.items()
    ]
    with whole(path) as temporary:
        pl.concat(frames).write_parquet(temporary)


def read_scores(folder: Path) -> dict[str, tuple[Any, Any, Any]]:
    """What `write_scores` wrote: name -> (index, label or None, score) as numpy arrays."""
    import polars as pl

    path = folder / "scores.parquet"
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"cannot read {path}: {error}; force=true computes the run again") from error
    splits = {}
    for (name,), part in frame.group_by("split", maintain_order=True):
        label = None if part["label"].null_count() else part["label"].to_numpy()
        splits[str(name)] = (part["index"].to_numpy(), label, part["score"].to_numpy())
    return splits


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment(device: str) -> dict[str, Any]:
    """Versions and hardware that a number may depend on."""
    import torch

    versions = {name: metadata.version(name) for name in ("torch", "lightning", "numpy", "scikit-learn", "hydra-core")}
    return {
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name()
        if device.startswith("cuda")
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


@functools.cache
def code_version() -> str:
    """The package's version, and the commit it runs from if it runs from a checkout."""
    version = metadata.version("outlie")
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return version
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return version
    return f"{version}+{done.stdout.strip()}" if done.returncode == 0 else version


def write_curve(path: Path, losses: list[float], validation: list[float] | None = None) -> None:
    """metrics.csv: the loss of every epoch, on training rows and, where there are some, on rows held out."""
    lines = [f"{epoch},{loss!r}" for epoch, loss in enumerate(losses)]
    if validation:
        lines = [f"{line},{loss!r}" for line, loss in zip(lines, validation)]
    header = "epoch,train_loss,validation_loss" if validation else "epoch,train_loss"
    with whole(path) as temporary:
        temporary.write_text("\n".join([header, *lines, ""]))
