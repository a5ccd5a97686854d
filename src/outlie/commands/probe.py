"""`run probe run=RUN`: linear probes on every block of a finished run's denoiser, at every noise level, in one pass."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from outlie import cell, distributed, log
from outlie.commands.on_denoiser import opened
from outlie.commands.train import plain
from outlie.data.split import Rows, Split
from outlie.errors import UserError
from outlie.metrics import cost
from outlie.probe import noisy, report
from outlie.probe.contrast import BATCH, contrast
from outlie.probe.grid import Grid, progress, shuffled
from outlie.probe.heads import BATCH as STEP
from outlie.probe.heads import Heads, standardisation, stratified, train
from outlie.results import checkpoint, store

PAIRS = 8 * BATCH  # images that alignment and uniformity are taken of, at most
PUBLISHED_LR = 1e-3
LR = 1e-2  # on features of mean 0 and variance 1, where 0.001 is far from converged after 2000 steps


def main(cfg: DictConfig) -> int:
    """Find or compute the probes of a run and show them; exit code."""
    now = plain(cfg)
    now["log_snr"] = [float(level) for level in now["log_snr"]]
    run, backbone, options = opened(now, "probe")
    folder = Path(now["output_dir"]) / "probe" / f"{run.name}-{store.digest(store.identity(now))}"
    result = store.read_result(folder)
    done = result is not None and result["status"] == "done" and not now["force"]
    if now["dry_run"]:
        steps = f"#   load {run / 'model.ckpt'}\n#   features of all blocks and levels, heads, choice"
        print(OmegaConf.to_yaml(cfg, resolve=True), end="")
        print(f"# plan: {folder}\n" + (f"#   done already: {folder / 'result.json'}" if done else steps))
        return 0
    if result is None or not done:
        with store.lock(folder), log.to(folder / "log.txt"):
            result = compute(now, backbone, options, run, folder)
            with store.whole(folder / "config.yaml") as temporary:
                OmegaConf.save(OmegaConf.create(now), temporary)
            store.write_json(folder / "result.json", result)
    else:
        print(f"done already, on {result['finished']} (force=true starts again)", file=sys.stderr)
    report.render(result, folder)
    return 0


def compute(now: dict[str, Any], backbone: Any, options: Any, run: Path, folder: Path) -> dict[str, Any]:
    """Features of all cells, heads on all of them, the choice; writes grid.csv and probe.png, returns the result."""
    started, seed, device = store.now(), now["seed"], distributed.device(options)
    split = cell.load(now["dataset"], now["choices"]["dataset"], seed, list(now["allow"]))
    refuse_unlabelled(split, now["choices"]["dataset"])
    checkpoint.load_backbone(run / "model.ckpt", backbone)
    grid = Grid(backbone.to(device), now["blocks"], now["log_snr"])
    rows, tested = drawn(split.train, now["rows"], seed), drawn(split.tests["test"], now["test_rows"], seed)
    y_N, y_test = split.train.y[rows], split.tests["test"].y[tested].to(device)
    order = torch.Generator().manual_seed(seed)
    kept, held = stratified(y_N, now["held_out"], order)
    log.log.info(
        "probe     %d blocks x %d levels on %d images, %d of them held out, and %d test images",
        len(grid.blocks), len(grid.log_snr), len(rows), len(held), len(tested),
    )  # fmt: skip
    heads = Heads(grid.cell_widths, int(split.train.y.max()) + 1, order).to(device)
    asked = backbone.evaluated
    with cost.seconds() as passing:
        first, second, learning, test = banks(now, grid, split, rows, kept, tested, cell.bar_title(options, "features"))
    with cost.seconds() as contrasting:
        aligned, uniform = contrast(first[:, : second.shape[1]], second)
    y_kept = y_N[kept].to(device)
    with cost.seconds() as learned:
        if learning is None:
            epochs = now["epochs"]
            with progress(cell.bar_title(options, "train probes"), "probe", epochs * len(kept)) as advance:
                batches = grid.augmented(split.train.x, rows[kept], y_N[kept], seed, backbone.flip, advance)
                losses = train(heads, batches, epochs, now["lr"] or PUBLISHED_LR)
        else:
            mean, scale = standardisation(learning)
            for features in (first, learning, test):
                features.sub_(mean).div_(scale)  # in place: all three are ours, and large
            y = y_kept.repeat(learning.shape[1] // len(kept))
            losses = train(heads, shuffled(learning, y, seed), epochs_of(len(y), now), now["lr"] or LR)
    accuracies = {
        "train_accuracy": heads.accuracy(first[:, kept.to(device)], y_kept),
        "held_out_accuracy": heads.accuracy(first[:, held.to(device)], y_N[held].to(device)),
        "test_accuracy": heads.accuracy(test, y_test),
    }
    unit = backbone.process.unit
    columns = {name: values.tolist() for name, values in accuracies.items()}
    columns |= {"alignment": aligned.tolist(), "uniformity": uniform.tolist()}
    times = dict(zip(grid.log_snr, grid.times.tolist()))
    cells = [
        {"block": block, "log_snr": level, unit: times[level], "width": grid.cell_widths[g]}
        | {name: values[g] for name, values in columns.items()}
        for g, (block, level) in enumerate(grid.cells)
    ]
    log.log.info(
        "features  %.1f s (CPU %.1f s), %d evaluations of the network; heads %.1f s, loss %.4g",
        passing.wall, passing.cpu, backbone.evaluated - asked, learned.wall, losses[-1],
    )  # fmt: skip
    found = report.findings(cells, unit, len(tested))
    result = {
        "schema": store.SCHEMA,
        "status": "done",
        "run": str(run),
        "protocol": split.protocol,
        "dataset": now["choices"]["dataset"],
        "data_sha256": split.data_sha256,
        "backbone": now["choices"]["backbone"],
        "seed": seed,
        "augment": now["augment"],
        "rows": {"train": len(kept), "held_out": len(held), "test": len(tested), "contrast": second.shape[1]},
        "contrast_batch": min(BATCH, second.shape[1]),
        **found,
        "use": use(run, found["chosen"], now["backbone"]),
        "losses": losses,
        "grid": cells,
        "cost": {
            "nfe": backbone.evaluated - asked,
            "features_s": passing.wall,
            "features_cpu_s": passing.cpu,
            "contrast_cpu_s": contrasting.cpu,
            "heads_s": learned.wall,
            "heads_cpu_s": learned.cpu,
            "parameters": sum(p.numel() for p in heads.parameters()),
            **cost.peak_memory(device),
        },
        "environment": store.environment(str(device)),
        "code_version": store.code_version(),
        "started": started,
        "finished": store.now(),
        "error": None,
    }
    report.write(result, folder)
    if now["noisy"]:
        test = split.tests["test"]
        result["noisy"] = noisy.report(
            backbone, split.train.x, split.train.y, test.x, test.y, folder, seed, now["epochs"], now["rows"]
        )
        log.log.info("noisy     %s", folder / "noisy.png")
    return result


def banks(
    now: dict[str, Any], grid: Grid, split: Split, rows: Tensor, kept: Tensor, tested: Tensor, bar: str
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Features that are kept, (G, N, C) each.

    Returns:
        of all training rows; of some of them under another noise; of `kept` under all noises and mirrored (None where
        heads are trained on passes of their own); of the test rows.
    """
    x, draws, keep = split.train.x, now["draws"], now["augment"] == "none"
    more = draws - 1 if keep else 0
    mirrored = draws if keep and grid.backbone.flip else 0
    pairs = len(rows) if more else min(PAIRS, len(rows))
    total = len(rows) * (1 + max(0, more - 1)) + pairs + mirrored * len(kept) + len(tested)
    # streams of their own: the noise of the test images is the same whatever is trained on
    noise, noise_test = (torch.Generator().manual_seed(now["seed"] + start) for start in (2**31, 2**32))
    with progress(bar, "features", total) as advance:
        first = grid.bank(x, rows, noise, advance)
        second = grid.bank(x, rows[:pairs], noise, advance)
        test = grid.bank(split.tests["test"].x, tested, noise_test, advance)
        if not keep:
            return first, second, None, test
        others = [second, *(grid.bank(x, rows, noise, advance) for _ in range(more - 1))] if more else []
        on = kept.to(grid.device)
        learning = [one[:, on] for one in (first, *others)]
        learning += [grid.bank(x, rows[kept], noise, advance, mirrored=True) for _ in range(mirrored)]
    return first, second[:, :PAIRS], torch.cat(learning, 1), test


