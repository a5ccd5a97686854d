"""Bootstrap intervals for every ranking metric, from one set of resamples.

Stratified: normals and anomalies are drawn apart, so each resample has the test set's sizes. Where rows come in groups
(photos of one part), whole groups are drawn, those with an anomaly apart from those without. A resample is a vector of
multiplicities on the sorted scores, and all metrics of all resamples in a chunk come from one cumulative sum.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from outlie.metrics import counts as curve
from outlie.metrics.counts import Array
from outlie.metrics.ranking import METRICS, checked

CELLS = 2**19  # multiplicities held at once: about 4 MB an array, and some ten arrays
STEP_BY_NORMALS = {"average_precision_id_positive", "aupr_trapezoid_id_positive"}  # these look inside runs of normals


def intervals(
    score: ArrayLike,
    label: ArrayLike,
    names: Iterable[str],
    resamples: int,
    generator: np.random.Generator,
    level: float = 0.95,
    group: ArrayLike | None = None,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals by metric key.

    They cannot see beyond the sample: a metric at its limit (AUROC 1) gets an interval of width zero.

    Args:
        group: (n,) what the rows are drawn by; None = each row alone
    """
    tails = [(1 - level) / 2, (1 + level) / 2]
    drawn = resample(score, label, names, resamples, generator, group)
    edges = {name: np.quantile(values, tails) for name, values in drawn.items()}
    return {name: (float(low), float(high)) for name, (low, high) in edges.items()}


def resample(
    score: ArrayLike,
    label: ArrayLike,
    names: Iterable[str],
    resamples: int,
    generator: np.random.Generator,
    group: ArrayLike | None = None,
) -> dict[str, Array]:
    """(resamples,) values of each metric; of groups fewer, where one class was not drawn at all."""
    score, label = checked(score, label)
    names = list(names)
    block = blocks(score, label, merge_normals=STEP_BY_NORMALS.isdisjoint(names))
    size = int(block.max()) + 1
    first = np.zeros(size, dtype=np.int64)
    first[block[::-1]] = np.arange(len(block))[::-1]  # any member stands for its block; the first keeps the order
    block_score, block_label = score[first], label[first]
    values: dict[str, list[Array]] = {name: [] for name in names}
    chunk = max(1, CELLS // len(score))
    for start in range(0, resamples, chunk):
        part = min(chunk, resamples - start)
        if group is None:
            weight = multiplicities(block, label, part, size, generator)
        else:
            weight = group_multiplicities(block, label, np.asarray(group), part, generator)
            weight = weight[(weight[:, block_label].sum(1) > 0) & (weight[:, ~block_label].sum(1) > 0)]
        counts = curve.count(block_score, block_label, weight)
        for name in names:
            values[name].append(METRICS[name](counts))
    return {name: np.concatenate(parts) for name, parts in values.items()}


def blocks(score: Array, label: NDArray[np.bool_], merge_normals: bool) -> NDArray[np.int64]:
    """(n,) which block each row is in: rows that no metric can tell apart, numbered down the ranking.

    With `merge_normals` a run of normals between two anomalies is one block whatever its scores: no threshold inside it
    is ever better than its ends, and no anomaly's precision changes. With few anomalies this leaves few blocks.
    """
    order = np.argsort(-score, kind="stable")
    ranked_score, ranked_label = score[order], label[order]
    group = np.append(0, np.cumsum(np.diff(ranked_score) != 0))  # tie groups down the ranking
    mixed_or_anomalous = np.zeros(group[-1] + 1, dtype=bool)
    mixed_or_anomalous[group[ranked_label]] = True
    free = merge_normals & ~mixed_or_anomalous[group]
    same_label = ranked_label[1:] == ranked_label[:-1]
    together = same_label & ((np.diff(group) == 0) | (free[1:] & free[:-1]))
    block = np.empty(len(score), dtype=np.int64)
    block[order] = np.append(0, np.cumsum(~together))
    return block


def multiplicities(
    block: NDArray[np.int64],
    label: NDArray[np.bool_],
    resamples: int,
    size: int,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """(resamples, size) how often each block is drawn; normals and anomalies keep their totals."""
    offset = size * np.arange(resamples)[:, None]
    weight = np.zeros(resamples * size, dtype=np.int64)
    for rows in (block[label], block[~label]):
        drawn = rows[generator.integers(0, len(rows), size=(resamples, len(rows)))] + offset
        weight += np.bincount(drawn.ravel(), minlength=resamples * size)
    return weight.reshape(resamples, size)


def group_multiplicities(
    block: NDArray[np.int64],
    label: NDArray[np.bool_],
    group: NDArray,
    resamples: int,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """(resamples, blocks) how often each block is drawn with its group; groups with an anomaly keep their number."""
    names, group = np.unique(group, return_inverse=True)
    anomalous = np.zeros(len(names), dtype=bool)
    anomalous[group[label]] = True
    times = np.zeros((resamples, len(names)), dtype=np.int64)
    for kind in (np.flatnonzero(anomalous), np.flatnonzero(~anomalous)):
        drawn = kind[generator.integers(0, len(kind), size=(resamples, len(kind)))] if len(kind) else kind[None]
        np.add.at(times, (np.arange(resamples)[:, None], drawn), 1)
    order = np.argsort(block, kind="stable")
    starts = np.flatnonzero(np.append(1, np.diff(block[order])))
    return np.add.reduceat(times[:, group[order]], starts, axis=1)
