"""From stored scores to what a result says about them: metrics, intervals, the threshold and what it realises."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from outlie.metrics import conformal
from outlie.metrics.evaluation import Metrics, evaluate

Scores = dict[str, tuple[Any, Any, Any]]  # split name -> (index, label or None, score)
About = dict[str, dict[str, Any]]  # split name -> kind (of defect) and group, each (n,)


def key(metrics: Metrics) -> dict[str, Any]:
    """What of the metrics' options a stored result depends on."""
    return {"names": list(metrics.names), "false_alarms": metrics.false_alarms, "bootstrap": metrics.bootstrap}


def evaluate_scores(
    scores: Scores,
    metrics: Metrics,
    seed: int,
    lints: list[str],
    protocols: dict[str, str] | None = None,
    about: About | None = None,
) -> dict[str, Any]:
    """The result's metrics, intervals, counts, threshold and findings; no detector, no data, nothing but the scores.

    Args:
        protocols: test set -> its own protocol, ood_near or ood_far; the sets of one protocol get an unweighted mean.
        about: test set -> kind (of defect) and group of its rows, where these are known.
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
        known = (about or {}).get(name, {})
        one = evaluate(score, label, metrics, seed, known.get("group"))
        for part in ("metrics", "intervals", "counts"):
            result[part][name] = one[part]
        result["findings"] += [f"{name}: {finding}" for finding in one["findings"]]
        if result["threshold"]:
            result["threshold"]["realised"][name] = conformal.realised(result["threshold"]["value"], score, label)
        if "kind" in known:
            value = (result["threshold"] or {}).get("value")
            result.setdefault("by_kind", {})[name] = by_kind(score, label, known, value, metrics, seed)
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


def by_kind(
    score: Any, label: Any, known: dict[str, Any], threshold: float | None, metrics: Metrics, seed: int
) -> dict[str, dict[str, Any]]:
    """Kind of anomaly -> its AUROC beside all normal rows, with an interval, and how many of it the threshold finds."""
    label, kind, group = np.asarray(label), np.asarray(known["kind"]), known.get("group")
    only = Metrics(["auroc"], metrics.false_alarms, metrics.bootstrap)
    found = {}
    for name in dict.fromkeys(kind[label == 1].tolist()):
        rows = (label == 0) | ((label == 1) & (kind == name))
        one = evaluate(score[rows], label[rows], only, seed, None if group is None else np.asarray(group)[rows])
        number, interval = one["counts"]["anomalies"], one["intervals"].get("auroc")
        found[name] = {"anomalies": number, **one["metrics"], "interval": interval}
        if threshold is not None:
            realised = conformal.realised(threshold, score[rows], label[rows])
            found[name] |= {"recall": realised["recall"], "recall_interval": realised["recall_interval"]}
    return found


def mean_of(rows: list[dict[str, float | None]]) -> dict[str, float | None]:
    """The unweighted mean of each metric over test sets; None where a set has none."""
    means: dict[str, float | None] = {}
    for name in rows[0] if rows else ():
        values = [value for row in rows if (value := row.get(name)) is not None]
        means[name] = float(np.mean(values)) if len(values) == len(rows) else None
    return means
