"""What k costs: CPU time of a training step against its multiply-adds; time and memory of L_5000 on 10,000 images.

    python benchmarks/iwae_cost.py            MNIST's one-layer network, 784-200-200-50, on random pixels

The ratio of multiply-adds of specification of IWAE, section 10, is (216.8 + 206.8 k) / 423.6 (thousands). CPU seconds
of one thread, the least of several rounds, k by turns, so that a busy machine disturbs all alike. Memory: the peak.
"""

import csv
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from outlie.density.latent import LatentModel
from outlie.density.likelihoods import Bernoulli
from outlie.density.objectives import Objective, loss
from outlie.density.scores import bound
from outlie.results.store import code_version

ROWS, SIZES, ROUNDS = 20, (1, 5, 50, 200), 15
COLUMNS = ["what", "k", "rows", "cpu_s", "ratio", "ratio_of_multiply_adds", "ratio_over_it", "peak_gib", "code_version"]


def model() -> LatentModel:
    """One stochastic layer, as Burda et al."""
    torch.manual_seed(0)
    return LatentModel((784,), Bernoulli(784), [50], [[200, 200]])


def step_seconds() -> dict[int, float]:
    """CPU seconds of a training step (forward, backward, Adam) for each k."""
    network, x, generator = model(), torch.bernoulli(torch.full((ROWS, 784), 0.3)), torch.Generator().manual_seed(0)
    adam, best = torch.optim.Adam(network.parameters(), fused=True), dict.fromkeys(SIZES, float("inf"))
    for _ in range(ROUNDS):
        for k in SIZES:
            for repeat in range(3):  # the first one warms the caches
                start = time.process_time()
                adam.zero_grad()
                loss(network, x, network.draw(k, ROWS, generator), Objective("iwae", "dreg", k)).backward()
                adam.step()
                if repeat:
                    best[k] = min(best[k], time.process_time() - start)
    return best


def evaluate(images: int, k: int, at_once: int = 200) -> tuple[float, float]:
    """CPU seconds of L_k of so many images, and the process's peak memory, GiB."""
    network, start = model(), time.process_time()
    with torch.no_grad():
        for rows in torch.bernoulli(torch.full((images, 784), 0.3)).split(at_once):
            bound(network, rows, k, 0)
    return time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    if sys.argv[1:2] == ["evaluate"]:
        print(*evaluate(int(sys.argv[2]), int(sys.argv[3])))
        raise SystemExit
    seconds, version = step_seconds(), code_version()
    rows = []
    for k, cost in seconds.items():
        ratio, wanted = cost / seconds[1], (216.8 + 206.8 * k) / 423.6
        rows.append({"what": "training step", "k": k, "rows": ROWS, "cpu_s": f"{cost:.5f}", "ratio": f"{ratio:.2f}",
                     "ratio_of_multiply_adds": f"{wanted:.2f}", "ratio_over_it": f"{ratio / wanted:.2f}"})  # fmt: skip
    for images, k in ((10_000, 5000),):
        command = [sys.executable, __file__, "evaluate", str(images), str(k)]
        cost, peak = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        rows.append({"what": "evaluation", "k": k, "rows": images, "cpu_s": f"{cost:.0f}", "peak_gib": f"{peak:.2f}"})
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(row | {"code_version": version} for row in rows)
    print(Path(__file__).with_suffix(".csv").read_text())
