"""Runs on magnetic tiles, appended to benchmarks/magnetic_tile.csv: python benchmarks/magnetic_tile.py RUN...

run train experiment=magnetic_tile_cpu backbone.weights=TEACHER/model.ckpt [detector.epochs=8] trainer.threads=1
"""

import csv
import json
import sys
from pathlib import Path

from omegaconf import OmegaConf

HERE = Path(__file__).parent


def row(run: Path) -> dict[str, object]:
    """One run: teacher, length, AUROC with the interval of tile groups, of each kind, of pixels."""
    result, cfg = json.loads((run / "result.json").read_text()), OmegaConf.load(run / "config.yaml")
    test, kinds = result["metrics"]["test"], result["by_kind"]["test"]
    low, high = result["intervals"]["test"]["auroc"]
    found = {
        "detector": result["detector"],
        "teacher": Path(cfg.backbone.weights).parent.name,
        "size": cfg.dataset.size,
        "epochs": cfg.detector.epochs,
        "seed": result["seed"],
        "auroc": round(test["auroc"], 4),
        "auroc_low": round(low, 4),
        "auroc_high": round(high, 4),
        "mean_auroc_of_kinds": round(sum(one["auroc"] for one in kinds.values()) / len(kinds), 4),
    }
    for name, one in kinds.items():
        found |= {name: round(one["auroc"], 4), f"{name}_interval": "{:.3f}-{:.3f}".format(*one["interval"])}
    found |= {
        name: round(value, 4) for name, value in result["pixels"]["test"].items() if name in ("pixel_auroc", "pro_030")
    }
    return found | {"train_cpu_s": round(result["cost"]["train_cpu_s"]), "code_version": result["code_version"]}


def main() -> None:
    """Append the runs named on the command line."""
    rows = [row(Path(name)) for name in sys.argv[1:]]
    path = HERE / "magnetic_tile.csv"
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)
    for one in rows:
        print(one)


if __name__ == "__main__":
    main()
