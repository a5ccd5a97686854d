"""Pixel AUROC and PRO: AUROC = int TPR dFPR; PRO = 1/0.3 int_0^0.3 (mean over defects of the share found) dFPR.

Both are an area under a sum of ramps. With a the share of normal pixels above an anomalous pixel's value and b the
share at least as high, this pixel counts as found from a false-positive rate of b on, and in part between a and b (the
trapezoid over ties): it adds w (f - (a + b) / 2) to the area up to f. AUROC gives all pixels the same weight w, PRO all
defects. So normal pixels are only counted, never sorted as a whole, and the result is exact.

Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021, section 4.1 (PRO; defects are 8-connected regions).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

PRO_LIMIT = 0.3  # false-positive rate up to which PRO is taken
AT_ONCE = 2**23  # normal pixels sorted at once


def pixel_metrics(maps_NHW: NDArray[np.float32], masks_NHW: NDArray[np.bool_]) -> dict[str, Any]:
    """`pixel_auroc` and `pro_030` over all pixels of a test set, good images too; None where one class is absent.

    Args:
        maps_NHW: higher = more anomalous
        masks_NHW: anomalous pixels

    Returns:
        also the number of `defects` (regions) and the share of pixels that are `anomalous`
    """
    region, count = defects(masks_NHW)
    found: dict[str, Any] = {
        "pixel_auroc": None, "pro_030": None, "defects": count, "anomalous": float(masks_NHW.mean()),
    }  # fmt: skip
    if not count or masks_NHW.all():
        return found
    above, at_least = normals_above(maps_NHW[masks_NHW], maps_NHW, masks_NHW)
    same = np.full(len(above), 1 / len(above))
    each = 1 / (count * np.bincount(region)[region])
    found["pixel_auroc"] = area(above, at_least, same, 1.0)
    found["pro_030"] = area(above, at_least, each, PRO_LIMIT) / PRO_LIMIT
    return found


def defects(masks_NHW: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
    """The region (from 0) of every anomalous pixel, in the order of masks[masks]; and the number of regions."""
    touching = np.zeros((3, 3, 3), bool)
    touching[1] = True  # within an image, also across corners
    labelled: Any = ndimage.label(masks_NHW, touching)
    region_NHW, count = labelled
    return region_NHW[masks_NHW].astype(np.int64) - 1, int(count)


def normals_above(
    score: NDArray[np.float32], maps_NHW: NDArray[np.float32], masks_NHW: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of the normal pixels above each value of `score`, and at least as high; (m,), (m,)."""
    values, place = np.unique(score, return_inverse=True)
    above, at_least, total = np.zeros(len(values), np.int64), np.zeros(len(values), np.int64), 0
    images = max(1, AT_ONCE // maps_NHW[0].size)
    for start in range(0, len(maps_NHW), images):
        part = slice(start, start + images)
        normal = np.sort(maps_NHW[part][~masks_NHW[part]])
        above += len(normal) - np.searchsorted(normal, values, side="right")
        at_least += len(normal) - np.searchsorted(normal, values, side="left")
        total += len(normal)
    return above[place] / total, at_least[place] / total


def area(above: NDArray[np.float64], at_least: NDArray[np.float64], weight: NDArray[np.float64], limit: float) -> float:
    """Integral up to `limit` of the sum of ramps from 0 at `above` to `weight` at `at_least`."""
    width = np.maximum(at_least - above, np.finfo(float).tiny)
    inside = np.clip(limit - above, 0, width)  # of the ramp, where the limit cuts it
    return float(np.sum(weight * (inside**2 / (2 * width) + np.clip(limit - at_least, 0, None))))
