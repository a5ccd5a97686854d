"""`run sample run=RUN`: images from a finished run's denoiser, and their Frechet distance to real ones."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from outlie import cell, distributed, log
from outlie.commands.on_denoiser import opened
from outlie.commands.train import plain
from outlie.diffusion.image_samplers import sample
from outlie.errors import UserError
from outlie.metrics import cost
from outlie.metrics.frechet import frechet_distance
from outlie.results import checkpoint, sample_plots, store

SHOWN = 64  # images of samples.png


def main(cfg: DictConfig) -> int:
    """Find or draw the samples and say where they are; exit code."""
    now = plain(cfg)
    run, backbone, options = opened(now, "sample")
    folder = Path(now["output_dir"]) / "sample" / f"{run.name}-{store.digest(store.identity(now))}"
    result = store.read_result(folder)
    if now["dry_run"]:
        print(OmegaConf.to_yaml(cfg, resolve=True), end="")
        print(f"# plan: {folder}\n#   load {run / 'model.ckpt'}\n#   sample {now['n']} images, compare, store")
        return 0
    if result is None or now["force"]:
        with store.lock(folder), log.to(folder / "log.txt"):
            result = compute(now, backbone, options, run, folder)
            store.write_json(folder / "result.json", result)
    else:
        print(f"done already, on {result['finished']} (force=true starts again)", file=sys.stderr)
    for name, value in result["metrics"].items():
        print(f"{name:<28} {value:.4f}")
    print(f"{folder}: samples.png, samples.npz, result.json")
    return 0


@torch.no_grad()
def compute(now: dict[str, Any], backbone: Any, options: Any, run: Path, folder: Path) -> dict[str, Any]:
    """Sample, compare with as many training images; writes samples.png and samples.npz, returns the result."""
    started, device = store.now(), distributed.device(options)
    split = cell.load(now["dataset"], now["choices"]["dataset"], now["seed"], list(now["allow"]))
    checkpoint.load_backbone(run / "model.ckpt", backbone)
    backbone.to(device).eval()
    asked = backbone.evaluated
    with cost.seconds() as sampling:
        images = sample(backbone, now["n"], backbone.shape, torch.Generator().manual_seed(now["seed"]), now["steps"])
    nfe = (backbone.evaluated - asked) / now["n"]
    log.log.info("samples   %d in %.1f s (CPU %.1f s), NFE %d", now["n"], sampling.wall, sampling.cpu, nfe)
    drawn = ((images + 1) * 127.5).round().to(torch.uint8).cpu()
    rows = torch.randperm(len(split.train), generator=torch.Generator().manual_seed(now["seed"]))
    half = min(now["n"], len(rows) // 2)
    real, others = split.train.x[rows[:half]], split.train.x[rows[half : 2 * half]]
    metrics = {}
    if half > 1 and now["n"] > 1:
        ours, theirs, rest = (features(backbone, x, device) for x in (drawn, real, others))
        # the second tells what two sets of real images of this size are apart: the first can hardly be smaller
        metrics = {
            "frechet_ddae": frechet_distance(ours, theirs),
            "frechet_ddae_real_to_real": frechet_distance(theirs, rest),
        }
    if now["inception"]:
        metrics["fid"] = fid(drawn, real, Path(now["inception"]), device)
    sample_plots.grid(drawn[:SHOWN], folder / "samples.png", title=f"samples of {run.name}")
    with store.whole(folder / "samples.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, x=drawn.numpy())
    return {
        "schema": store.SCHEMA,
        "status": "done",
        "run": str(run),
        "dataset": now["choices"]["dataset"],
        "data_sha256": split.data_sha256,
        "seed": now["seed"],
        "rows": {"samples": now["n"], "real": half},
        "metrics": metrics,
        "cost": {"nfe": nfe, "sample_s": sampling.wall, "sample_cpu_s": sampling.cpu},
        "environment": store.environment(str(device)),
        "code_version": store.code_version(),
        "started": started,
        "finished": store.now(),
        "error": None,
    }


def features(backbone: Any, x: Tensor, device: torch.device) -> Tensor:
    """(N, D) features of uint8 images, as the run takes them."""
    return torch.cat([backbone(part.to(device)).features.cpu() for part in x.split(64)])


def fid(drawn: Tensor, real: Tensor, weights: Path, device: torch.device) -> float:
    """FID by torchmetrics on torch-fidelity's Inception, whose weights the user has.

    Raises:
        UserError: no such file, or torch-fidelity is not installed.
    """
    if not weights.is_file():
        raise UserError(f"inception={weights}: no such file; without it, frechet_ddae is what can be had")
    from torchmetrics.image.fid import FrechetInceptionDistance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            metric = FrechetInceptionDistance(feature_extractor_weights_path=str(weights)).to(device)
        except ModuleNotFoundError as error:
            raise UserError("FID needs torch-fidelity: pip install torch-fidelity, or leave inception= away") from error
        for images, is_real in ((drawn, False), (real, True)):
            for part in images.split(64):
                metric.update(part.expand(-1, 3, -1, -1).to(device), real=is_real)
        return float(metric.compute())
