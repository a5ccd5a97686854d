"""`run eval run=RUN detectors=all`: many detectors over one forward pass of a finished run's network."""

from __future__ import annotations

import contextlib
import csv
import sys
import traceback
from pathlib import Path
from typing import Any

from outlie import catalog, cell, checks, distributed, log, signatures
from outlie.build import build
from outlie.errors import UserError, unknown
from outlie.gather import rank_and_world
from outlie.metrics import latency
from outlie.metrics.evaluation import Metrics
from outlie.results import checkpoint, classified, evaluated, kinds, store

GROUPS = ("all", "network")
LATENCY_SECONDS = 0.1  # for each detector: there are many


def names_of(asked: str | list[str], backbone_provides: tuple[str, ...]) -> list[str]:
    """The detectors that `detectors=` names; groups hold those that this backbone can serve.

    `all` = those that need cached views only, `network` = those that ask the network again.

    Raises:
        UserError: a name that does not exist, or a detector that this backbone cannot serve.
    """
    where = catalog.roots()
    known = catalog.choices("detector", where)
    posthoc = {}
    for name, path in known.items():
        signature = signatures.read(catalog.target(path))
        if signature and signature.posthoc and "/" not in name and set(signature.needs) <= {*backbone_provides}:
            posthoc[name] = "network" in signature.needs
    asked = [asked] if isinstance(asked, str) else asked
    if set(asked) & set(GROUPS) and not {"head", "denoiser"} & set(backbone_provides):
        raise UserError(
            f"detectors={', '.join(asked)}: these score a trained classifier or denoiser, and the run's backbone has "
            f"{', '.join(backbone_provides)} only; train one with backbone=resnet18 or backbone=unet, say"
        )
    found: list[str] = []
    for word in asked:
        if word in GROUPS:
            found += [name for name, network in posthoc.items() if network == (word == "network")]
        elif word in known:
            found.append(word)
        else:
            raise UserError(unknown("detector", word, [*GROUPS, *known]) + "; detectors=all, network or names")
    if not found:
        raise UserError("detectors=[] names no detector; detectors=all, network or names")
    for name in found:
        signature = signatures.read(catalog.target(known[name]))
        lacking = [view for view in signature.needs if view not in backbone_provides] if signature else []
        if lacking:
            raise UserError(
                f"detector '{name}' needs {', '.join(lacking)}, which the run's backbone does not provide "
                f"(it has {', '.join(backbone_provides)}); would do: "
                + ", ".join(f"backbone={one}" for one in checks.providers(signature.needs, where))
            )
    return list(dict.fromkeys(found))


def main(now: dict[str, Any], then: dict[str, Any], run: Path, trained: dict[str, Any]) -> int:
    """Fit and score each detector on the run's training rows, show them side by side; 1 if one of them failed."""
    from outlie.results.comparison import draw, render

    metrics = build(now["metrics"], list(now["allow"]))
    names = names_of(now["detectors"], tuple(build(now["backbone"], list(now["allow"])).provides))
    folder = store.comparison_folder(now, run)
    if now["dry_run"]:
        print(f"# plan: {folder}\n#   one forward pass of {run / 'model.ckpt'}, then {', '.join(names)}")
        if "teacher" in then:
            print(f"#   the same of its teacher {then['teacher']}, where it is not done")
        return 0
    results, found = compared(now, then, run, trained, names, metrics)
    if found:
        print("done already (force=true starts again)", file=sys.stderr)
    if rank_and_world()[0] == 0:
        rows = [results[name] for name in names]
        write_table(folder / "comparison.csv", rows)
        draw(rows, folder / "comparison.png")
        render(rows, folder)
    if "teacher" in then:
        from outlie.commands import agree

        agree.beside_teacher(now, then, run, results, metrics)
    return int(any(result["status"] == "failed" for result in results.values()))


def compared(
    now: dict[str, Any], then: dict[str, Any], run: Path, trained: dict[str, Any], names: list[str], metrics: Metrics
) -> tuple[dict[str, dict[str, Any]], bool]:
    """The result of each detector, found in the comparison's folder or computed into it; whether all were found."""
    allow, options, first = list(now["allow"]), build(now["trainer"], list(now["allow"])), rank_and_world()[0] == 0
    folders, sections = folders_of(now, run, names), {name: section_of(name) for name in names}
    folder, backbone = store.comparison_folder(now, run), build(now["backbone"], allow)
    results = {} if now["force"] else {name: found for name in names if (found := done(folders[name], metrics))}
    missing = [name for name in names if name not in results]
    if missing:
        held = store.lock(folder) if first else contextlib.nullcontext()  # the folder belongs to rank 0
        with held, log.to(folder / "log.txt"):
            ground = ground_of(now, then, backbone, run, folder, options)
            about = about_run(now, trained, ground, run)
            about["classifier"] = classified.report(ground) if "head" in backbone.provides else {}
            for i, name in enumerate(missing):
                log.log.info("%d/%d      %s", i + 1, len(missing), name)
                cfg = now | {"detector": sections[name], "choices": now["choices"] | {"detector": name}}
                results[name] = one(cfg, ground, metrics, about, folders[name], first)
    return results, not missing


