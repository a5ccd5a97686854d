"""`run train`: data, views, train, fit, calibrate, evaluate, store; what is done already is found, not done again."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from outlie import cell, distributed, log, stages
from outlie.build import build
from outlie.detectors.vae import VAE
from outlie.errors import BusyError
from outlie.gather import rank_and_world
from outlie.lightning import Told
from outlie.loggers import Trackers, open_loggers
from outlie.metrics import cost
from outlie.metrics.evaluation import Metrics
from outlie.results import (
    checkpoint,
    classified,
    denoised,
    density_report,
    distilled,
    evaluated,
    heatmaps,
    imputed,
    kinds,
    published,
    segmented,
    store,
)
from outlie.trainer import Options


def main(cfg: DictConfig) -> int:
    """Run the config's cell, or every part of a dataset of several files; exit code."""
    options, allow = build(cfg.trainer, cfg.allow), list(cfg.allow)
    dataset = build(cfg.dataset, allow)
    parts = dataset.parts() if getattr(dataset, "part", "") is None else []
    cells = [OmegaConf.merge(cfg, {"dataset": {"part": part}}) for part in parts] or [cfg]
    if cfg.dry_run:
        print(OmegaConf.to_yaml(cfg, resolve=True), end="")
        for one in cells:
            print(plan(plain(one), build(one.detector, allow), build(one.backbone, allow)))
        return 0
    if not distributed.started() and distributed.wanted(options) > 1:
        return distributed.launch(cfg, "outlie.commands.train", distributed.wanted(options))
    distributed.join(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    results = [run_cell(plain(one), options, allow) for one in cells]
    if len(results) > 1 and rank_and_world()[0] == 0:
        from outlie.results.summary import render_group

        render_group(results)
    return 0


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain containers."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return {str(name): value for name, value in container.items()}


def plan(cfg: dict[str, Any], detector: Any, backbone: Any = None) -> str:
    """What would be done, in the order it would be done, and what of it is done."""
    folder = store.run_folder(cfg)
    done = (store.read_result(folder) or {}).get("status") == "done"
    steps = ["load the data"]
    if (recipe := getattr(backbone, "recipe", None)) and backbone.trained:
        weights = store.backbone_folder(cfg) / "weights.ckpt"
        verb = "distil" if "teacher" in cfg else "train"
        steps.append(
            f"take the backbone's weights of {weights}"
            if weights.exists()
            else f"{verb} the backbone, {how_long(recipe, cfg['trainer']['max_epochs'])}"
        )
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


def how_long(recipe: Any, max_epochs: int | None) -> str:
    """The length of a training in words, before the data are known."""
    words = f"{recipe.steps} steps" if getattr(recipe, "steps", None) else f"{recipe.epochs} epochs"
    if getattr(recipe, "min_steps", 0):
        words += f", or {recipe.min_steps} steps where these are more"
    return words + (f", at most {max_epochs} epochs" if max_epochs else "")


def run_cell(
    cfg: dict[str, Any],
    options: Options,
    allow: list[str],
    load: cell.Load = cell.load,
    alone: bool = True,
    watch: Told = lambda losses, validation: None,
) -> dict[str, Any]:
    """One dataset, backbone, detector and seed: its result, from the store or computed now, and shown.

    Args:
        load: how to get the data; a sweep hands in what keeps them for the next cell.
        alone: false = one of many: nothing is printed, and the picture waits until somebody asks for this run.
        watch: told the losses after each epoch; it may raise, which ends the run.
    """
    from outlie.results.summary import render

    folder, metrics = store.run_folder(cfg), build(cfg["metrics"], allow)
    first = rank_and_world()[0] == 0
    result = None if cfg["force"] else store.read_result(folder)
    if result and result["status"] == "done":
        if result["evaluated_with"] != evaluated.key(metrics):  # other metrics: the scores are there
            result |= evaluated.evaluate_scores(
                store.read_scores(folder), metrics, cfg["seed"], result["lints"], result.get("protocols"),
                kinds.read(folder),
            )  # fmt: skip
            if first:
                store.write_json(folder / "result.json", result)
                (folder / "summary.png").unlink(missing_ok=True)  # it is of the metrics before
        if first and alone:
            if not (folder / "summary.png").exists():
                draw(folder, result)
            print(
                f"done already, on {result['finished']} with {result['code_version']} (force=true starts again)",
                file=sys.stderr,
            )
            render(result, folder)
        return result
    if not first:  # the folder belongs to rank 0
        return compute(cfg, options, metrics, allow, folder, open_loggers([], folder, cfg, folder.name), load)
    with store.lock(folder), log.to(folder / "log.txt"):
        if not cfg["force"] and (store.read_result(folder) or {}).get("status") == "done":  # another was faster
            return run_cell(cfg, options, allow, load, alone, watch)
        with store.whole(folder / "config.yaml") as temporary:
            OmegaConf.save(OmegaConf.create(cfg), temporary)
        trackers = open_loggers([build(cfg["logger"], allow)], folder, cfg, folder.name)
        started = store.now()
        try:
            result = compute(cfg, options, metrics, allow, folder, trackers, load, watch)
            if alone:
                draw(folder, result)
        except BaseException as error:
            trackers.close(ok=False)
            if isinstance(error, KeyboardInterrupt):
                log.log.debug("interrupted; the same command goes on from the last checkpoint")
            elif isinstance(error, Exception) and not isinstance(error, BusyError):
                log.log.debug("%s", traceback.format_exc())
                header = {"schema": store.SCHEMA, "status": "failed", "started": started, "finished": store.now()}
                store.write_json(folder / "result.json", header | {"error": "".join(traceback.format_exception(error))})
            raise
        result |= {"started": started, "finished": store.now(), "error": None}
        store.write_json(folder / "result.json", result)
        trackers.summary(
            {f"{test}/{key}": value for test, values in result["metrics"].items() for key, value in values.items()}
            | density_report.by_set(result.get("density"))
        )
        trackers.close(ok=True)
        if alone:
            render(result, folder)
    return result


def compute(
    cfg: dict[str, Any],
    options: Options,
    metrics: Metrics,
    allow: list[str],
    folder: Path,
    trackers: Trackers,
    load: cell.Load = cell.load,
    watch: Told = lambda losses, validation: None,
) -> dict[str, Any]:
    """The stages; writes scores.parquet, model.ckpt, metrics.csv and the pictures, returns the result."""
    from outlie.metrics import latency

    first = rank_and_world()[0] == 0
    detector = build(cfg["detector"], allow)  # first: what it refuses needs no data
    build(cfg["backbone"], allow)  # nor does what a backbone refuses
    split = load(cfg["dataset"], cfg["choices"]["dataset"], cfg["seed"], allow)
    part = cfg["dataset"].get("part")  # one file of several: a published cell is the mean of all of them

    def log_epoch(losses: list[float], validation: list[float]) -> None:
        held_out = {"validation_loss": validation[-1]} if validation else {}
        trackers.log(len(losses) - 1, {"train_loss": losses[-1], **held_out})
        watch(losses, validation)

    backbone, trained = cell.ready_backbone(cfg, split, options, log_epoch)
    ground = cell.Ground(split, backbone, options, folder, Path(cfg["output_dir"]) / "views")
    with log.findings() as noticed:
        spec, spent = cell.fitted(cfg, detector, ground, log_epoch)
        maps: dict[str, Tensor] = {}
        scores, scoring = cell.scored(detector, ground, maps)
    about = cell.about(split)
    lints = [*cell.findings(detector, ground), *noticed]
    result: dict[str, Any] = {
        "schema": store.SCHEMA,
        "status": "done",
        "protocol": split.protocol,
        "protocols": split.protocols,
        "dataset": f"{cfg['choices']['dataset']}/{part}" if part else cfg["choices"]["dataset"],
        "data_sha256": split.data_sha256,
        "detector": cfg["choices"]["detector"],
        "backbone": cfg["choices"]["backbone"],
        "seed": cfg["seed"],
        "rows": {name: len(rows) for name, rows in ground.parts.items()},
        "lints": lints,
        **evaluated.evaluate_scores(scores, metrics, cfg["seed"], lints, split.protocols, about),
        "published": {"test": one} if not part and (one := published.cell_of(cfg)) else {},
        "latency": None,
        "environment": store.environment(str(ground.device)),
        "code_version": store.code_version(),
    }
    has_head = "head" in backbone.provides
    curve: list[dict[str, float]] = []
    if has_head:  # on every rank: sums are reduced over all
        result["classifier"] = classified.report(ground)
        curve = classified.along_training(ground, cfg)
    if segmentation := segmented.report(ground):
        result["segmentation"] = segmentation
    if not first:
        return result
    test = next(iter(split.tests.values()))
    rows = test.x[torch.arange(min(256, len(test)))]
    front = stages.front(backbone.to(ground.device), detector.needs)
    if metrics.latency:
        with stages.threads(0):  # batch 1 on one thread: what a row costs a core
            result["latency"] = latency.measure(front, detector, rows, ground.device, metrics.latency_seconds)
    losses = spent.pop("losses", None) or trained.get("losses", [])
    validation = spent.pop("validation_losses", [])
    result["cost"] = {
        **{f"backbone_{name}": value for name, value in trained.items() if not name.endswith("losses")},
        **spent,
        **scoring,
        **cost.stored(detector, *([backbone] if trained else [])),
        "flops_per_row": cost.flops(front, detector, rows[:1].to(ground.device)),
        **cost.peak_memory(ground.device),
    }
    density = None
    if isinstance(detector, VAE) and detector.diagnose and metrics.latency:  # metrics=fast does without
        with log.findings() as doubts:
            density = density_report.report(detector, ground)
        result["density"] = density.numbers
        result["lints"], result["findings"] = [*result["lints"], *doubts], [*result["findings"], *doubts]
    if "teacher" in cfg:
        doubts = distilled.unseen(Path(cfg["teacher"]), scores)
        result["lints"], result["findings"] = [*result["lints"], *doubts], [*result["findings"], *doubts]
        result["distillation"] = distilled.report(cfg, result, ground, detector, scores, metrics)
    store.write_scores(folder / "scores.parquet", scores, about)
    if maps:
        result["pixels"], threshold = heatmaps.report(ground.parts, maps), (result["threshold"] or {}).get("value")
        for path in heatmaps.pictures(ground.parts, maps, about, scores, threshold, folder):
            trackers.image(path.stem, path)
    imputed.write(folder / "imputed.parquet", detector, ground, scores)
    checkpoint.save_model(
        folder / "model.ckpt", backbone, detector, spec, split.columns, tuple(split.train.x.shape[1:]), split.schema
    )
    store.write_curve(folder / "metrics.csv", losses, validation)
    if has_head:
        for path in classified.pictures(ground, curve, getattr(detector, "chosen_d", None), folder):
            trackers.image(path.stem, path)
    for path in segmented.pictures(ground, segmentation):
        trackers.image(path.stem, path)
    if "denoiser" in backbone.provides and metrics.latency:
        result["denoiser"], drawn = denoised.report(ground, cfg)
        for path in drawn:
            trackers.image(path.stem, path)
    for path in density_report.pictures(density, folder) if density else ():
        trackers.image(path.stem, path)
    return result


def draw(folder: Path, result: dict[str, Any]) -> None:
    """summary.png, from the stored scores."""
    import polars as pl

    from outlie.results import plots

    with store.writing(folder / "summary.png"):
        plots.figure(pl.read_parquet(folder / "scores.parquet"), result, folder)


if __name__ == "__main__":
    sys.exit(distributed.work(main))
