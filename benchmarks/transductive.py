"""Why COPOD and ECOD differ from the published columns: PyOD ranks the scored rows together with the training rows.

    OUTLIE_DATA=../shared/data python benchmarks/transductive.py

AUROC under dte_semi of PyOD's own two detectors on rows as `run train` has them, of ours, and as published; five seeds
of datasets below 1,000 rows, one of the others, whose split no seed touches. The csv beside it is the result.
"""

import csv
import statistics
from importlib.resources import files

import stored
from pyod.models.copod import COPOD
from pyod.models.ecod import ECOD

from outlie.data.adbench import ADBench
from outlie.detectors import ecod
from outlie.detectors.base import Views
from outlie.metrics.ranking import auroc

DATASETS = (
    "annthyroid", "breastw", "cardio", "cardiotocography", "fault", "glass", "hepatitis", "ionosphere", "landsat",
    "letter", "lymphography", "optdigits", "pageblocks", "pendigits", "pima", "satellite", "spambase", "thyroid",
    "vertebral", "wbc", "wdbc", "wine", "wpbc", "yeast",
)  # fmt: skip
PAIRS = {"ecod": (ECOD, ecod.ECOD), "copod": (COPOD, ecod.COPOD)}


def published(protocol: str) -> dict[tuple[str, str], tuple[float, float]]:
    """(dataset, detector), both in small letters -> mean and std of the AUROC, in per cent."""
    file = f"dte_adbench_{protocol.removeprefix('dte_')}_aucroc.csv"
    with files("outlie.results").joinpath("published", file).open(encoding="utf-8") as lines:
        return {
            (line["dataset"].lower(), line["method"].lower()): (float(line["mean"]), float(line["std"]))
            for line in csv.DictReader(lines)
        }


def main() -> None:
    """Measure, print, store."""
    rows, known = [], published("dte_semi")
    for dataset in DATASETS:
        found: dict[tuple[str, str], list[float]] = {}
        for seed in range(5):
            split = ADBench(dataset).load(seed)
            train, test = split.train.x.numpy(), split.tests["test"]
            for name, (theirs, ours) in PAIRS.items():
                model = theirs().fit(train)
                label = test.label.numpy()
                found.setdefault((name, "pyod"), []).append(auroc(model.decision_function(test.x.numpy()), label))
                own = ours()
                own.fit(Views(x=split.train.x, features=split.train.x))
                score = own.score(Views(x=test.x, features=test.x)).double().numpy()
                found.setdefault((name, "ours"), []).append(auroc(score, label))
            if split.train.x.shape[0] + len(test.x) != 1000:
                break
        for name in PAIRS:
            row = {"dataset": dataset, "detector": name, "seeds": len(found[name, "pyod"])}
            row |= {side: round(100 * statistics.fmean(found[name, side]), 2) for side in ("pyod", "ours")}
            row |= {"published_mean": known[dataset, name][0], "published_std": known[dataset, name][1]}
            rows.append(row)
            print(row)
    stored.table(__file__, rows)


if __name__ == "__main__":
    main()
