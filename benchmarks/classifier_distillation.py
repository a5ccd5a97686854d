"""The runs of classifier_distillation.sh as a table: python benchmarks/classifier_distillation.py OUTPUT_DIR."""

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path

from omegaconf import OmegaConf

HERE = Path(__file__).parent


def arm_of(run: Path) -> tuple[str, int]:
    """What taught the run's network, and its seed."""
    cfg = OmegaConf.load(run / "config.yaml")
    if "teacher" not in cfg:
        return ("teacher" if cfg.backbone.width == 16 else "labels alone"), cfg.seed
    name = cfg.choices.distiller
    return (f"{name} T={cfg.distiller.temperature:g}" if name == "hinton" else name), cfg.seed


def main() -> None:
    """Write benchmarks/classifier_distillation.csv."""
    out, found = Path(sys.argv[1]), defaultdict(dict)
    for folder in out.glob("eval/*-detectors-*"):
        name = folder.name.partition("-detectors-")[0]
        run = next(out.glob(f"*/{name}/result.json"))
        key = arm_of(run.parent)
        classifier = json.loads(run.read_text())["classifier"]
        found[key]["accuracy"] = round(classifier["accuracy"], 4)
        for one in folder.glob("*/result.json"):
            result = json.loads(one.read_text())
            if result["status"] != "done":
                continue
            found[key][result["detector"]] = round(result["metrics"]["held_out"]["auroc"], 4)
    rows = [{"arm": arm, "seed": seed, **found[arm, seed]} for arm, seed in sorted(found)]
    with (HERE / "classifier_distillation.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["arm", "seed", *sorted({key for row in rows for key in row} - {"arm", "seed"})])
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
