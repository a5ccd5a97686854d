"""`run eval run=RUN`: score a finished run again: its own or other test sets, other scoring options or metrics."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from outlie import cell, distributed, log
from outlie.build import build
from outlie.commands import compare
from outlie.commands.train import plain
from outlie.data.split import Rows, Split
from outlie.detectors.base import Detector, Views
from outlie.errors import UserError
from outlie.explain import explain
from outlie.metrics.evaluation import Metrics
from outlie.results import checkpoint, evaluated, heatmaps, segmented, store

EXPLAINED_ROWS = 1000  # the highest scores


def main(cfg: DictConfig) -> int:
    """Find or compute the evaluation and show it; exit code."""
    from outlie.results.summary import render

    now, allow = plain(cfg), list(cfg.allow)
    run = Path(now.pop("run"))
    trained, then = finished(run)
    asked, options = now.pop("detectors"), build(now["trainer"], allow)
    if asked is not None:
        if now["explain"]:
            raise UserError("explain=true tells about the run's own detector: leave detectors= or explain= away")
        same_training(then, now, ())  # each detector is taken as it is by default: other options would be lost
        if not distributed.started() and distributed.wanted(options) > 1 and not cfg.dry_run:
            return distributed.launch(cfg, "outlie.commands.evaluate", distributed.wanted(options))
        distributed.join(options)
        return compare.main(now | {"detectors": asked}, then, run, trained)
    detector = build(now["detector"], allow)
    same_training(then, now, detector.scoring)
    folder = store.eval_folder(now, run)
    if cfg.dry_run:
        print(OmegaConf.to_yaml(cfg, resolve=True), end="")
        print(f"# plan: {folder}\n#   load {run / 'model.ckpt'}\n#   score, evaluate, store")
        return 0
    metrics = build(now["metrics"], allow)
    result = store.read_result(folder)
    explained = (folder / "explanations.parquet").exists() or not now["explain"]
    if (
        result is None
        or result["status"] != "done"
        or cfg.force
        or result["evaluated_with"] != evaluated.key(metrics)
        or not explained
    ):
        with store.lock(folder), log.to(folder / "log.txt"):
            result = compute(now, then, detector, metrics, allow, run, folder, trained)
            store.write_json(folder / "result.json", result)
    else:
        print(f"done already, on {result['finished']} (force=true starts again)", file=sys.stderr)
    render(result, folder)
    if now["explain"]:
        show_explanations(folder / "explanations.parquet")
    return 0


def finished(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The result and the config of a run; UserError where it is not finished."""
    trained = store.read_result(run)
    if trained is None or trained["status"] != "done":
        raise UserError(f"{run} is not a finished run; run train --config {run / 'config.yaml'} finishes it")
    return trained, plain(OmegaConf.load(run / "config.yaml"))  # type: ignore[arg-type]


def same_training(then: dict[str, Any], now: dict[str, Any], scoring: tuple[str, ...]) -> None:
    """UserError where the overrides ask for something that only another training could give."""
    changed = [
        f"{section}.{key}"
        for section in ("detector", "backbone")
        for key in sorted({*then[section], *now[section]})
        if then[section].get(key) != now[section].get(key) and not (section == "detector" and key in scoring)
    ]
    changed += ["seed"] * (then["seed"] != now["seed"])  # the split is the seed's, so is what was trained on
    if changed:
        allowed = ", ".join(f"detector.{name}" for name in scoring) or "none"
        raise UserError(
            f"{', '.join(changed)} would need another training: use run train. "
            f"Options that only change the score: {allowed}"
        )


