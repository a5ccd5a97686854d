"""DTE-NP on 50,000 x 50,000 rows of 30 features: peak memory and CPU seconds; writes neighbours.csv.

python benchmarks/neighbours.py
"""

import csv
import resource
import time
from pathlib import Path

import torch

from outlie.detectors.base import Views
from outlie.detectors.dte_np import DTENP

N, D = 50_000, 30

if __name__ == "__main__":
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randn(N, D, generator=generator, dtype=torch.float64) for _ in range(2))
    detector = DTENP(k=5)
    detector.fit(Views(features=train))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cpu = time.process_time()
    score = detector.score(Views(features=test))
    cpu = time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["rows", "features", "k", "dtype", "cpu_s", "peak_gib_process", "gib_before", "threads"])
        table.writerow([N, D, 5, "float64", f"{cpu:.1f}", f"{peak:.2f}", f"{before:.2f}", torch.get_num_threads()])
    print(Path(__file__).with_suffix(".csv").read_text(), float(score.mean()))
