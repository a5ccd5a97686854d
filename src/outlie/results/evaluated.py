"""From stored scores to what a result says about them: metrics, intervals, the threshold and what it realises."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from outlie.metrics import conformal
from outlie.metrics.evaluation import Metrics, evaluate

Scores = dict[str, tuple[Any, Any, Any]]  # split name -> (index, label or None, score)


def key(metrics: Metrics) -> dict[str, Any]:
    """What of the metrics' options a stored result depends on."""
    return {"names": list(metrics.names), "false_alarms": metrics.false_alarms, "bootstrap": metrics.bootstrap}


def evaluate_scores(
    scores: Scores, metrics: Metrics, seed: int, lints: list[str], protocols: dict[str, str] | None = None
) -> dict[str, Any]:
    """The result's metrics, intervals, counts, threshold and findings; no detector, no data, nothing but the scores.

    Args:
        protocols: test set -> its own protocol, ood_near or ood_far; the sets of one protocol get an unweighted mean.
    """
    result: dict[str, Any] = {"metrics": {}, "intervals": {}, "counts": {}, "threshold": None, "findings": list(lints)}
    tests = beside_id({name: (label, score) for name, (_, label, score) in scores.items() if name != "calibration"})
    if "calibration" in scores:
        fixed = conformal.threshold(scores["calibration"][2], metrics.false_alarms)
        result["threshold"] = dataclasses.asdict(fixed) | {"realised": {}}
        if fixed.warning:
            result["findings"].append(fixed.warning)
    for name, (label, score) in tests.items():
        if label is None:
            result["counts"][name] = {"rows": len(score)}
            result["metrics"][name], result["intervals"][name] = {}, {}
            result["findings"].append(f"{name} has no labels: scores only, no metrics")
            continue
        one = evaluate(score, label, metrics, seed)
        for part in ("metrics", "intervals", "counts"):
            result[part][name] = one[part]
        result["findings"] += [f"{name}: {finding}" for finding in one["findings"]]
        if result["threshold"]:
            result["threshold"]["realised"][name] = conformal.realised(result["threshold"]["value"], score, label)
    if protocols:
        result["means"] = {
            protocol: mean_of([result["metrics"][name] for name, own in protocols.items() if own == protocol])
            for protocol in dict.fromkeys(protocols.values())
        }
    return result | {"evaluated_with": key(metrics)}


def beside_id(tests: dict[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Each out-of-distribution set (labels all 1) beside the in-distribution rows (`test`, labels all 0).

    Every sample is stored once; other test sets have both classes of their own and stay as they are.
    """
    far = [name for name, (label, _) in tests.items() if name != "test" and label is not None and label.all()]
    id_label, id_score = tests.get("test", (None, None))
    if id_label is None or id_label.any() or not far:
        return tests
    alone = {name: one for name, one in tests.items() if name not in ("test", *far)}
    return alone | {
        name: (np.concatenate([id_label, tests[name][0]]), np.concatenate([id_score, tests[name][1]])) for name in far
    }


def mean_of(rows: list[dict[str, float | None]]) -> dict[str, float | None]:
    """The unweighted mean of each metric over test sets; None where a set has none."""
    means: dict[str, float | None] = {}
    for name in rows[0] if rows else ():
        values = [value for row in rows if (value := row.get(name)) is not None]
        means[name] = float(np.mean(values)) if len(values) == len(rows) else None
    return means
