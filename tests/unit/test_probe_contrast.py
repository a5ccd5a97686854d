"""Alignment and uniformity against loops over pairs, and against their values for random and equal vectors."""

import math

import pytest
import torch
import torch.nn.functional as F

from outlie.probe.contrast import alignment, contrast, uniformity


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def by_loops(x, y):
    """Both measures of one kind of features, pair by pair."""
    x, y = ([[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in one.tolist()] for one in (x, y))

    def apart(a, b):
        return sum((u - v) ** 2 for u, v in zip(a, b))

    def spread(rows):
        pairs = [math.exp(-2 * apart(rows[i], rows[j])) for i in range(len(rows)) for j in range(i)]
        return math.log(sum(pairs) / len(pairs))

    return sum(apart(a, b) for a, b in zip(x, y)) / len(x), (spread(x) + spread(y)) / 2


def test_they_are_what_the_loops_say():
    x, y = (3 * torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    x[1, :, 3:] = y[1, :, 3:] = 0  # padding changes nothing
    aligned, uniform = contrast(x, y)
    for g in range(4):
        width = 3 if g == 1 else 5
        expected = by_loops(x[g, :, :width], y[g, :, :width])
        assert (float(aligned[g]), float(uniform[g])) == pytest.approx(expected, rel=1e-5)


def test_random_vectors_of_many_dimensions():
    # cos ~ N(0, 1/d), so E exp(-4 + 4 cos) = exp(-4 + 8/d): -3.97 in 256 dimensions
    assert float(uniformity(unit(512, 256))) == pytest.approx(-4 + 8 / 256, abs=0.005)
    assert float(uniformity(unit(512, 64))) == pytest.approx(-4 + 8 / 64, abs=0.02)


def test_ends_of_the_scale():
    x = unit(20, 8)
    assert float(alignment(x, x)) == 0
    assert float(alignment(x, -x)) == pytest.approx(4)
    assert float(uniformity(x[:1].expand(20, -1))) == pytest.approx(0, abs=1e-6)


def test_only_whole_batches_count():
    x, y = unit(2, 25, 6), unit(2, 25, 6, seed=1)
    aligned, uniform = contrast(x, y, batch=10)
    halves = [contrast(x[:, rows], y[:, rows], batch=10) for rows in (slice(10), slice(10, 20))]
    torch.testing.assert_close(aligned, (halves[0][0] + halves[1][0]) / 2)
    torch.testing.assert_close(uniform, (halves[0][1] + halves[1][1]) / 2)
    torch.testing.assert_close(contrast(x[:, :7], y[:, :7], batch=10)[1], contrast(x[:, :7], y[:, :7])[1])
