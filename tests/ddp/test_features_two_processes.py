"""Two processes share a pass and both have all its views, as one process has them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from outlie.distributed import free_port

LIMIT_S = 300
pytestmark = pytest.mark.timeout(2 * LIMIT_S)
PROCESS = """
import json, os, sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch import nn
from outlie import distributed, features
from outlie.data.split import Rows
from outlie.detectors.base import Views
from outlie.errors import UserError
from outlie.gather import rank_and_world
from outlie.trainer import Options

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self._passes = nn.Linear(4, 3), []

    def forward(self, x):
        self._passes.append(len(x))
        return Views(features=x * self.head.weight.sum(), logits=self.head(x))

options = Options(accelerator="cpu", devices=int(os.environ.get("WORLD_SIZE", "1")))
distributed.join(options)
rank, world = rank_and_world()
torch.manual_seed(rank)  # Lightning gives all ranks the weights of rank 0 ...
net = Net()
net.load_state_dict(torch.load("net.pt", weights_only=True))  # ... but then their keys would differ
x = torch.load("x.pt", weights_only=True)

def get(n, cache):
    del net._passes[:]
    rows = Rows(x[:n], torch.arange(n), y=torch.arange(n))
    views = features.views(net, rows, options, Path(cache), Path("."))
    assert views.y is rows.y
    return {"features": views.features, "logits": views.logits, "passes": sum(net._passes)}

found = {n: get(n, "cache") for n in (4097, 2048, 7, 1)}  # 4097: two chunks for two, and a row that only one rank has
found |= {f"hit {n}": get(n, "cache") for n in (4097, 7)}
found["no folder"] = get(4097, "x.pt/cache")  # a file is where the folder should be
found["other disk"] = get(4097, f"disk of {rank}")  # the second rank does not see what the first one writes
found["other disk, hit"] = get(4097, f"disk of {rank}")
try:
    x[8] = float("nan")  # the first rank's
    get(4097, "cache")
except UserError as error:
    found["refused"] = str(error)
torch.save(found, f"{world} {rank}.pt")
"""


def run(folder: Path, world: int) -> list[dict]:
    """What each of so many processes found."""
    shared = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "process.py"], cwd=folder, text=True, stderr=subprocess.PIPE,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)},
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=LIMIT_S)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world, said
    return [torch.load(folder / f"{world} {rank}.pt", weights_only=True) for rank in range(world)]


def test_two_processes_have_what_one_has(tmp_path):
    torch.manual_seed(0)
    head, x = torch.nn.Linear(4, 3), torch.randn(4097, 4)
    torch.save({f"head.{name}": tensor for name, tensor in head.state_dict().items()}, tmp_path / "net.pt")
    torch.save(x, tmp_path / "x.pt")
    (tmp_path / "process.py").write_text(PROCESS)
    first, second = run(tmp_path, 2)
    (alone,) = run(tmp_path, 1)  # in the same cache: a hit of what two wrote

    with torch.no_grad():
        features, logits = x * head.weight.sum(), head(x)
    for name, views in first.items():
        if name == "refused":
            continue
        n = name if isinstance(name, int) else int(name.split()[-1]) if name.startswith("hit") else 4097
        torch.testing.assert_close(views["features"], features[:n], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(views["logits"], logits[:n], rtol=1e-6, atol=1e-6)
        for other in (second[name], alone[name]):
            torch.testing.assert_close(views["features"], other["features"], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(views["logits"], other["logits"], rtol=1e-6, atol=1e-6)
        assert torch.equal(views["features"], second[name]["features"])
        assert torch.equal(views["logits"], second[name]["logits"])

    passes = {name: (first[name]["passes"], second[name]["passes"]) for name in first if name != "refused"}
    for name, wanted in ((4097, (2049, 2049)), (2048, (1024, 1024)), (7, (4, 3)), (1, (1, 1))):
        assert passes[name] == wanted  # one row more where a rank has none: it computes the first, which is dropped
    assert passes["hit 4097"] == passes["hit 7"] == passes["other disk, hit"] == (0, 0)
    assert alone[4097]["passes"] == alone[7]["passes"] == 0
    assert passes["no folder"] == passes["other disk"] == (2049, 2049)
    assert first["refused"] == second["refused"]
    assert "features of the network are NaN or Inf in 1 of the rows 0 to 2047" in first["refused"]
    assert not list((tmp_path / "cache").glob("*.partial"))