def compute(
    now: dict[str, Any],
    then: dict[str, Any],
    detector: Detector,
    metrics: Metrics,
    allow: list[str],
    run: Path,
    folder: Path,
    trained: dict[str, Any],
) -> dict[str, Any]:
    """Score calibration rows and test sets; writes config, scores and explanations, returns the result."""
    started, seed, options = store.now(), then["seed"], build(now["trainer"], allow)
    backbone = build(now["backbone"], allow)
    columns = checkpoint.load_model(run / "model.ckpt", backbone, detector)
    # the options that choose a dataset's test sets do not make it another one; nor does a file that has moved
    other = store.training_identity(now)["dataset"] != store.training_identity(then)["dataset"]
    own = build((then if other else now)["dataset"], allow).load(seed)
    split = build(now["dataset"], allow).load(now["seed"]) if other else own
    if other and (own.protocols or split.protocols):
        raise UserError(
            f"the run's classes are those of {then['choices']['dataset']}: choose its out-of-distribution sets, "
            "dataset.far=[...], not another dataset"
        )
    if split.train.x.shape[1:] != own.train.x.shape[1:] or split.columns != columns:
        raise UserError(
            f"the run was trained on {len(columns)} columns ({', '.join(columns[:5])}, ...), these data have "
            f"{len(split.columns)} ({', '.join(split.columns[:5])}, ...)"
        )
    if now["explain"] and ("network" in backbone.provides or not columns):
        raise UserError("explain=true tells which columns of a table made the score: it needs backbone=identity")
    tests = {"test": every_row(split)} if other else split.tests
    ground = cell.Ground(
        dataclasses.replace(split, tests=tests, calibration=own.calibration),
        backbone, options, folder, Path(now["output_dir"]) / "views",
    )  # fmt: skip
    cell.refuse_gaps(now["choices"], detector, ground)
    maps: dict[str, torch.Tensor] = {}
    scores, scoring = cell.scored(detector, ground, maps)
    about = cell.about(ground.split)
    evaluation = evaluated.evaluate_scores(scores, metrics, seed, split.findings, split.protocols, about)
    pixels = heatmaps.report(ground.parts, maps)
    heatmaps.pictures(ground.parts, maps, about, scores, (evaluation["threshold"] or {}).get("value"), folder)
    segmentation = {} if other else segmented.report(ground)
    segmented.pictures(ground, segmentation)
    with store.whole(folder / "config.yaml") as temporary:
        OmegaConf.save(OmegaConf.create(now | {"run": str(run)}), temporary)
    store.write_scores(folder / "scores.parquet", scores, about)
    if now["explain"]:
        for name in tests:
            views = ground.views(name, with_input=True)
            write_explanations(folder / "explanations.parquet", detector.to("cpu"), views, scores[name], columns)
    kept = ("schema", "status", "detector", "backbone", "seed")
    return {
        **{name: trained[name] for name in kept},
        "run": str(run),
        "protocol": split.protocol if not other else f"{split.protocol}, every row",
        "dataset": "/".join(filter(None, (now["choices"]["dataset"], now["dataset"].get("part")))),
        "data_sha256": split.data_sha256,
        "lints": split.findings,
        "protocols": split.protocols,
        **evaluation,
        **({"pixels": pixels} if pixels else {}),
        **({"segmentation": segmentation} if segmentation else {}),
        "latency": None,
        "cost": scoring,
        "environment": store.environment(str(ground.device)),
        "code_version": store.code_version(),
        "started": started,
        "finished": store.now(),
        "error": None,
    }


def every_row(split: Split) -> Rows:
    """All rows of a dataset, each once, as one test set; the rows that its protocol would train on are normal."""
    parts = [split.train, *([split.calibration] if split.calibration is not None else []), *split.tests.values()]
    index = torch.cat([rows.index for rows in parts])
    _, first = torch.unique(index, return_inverse=True)
    keep = torch.full((int(first.max()) + 1,), len(index)).scatter_reduce(0, first, torch.arange(len(index)), "amin")
    known = all(rows.label is not None for rows in split.tests.values())
    labels = [torch.zeros(len(rows), dtype=torch.int64) if rows.label is None else rows.label for rows in parts]
    return Rows(torch.cat([rows.x for rows in parts])[keep], index[keep], torch.cat(labels)[keep] if known else None)


def write_explanations(
    path: Path, detector: Detector, views: Views, scored: tuple[Any, Any, Any], columns: tuple[str, ...]
) -> None:
    """explanations.parquet: index, label, score and one column a feature, for the rows with the highest scores."""
    import polars as pl

    index, label, score = scored
    top = torch.from_numpy(score).argsort(descending=True, stable=True)[:EXPLAINED_ROWS]
    method, explanation_BD = explain(detector, views[top])
    log.log.info("explain   %d rows by %s", len(top), method)
    frame = pl.DataFrame({"index": index[top], "score": score[top], "label": None if label is None else label[top]})
    features = pl.DataFrame(explanation_BD.double().numpy(), schema=list(columns))
    clash = set(frame.columns) & set(columns)
    with store.whole(path) as temporary:
        frame.rename({name: f"_{name}" for name in clash}).hstack(features).write_parquet(temporary)


def show_explanations(path: Path, rows: int = 5, features: int = 3) -> None:
    """The highest scores and the features that made them, as a table."""
    import polars as pl
    from rich.console import Console
    from rich.table import Table

    frame = pl.read_parquet(path).head(rows)
    columns = frame.columns[3:]
    table = Table(
        "row", "score", "label", "features that made the score", title="Why: the highest scores", title_justify="left"
    )
    for index, score, label, *values in frame.iter_rows():
        order = sorted(range(len(values)), key=lambda j: -abs(values[j]))[:features]
        why = ", ".join(f"{columns[j]} {values[j]:+.3g}" for j in order)
        table.add_row(str(index), f"{score:.4g}", {0: "normal", 1: "anomaly", None: "-"}[label], why)
    Console(highlight=False).print(table, f"all {len(columns)} features of the top rows: {path}")


if __name__ == "__main__":
    sys.exit(distributed.work(main))
