"""Pictures of a diffusion model: a grid of its samples, and a heat map of accuracy over blocks and noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, uint8

from outlie.errors import UserError
from outlie.results.plots import ANOMALY
from outlie.results.store import whole

GAP = 2  # white pixels between images
WIDTH = 900  # pixels of a grid, about
DPI = 100


def grid(images: Tensor, path: Path, columns: int = 8, title: str = "") -> Path:
    """Draw images side by side, row by row; each pixel becomes a square of whole pixels.

    Args:
        images: (N, C, H, W), grey (C = 1) or colour (C = 3); float in [-1, 1], clipped to it, or uint8.
        path: the PNG.
        columns: images in a row.
        title: above them.

    Raises:
        UserError: no images, another number of channels or dimensions, columns below 1.
    """
    from matplotlib.figure import Figure  # drawn without pyplot, so there is no global state and no display

    if columns < 1:
        raise UserError(f"columns = {columns}: must be 1 or more")
    canvas = tiled(as_bytes(images), min(columns, len(images)))
    height, width = canvas.shape[0], canvas.shape[1]
    scale = max(1, round(WIDTH / width))
    above = 40 if title else 0  # pixels
    size = (width * scale, height * scale + above)
    drawing = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
    # set to the pixel: a layout engine would resize the images, and blur them
    axes = drawing.add_axes((0, 0, 1, height * scale / size[1]))
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    if title:
        drawing.text(0.5, 1 - above / 2 / size[1], title, ha="center", va="center", fontsize=13)
    with whole(path) as temporary:
        drawing.savefig(temporary, format="png")
    return path


def as_bytes(images: Tensor) -> NDArray[np.uint8]:
    """(N, H, W, 3) uint8 of float images in [-1, 1] or of uint8 ones; NaN is black."""
    if images.ndim != 4 or not len(images) or images.shape[1] not in (1, 3):
        raise UserError(f"images of shape {tuple(images.shape)}: expected (N, 1 or 3, H, W), N at least 1")
    if images.dtype != uint8:
        images = ((images.detach().float().nan_to_num(nan=-1).clamp(-1, 1) + 1) * 127.5).round().to(uint8)
    return images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()


def tiled(images: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """(N, H, W, 3) as one picture on white, `columns` images in a row."""
    n, height, width, _ = images.shape
    rows = math.ceil(n / columns)
    high, wide = height + GAP, width + GAP
    canvas = np.full((rows * high + GAP, columns * wide + GAP, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = GAP + i // columns * high, GAP + i % columns * wide
        canvas[top : top + height, left : left + width] = image
    return canvas


def heat_map(
    accuracy: Mapping[tuple[str, float], float],
    path: Path,
    title: str,
    chosen: tuple[str, float] | None = None,
) -> Path:
    """Draw the accuracy of a probe at each block (downwards, as executed) and log-SNR (to the right, less noise).

    Args:
        accuracy: (block, log-SNR) -> share that is right; blocks in order; cells that are missing or NaN stay empty.
        path: the PNG.
        title: above the map.
        chosen: the cell to frame.

    Raises:
        UserError: nothing to draw, or `chosen` is no cell.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    blocks = list(dict.fromkeys(block for block, _ in accuracy))
    levels = sorted({level for _, level in accuracy})
    share = np.array([[accuracy.get((block, level), math.nan) for level in levels] for block in blocks], float)
    if not np.isfinite(share).any():
        raise UserError("no accuracy to draw: no probe was measured")
    if chosen is not None and chosen not in accuracy:
        raise UserError(f"the chosen cell {chosen} was not measured; blocks: {', '.join(blocks)}; log-SNR: {levels}")
    size = (2.6 + 0.85 * max(len(levels), 4), 1.5 + 0.36 * max(len(blocks), 4))
    drawing = Figure(figsize=size, dpi=110, layout="constrained")
    axes = drawing.subplots()
    low, high = 100 * np.nanmin(share), 100 * np.nanmax(share)
    picture = axes.imshow(100 * share, cmap="viridis", vmin=low, vmax=high, aspect="auto")
    for (row, column), value in np.ndenumerate(100 * share):
        if np.isfinite(value):
            dark = value < low + 0.6 * (high - low)  # the lower part of the colour map
            colour = "white" if dark else "black"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=9, color=colour)
    if chosen is not None:
        corner = (levels.index(chosen[1]) - 0.5, blocks.index(chosen[0]) - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=ANOMALY, linewidth=3, clip_on=False, zorder=3))
    axes.set_xticks(range(len(levels)), [f"{level:.2f}" for level in levels])
    axes.set_yticks(range(len(blocks)), blocks)
    axes.set(xlabel="log-SNR = ln(a² / b²); noise falls to the right", ylabel="block, as executed")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    drawing.suptitle(title, fontsize=12)
    drawing.colorbar(picture, ax=axes, label="accuracy, %")
    with whole(path) as temporary:
        drawing.savefig(temporary, format="png")
    return path


def noise_curves(errors: Mapping[str, Mapping[str, float]], path: Path) -> Path:
    """Draw the error of the predicted noise over the log-SNR, a line for each state of the training.

    Args:
        errors: state -> log-SNR as text -> mean squared error; the last state is drawn in full.
        path: the PNG.
    """
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6.4, 4.0), dpi=110, layout="constrained")
    axes = drawing.subplots()
    for i, (state, by_level) in enumerate(errors.items()):
        levels, values = [float(level) for level in by_level], list(by_level.values())
        last = i == len(errors) - 1
        strength = 1.0 if last else 0.25 + 0.5 * i / len(errors)
        axes.plot(levels, values, "o-" if last else "-", color="#1f4e79", alpha=strength, label=state)
    axes.axhline(1, color="#999999", linewidth=0.8, linestyle=":")
    axes.set(
        yscale="log", xlabel="log-SNR; noise falls to the right", ylabel="mean (eps - eps_hat)²; 1 = knows nothing"
    )
    axes.legend(frameon=False)
    with whole(path) as temporary:
        drawing.savefig(temporary, format="png")
    return path
