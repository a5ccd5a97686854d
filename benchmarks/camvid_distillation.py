"""The runs of camvid_distillation.sh as a table: python benchmarks/camvid_distillation.py OUTPUT_DIR TEACHER_RUN."""

import csv
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent


def row(path: Path) -> dict[str, object]:
    """One run: which arm it is, what it reached, what it cost."""
    result = json.loads(path.read_text())
    seen, cost, told = result["segmentation"], result["cost"], result.get("distillation") or {}
    config = (path.parent / "config.yaml").read_text()
    steps = next(line.split()[1] for line in config.splitlines() if line.strip().startswith("steps: "))
    return {
        "arm": told.get("distiller") or ("teacher" if result["backbone"].startswith("seg_unet") else f"alone {steps}"),
        "backbone": result["backbone"],
        "seed": result["seed"],
        "steps": steps,
        "miou_test": round(seen["miou"], 4),
        "miou_seq05vd": round(seen["subsets"]["Seq05VD"]["miou"], 4),
        "miou_val": round(seen["validation"]["miou"], 4),
        "pixel_accuracy_test": round(seen["pixel_accuracy"], 4),
        "weight": round(told["weight"], 4) if told else "",
        "train_cpu_s": round(cost["backbone_train_cpu_s"]),
        "parameters": cost["parameters"],
        "code_version": result["code_version"],
    }


def main() -> None:
    """Write benchmarks/camvid_distillation.csv."""
    paths = [*Path(sys.argv[1]).glob("*/camvid-*/result.json"), Path(sys.argv[2]) / "result.json"]
    rows = sorted((row(path) for path in paths), key=lambda one: (str(one["arm"]), str(one["seed"])))
    with (HERE / "camvid_distillation.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for one in rows:
        print(one)


if __name__ == "__main__":
    main()
