"""`run train`: data, views, train, fit, calibrate, evaluate, store; what is done already is found, not done again."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from outlie import distributed, log, stages
from outlie.build import build
from outlie.detectors.base import set_up
from outlie.detectors.training import Recipe
from outlie.gather import rank_and_world
from outlie.loggers import Trackers, open_loggers
from outlie.metrics import cost
from outlie.metrics.evaluation import Metrics
from outlie.results import checkpoint, evaluated, published, store
from outlie.trainer import Options


def main(cfg: DictConfig) -> int:
    """Run the config's cell, or every part of a dataset of several files; exit code."""
    options, allow = build(cfg.trainer, cfg.allow), list(cfg.allow)
    dataset = build(cfg.dataset, allow)
    parts = dataset.parts() if getattr(dataset, "part", "") is None else []
    cells = [OmegaConf.merge(cfg, {"dataset": {"part": part}}) for part in parts] or [cfg]
    if cfg.dry_run:
        print(OmegaConf.to_yaml(cfg, resolve=True), end="")
        for cell in cells:
            print(plan(plain(cell), build(cell.detector, allow)))
        return 0
    if not distributed.started() and distributed.wanted(options) > 1:
        return distributed.launch(cfg, "outlie.commands.train", distributed.wanted(options))
    distributed.join(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    results = [run_cell(plain(cell), options, allow) for cell in cells]
    if len(results) > 1 and rank_and_world()[0] == 0:
        from outlie.results.summary import render_group

        render_group(results)
    return 0


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain containers."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return {str(name): value for name, value in container.items()}


def plan(cfg: dict[str, Any], detector: Any) -> str:
    """What would be done, in the order it would be done, and what of it is done."""
    folder = store.run_folder(cfg)
    done = (store.read_result(folder) or {}).get("status") == "done"
    steps = ["load the data"]
    if hasattr(detector, "loss"):
        weights = store.stage_folder(cfg, detector.scoring) / "weights.ckpt"
        steps.append(
            f"take the weights of {weights}"
            if weights.exists()
            else f"train the detector, {how_long(detector.recipe, cfg['trainer']['max_epochs'])}"
        )
    if hasattr(detector, "fit"):
        steps.append("fit the detector")
    steps.append("calibrate, evaluate, store")
    return f"# plan: {folder}\n" + (
        f"#   done already: {folder / 'result.json'}" if done else "\n".join(f"#   {step}" for step in steps)
    )


def how_long(recipe: Recipe, max_epochs: int | None) -> str:
    """The length of a training in words, before the data are known."""
    words = f"{recipe.epochs} epochs"
    if recipe.min_steps:
        words += f", or {recipe.min_steps} steps where these are more"
    return words + (f", at most {max_epochs} epochs" if max_epochs else "")


def run_cell(cfg: dict[str, Any], options: Options, allow: list[str]) -> dict[str, Any]:
    """One dataset, backbone, detector and seed: its result, from the store or computed now, and shown."""
    from outlie.results.summary import render

    folder, metrics = store.run_folder(cfg), build(cfg["metrics"], allow)
    first = rank_and_world()[0] == 0
    result = store.read_result(folder)
    if result and result["status"] == "done" and not cfg["force"]:
        if result["evaluated_with"] != evaluated.key(metrics):  # other metrics: the scores are there
            result |= evaluated.evaluate_scores(store.read_scores(folder), metrics, cfg["seed"], result["lints"])
            if first:
                draw(folder, result)
                store.write_json(folder / "result.json", result)
        if first:
            print(
                f"done already, on {result['finished']} with {result['code_version']} (force=true starts again)",
                file=sys.stderr,
            )
            render(result, folder)
        return result
    if not first:  # the folder belongs to rank 0
        return compute(cfg, options, metrics, allow, folder, open_loggers([], folder, cfg, folder.name))
    with store.lock(folder), log.to(folder / "log.txt"):
        with store.whole(folder / "config.yaml") as temporary:
            OmegaConf.save(OmegaConf.create(cfg), temporary)
        trackers = open_loggers([build(cfg["logger"], allow)], folder, cfg, folder.name)
        started = store.now()
        try:
            result = compute(cfg, options, metrics, allow, folder, trackers)
        except BaseException as error:
            trackers.close(ok=False)
            if isinstance(error, KeyboardInterrupt):
                log.log.debug("interrupted; the same command goes on from the last checkpoint")
            elif isinstance(error, Exception):
                log.log.debug("%s", traceback.format_exc())
                header = {"schema": store.SCHEMA, "status": "failed", "started": started, "finished": store.now()}
                store.write_json(folder / "result.json", header | {"error": "".join(traceback.format_exception(error))})
            raise
        result |= {"started": started, "finished": store.now(), "error": None}
        store.write_json(folder / "result.json", result)
        trackers.summary(
            {f"{test}/{key}": value for test, values in result["metrics"].items() for key, value in values.items()}
        )
        trackers.close(ok=True)
        render(result, folder)
    return result


def compute(
    cfg: dict[str, Any], options: Options, metrics: Metrics, allow: list[str], folder: Path, trackers: Trackers
) -> dict[str, Any]:
    """The stages; writes scores.parquet, model.ckpt, metrics.csv and summary.png, returns the result."""
    from outlie.metrics import latency

    seed, say, device = cfg["seed"], log.log.info, distributed.device(options)
    first = rank_and_world()[0] == 0
    detector = build(cfg["detector"], allow)  # first: what it refuses needs no data
    split = build(cfg["dataset"], allow).load(seed)
    dataset, detector_name = cfg["choices"]["dataset"], cfg["choices"]["detector"]
    part = cfg["dataset"].get("part")  # one file of several: a published cell is the mean of all of them
    say("data      %s, protocol %s: %s", dataset, split.protocol, stages.describe(split))
    for finding in split.findings:
        say("finding   %s", finding)

    backbone = build(cfg["backbone"], allow)
    backbone.setup(split)
    views = {"train": stages.extract(backbone, split.train, options, folder)}
    held_out = {"calibration": split.calibration} if split.calibration is not None else {}
    held_out |= split.tests
    views |= {name: stages.extract(backbone, rows, options, folder) for name, rows in held_out.items()}

    spec = stages.spec_of(views["train"], seed, backbone)
    set_up(detector, spec)
    spent: dict[str, Any] = {}
    if hasattr(detector, "loss"):
        bar = first and (options.progress == "on" or (options.progress == "auto" and sys.stderr.isatty()))
        stage = store.stage_folder(cfg, detector.scoring)

        def log_epoch(losses: list[float]) -> None:
            trackers.log(len(losses) - 1, {"train_loss": losses[-1]})

        title = f"train {detector_name}" if bar else ""
        spent = stages.trained(detector, views["train"], seed, options, stage, title, log_epoch, cfg["force"])
        say(
            "train     %d epochs, %.1f s (CPU %.1f s), loss %.4g",
            len(spent["losses"]),
            spent["train_s"],
            spent["train_cpu_s"],
            spent["losses"][-1],
        )
    if hasattr(detector, "fit"):
        with cost.seconds() as fitting:
            detector.to(device).fit(views["train"].map(lambda t: t.to(device)))
        spent |= {"fit_s": fitting.wall, "fit_cpu_s": fitting.cpu}
        say("fit       %d rows, %.2f s", len(views["train"]), fitting.wall)

    scores, tests = {}, 0
    with cost.seconds() as scoring:
        for name, rows in held_out.items():
            label = None if rows.label is None else rows.label.numpy()
            scores[name] = (rows.index.numpy(), label, stages.score(detector, views[name], device).numpy())
            tests += len(rows)
    say("score     %d rows, %.2f s", tests, scoring.wall)

    lints = [*split.findings, *stages.batch_lint(detector, views[next(iter(split.tests))], device)]
    result: dict[str, Any] = {
        "schema": store.SCHEMA,
        "status": "done",
        "protocol": split.protocol,
        "dataset": f"{dataset}/{part}" if part else dataset,
        "data_sha256": split.data_sha256,
        "detector": detector_name,
        "backbone": cfg["choices"]["backbone"],
        "seed": seed,
        "rows": {"train": len(split.train), **{name: len(rows) for name, rows in held_out.items()}},
        "lints": lints,
        **evaluated.evaluate_scores(scores, metrics, seed, lints),
        "published": {"test": cell} if not part and (cell := published.cell_of(cfg)) else {},
        "latency": None,
        "environment": store.environment(str(device)),
        "code_version": store.code_version(),
    }
    if not first:
        return result
    rows = next(iter(split.tests.values())).x
    backbone.to(device)
    if metrics.latency:
        with stages.threads(0):  # batch 1 on one thread: what a row costs a core
            result["latency"] = latency.measure(backbone, detector, rows, device, metrics.latency_seconds)
    losses = spent.pop("losses", [])
    result["cost"] = {
        **spent,
        "score_s": scoring.wall,
        "score_cpu_s": scoring.cpu,
        **cost.stored(detector),
        "flops_per_row": cost.flops(backbone, detector, rows[:1].to(device)),
        **cost.peak_memory(device),
    }
    store.write_scores(folder / "scores.parquet", scores)
    checkpoint.save_model(folder / "model.ckpt", backbone, detector, spec, split.columns)
    store.write_curve(folder / "metrics.csv", losses)
    draw(folder, result)
    return result


def draw(folder: Path, result: dict[str, Any]) -> None:
    """summary.png, from the stored scores."""
    import polars as pl

    from outlie.results import plots

    with store.writing(folder / "summary.png"):
        plots.figure(pl.read_parquet(folder / "scores.parquet"), result, folder)


if __name__ == "__main__":
    sys.exit(distributed.work(main))
