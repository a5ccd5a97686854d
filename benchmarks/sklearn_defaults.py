"""Where scikit-learn's defaults moved PyOD's numbers since the tables were published: CBLOF's starts, PCA's signs.

    OUTLIE_DATA=../shared/data python benchmarks/sklearn_defaults.py

Before 1.4 k-means took the best of ten starts, since then one. Before 1.5 the sign of a principal axis was decided by
its scores on the training rows, since then by its own entries; PyOD's score, sum_i |x - v_i| / share_i, depends on it.
AUROC of both ways beside the published mean; five seeds. The csv beside it is the result.
"""

import statistics

import numpy as np
import stored
import torch
from scipy.spatial.distance import cdist
from sklearn.preprocessing import StandardScaler
from sklearn.utils.extmath import svd_flip
from transductive import DATASETS, published

from outlie.data.adbench import ADBench
from outlie.detectors.base import Spec, Views
from outlie.detectors.pyod import PyOD
from outlie.metrics.ranking import auroc

SEEDS = 5


def cblof(train: np.ndarray, test: np.ndarray, seed: int, now: bool) -> np.ndarray:
    """Scores with one start of k-means, or ten."""
    options = {"n_clusters": 8, "alpha": 0.9, "beta": 5, "n_init": 1 if now else 10}
    detector = PyOD("pyod.models.cblof.CBLOF", options)
    detector.setup(Spec({"features": train.shape[1:]}, seed))
    detector.fit(Views(features=torch.from_numpy(train)))
    return detector.score(Views(features=torch.from_numpy(test))).numpy()


def pca(train: np.ndarray, test: np.ndarray, seed: int, now: bool) -> np.ndarray:
    """PyOD's score, with the signs of the axes as scikit-learn takes them now, or took them; no axis is random."""
    del seed
    u, s, v = np.linalg.svd(train - train.mean(0), full_matrices=False)
    _, v = svd_flip(u, v, u_based_decision=not now)
    kept = s > s[0] * 1e-10  # an axis without variance says nothing
    return (cdist(test, v[kept]) / (s[kept] ** 2 / (s**2).sum())).sum(1)


def main() -> None:
    """Measure, print, store."""
    rows = []
    for protocol in ("dte_semi", "dte_unsup"):
        known = published(protocol)
        for dataset in DATASETS:
            found: dict[tuple[str, bool], list[float]] = {}
            for seed in range(SEEDS):
                split = ADBench(dataset, protocol=protocol).load(seed)
                scale = StandardScaler().fit(split.train.x.double().numpy())
                train, test = (scale.transform(some.x.double().numpy()) for some in (split.train, split.tests["test"]))
                label = split.tests["test"].label
                assert label is not None
                for detector in (cblof, pca):
                    for now in (True, False):
                        value = 100 * auroc(detector(train, test, seed, now), label.numpy())
                        found.setdefault((detector.__name__, now), []).append(value)
            for detector in ("cblof", "pca"):
                row = {"protocol": protocol, "dataset": dataset, "detector": detector}
                for now, when in ((True, "now"), (False, "then")):
                    row[f"{when}_mean"] = f"{statistics.fmean(found[detector, now]):.2f}"
                    row[f"{when}_std"] = f"{statistics.stdev(found[detector, now]):.2f}"
                row["published_mean"], row["published_std"] = known[dataset, detector]
                rows.append(row)
                print(row)
    stored.table(__file__, rows)


if __name__ == "__main__":
    main()
