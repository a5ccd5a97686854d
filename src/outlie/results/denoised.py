"""What a run says of its denoiser: error at each noise level, and samples, at the end and along the training."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outlie.cell import Ground
from outlie.diffusion.image_samplers import sample
from outlie.log import log
from outlie.results import sample_plots, store
from outlie.results.checkpoint import load_state

LEVELS = (8.0, 6.0, 4.0, 2.0, 0.0, -2.0, -4.0, -6.0)  # log-SNR
ROWS = 256  # test images that the error is taken on
SAMPLES, SNAPSHOT_SAMPLES = 32, 8


@torch.no_grad()
def errors(network: Any, x: Tensor, seed: int, levels: Sequence[float] = LEVELS) -> dict[str, float]:
    """log-SNR -> mean (eps - eps_hat)^2 over images (B, C, H, W) in [-1, 1] and pixels; 1 = nothing is known."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for level in levels:
        time = network.process.time_at(level).to(x.device)
        total = 0.0
        for part in x.split(64):
            noise = torch.randn(part.shape, generator=generator).to(x.device)
            _, eps = network.denoise(network.process.noised(part, time, noise), time)
            total += float((eps - noise).square().mean((1, 2, 3)).sum())
        found[f"{level:g}"] = total / len(x)
    return found


def states(ground: Ground, cfg: dict[str, Any]) -> dict[str, Any]:
    """Name -> denoiser: the snapshots of its training by their epoch, then the one that the run uses."""
    found: dict[str, Any] = {}
    for path in sorted((store.backbone_folder(cfg) / "snapshots").glob("*.ckpt")):
        network = copy.deepcopy(ground.backbone)
        network.load_state_dict(load_state(path))
        found[f"epoch {int(path.stem)}"] = network.to(ground.device).eval()
    return found | {"end": ground.backbone.to(ground.device).eval()}


def report(ground: Ground, cfg: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Errors by noise level on test images, samples.png, and their like of each snapshot; what is stored, and files."""
    rows = next(iter(ground.split.tests.values())).x
    x = ground.backbone.standardise(rows[torch.arange(min(ROWS, len(rows)))].to(ground.device))
    networks = states(ground, cfg)
    noise_errors = {name: errors(network, x, cfg["seed"]) for name, network in networks.items()}
    shown = {level: f"{error:.3f}" for level, error in noise_errors["end"].items()}
    log.info("denoise   error of the noise on test images by log-SNR: %s",
             ", ".join(f"{level}: {error}" for level, error in shown.items()))  # fmt: skip
    pictures, shape = [], tuple(x.shape[1:])
    for name, network in networks.items():
        generator = torch.Generator().manual_seed(cfg["seed"])
        images = sample(network, SAMPLES if name == "end" else SNAPSHOT_SAMPLES, shape, generator)
        file = "samples.png" if name == "end" else f"samples_{name.replace(' ', '_')}.png"
        title = "samples" if name == "end" else f"samples after {name}"
        pictures.append(sample_plots.grid(images, ground.folder / file, title=title))
    pictures.append(sample_plots.noise_curves(noise_errors, ground.folder / "denoising.png"))
    log.info("samples   %s", pictures[-2])
    return {"noise_error": noise_errors["end"], "noise_error_along_training": noise_errors}, pictures
