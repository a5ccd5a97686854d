"""Rows shared by two and three processes and put together again."""

import json
import subprocess
import sys

import torch

from outlie.gather import gather_shares, mean_over_ranks, rank_and_world, share

PROCESS = """
import json, sys
import torch
import torch.distributed as dist
from outlie.gather import gather_shares, mean_over_ranks, rank_and_world, share

rank, folder, answers = int(sys.argv[1]), sys.argv[2], {}
for world in (3, 2):
    if rank >= world:
        break
    dist.init_process_group("gloo", init_method=f"file://{folder}/{world}", rank=rank, world_size=world)
    assert rank_and_world() == (rank, world)
    for n in range(9):
        mine = share(n)
        rows = torch.stack([10.0 * mine, 10.0 * mine + 1], 1)
        whole = gather_shares(rows, n)
        numbers = gather_shares(mine, n)
        answers[f"{world} {n}"] = [mine.tolist(), whole.tolist(), numbers.tolist(), str(numbers.dtype)]
    answers[f"{world} mean"] = mean_over_ranks(torch.tensor(float(rank))).item()
    dist.barrier()
    dist.destroy_process_group()
print(json.dumps(answers))
"""


def test_two_and_three_processes_restore_the_order(tmp_path):
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    processes = [
        subprocess.Popen([sys.executable, script, str(rank), str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for rank in range(3)
    ]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    for world in (2, 3):
        for n in range(9):
            parts = [answers[rank][f"{world} {n}"] for rank in range(world)]
            assert sorted(row for mine, *_ in parts for row in mine) == list(range(n))  # each row on one rank
            sizes = [len(mine) for mine, *_ in parts]
            assert max(sizes) - min(sizes) <= 1
            for _, whole, numbers, dtype in parts:  # the same on every rank, no padding, no repeats
                assert whole == [[10.0 * row, 10.0 * row + 1] for row in range(n)]
                assert (numbers, dtype) == (list(range(n)), "torch.int64")
        assert [answers[rank][f"{world} mean"] for rank in range(world)] == [(world - 1) / 2] * world


def test_alone_everything_stays_as_it_is():
    assert rank_and_world() == (0, 1)
    rows = torch.rand(5, 2)
    assert share(5).tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(gather_shares(rows, 5), rows)
    assert mean_over_ranks(torch.tensor(3.0)).item() == 3
