"""heatmaps.png: a few test images of each kind with mask and map, and what the calibrated threshold marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outlie.data.split import Rows
from outlie.detectors.student_teacher import at_size
from outlie.metrics.pixels import pixel_metrics
from outlie.results import store

EACH = 3  # images of a kind
MARKED = "#00FFFF"


def report(parts: Mapping[str, Rows], maps: Mapping[str, Tensor]) -> dict[str, Any]:
    """Test set -> pixel metrics over all its pixels."""
    masks = {name: mask for name in maps if (mask := parts[name].mask) is not None}
    return {name: pixel_metrics(fitting(maps[name], mask), mask.numpy()) for name, mask in masks.items()}


def fitting(maps_NHW: Tensor, masks_NHW: Tensor) -> NDArray[np.float32]:
    """Maps at the masks' size, which differs where the network resizes its input."""
    if maps_NHW.shape == masks_NHW.shape:
        return maps_NHW.numpy()
    return at_size(maps_NHW, masks_NHW.shape[1:]).numpy()


def chosen(kinds: Sequence[str]) -> list[int]:
    """Row numbers: up to three of each kind, evenly spaced over the test set, not looked at; normal ones last."""
    array = np.asarray(kinds)
    names = sorted(set(kinds), key=lambda name: (name == "good", kinds.index(name)))
    rows = [np.flatnonzero(array == name) for name in names]
    places = [np.unique(np.linspace(0, len(own) - 1, EACH + 2).round().astype(int)[1:-1]) for own in rows]
    return [int(row) for own, where in zip(rows, places, strict=True) for row in own[where]]


def draw(
    images: Tensor,
    masks: NDArray[np.bool_],
    maps: NDArray[np.float32],
    titles: Sequence[str],
    threshold: float | None,
    scale: tuple[float, float],
    path: Path,
) -> Path:
    """Write the picture: image, mask, map, and the image with the map over it and the threshold's contour.

    Args:
        images: (n, C, H, W) uint8
        masks: (n, H, W)
        maps: (n, H, W)
        titles: (n,) what each image is
        threshold: of image scores, from calibration images; None = no contour
        scale: values of the maps that are drawn darkest and brightest, the same for all images
    """
    from matplotlib.figure import Figure

    rows, lines = len(images), -(-len(images) // 2)  # two images a line
    figure = Figure(figsize=(8.8, 1.25 * lines + 0.3), dpi=100, layout="constrained")
    cells = figure.subplots(lines, 8, squeeze=False)
    for axes in cells.flat:
        axes.set_axis_off()
    for i in range(rows):
        line, first = divmod(i, 2)
        photo = images[i].permute(1, 2, 0).numpy()
        photo = photo.repeat(3, 2) if photo.shape[2] == 1 else photo
        ones = cells[line, 4 * first : 4 * first + 4]
        ones[0].imshow(photo)
        ones[0].set_title(titles[i], fontsize=6, loc="left", pad=2)
        ones[1].imshow(masks[i], cmap="gray", vmin=0, vmax=1)
        ones[2].imshow(maps[i], cmap="inferno", vmin=scale[0], vmax=scale[1])
        ones[3].imshow(photo)
        ones[3].imshow(maps[i], cmap="inferno", vmin=scale[0], vmax=scale[1], alpha=0.4)
        if threshold is not None and maps[i].min() < threshold < maps[i].max():
            ones[3].contour(maps[i], [threshold], colors=MARKED, linewidths=0.8)
    for axes, title in zip(cells[0], 2 * ("", "mask", "map", "above the threshold"), strict=True):
        if title:
            axes.set_title(title, fontsize=6, pad=2)
    with store.whole(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def pictures(
    parts: Mapping[str, Rows],
    maps: Mapping[str, Tensor],
    about: Mapping[str, Mapping[str, Any]],
    scores: Mapping[str, tuple[Any, Any, Any]],
    threshold: float | None,
    folder: Path,
) -> list[Path]:
    """Draw every test set that has maps; the files.

    Args:
        parts: name -> rows of a test set, with masks
        about: name -> kind of each row, where it is known
        scores: name -> (index, label, score)
    """
    drawn = []
    for name, one in maps.items():
        rows, score, mask = parts[name], scores[name][2], parts[name].mask
        assert mask is not None
        kinds = about.get(name, {}).get("kind") or [("good", "anomaly")[int(y)] for y in mask.flatten(1).any(1)]
        picked, fitted = chosen(list(kinds)), fitting(one, mask)
        low, high = (float(v) for v in np.quantile(fitted, [0.01, 0.995]))
        titles = [f"{kinds[i]}: {score[i]:.3g}" for i in picked]
        path = folder / ("heatmaps.png" if len(maps) == 1 else f"heatmaps_{name}.png")
        images, masks = rows.x[torch.tensor(picked)], mask.numpy()[picked]
        drawn.append(draw(images, masks, fitted[picked], titles, threshold, (low, high), path))
    return drawn
