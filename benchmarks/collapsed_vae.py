"""What the published VAE columns measure: the distance to the mean of the training rows, in standard deviations.

    OUTLIE_DATA=../shared/data python benchmarks/collapsed_vae.py

The published VAE is PyOD's of that time, whose KL term is 0 by default and whose weights are decayed: a decoder that
has collapsed answers with the mean of the training rows, and the score, its error, is |(x - mean) / std|.
AUROC of that norm, without any network, beside the published mean; five seeds. The csv beside it is the result.
"""

import statistics

import numpy as np
import stored
from sklearn.preprocessing import StandardScaler
from transductive import DATASETS, published

from outlie.data.adbench import ADBench
from outlie.metrics.ranking import auroc

SEEDS = 5


def distance_to_mean(dataset: str, protocol: str, seed: int) -> float:
    """AUROC in per cent of |(x - mean) / std|, mean and std of the training rows."""
    split = ADBench(dataset, protocol=protocol).load(seed)
    test = split.tests["test"]
    assert test.label is not None
    scale = StandardScaler().fit(split.train.x.double().numpy())
    return 100 * auroc(np.linalg.norm(scale.transform(test.x.double().numpy()), axis=1), test.label.numpy())


def main() -> None:
    """Measure, print, store."""
    rows = []
    for protocol in ("dte_semi", "dte_unsup"):
        known = published(protocol)
        for dataset in sorted((*DATASETS, "internetads", "mnist")):
            found = [distance_to_mean(dataset, protocol, seed) for seed in range(SEEDS)]
            mean, (theirs, std) = statistics.fmean(found), known[dataset, "vae"]
            rows.append(
                {
                    "protocol": protocol,
                    "dataset": dataset,
                    "distance_to_mean": round(mean, 2),
                    "published_vae": theirs,
                    "published_std": std,
                    "inside": "yes" if abs(mean - theirs) <= max(1, 2 * std) else "no",
                }
            )
            print(rows[-1])
    stored.table(__file__, rows)


if __name__ == "__main__":
    main()
