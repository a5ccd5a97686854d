"""The batches of an epoch: an order drawn anew, each rank its share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from outlie.detectors.base import Views
from outlie.gather import rank_and_world


def epoch_seed(seed: int, epoch: int) -> int:
    """What the generators of an epoch start from: a training that was killed goes on as if it had not been."""
    return seed * 1_000_003 + epoch


class Batches:
    """Views indexed by one permutation an epoch: no worker processes for tensors, one thread for images on disk.

    A pass over all rows may be cut into equal parts, each an epoch of its own: `part` tells which one is next.
    """

    def __init__(
        self,
        views: Views,
        batch_size: int,
        drop_last: bool,
        generator: Callable[[], torch.Generator],
        fewest: int = 2,
        shuffle: bool = True,
        part_rows: int = 0,
        part: Callable[[], int] = lambda: 0,
    ) -> None:
        self.views, self.generator, self.shuffle, self.part = views, generator, shuffle, part
        n = len(views)
        full, rest = divmod(n, batch_size)
        # a batch of one row has no batch statistics, on any rank; where nothing else is there, it is kept
        too_few = rest < max(fewest, 2 * rank_and_world()[1])
        self.sizes = [batch_size] * full + ([] if full and (drop_last or too_few) else [rest] if rest else [])
        self.parts = min(len(self.sizes), max(1, round(n / part_rows))) if part_rows else 1

    def __len__(self) -> int:
        return len(self.sizes) // self.parts

    def __iter__(self) -> Iterator[Views]:
        held = isinstance(self.views.x, Tensor) or self.views.x is None
        n = len(self.views)
        order = torch.randperm(n, generator=self.generator()) if self.shuffle else torch.arange(n)
        order = order.to(self.views.device) if held else order
        rank, world = rank_and_world()
        starts, here = [0, *itertools.accumulate(self.sizes)], self.part() * len(self)
        spans = list(zip(starts, self.sizes))[here : here + len(self)]
        rows = [order[start : start + size][rank::world] for start, size in spans]
        if held:
            yield from (self.views[some] for some in rows)
            return
        with ThreadPoolExecutor(1) as ahead:  # decodes the next batch while the network works on this one
            waiting: Future[Views] | None = None
            for some in [*rows, None]:
                done, waiting = waiting, None if some is None else ahead.submit(self.views.__getitem__, some)
                if done is not None:
                    yield done.result()
