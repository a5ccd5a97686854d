"""Fronts against brute force, timings against NumPy, turns that are interleaved; table, csv and picture."""

import csv
import io
import time
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from outlie.export import timing
from outlie.results import trade_off


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_no_other_beats(seed):
    rng = np.random.default_rng(seed)
    points = [(float(a), float(b)) for a, b in rng.integers(1, 8, (30, 2))]  # ties and repeats
    best = trade_off.front([*points, None])
    assert best[-1] is False
    for (ms, recall), mine in zip(points, best):
        faster_and_better = [
            other for other in points if other[0] <= ms and other[1] >= recall and (other[0] < ms or other[1] > recall)
        ]
        assert mine == (not faster_and_better)


def row(label: str, ms: float | None, recall: float | None, dataset: str = "one", kind: str = "run") -> dict[str, Any]:
    timings = [
        {"batch": size, "p50_ms": ms, "p95_ms": ms, "p99_ms": ms, "rows_per_s": 9.0, "drift": 0.0, "calls": 3}
        for size in (1, 16)
    ]
    about = {"protocol": "split", "measured_on": "test", "detector": label, "backbone": "identity", "seed": 0}
    numbers = {"parameters": 12_345, "buffers": 0, "flops_per_row": None, "memory_mb": None}
    metrics = {"recall_at_fpr01": recall, "auroc": recall}
    return {"label": label, "kind": kind, "run": label, "dataset": dataset, "metrics": metrics} | about | numbers | {
        "timings": timings
    }  # fmt: skip


ROWS = [row("slow", 9.0, 0.9), row("fast", 1.0, 0.5, kind="onnx"), row("bad", 2.0, 0.4), row("other", 50.0, 0.1, "two")]
UNLABELLED = row("unknown", 0.5, None)


def test_each_dataset_has_its_own_front():
    marked = trade_off.marked([*ROWS, UNLABELLED])
    assert {one["label"] for one in marked if one["on_front"]} == {"slow", "fast", "other"}
    assert [one["label"] for one in marked] == ["unknown", "fast", "bad", "slow", "other"]


def test_table_csv_and_picture(tmp_path):
    marked = trade_off.marked([*ROWS, UNLABELLED])
    out = io.StringIO()
    trade_off.render(marked, Console(file=out, width=100))
    text = out.getvalue()
    assert "one  (split, test)" in text and "two  (split, test)" in text
    lines = {line.split()[-9 if "*" not in line else -8]: line for line in text.splitlines() if "12.3 k" in line}
    assert len(lines) >= 2 and sum("* " in line for line in text.splitlines() if "12.3 k" in line) == 3
    trade_off.write_csv(marked, tmp_path / "bench.csv")
    with open(tmp_path / "bench.csv", newline="") as file:
        stored = list(csv.DictReader(file))
    assert len(stored) == 2 * len(marked)
    assert {(one["label"], one["batch"], one["p50_ms"]) for one in stored} >= {
        ("slow", "16", "9.0"),
        ("fast", "1", "1.0"),
    }
    assert {one["recall_at_fpr01"] for one in stored if one["label"] == "unknown"} == {""}
    for name, rows in (("some.png", marked), ("none.png", trade_off.marked([UNLABELLED]))):
        trade_off.draw(rows, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


class Counts:
    """A scorer that says when it was asked, and takes its time."""

    def __init__(self, name: str, said: list[tuple[str, int]], seconds: float = 0.0) -> None:
        self.name, self.said, self.seconds = name, said, seconds

    def score(self, x: torch.Tensor) -> torch.Tensor:
        self.said.append((self.name, len(x)))
        time.sleep(self.seconds)
        return x.sum(1)


def test_every_round_has_every_turn_once_in_an_order_of_the_seed():
    def turns(seed: int) -> list[list[tuple[str, int]]]:
        said: list[tuple[str, int]] = []
        timed = [timing.Timed(lambda x: x, Counts(name, said), torch.zeros(50, 2)) for name in "ab"]
        timing.measure(timed, [4, 1], rounds=3, seconds=0.0, seed=seed)
        runs = [one for i, one in enumerate(said) if i == 0 or said[i - 1] != one]
        return [runs[i : i + 4] for i in range(0, len(runs), 4)]

    rounds = turns(0)
    everything = {("a", 1), ("a", 4), ("b", 1), ("b", 4)}
    assert rounds[0] and set(rounds[0]) == everything  # warm-up
    assert turns(0) == rounds
    said: list[tuple[str, int]] = []
    timed = [timing.Timed(lambda x: x, Counts(name, said), torch.zeros(50, 2)) for name in "ab"]
    counted: list[int] = []
    timing.measure(timed, [1, 4], 3, 0.0, 0, lambda: counted.append(1))
    assert len(counted) == 3 * 4
    for one in timed:
        assert {size: len(readings) for size, readings in one.readings.items()} == {1: 15, 4: 15}  # five calls a round


def test_percentiles_throughput_and_drift():
    one = timing.Timed(lambda x: x, Counts("a", []), torch.zeros(9, 2))
    ms = np.concatenate([np.full(30, 2.0), np.full(30, 3.0), np.full(30, 4.0)]) + np.linspace(0, 1e-3, 90)
    one.readings = {8: list(zip(np.arange(90.0).tolist(), ms.tolist()))}
    nothing, found = timing.summary(one, [8, 2])
    assert (nothing["batch"], nothing["p50_ms"], nothing["calls"]) == (2, None, 0)
    p50, p95, p99 = np.percentile(ms, [50, 95, 99])
    assert (found["p50_ms"], found["p95_ms"], found["p99_ms"]) == (p50, p95, p99)
    assert found["rows_per_s"] == pytest.approx(8 / p50 * 1000)
    assert found["drift"] == pytest.approx(1.0, abs=1e-3)  # from 2 ms to 4


def test_a_call_is_timed_and_batches_start_again_where_rows_are_few():
    one = timing.Timed(lambda x: x, Counts("a", [], 0.02), torch.arange(5.0)[:, None])
    assert [batch[:, 0].tolist() for batch in one.batches(2)] == [[0, 1], [2, 3]]
    assert [batch[:, 0].tolist() for batch in one.batches(7)] == [[0, 1, 2, 3, 4, 0, 1]]
    assert 0.02 <= one.call(one.rows) < 2


def test_memory_is_what_a_call_adds():
    class Large(Counts):
        def score(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ones(20_000_000).sum() * x.sum(1)  # 76 MiB

    found = timing.memory(timing.Timed(lambda x: x, Large("a", []), torch.zeros(4, 2)), 4)
    assert found is None or 70 < found < 120
