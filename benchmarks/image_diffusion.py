"""Every detector that stands on a denoiser, on two that a CPU can train: image_diffusion.csv, ddae_probe.csv.

    OUTLIE_DATA=../shared/data python benchmarks/image_diffusion.py
    python benchmarks/image_diffusion.py --write          only collects what is done
    python benchmarks/image_diffusion.py --outputs DIR    where the runs are; default: outputs

For each experiment: `run train` (an hour), `run probe`, then `run eval detectors=` three times: detectors of one to
twenty passes on 300 images of each set, LMD's hundred passes on 100, DDPM-OOD's 350 on 50. What is done is found.
The standard error of an AUROC of 50 against 50 images is some 4 points, of 300 against 300 some 2.
"""

import argparse
import csv
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
EXPERIMENTS = {"fashion_ddae_cpu": "fashion_ood", "cifar10_part_ddae_cpu": "cifar10_part_ood"}
FEW_PASSES = (
    "knn,ddae,ddae/mahalanobis,ddae/neco,ddae/dte_np,mahalanobis,cfs,cfs/knn,denoising_loss,msma,gepc,"
    "diffusion_likelihood/complexity,diffpath,diffpath/one_d"
)
PARTS = ((300, FEW_PASSES), (100, "lmd,lmd/ddae"), (50, "ddpm_ood"))
QUICK = ("metrics.bootstrap=0", "trainer.threads=1")
METRICS = ("auroc", "fpr95_id_positive", "recall_at_fpr01")


def run(*words: str) -> None:
    """A `run` command, its words shown."""
    print("run", *words, flush=True)
    subprocess.run([str(Path(sys.executable).with_name("run")), *words], check=True, stdout=subprocess.DEVNULL)


def trained(dataset: str, outputs: Path) -> Path:
    """The folder of the experiment's run; of several on one denoiser the one that was compared."""
    found = []
    for path in (outputs / "train").glob(f"{dataset}-*/result.json"):
        result = json.loads(path.read_text())
        if result["backbone"] == "unet/small" and result["status"] == "done":
            found.append(path.parent)
    if not found:
        raise SystemExit(f"no finished run of {dataset} below {outputs}")
    return max(found, key=lambda folder: len(list((outputs / "eval").glob(f"{folder.name}-detectors-*"))))


def latencies(folder: Path) -> dict[str, float]:
    """Milliseconds an image at batch 1 on this run's denoiser, of every detector; one thread.

    Fitted on a few images, so that the time is not spent on fitting: what a score costs depends on them for kNN alone.
    """
    from omegaconf import OmegaConf

    from outlie import cell
    from outlie.build import build
    from outlie.commands import compare
    from outlie.commands.train import plain
    from outlie.results import checkpoint

    cfg = plain(OmegaConf.load(folder / "config.yaml"))
    split = cell.load(cfg["dataset"], cfg["choices"]["dataset"], cfg["seed"], [])
    few = split.train
    few = dataclasses.replace(few, **{name: getattr(few, name)[:128] for name in ("x", "index", "label", "y")})
    backbone, options = build(cfg["backbone"]), build(cfg["trainer"])
    checkpoint.load_backbone(folder / "model.ckpt", backbone)
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as views:
        small = dataclasses.replace(split, train=few, calibration=None, tests={"test": few})
        ground = cell.Ground(small, backbone, options, Path(views), Path(views))
        for name in ",".join(detectors for _, detectors in PARTS).split(","):
            section = compare.section_of(name)
            detector = build(section | {key: 16 for key in ("fit_rows",) if key in section})
            cell.fitted(cfg | {"choices": cfg["choices"] | {"detector": name}, "detector": section}, detector, ground)
            found[name] = compare.detector_latency(detector, ground)["latency_p50_ms"]
            print(folder.name, name, f"{found[name]:.2f} ms", flush=True)
    return found


def write(outputs: Path) -> None:
    """One line a detector and test set; then every cell of the probes."""
    lines, cells, commits = [], [], set()
    for dataset in EXPERIMENTS.values():
        folder = trained(dataset, outputs)
        run_result = json.loads((folder / "result.json").read_text())
        commits.add(run_result["code_version"])
        milliseconds = latencies(folder)
        for path in sorted((outputs / "eval").glob(f"{folder.name}-detectors-*/*/result.json")):
            one = json.loads(path.read_text())
            if one["status"] != "done":
                continue
            commits.add(one["code_version"])
            cost = one["cost"]
            for name, metrics in one["metrics"].items():
                shown = [f"{100 * metrics[key]:.2f}" for key in METRICS]
                rows = [one["rows"]["test"], one["rows"][name], cost.get("fit_rows", "")]
                times = [f"{milliseconds[one['detector']]:.2f}", f"{cost['score_cpu_s']:.1f}"]
                lines.append([dataset, one["detector"], name, *shown, cost["nfe"], *times, *rows])
        for path in (outputs / "probe").glob(f"{folder.name}-*/grid.csv"):
            result = json.loads(path.with_name("result.json").read_text())
            commits.add(result["code_version"])
            with path.open() as file:
                cells += [[dataset, result["rows"]["train"], *line.values()] for line in csv.DictReader(file)]
    said = f"# python benchmarks/image_diffusion.py; code {', '.join(sorted(commits))}; one thread, no GPU\n"
    columns = [
        "dataset",
        "detector",
        "set",
        *METRICS,
        "nfe",
        "latency_p50_ms",
        "score_cpu_s",
        "id_rows",
        "ood_rows",
        "fit_rows",
    ]
    measured = ("train_accuracy", "held_out_accuracy", "test_accuracy", "alignment", "uniformity")
    probed = ["dataset", "train_rows", "block", "log_snr", "t", "width", *measured]
    for name, header, rows in (("image_diffusion", columns, sorted(lines)), ("ddae_probe", probed, cells)):
        with (HERE / f"{name}.csv").open("w", newline="") as file:
            file.write(said)
            out = csv.writer(file, lineterminator="\n")
            out.writerow(header)
            out.writerows(rows)
        print(HERE / f"{name}.csv", len(rows), "rows")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    asked = parser.parse_args()
    for experiment, dataset in EXPERIMENTS.items() if not asked.write else ():
        where = f"output_dir={asked.outputs}"
        run("train", f"experiment={experiment}", where, *QUICK)
        folder = trained(dataset, asked.outputs)
        run("probe", f"run={folder}", "rows=4000", where, "trainer.threads=1")
        for rows, detectors in PARTS:
            run("eval", f"run={folder}", f"detectors=[{detectors}]", f"dataset.scored_rows={rows}", where, *QUICK)
    write(asked.outputs)
