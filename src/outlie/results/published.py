"""Published numbers, as data: the cell of a paper's table that a run repeats, if there is one.

`published/*.csv` hold mean and std (ddof 1) over five seeds in percent; ADBench columns of Livernoche et al. 2024, DTE:
the AUC-ROC files are the tables of their README, AUC-PR and F1 the sheets in A-Chicharito-S/FoMo-0D (MIT).
"""

import csv
from functools import cache
from importlib.resources import files
from typing import Any

from outlie import catalog
from outlie.data.adbench_files import group

MAX_ROWS = 50_000  # of the published protocols
METRICS = {"auroc": "aucroc", "average_precision": "aucpr", "f1_at_k": "f1"}
# detector= -> column of the DTE tables; a preset that is not the published setting is not here
DTE_COLUMNS = {
    "diffusion/paper": "DDPM", "dte_c/paper": "DTE-C", "dte_ig/paper": "DTE-IG", "dte_np/paper": "DTE-NP",
    "knn/paper": "KNN", "cblof": "CBLOF", "hbos": "HBOS", "iforest": "IForest", "loda": "LODA", "lof": "LOF",
    "mcd": "MCD", "ocsvm": "OCSVM", "pca": "PCA", "feature_bagging": "FeatureBagging",
    "goad": "GOAD", "icl/paper": "ICL", "slad": "SLAD",
    "dagmm/paper": "DAGMM", "planar_flow/paper": "PlanarFlow", "ganomaly": "GANomaly", "drocc": "DROCC",
}  # fmt: skip
UNSUP_COLUMNS = DTE_COLUMNS | {"dte_np/paper_unsup": "DTE-NP", "knn/paper_unsup": "KNN"}


def cell(dataset: str, detector: str, protocol: str) -> dict[str, dict[str, float]]:
    """{metric: {mean, std}} as fractions, as published for this dataset, detector and protocol; {} if nothing is."""
    setting = protocol.removeprefix("dte_")
    if setting == "unsup":
        column = None if detector in ("dte_np/paper", "knn/paper") else UNSUP_COLUMNS.get(detector)
    else:
        column = DTE_COLUMNS.get(detector)
    if not dataset.startswith("adbench/") or protocol not in ("dte_semi", "dte_unsup") or column is None:
        return {}
    row = group(dataset.removeprefix("adbench/").partition("/")[0])[0].table_name
    found = {metric: _table(f"dte_adbench_{setting}_{name}").get((row, column)) for metric, name in METRICS.items()}
    return {metric: numbers for metric, numbers in found.items() if numbers}


def cell_of(cfg: dict[str, Any]) -> dict[str, dict[str, float]]:
    """`cell` of a complete config; {} where an option of the preset or of the protocol was changed."""
    choices, dataset = cfg["choices"], cfg["dataset"]
    preset = catalog.choices("detector", catalog.roots()).get(choices["detector"])
    settings = catalog.load(preset) if preset else {"_target_": None}
    changed = any(cfg["detector"].get(name) != value for name, value in settings.items())
    cut = dataset.get("duplicate_small") is False or dataset.get("max_rows") != MAX_ROWS or cfg["trainer"]["max_epochs"]
    return {} if changed or cut else cell(choices["dataset"], choices["detector"], dataset["protocol"])


@cache
def _table(name: str) -> dict[tuple[str, str], dict[str, Any]]:
    file = files("outlie.results").joinpath("published", f"{name}.csv")
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8") as lines:
        return {
            (row["dataset"], row["method"]): {key: float(row[key]) / 100 for key in ("mean", "std")}
            for row in csv.DictReader(lines)
        }