def folders_of(now: dict[str, Any], run: Path, names: list[str]) -> dict[str, Path]:
    """Where each detector's result and scores lie."""
    folder = store.comparison_folder(now, run)
    return {name: folder / store.detector_name(name, section_of(name)) for name in names}


def section_of(name: str) -> dict[str, Any]:
    """A detector's complete section, as `run train detector=NAME` would have it."""
    return checks.expand(catalog.load(catalog.choices("detector", catalog.roots())[name]))


def done(folder: Path, metrics: Metrics) -> dict[str, Any] | None:
    """A finished result; with other metrics than asked for it is evaluated again from its stored scores."""
    result = store.read_result(folder)
    if result is None or result["status"] != "done":
        return None
    if result["evaluated_with"] != evaluated.key(metrics):
        scores, about = store.read_scores(folder), kinds.read(folder)
        result |= evaluated.evaluate_scores(
            scores, metrics, result["seed"], result["lints"], result["protocols"], about
        )
        store.write_json(folder / "result.json", result)
    return result


def ground_of(
    now: dict[str, Any], then: dict[str, Any], backbone: Any, run: Path, folder: Path, options: Any
) -> cell.Ground:
    """The run's network on the data that are asked for; UserError where these have other training rows."""
    if store.training_identity(now)["dataset"] != store.training_identity(then)["dataset"]:
        raise UserError("detectors= fits on the rows of the training: keep the run's dataset, change its test sets")
    split = cell.load(now["dataset"], now["choices"]["dataset"], then["seed"], list(now["allow"]))
    checkpoint.load_backbone(run / "model.ckpt", backbone)
    return cell.Ground(split, backbone, options, folder, Path(now["output_dir"]) / "views")


def about_run(now: dict[str, Any], trained: dict[str, Any], ground: cell.Ground, run: Path) -> dict[str, Any]:
    """What all results of a comparison share."""
    return {
        "schema": store.SCHEMA,
        "run": str(run),
        "protocol": ground.split.protocol,
        "protocols": ground.split.protocols,
        "dataset": now["choices"]["dataset"],
        "data_sha256": ground.split.data_sha256,
        "backbone": trained["backbone"],
        "seed": trained["seed"],
        "rows": {name: len(rows) for name, rows in ground.parts.items()},
        "environment": store.environment(str(ground.device)),
        "code_version": store.code_version(),
    }


def one(
    cfg: dict[str, Any], ground: cell.Ground, metrics: Metrics, about: dict[str, Any], folder: Path, first: bool
) -> dict[str, Any]:
    """One detector's result, stored; a failure is a result too and does not stop the others."""
    result = about | {"detector": cfg["choices"]["detector"], "started": store.now()}
    try:
        detector = build(cfg["detector"], list(cfg["allow"]))
        with log.findings() as noticed:
            _, spent = cell.fitted(cfg, detector, ground)
            scores, scoring = cell.scored(detector, ground)
        lints, about = [*cell.findings(detector, ground), *noticed], cell.about(ground.split)
        result |= {"lints": lints, "cost": spent | scoring, "latency": None}
        result |= evaluated.evaluate_scores(scores, metrics, cfg["seed"], lints, ground.split.protocols, about)
        if first and metrics.latency:
            result["latency"] = detector_latency(detector, ground)
        if first:
            store.write_scores(folder / "scores.parquet", scores, about)
        result |= {"status": "done", "error": None}
    except Exception as error:
        if distributed.started():
            raise  # the ranks must not part
        log.log.info("failed    %s: %s", result["detector"], error)
        log.log.debug("%s", traceback.format_exc())
        result |= {"status": "failed", "error": str(error), "metrics": {}, "findings": []}
    result["finished"] = store.now()
    if first:
        store.write_json(folder / "result.json", result | {"config": cfg["detector"]})
    return result


def detector_latency(detector: Any, ground: cell.Ground) -> dict[str, Any]:
    """Milliseconds that the detector adds to the network's at batch 1, on one thread; on a denoiser all of them."""
    import torch

    from outlie import stages

    if "denoiser" in ground.backbone.provides:  # each asks the network in its own way: nothing is shared
        front = stages.front(ground.backbone.to(ground.device), detector.needs)
        test = next(iter(ground.split.tests.values()))
        raw = test.x[torch.arange(min(256, len(test)))].to(ground.device)
        with stages.threads(0):
            return latency.measure(front, detector, raw, ground.device, LATENCY_SECONDS)
    views = ground.source(next(iter(ground.split.tests)), detector.needs)
    some = views[torch.arange(min(256, len(views)))].map(lambda t: t.to(ground.device))
    rows = torch.arange(len(some), device=ground.device)
    with stages.threads(0):
        return latency.measure(lambda which: some[which], detector, rows, ground.device, LATENCY_SECONDS)


def write_table(path: Path, results: list[dict[str, Any]]) -> None:
    """comparison.csv: one line a detector and test set (and mean of a protocol), metrics as fractions."""
    rows = [
        {"detector": one["detector"], "protocol": one["protocols"].get(name, one["protocol"]), "set": name, **values}
        for one in results
        for name, values in one["metrics"].items()
    ] + [
        {"detector": one["detector"], "protocol": protocol, "set": "mean", **values}
        for one in results
        for protocol, values in (one.get("means") or {}).items()
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with store.whole(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns or ["detector"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
