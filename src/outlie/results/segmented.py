"""What a run says about its segmenter: mean IoU from one confusion matrix, pictures of predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outlie.backbones.segmenter import Segmenter
from outlie.cell import Ground
from outlie.data.split import Rows
from outlie.gather import rank_and_world, share, sum_over_ranks
from outlie.log import log
from outlie.metrics import segmentation

AT_ONCE = 8  # images of one forward pass: their logits are kept at full size
SHOWN = 6  # test images in the picture


def report(ground: Ground) -> dict[str, Any]:
    """metrics/segmentation.report of the test images, its `confusion`, `subsets`, and `validation` for selection only.

    Every rank predicts its share of the images; the counts are summed, so every rank has the same report.
    """
    names, split = ground.split.classes, ground.split
    test = split.tests.get("test")
    if not isinstance(ground.backbone, Segmenter) or test is None or test.y is None or test.y.ndim != 3:
        return {}
    part_of = torch.zeros(len(test), dtype=torch.int64)  # images are in one subset at most
    for i, rows in enumerate(split.subsets.values(), 1):
        part_of[rows] = i
    counts = confusions(ground, test, part_of, 1 + len(split.subsets))
    pooled = counts.sum(0).numpy()
    result = segmentation.report(pooled, names) | {"images": len(test), "confusion": pooled.tolist(), "subsets": {}}
    for i, (name, rows) in enumerate(split.subsets.items(), 1):
        result["subsets"][name] = segmentation.report(counts[i].numpy(), names) | {"images": len(rows)}
    held = split.calibration
    if held is not None and held.y is not None:
        counts = confusions(ground, held, torch.zeros(len(held), dtype=torch.int64), 1)
        result["validation"] = segmentation.report(counts[0].numpy(), names) | {"images": len(held)}
    for name in result["absent"]:
        log.info("finding   no pixel of the test images is of class %s: it is left out of the mean IoU", name)
    if result["miou"] is not None:
        accuracy = 100 * result["pixel_accuracy"]
        log.info(
            "segment   mean IoU %.2f %% of the test images, pixel accuracy %.2f %%", 100 * result["miou"], accuracy
        )
    return result


@torch.no_grad()
def confusions(ground: Ground, rows: Rows, part_of: Tensor, parts: int) -> Tensor:
    """(parts, C, C) int64 confusion matrices of label maps, each image in its part; the same on every rank."""
    classes = len(ground.split.classes)
    counts = torch.zeros(parts, classes, classes, dtype=torch.int64, device=ground.device)
    assert rows.y is not None
    for some in share(len(rows)).split(AT_ONCE):
        truth = rows.y[some].to(ground.device).long()
        # the part as a digit before the class: one count for all parts
        offset = (part_of[some].to(ground.device) * classes)[:, None, None]
        shifted = torch.where(truth < classes, truth + offset, parts * classes)
        pairs = segmentation.confusion(predicted(ground, rows.x[some]), shifted, parts * classes)
        counts += pairs[:, :classes].view(parts, classes, classes)
    return sum_over_ranks(counts).cpu()


@torch.no_grad()
def predicted(ground: Ground, x: Tensor) -> Tensor:
    """Class of each pixel of raw images (B, C, H, W), at their full size; (B, H, W) int64."""
    return ground.backbone.to(ground.device).eval()(x.to(ground.device)).maps.argmax(1)


def pictures(ground: Ground, result: dict[str, Any]) -> list[Path]:
    """Draw predictions.png and confusion.png; the files, [] where there is nothing to draw or on another rank."""
    if not result or rank_and_world()[0]:
        return []
    import numpy as np

    from outlie.results import segmentation_plots

    split, test = ground.split, ground.split.tests["test"]
    assert test.y is not None
    rows = torch.linspace(0, len(test) - 1, min(SHOWN, len(test))).round().long()
    palette = segmentation_plots.palette(split.colours, len(split.classes))
    drawn = [
        segmentation_plots.predictions(
            test.x[rows].numpy(), test.y[rows].numpy(), predicted(ground, test.x[rows]).cpu().numpy(),
            split.classes, palette, ground.folder / "predictions.png",
        )
    ]  # fmt: skip
    counts = np.array(result["confusion"])
    return [*drawn, segmentation_plots.confusion(counts, split.classes, ground.folder / "confusion.png")]
