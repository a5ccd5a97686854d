"""Every cell of the kNN oracles whose data are here: ours beside the re-computed and the published numbers.

    OUTLIE_DATA=... OMP_NUM_THREADS=1 python benchmarks/data_oracles.py REFERENCE_FOLDER

writes benchmarks/data_oracles.csv. Nothing of outlie scores here: neighbours and AUROC are scikit-learn's, so what is
tested is the data (specs/diffusion.md, section 1.5). dte_unsup: K=32, seeds 0-4. dte_semi: K=5, seed 0, on datasets of
1,000 to 50,000 rows, whose split does not depend on the seed.
"""

import csv
import statistics
import sys
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from outlie.data.adbench import ADBench
from outlie.data.adbench_files import datasets
from outlie.data.locate import find

HERE = {files[0].table_name: name for name, files in datasets().items() if len(files) == 1 and find(files[0])}
OUT = Path(__file__).with_suffix(".csv")
COLUMNS = ("dataset", "protocol", "scorer", "seeds", "mean", "std", "expected_mean", "expected_std", "within_0.01")


def aucs(name: str, protocol: str, k: int, seed: int) -> tuple[float, float]:
    """AUROC in percent of the distance to the k-th neighbour, and of the mean distance to k."""
    split = ADBench(name, protocol).load(seed)
    test = split.tests["test"]
    train, query = (((rows.x - split.mean) / split.scale).numpy() for rows in (split.train, test))
    distances = NearestNeighbors(n_neighbors=k).fit(train).kneighbors(query)[0]
    return tuple(100 * roc_auc_score(test.label.numpy(), score) for score in (distances[:, -1], distances.mean(1)))


def row(dataset: str, protocol: str, scorer: str, values: list[float], mean: str, std: str) -> tuple:
    """One line of the csv; std is ddof 1, empty for one seed."""
    ours = [statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None]
    pairs = zip(ours, (mean, std), strict=True)
    # the expected numbers are rounded to 0.01, so are ours
    close = all(
        abs(round(found, 2) - float(wanted)) < 0.0101 for found, wanted in pairs if found is not None and wanted
    )
    shown = ["" if found is None else f"{found:.4f}" for found in ours]
    return dataset, protocol, scorer, len(values), *shown, mean, std, close


def main(reference: Path) -> None:
    """Compute every cell and write the csv."""
    rows = []
    with (reference / "dte_np_knn_k32_unsup_check.csv").open() as lines:
        wanted = [line for line in csv.DictReader(lines) if line["dataset"] in HERE]
    for dataset in dict.fromkeys(line["dataset"] for line in wanted):
        found = np.array([aucs(HERE[dataset], "dte_unsup", 32, seed) for seed in range(5)])
        for line in (line for line in wanted if line["dataset"] == dataset):
            values = found[:, ["kth_dist_k32", "mean_dist_k32"].index(line["scorer"])].tolist()
            rows.append(row(dataset, "dte_unsup", line["scorer"], values, line["mean"], line["std_ddof1"]))
            print(*rows[-1], flush=True)
    with (reference / "dte_np_published_decomposition_semi.csv").open() as lines:
        for line in csv.DictReader(lines):
            if line["dataset"] in HERE:
                kth, mean = aucs(HERE[line["dataset"]], "dte_semi", 5, 0)
                rows.append(row(line["dataset"], "dte_semi", "kth_dist_k5", [kth], line["published_knn"], ""))
                rows.append(row(line["dataset"], "dte_semi", "mean_dist_k5", [mean], line["mean_dist_k5"], ""))
                print(*rows[-2], flush=True)
    with OUT.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    print(f"{sum(bool(line[-1]) for line in rows)} of {len(rows)} cells within 0.01; {OUT}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
