"""Work shared by the ranks of a distributed run, and put together again without padding or repeats."""

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def share(n: int) -> Tensor:
    """The rows of n that this rank works on: rank, rank + world, ...; every row belongs to exactly one rank."""
    rank, world = rank_and_world()
    return torch.arange(n)[rank::world]


def gather_shares(part: Tensor, n: int) -> Tensor:
    """Every rank's rows of `share(n)`, in their first order, on every rank; (m, ...) -> (n, ...).

    A distributed sampler repeats rows so that all ranks have as many; here the padding is cut off again.
    """
    _, world = rank_and_world()
    if world == 1:
        return part
    most = -(-n // world)
    padded = part.new_zeros(most, *part.shape[1:])
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)[:n]  # row j * world + r is rank r's j-th


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a scalar over all ranks."""
    _, world = rank_and_world()
    if world > 1:
        dist.all_reduce(value)
    return value / world


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum over all ranks, of any shape; in place where there are several."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(value)
    return value
