"""How well label maps are predicted, from one confusion matrix pooled over all pixels of all images.

IoU_c = n_cc / (sum_j n_cj + sum_i n_ic - n_cc),  n_ij = pixels of class i that were given class j
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """(C, C) int64 pixel counts, rows = truth; pixels whose truth is no class (255) are left out.

    Args:
        predicted: class of each pixel, any shape.
        truth: the same shape.
        classes: C.
    """
    counted = truth.long() < classes
    pairs = classes * truth.long()[counted] + predicted.long()[counted]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def report(counts_CC: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    """`miou`, `pixel_accuracy`, `class_accuracy`, `iou` by class, `absent` classes and `pixels` of a confusion matrix.

    A class without a pixel in the truth is absent: it has no IoU, and the means are over the others; what was
    mistaken for it still counts against the class that was mistaken. The means are None where no pixel is labelled.
    """
    n = np.asarray(counts_CC, np.float64)
    right, truth = n.diagonal(), n.sum(1)
    found = truth > 0
    iou = right[found] / (truth + n.sum(0) - right)[found]
    some = bool(found.any())
    return {
        "miou": float(iou.mean()) if some else None,
        "pixel_accuracy": float(right.sum() / truth.sum()) if some else None,
        "class_accuracy": float((right[found] / truth[found]).mean()) if some else None,
        "iou": {names[c]: float(value) for c, value in zip(np.flatnonzero(found), iou, strict=True)},
        "absent": [names[c] for c in np.flatnonzero(~found)],
        "pixels": int(truth.sum()),
    }
