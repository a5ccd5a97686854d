"""A published DDPM distilled into one pass, on ADBench tables: what the student loses and how much faster it is.

    OUTLIE_DATA=... python benchmarks/score_distillation.py cardio,pima,... [OUTPUT_DIR]

Protocol dte_semi, seed 0, teacher detector=diffusion/paper (250 passes). Family and settings of the student are the
defaults; nothing is chosen by test labels. Appends to benchmarks/score_distillation.csv.
"""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from omegaconf import OmegaConf

from outlie import stages
from outlie.build import build
from outlie.results import checkpoint, store

HERE = Path(__file__).parent
FAMILIES = ("reconstruction", "score")


def run(*words: str) -> None:
    """A command of outlie in a process of its own."""
    subprocess.run([sys.executable, "-m", "outlie.cli", *words], check=True, stdout=subprocess.DEVNULL)


def newest(folder: Path, pattern: str) -> Path:
    """The run of that name that was finished last."""
    return max(folder.glob(pattern), key=lambda path: (path / "result.json").stat().st_mtime)


@torch.no_grad()
def times(run_dir: Path, batch: int, calls: int) -> list[float]:
    """Seconds of each call for so many test rows, on one thread."""
    cfg = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"))
    backbone, detector = (build(cfg[name], []) for name in ("backbone", "detector"))
    checkpoint.load_model(run_dir / "model.ckpt", backbone, detector)
    front = stages.front(backbone, detector.needs)
    rows = build(cfg["dataset"], []).load(cfg["seed"]).tests["test"].x
    rows = rows.repeat(-(-batch // len(rows)), *[1] * (rows.ndim - 1))[:batch]
    detector.score(front(rows))
    found = []
    for _ in range(calls):
        started = time.process_time()
        detector.score(front(rows))
        found.append(time.process_time() - started)
    return found


def ratio(teacher: Path, student: Path, batch: int) -> tuple[float, float]:
    """Median CPU seconds of teacher and student, taken in turns so that drift hits both."""
    pairs = [(min(times(teacher, batch, 3)), min(times(student, batch, 30))) for _ in range(3)]
    return sorted(t for t, _ in pairs)[1], sorted(s for _, s in pairs)[1]


def main() -> None:
    """Measure every named dataset."""
    torch.set_num_threads(1)
    out = Path(sys.argv[2] if len(sys.argv) > 2 else "outputs")
    path = HERE / "score_distillation.csv"
    for name in sys.argv[1].split(","):
        base = [f"dataset=adbench/{name}", "dataset.protocol=dte_semi", "metrics=fast", "trainer.threads=1"]
        run("train", *base, "detector=diffusion/paper", f"output_dir={out}")
        teacher = newest(out / "train", f"adbench_{name}-diffusion_paper-*")
        for family in FAMILIES:
            words = [f"teacher={teacher}", "distiller=scores", f"detector.family={family}", f"output_dir={out}"]
            run("distill", *words)
            student = newest(out / "distill", f"adbench_{name}-score_student-*")
            result = json.loads((student / "result.json").read_text())
            told = result["distillation"]
            row = {"dataset": name, "family": family, "seed": 0}
            for key in ("auroc", "recall_at_fpr01"):
                for whose in ("teacher", "student"):
                    row[f"{key}_{whose}"] = round(told[whose][f"test/{key}"], 4)
            row |= {f"spearman_{key}": round(value, 4) for key, value in told["spearman"].items() if value is not None}
            row["train_cpu_s"] = round(result["cost"]["train_cpu_s"], 1)
            for batch in (1, 1000):
                slow, fast = ratio(teacher, student, batch)
                row |= {f"teacher_ms_b{batch}": round(1e3 * slow, 3), f"student_ms_b{batch}": round(1e3 * fast, 4)}
                row[f"times_faster_b{batch}"] = round(slow / fast, 1)
            row["code_version"] = store.code_version()
            new = not path.exists()
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
