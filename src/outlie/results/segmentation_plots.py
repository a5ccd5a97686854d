"""Pictures of a segmenter: images beside their label maps and predictions, and which class is taken for which."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from outlie.results.plots import ANOMALY
from outlie.results.store import whole

VOID = (0, 0, 0)
TITLES = ("image", "truth", "prediction", "errors")


def palette(colours: Sequence[tuple[int, int, int]], classes: int) -> NDArray[np.uint8]:
    """(256, 3) uint8 colour of each label: the given ones, or others that are apart; black without a class."""
    from matplotlib import colormaps

    table = np.tile(np.array(VOID, np.uint8), (256, 1))
    given = list(colours) or [colormaps["turbo"]((c + 0.5) / classes)[:3] for c in range(classes)]
    table[:classes] = np.array(given) * (1 if colours else 255)
    return table


def predictions(
    images: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    predicted: NDArray[np.int64],
    classes: Sequence[str],
    colours: NDArray[np.uint8],
    path: Path,
) -> Path:
    """Draw a line for each image: itself, its label map, the prediction, and the wrong pixels in red.

    Args:
        images: (N, C, H, W), C = 1 or 3.
        truth: (N, H, W), 255 = no class.
        predicted: (N, H, W).
        classes: their names.
        colours: of `palette`.
        path: the PNG.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    n, _, height, width = images.shape
    wide = 2.6
    drawing = Figure(figsize=(4 * wide, n * wide * height / width + 1.1), dpi=110, layout="constrained")
    cells = drawing.subplots(n, 4, squeeze=False)
    for i in range(n):
        labelled = truth[i] < len(classes)
        wrong = labelled & (truth[i] != predicted[i])
        shown = np.broadcast_to(images[i], (3, height, width)).transpose(1, 2, 0)
        grey = np.repeat(shown.mean(2, keepdims=True) * 0.5 + 110, 3, 2).astype(np.uint8)
        grey[wrong] = tuple(int(ANOMALY[j : j + 2], 16) for j in (1, 3, 5))
        grey[~labelled] = VOID
        share = wrong.sum() / max(1, labelled.sum())
        for axes, picture in zip(cells[i], (shown, colours[truth[i]], colours[predicted[i]], grey), strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set_axis_off()
        cells[i][3].text(0.02, 0.02, f"{100 * share:.0f} %", transform=cells[i][3].transAxes, color="white",
                         va="bottom", fontsize=9, bbox={"facecolor": "black", "pad": 1.5, "linewidth": 0})  # fmt: skip
    for axes, title in zip(cells[0], TITLES, strict=True):
        axes.set_title(title, fontsize=11)
    keys = [Patch(facecolor=colours[c] / 255, label=name) for c, name in enumerate(classes)]
    keys.append(Patch(facecolor=np.array(VOID) / 255, label="no class"))
    drawing.legend(handles=keys, loc="outside lower center", ncols=min(6, len(keys)), frameon=False, fontsize=9)
    with whole(path) as temporary:
        drawing.savefig(temporary, format="png")
    return path


def confusion(counts_CC: NDArray[np.int64], classes: Sequence[str], path: Path) -> Path:
    """Draw the share of each class's pixels (a line) that was given each class (a column).

    Args:
        counts_CC: pixels, rows = truth.
        classes: their names.
        path: the PNG.
    """
    from matplotlib.figure import Figure

    share = 100 * counts_CC / counts_CC.sum(1, keepdims=True).clip(min=1)
    side = 1.8 + 0.5 * len(classes)
    drawing = Figure(figsize=(side + 0.8, side), dpi=110, layout="constrained")
    axes = drawing.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    if len(classes) <= 20:
        for (row, column), value in np.ndenumerate(share):
            if value >= 0.5:
                colour = "white" if value > 55 else "black"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", fontsize=9)
    axes.set_yticks(range(len(classes)), classes, fontsize=9)
    axes.set(xlabel="predicted", ylabel="truth")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    drawing.suptitle("% of each class's pixels", fontsize=11)
    with whole(path) as temporary:
        drawing.savefig(temporary, format="png")
    return path
