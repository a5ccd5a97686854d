"""Latency and cost: what is counted and what is bounded; no test looks at how fast this machine is."""

import numpy as np
import pytest
import torch
from torch import nn

from outlie.detectors.base import Detector, Views
from outlie.metrics import cost, latency


class Linear(Detector):
    """Scores with one matrix product: 2 * D * 8 operations a row."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 8)
        self.register_buffer("bank", torch.zeros(5, 6))
        self.sizes: list[int] = []

    def score(self, views):
        self.sizes.append(len(views))
        return self.layer(views.features).sum(1)


def backbone(x):
    return Views(features=x)


def test_keys_and_order():
    detector = Linear()
    result = latency.measure(backbone, detector, torch.randn(300, 6), seconds=0.05)
    assert result["latency_p50_ms"] <= result["latency_p95_ms"] <= result["latency_p99_ms"]
    assert result["detector_p50_ms"] > 0
    assert result["backbone_p50_ms"] > 0
    assert result["throughput_per_s"] > 0
    assert result["device"] == "cpu"
    assert result["threads"] == torch.get_num_threads()
    assert result["batch_size"] == 300
    assert detector.sizes.count(1) == result["calls"] + latency.WARM_UP
    assert set(detector.sizes) == {1, 16, 64, 256, 300}


def fake_clock(monkeypatch, per_row: float):
    """A clock that moves only while rows are scored: `per_row` seconds each."""
    clock = {"t": 0.0}
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock["t"])

    class Slow:
        def __init__(self):
            self.sizes: list[int] = []

        def score(self, views):
            self.sizes.append(len(views))
            clock["t"] += per_row * len(views)
            return torch.zeros(len(views))

    return Slow(), clock


def test_a_slow_detector_gets_a_handful_of_calls_and_a_small_batch(monkeypatch):
    detector, _ = fake_clock(monkeypatch, per_row=2.0)
    result = latency.measure(backbone, detector, torch.zeros(5000, 3), seconds=1.0)
    assert result["calls"] == latency.FEWEST
    assert detector.sizes == [1] * latency.FEWEST + [16]
    assert result["batch_size"] == 16
    assert result["throughput_per_s"] == pytest.approx(0.5)
    assert result["latency_p50_ms"] == pytest.approx(2000)
    assert result["backbone_p50_ms"] == 0


def test_percentiles_and_throughput_on_a_known_clock(monkeypatch):
    detector, clock = fake_clock(monkeypatch, per_row=0.0005)
    result = latency.measure(backbone, detector, torch.zeros(5000, 3), seconds=1.0)
    assert result["latency_p99_ms"] == pytest.approx(0.5)
    assert result["throughput_per_s"] == pytest.approx(2000)
    assert result["batch_size"] == 1024
    assert result["calls"] == pytest.approx(2000 - latency.WARM_UP, abs=2)
    assert clock["t"] < 5


def test_one_row_is_enough():
    assert latency.measure(backbone, Linear(), torch.randn(1, 6), seconds=0.01)["batch_size"] == 1


def test_no_gradients_are_kept():
    class Watch(Linear):
        def score(self, views):
            assert not torch.is_grad_enabled()
            return super().score(views)

    latency.measure(backbone, Watch(), torch.randn(2, 6), seconds=0.01)


def test_cost():
    detector = Linear()
    assert cost.stored(detector, nn.Identity()) == {"parameters": 6 * 8 + 8, "buffers": 30}
    assert cost.flops(backbone, detector, torch.randn(1, 6)) == 2 * 6 * 8

    class NumPy(Detector):
        def score(self, views):
            return torch.from_numpy(np.asarray(views.features).sum(1))

    assert cost.flops(backbone, NumPy(), torch.randn(1, 6)) is None
    memory = cost.peak_memory()
    assert memory["peak_memory_of"] == "process"
    assert 10 < memory["peak_memory_mb"] < 1e6
    with cost.seconds() as spent:
        sum(range(1000))
    assert spent.wall > 0
    assert spent.cpu >= 0
