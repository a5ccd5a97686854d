"""ViM where a head has collapsed: our float32 route, float64, and NumPy's float32 one; writes collapse_vim.csv.

python benchmarks/collapse_vim.py

The task is made here, after the description in the specification of the classifier scores (section 5), whose generator
we do not have: C classes in 512 dimensions, 20,000 training rows, 10,000 ID and 10,000 OOD queries, all float32.

    class means   3 times a randomly turned simplex (orthonormal rows less their mean), plus a common vector
    ID rows       class mean + Gaussian noise whose k-th direction of 512 has standard deviation 3 / k^0.7
    OOD rows      2.4 / 3 of a random class mean + noise of the same kind + isotropic noise of 0.03
    head          W = 5 times the simplex, so that its rows sum to 0; b = 0.016 + 0.01 * noise

The common part of b over the singular value that float32 rounding leaves W gives naive origins of 3e5, as described.
`specification` are the AUROCs that the specification measured on its own task: OpenOOD's and pytorch-ood's float32
route against float64. The size of the fall can be compared, the values cannot.
"""

import csv
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.vim import Residual, ViM
from outlie.metrics.ranking import auroc

DIM, N, D = 512, 20_000, 256
LABEL = np.repeat([0, 1], N // 2)
PUBLISHED = {("vim", 10): (".926", ".872"), ("vim", 100): (".997", ".460"), ("residual", 10): ("", ".29")}


def task(classes: int, seed: int = 0) -> dict[str, np.ndarray]:
    """train, test, w, b in float32."""
    rng = np.random.default_rng(seed)
    simplex = np.linalg.qr(rng.normal(size=(DIM, classes)))[0].T
    simplex -= simplex.mean(0)
    turn = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    spread = 3 * np.arange(1, DIM + 1)[:, None] ** -0.7 * turn
    common = 0.3 * rng.normal(size=DIM)

    def rows(y: np.ndarray, size: float = 3.0) -> np.ndarray:
        return size * simplex[y] + rng.normal(size=(len(y), DIM)) @ spread + common

    ood = rows(rng.integers(classes, size=N // 2), 2.4) + 0.03 * rng.normal(size=(N // 2, DIM))
    parts = {
        "train": rows(np.arange(N) % classes),
        "test": np.concatenate([rows(np.arange(N // 2) % classes), ood]),
        "w": 5 * simplex,
        "b": 0.016 + 0.01 * rng.normal(size=classes),
    }
    return {key: value.astype(np.float32) for key, value in parts.items()}


def in_numpy(data: dict[str, np.ndarray], dtype: type, cut: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Anomaly scores by the formulas in one dtype, the pseudo-inverse cut at `cut`; and the origin."""
    train, test, w, b = (data[key].astype(dtype) for key in ("train", "test", "w", "b"))
    u = -np.linalg.pinv(w, rcond=cut) @ b
    values, vectors = np.linalg.eigh((train - u).T @ (train - u) / N)
    null_space = vectors[:, np.argsort(-values)[D:]]
    residual, own = (np.linalg.norm((h - u) @ null_space, axis=1) for h in (test, train))
    alpha, logits = (train @ w.T + b).max(1).mean() / own.mean(), test @ w.T + b
    top = logits.max(1)
    return {
        "vim": alpha * residual - top - np.log(np.exp(logits - top[:, None]).sum(1)),
        "residual": residual,
    }, u


def ours(data: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Anomaly scores of our detectors on the float32 rows and head; and the origin."""
    train, test, w, b = (torch.as_tensor(data[key]) for key in ("train", "test", "w", "b"))
    head = nn.Linear(DIM, len(b))
    head.weight.data, head.bias.data = w, b
    out, u = {}, np.empty(0)
    for name, kind in (("vim", ViM), ("residual", Residual)):
        detector = kind(d=D)
        set_up(detector, Spec({"features": (DIM,)}, classes=len(b), head=head))
        detector.fit(Views(features=train, logits=train @ w.T + b))
        out[name] = detector.score(Views(features=test, logits=test @ w.T + b)).numpy()
        u = detector.origin.numpy()
    return out, u


if __name__ == "__main__":
    torch.set_num_threads(1)
    table = [["detector", "classes", "route", "auroc", "origin_norm", "mean_feature_norm", "smallest_singular_value",
              "cpu_s_both_detectors", "of_the_specification"]]  # fmt: skip
    for classes in (10, 100):
        data = task(classes)
        smallest = np.linalg.svd(data["w"].astype(np.float64))[1][-1]
        routes = {
            "ours, float32 rows": ours,
            "float64, cut 1e-6": lambda data: in_numpy(data, np.float64, 1e-6),
            "float64, cut 1e-15": lambda data: in_numpy(data, np.float64, 1e-15),
            "float32, cut 1e-15 (naive)": lambda data: in_numpy(data, np.float32, 1e-15),
        }
        for route, compute in routes.items():
            cpu = time.process_time()
            result, u = compute(data)
            cpu = time.process_time() - cpu
            for name, score in result.items():
                pair = PUBLISHED.get((name, classes), ("", ""))
                published = pair["naive" in route] if route != "float64, cut 1e-15" else ""
                norms = f"{np.linalg.norm(u):.3g}", f"{np.linalg.norm(data['train'], axis=1).mean():.3g}"
                table.append([name, str(classes), route, f"{auroc(score, LABEL):.4f}", *norms, f"{smallest:.2g}",
                              f"{cpu:.2f}", published])  # fmt: skip
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)
    print(Path(__file__).with_suffix(".csv").read_text())
