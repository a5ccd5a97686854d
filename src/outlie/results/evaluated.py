"""From stored scores to what a result says about them: metrics, intervals, the threshold and what it realises."""

from __future__ import annotations

import dataclasses
from typing import Any

from outlie.metrics import conformal
from outlie.metrics.evaluation import Metrics, evaluate

Scores = dict[str, tuple[Any, Any, Any]]  # split name -> (index, label or None, score)


def key(metrics: Metrics) -> dict[str, Any]:
    """What of the metrics' options a stored result depends on."""
    return {"names": list(metrics.names), "false_alarms": metrics.false_alarms, "bootstrap": metrics.bootstrap}


def evaluate_scores(scores: Scores, metrics: Metrics, seed: int, lints: list[str]) -> dict[str, Any]:
    """The result's metrics, intervals, counts, threshold and findings; no detector, no data, nothing but the scores."""
    result: dict[str, Any] = {"metrics": {}, "intervals": {}, "counts": {}, "threshold": None, "findings": list(lints)}
    tests = {name: (label, score) for name, (_, label, score) in scores.items() if name != "calibration"}
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
    return result | {"evaluated_with": key(metrics)}
