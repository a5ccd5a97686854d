"""Every post-hoc score on the classifiers that a CPU can train, three seeds: writes fashion_ood.csv and its like.

    OUTLIE_DATA=../shared/data python benchmarks/ood_tables.py fashion_ood_cpu cifar10_part_ood_cpu
    python benchmarks/ood_tables.py --write fashion_ood_cpu      only collects what is done

For each seed: `run train experiment=NAME seed=S`, then `run eval run=... detectors=[all,network,...]` with NECO's other
settings. What is done already is found, so that the command can be stopped and started again. Standard deviations
are over seeds (ddof 1); detector_p50_ms is the time that the detector adds to the network's, the best of the seeds.
"""

import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE, SEEDS, OUTPUTS = Path(__file__).parent, (0, 1, 2), Path("outputs")
DETECTORS = ("all", "network", "neco/double_descent", "neco/paper_vit", "neco/paper_vit_cifar")
QUICK = ("metrics.bootstrap=0", "trainer.threads=1")  # no intervals: the deviation over seeds is told
METRICS = ("auroc", "average_precision", "fpr95_id_positive", "fpr95_ood_positive", "recall_at_fpr01")


def run(*words: str) -> None:
    """A `run` command, its words shown."""
    print("run", *words, flush=True)
    subprocess.run([str(Path(sys.executable).with_name("run")), *words], check=True, stdout=subprocess.DEVNULL)


def trained(experiment: str, seed: int) -> Path:
    """The folder of the experiment's run with that seed."""
    dataset = experiment.removesuffix("_cpu")
    for path in (OUTPUTS / "train").glob(f"{dataset}-neco-*/result.json"):
        if (result := json.loads(path.read_text()))["seed"] == seed and result["status"] == "done":
            return path.parent
    raise SystemExit(f"no finished run of {experiment} with seed {seed}")


def results(run_folder: Path) -> list[dict]:
    """The results of all detectors on one run's network."""
    found = (OUTPUTS / "eval").glob(f"{run_folder.name}-detectors-*/*/result.json")
    return [result for path in found if (result := json.loads(path.read_text()))["status"] == "done"]


def write(experiment: str) -> None:
    """One line a detector and test set: mean and standard deviation over the seeds, in percent."""
    values: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    accuracies, commits, milliseconds = [], set(), {}
    for seed in SEEDS:
        folder = trained(experiment, seed)
        result = json.loads((folder / "result.json").read_text())
        accuracies.append(100 * result["classifier"]["accuracy"])
        commits.add(result["code_version"])
        for one in results(folder):
            commits.add(one["code_version"])
            milliseconds.setdefault(one["detector"], []).append(one["latency"]["detector_p50_ms"])
            sets = {(one["protocols"][name], name): metrics for name, metrics in one["metrics"].items()}
            for (protocol, name), metrics in sets.items():
                cell = values.setdefault((one["detector"], protocol, name), {key: [] for key in METRICS})
                for key in METRICS:
                    cell[key].append(100 * metrics[key])
    dataset = experiment.removesuffix("_cpu")
    with (HERE / f"{dataset}.csv").open("w", newline="") as file:
        file.write(f"# python benchmarks/ood_tables.py {experiment}; code {', '.join(sorted(commits))}\n")
        file.write(f"# accuracy of the classifiers, %: {', '.join(f'{value:.2f}' for value in accuracies)}\n")
        out = csv.writer(file, lineterminator="\n")
        columns = [f"{key}_{part}" for key in METRICS for part in ("mean", "std")]
        out.writerow(["detector", "protocol", "set", "seeds", *columns, "detector_p50_ms"])
        for (detector, protocol, name), cell in sorted(values.items()):
            numbers = [f(cell[key]) for key in METRICS for f in (statistics.mean, statistics.stdev)]
            shown = [f"{number:.2f}" for number in numbers]
            out.writerow([detector, protocol, name, len(cell["auroc"]), *shown, f"{min(milliseconds[detector]):.4f}"])
    print(HERE / f"{dataset}.csv")


if __name__ == "__main__":
    collect_only = "--write" in sys.argv
    for name in [word for word in sys.argv[1:] if word != "--write"]:
        for seed in () if collect_only else SEEDS:
            run("train", f"experiment={name}", f"seed={seed}", *QUICK)
            run("eval", f"run={trained(name, seed)}", f"detectors=[{','.join(DETECTORS)}]", *QUICK)
        write(name)
