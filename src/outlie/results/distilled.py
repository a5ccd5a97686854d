"""What a student gives up and what it saves: teacher and student beside each other, on the same rows and machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr

from outlie import stages
from outlie.cell import Ground
from outlie.detectors.base import Views
from outlie.distillers import lessons
from outlie.metrics import latency
from outlie.metrics.evaluation import Metrics
from outlie.results import agreement, cascade, checkpoint, evaluated, store
from outlie.results.teacher_student import numbers


def report(
    cfg: dict[str, Any],
    result: Mapping[str, Any],
    ground: Ground,
    detector: Any,
    scores: evaluated.Scores,
    metrics: Metrics,
) -> dict[str, Any]:
    """Numbers of both, and how the distiller ended; the teacher's latency is measured again, here and now."""
    run = Path(cfg["teacher"])
    stored = store.read_result(run) or {}
    teacher, student = numbers(stored | {"latency": None}), numbers(result)  # another day's latency is no comparison
    if metrics.latency:
        teacher |= timed(run, ground, metrics.latency_seconds, list(cfg["allow"]))
    told = store.backbone_folder(cfg) / "distilled.json"
    found: dict[str, Any] = {
        "teacher_run": run.name,
        "distiller": cfg["choices"].get("distiller"),
        "teacher": teacher,
        "student": student,
        **(json.loads(told.read_text()) if told.is_file() else {}),
    }
    if lessons.of_scores(cfg):
        found |= followed(cfg, ground, detector, scores, metrics)
    return found


def unseen(run: Path, scores: evaluated.Scores) -> list[str]:
    """A finding for each test set with normal rows that were no test rows of the teacher's: it may have learnt them."""
    theirs, found = store.read_scores(run), []
    for name, (index, label, _) in scores.items():
        if name == "calibration" or label is None:
            continue
        known = theirs[name][0] if name in theirs else []
        new = int((~np.isin(index, known) & (label == 0)).sum())
        if new:
            found.append(
                f"{new} normal rows of {name} were no test rows of teacher {run.name}: it may have learnt from them; "
                "keep its dataset and seed"
            )
    return found


def followed(
    cfg: dict[str, Any], ground: Ground, detector: Any, scores: evaluated.Scores, metrics: Metrics
) -> dict[str, Any]:
    """How closely a student of scores follows: by rank on normal rows, on anomalies, on corruptions it never saw."""
    learnt = lessons.found(cfg | {"force": False}, ground.split.train, ground.backbone, ground.device)
    with torch.no_grad():
        seen = [detector.score(Views(x=x.to(ground.device))).cpu() for x in learnt.held_out_x.split(256)]
    away = spearman_and_kendall(torch.cat(seen).double().numpy(), learnt.held_out_score.numpy())
    teacher = store.read_scores(Path(cfg["teacher"]))
    joined = agreement.same_rows(scores, teacher)
    spearman, kendall = {"held_out": away[0]}, {"held_out": away[1]}
    table = agreement.agreement(scores, teacher, metrics.bootstrap, cfg["seed"])
    bands = []
    for name, (label, ours, theirs) in joined.items():
        if label is None:
            continue
        for kind, rows in (("normal", label == 0), ("anomalies", label == 1)):
            if rows.sum() > 2:
                spearman[f"{name}/{kind}"], kendall[f"{name}/{kind}"] = spearman_and_kendall(ours[rows], theirs[rows])
        bands += [{"test": name, **row} for row in cascade.cascade(ours, theirs, label)]
    return {
        "spearman": spearman, "kendall": kendall, "agreement": table, "cascade": bands,
        "ceiling": max(learnt.rho, 0.0) ** 0.5, "reliability": learnt.rho, "tau": learnt.tau,
    }  # fmt: skip


def spearman_and_kendall(ours: Any, theirs: Any) -> tuple[float | None, float | None]:
    """Spearman's and Kendall's correlation; None where one of the scores is constant."""
    found = [float(rank(ours, theirs)[0]) for rank in (spearmanr, kendalltau)]
    return tuple(value if value == value else None for value in found)  # type: ignore[return-value]


def timed(run: Path, ground: Ground, seconds: float, allow: list[str]) -> dict[str, float]:
    """Latency and throughput of the teacher's backbone and detector on the first test rows."""
    backbone, detector, _ = checkpoint.open_model(run, allow)
    backbone, detector = backbone.to(ground.device), detector.to(ground.device)
    test = next(iter(ground.split.tests.values()))
    rows = test.x[torch.arange(min(256, len(test)))]
    with stages.threads(0):
        found = latency.measure(stages.front(backbone, detector.needs), detector, rows, ground.device, seconds)
    return {name: found[name] for name in ("latency_p50_ms", "throughput_per_s")}
