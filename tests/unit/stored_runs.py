"""Run folders as `run train` leaves them, written without a training."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from outlie import compose
from outlie.metrics.evaluation import Metrics
from outlie.results import evaluated, store

_composed: dict[tuple[str, ...], dict[str, Any]] = {}


def stored(
    output_dir: Path, dataset: str = "breast_cancer", detector: str = "knn", seed: int = 0, *words: str,
    protocol: str = "split", gap: float = 2.0, labelled: bool = True, rows: int = 60, latency: float | None = None,
    losses: int = 0, bootstrap: int = 0,
) -> Path:  # fmt: skip
    """A finished run whose anomalies score `gap` higher on average; its folder.

    Args:
        losses: epochs in metrics.csv
    """
    given = (f"dataset={dataset}", f"detector={detector}", "metrics=fast", *words)
    if given not in _composed:
        _composed[given] = compose.composed("train", list(given))
    config = copy.deepcopy(_composed[given]) | {"seed": seed, "output_dir": str(output_dir)}
    folder = store.run_folder(config)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    rng = np.random.default_rng([seed, len(dataset), len(detector)])
    label = np.repeat([0, 1], [rows, rows // 3])
    score = rng.normal(gap * label)
    splits = {
        "test": (np.arange(len(label)), label if labelled else None, score),
        "calibration": (np.arange(rows), np.zeros(rows, int), rng.normal(size=rows)),
    }
    metrics = Metrics(["auroc", "average_precision", "f1_at_k", "recall_at_fpr01", "recall_at_fpr05"], 0.05, bootstrap)
    result = {
        "schema": store.SCHEMA, "status": "done", "protocol": protocol, "protocols": {}, "dataset": dataset,
        "data_sha256": "ab" * 32, "detector": detector, "backbone": "identity", "seed": seed,
        "rows": {"train": rows}, "lints": [], **evaluated.evaluate_scores(splits, metrics, seed, []),
        "published": {}, "environment": {"python": "3.11", "device": "cpu"}, "code_version": "0.1.0",
        "latency": latency and {"latency_p50_ms": latency, "device": "cpu", "threads": 1},
        "cost": {"fit_cpu_s": 0.5 + rng.uniform(), "parameters": 10}, "finished": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    store.write_json(folder / "result.json", result)
    store.write_scores(folder / "scores.parquet", splits)
    store.write_curve(folder / "metrics.csv", [1 / (1 + i) for i in range(losses)])
    return folder
