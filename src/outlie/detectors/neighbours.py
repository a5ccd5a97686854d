"""Exact nearest neighbours in chunks: matrix products find the candidates, differences give their distances."""

import torch
from torch import Tensor

BLOCK_BYTES = 128 * 2**20  # of one block of the distance matrix


def nearest_neighbours(x: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Squared distances and indices of each row's k nearest bank rows, nearest first.

    ||x - b||^2 = ||x||^2 - 2 x.b + ||b||^2 picks the candidates; the distances that are returned are computed from the
    differences, so that a row that lies in the bank is at distance exactly 0.

    Args:
        x: (B, D) queries.
        bank: (N, D) rows to search, N >= k.
        k: number of neighbours.

    Returns:
        (B, k) squared distances in x's dtype, and (B, k) int64 row numbers of the bank.
    """
    half_norm_N = bank.square().sum(1) / 2
    k = min(k, len(bank))
    spare = min(k + 4, len(bank))  # rounding of the matrix product can swap near-ties: keep a few more, order exactly
    rows = max(1, BLOCK_BYTES // (8 * max(len(bank), spare * x.shape[1])))
    squared, index = x.new_empty(len(x), k), torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    for start in range(0, len(x), rows):
        x_BD = x[start : start + rows]
        closeness_BN = torch.addmm(half_norm_N, x_BD, bank.T, beta=-1)  # x.b - ||b||^2 / 2, larger = nearer
        candidates_BS = closeness_BN.topk(spare, dim=1, sorted=False).indices
        exact_BS = (x_BD[:, None, :] - bank[candidates_BS]).square().sum(2)
        squared[start : start + rows], order_BK = exact_BS.topk(k, dim=1, largest=False)
        index[start : start + rows] = candidates_BS.gather(1, order_BK)
    return squared, index


def log_sum_exp_kernel(x: Tensor, bank: Tensor, variances: Tensor) -> Tensor:
    """log sum_i exp(-||x - x_i||^2 / (2 v)) for every variance v; (B, D), (N, D), (T,) -> (B, T)."""
    rows = max(1, BLOCK_BYTES // (16 * len(bank)))
    out = x.new_empty(len(x), len(variances))
    for start in range(0, len(x), rows):
        squared_BN = torch.cdist(x[start : start + rows], bank, compute_mode="donot_use_mm_for_euclid_dist").square()
        for column, v in enumerate(variances.tolist()):  # a loop over the time grid, not over samples
            out[start : start + rows, column] = torch.logsumexp(squared_BN / (-2 * v), dim=1)
    return out