def epochs_of(rows: int, now: dict[str, Any]) -> int:
    """Epochs on so many kept rows: as many as asked for, more where these would be few steps."""
    return max(now["epochs"], math.ceil(now["min_steps"] / math.ceil(rows / STEP)))


def refuse_unlabelled(split: Split, name: str) -> None:
    """UserError where there are no classes to tell apart."""
    if split.train.y is None or "test" not in split.tests or split.tests["test"].y is None:
        raise UserError(
            f"a probe tells classes apart, and dataset {name} has no class labels; "
            "it needs a run on an OOD benchmark: dataset=fashion_ood, say"
        )


def drawn(part: Rows, most: int | None, seed: int) -> Tensor:
    """At most so many row numbers, in an order drawn by the seed."""
    return torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))[:most]


def use(run: Path, chosen: dict[str, Any], backbone: dict[str, Any]) -> str:
    """The command that trains a detector on the features that were chosen; the denoiser's weights are found again."""
    words = ["run", "train", "--config", str(run / "config.yaml"), f"backbone.blocks=[{chosen['block']}]"]
    words.append(f"backbone.log_snr=[{chosen['log_snr']:g}]")
    words += [f"backbone.{unit}=null" for unit in ("t", "sigma") if backbone.get(unit) is not None]
    return shlex.join(words)
