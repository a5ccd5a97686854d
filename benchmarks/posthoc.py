"""CPU seconds of every post-hoc score beside the peers', on one thread; writes posthoc.csv.

    python benchmarks/posthoc.py ../shared/reference/posthoc_peer_timings.csv [ROUNDS]

20,000 rows to fit on (held-out rows are the same, so that all fits are alike) and 20,000 to score, D = 512, C = 10 and
100: h = relu(m_y + s e), half its entries 0. Half of the queries are such rows, half lie between two classes and are
weaker. The head is the linear discriminant of the training rows, which is calibrated: 98 % (C = 10) and 94 % (C = 100)
of them are predicted rightly, with as much confidence. Relation's cost depends on that, as it skips what is confidently
of another class. Detectors run as `run eval detectors=all` runs them, batches and all.

The peers' numbers are of the same sizes, but of other features, another day and another load; where they scored fewer
queries, scoring is scaled to 20,000 (and the column `scaled` names the peer). pytorch-ood's kNN has k = 1, its KL
matching only the template of the predicted class; the official code's pipeline and plain torch are the peers' file's.
Rounds are interleaved, the median is kept. `load` is the machine's load average (it has 2 cores):
other processes make the CPU seconds of the same work larger.
"""

import csv
import os
import statistics
import sys
from itertools import product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

from outlie import stages
from outlie.build import build
from outlie.commands.compare import names_of, section_of
from outlie.detectors import moments
from outlie.detectors.base import Spec, Views, set_up
from outlie.metrics import cost

N, D, CLASSES = 20_000, 512, (10, 100)
BANKS = ("deep_knn", "nnguide", "relation")  # these look at training rows for every query
CPU = torch.device("cpu")
PEERS = {
    "msp": "MSP", "max_logit": "MaxLogit", "energy": "Energy", "gen": "GEN", "kl_matching": "KLM",
    "mahalanobis": "Mahalanobis", "relative_mahalanobis": "RelMahalanobis", "deep_knn": "KNN", "vim": "ViM",
    "residual": "Residual", "dice": "DICE", "she": "SHE", "gradnorm": "GradNorm", "nnguide": "NNGuide", "fdbd": "fDBD",
    "nci": "NCI", "relation": "Relation", "neco": "NECO std=True d=100 maxlogit=False",
}  # fmt: skip
LIBRARIES = {
    "openood": "OpenOOD",
    "pytorch_ood": "pytorch-ood",
    "authors_pipeline": "sklearn-style (official-code pipeline)",
    "plain_torch": "ref-vectorised torch",
}


def classifier(classes: int) -> tuple[Views, Views, nn.Linear]:
    """Views to fit on, views to score, and the head that made their logits."""
    generator = torch.Generator().manual_seed(classes)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    centre_CD, spread_D = 0.16 * normal(classes, D), 0.5 + 0.5 * normal(D).abs()
    y, other = (torch.randint(classes, (2 * N,), generator=generator) for _ in range(2))
    between_N = torch.arange(2 * N) >= N + N // 2
    middle_ND = torch.where(between_N[:, None], 0.35 * (centre_CD[y] + centre_CD[other]), centre_CD[y])
    features_ND = (middle_ND + spread_D * normal(2 * N, D)).relu_()
    means_CD, _ = moments.class_means(features_ND[:N], y[:N], classes)
    within_DD = moments.within_class_covariance(features_ND[:N], y[:N], means_CD)
    head = nn.Linear(D, classes).requires_grad_(False)
    weight_CD = torch.linalg.solve(within_DD, (means_CD - means_CD.mean(0)).T).T
    head.weight.copy_(weight_CD)
    head.bias.copy_(-(weight_CD * (means_CD + means_CD.mean(0))).sum(1) / 2)
    views = Views(features=features_ND, logits=head(features_ND), y=y)
    return views[:N].map(Tensor.clone), views[N:].map(Tensor.clone), head


def measure(name: str, train: Views, test: Views, head: nn.Linear) -> tuple[float, float]:
    """CPU seconds to fit and to score; the fit of a detector without one takes 0."""
    detector = build(section_of(name), [])
    set_up(detector, Spec({"features": (D,), "logits": tuple(head.bias.shape)}, 0, len(head.bias), head))
    spent = 0.0
    if hasattr(detector, "fit"):
        with cost.seconds() as fitting:
            stages.fit(detector, train, CPU)
        spent = fitting.cpu
    with cost.seconds() as scoring:
        score = stages.score(detector, test, CPU)
    assert score.isfinite().all()
    return spent, scoring.cpu


def peers_of(path: str, classes: int) -> dict[str, dict[str, float | str]]:
    """detector -> library -> CPU seconds to fit and score, scaled to as many queries as here."""
    found: dict[str, dict[str, float | str]] = {name: {} for name in PEERS}
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["num_classes"] == str(classes)]
    for name, library in product(PEERS, LIBRARIES):
        same = [row for row in rows if (row["library"], row["method"]) == (LIBRARIES[library], PEERS[name])]
        if same:
            fit, score, queries = (float(same[0][column]) for column in ("fit_cpu_s", "score_cpu_s", "n_query"))
            found[name][library] = round(fit + score * N / queries, 3)
            if queries < N:
                found[name]["scaled"] = f"{found[name].get('scaled', '')} {library} from {queries:.0f}".strip()
    return found


def write(path: Path, seconds: dict[tuple[int, str], list[tuple[float, float]]], load: float, peers: str) -> None:
    """One line a detector, then the sums."""
    columns = ["classes", "detector", "fit_cpu_s", "score_cpu_s", "cpu_s", *LIBRARIES, "scaled", "load"]
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        for classes in CLASSES:
            median = {
                name: [statistics.median(one) for one in zip(*rounds, strict=True)]
                for (c, name), rounds in seconds.items()
                if c == classes
            }
            others = peers_of(peers, classes)
            lines = {name: (others.get(name, {}), [name]) for name in median} | {
                "sum": ({}, list(median)),
                "sum without deep_knn": ({}, [name for name in median if name != "deep_knn"]),
                "sum without " + " ".join(BANKS): ({}, [name for name in median if name not in BANKS]),
            }
            for name, (beside, summed) in lines.items():
                fit, score = (sum(median[one][i] for one in summed) for i in range(2))
                ours = {"fit_cpu_s": f"{fit:.3f}", "score_cpu_s": f"{score:.3f}", "cpu_s": f"{fit + score:.3f}"}
                table.writerow({"classes": classes, "detector": name, **ours, **beside, "load": f"{load:.1f}"})


if __name__ == "__main__":
    torch.set_num_threads(1)
    peers, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3
    names = names_of("all", ("x", "features", "logits", "head", "network"))
    grounds = {classes: classifier(classes) for classes in CLASSES}
    seconds: dict[tuple[int, str], list[tuple[float, float]]] = {}
    load: list[float] = []
    for _, classes, name in product(range(rounds), CLASSES, names):
        seconds.setdefault((classes, name), []).append(measure(name, *grounds[classes]))
        load.append(os.getloadavg()[0])
        print(classes, name, *(f"{one:.3f}" for one in seconds[classes, name][-1]), f"load {load[-1]:.1f}", flush=True)
    write(Path(__file__).with_suffix(".csv"), seconds, statistics.median(load), peers)
