"""Pixel AUROC against scikit-learn, PRO against every threshold written out; regions against scipy.ndimage by image."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import auc, roc_auc_score

from outlie.metrics import pixels
from outlie.metrics.pixels import defects, pixel_metrics


def maps_and_masks(seed: int, levels: int | None = None, images: int = 6, side: int = 20):
    rng = np.random.default_rng(seed)
    masks = np.zeros((images, side, side), bool)
    for image in masks[1:]:
        for _ in range(rng.integers(1, 4)):
            top, left = rng.integers(0, side - 3, 2)
            image[top : top + rng.integers(1, 7), left : left + rng.integers(1, 7)] = True
    maps = rng.normal(size=masks.shape) + 1.2 * masks
    maps = maps if levels is None else np.round(maps * levels) / levels
    return maps.astype(np.float32), masks


def pro_by_every_threshold(maps: np.ndarray, masks: np.ndarray, limit: float = 0.3) -> float:
    """The definition: at each threshold the share of every defect that is found, and of normal pixels; trapezoids."""
    regions = []
    for i, mask in enumerate(masks):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [maps[i][labels == k + 1] for k in range(count)]
    normal = maps[~masks]
    fpr, pro = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        fpr.append(float((normal >= threshold).mean()))
        pro.append(float(np.mean([(region >= threshold).mean() for region in regions])))
    fpr, pro = np.array(fpr), np.array(pro)
    at_limit = np.interp(limit, fpr, pro)
    # where the curve is vertical at the limit, what lies on it adds no area
    below = fpr < limit
    return auc(np.append(fpr[below], limit), np.append(pro[below], at_limit)) / limit


@pytest.mark.parametrize("levels", [None, 4, 1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_auroc_is_scikit_learns_and_pro_is_the_definition(seed, levels):
    maps, masks = maps_and_masks(seed, levels)
    found = pixel_metrics(maps, masks)
    assert found["pixel_auroc"] == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)
    assert found["pro_030"] == pytest.approx(pro_by_every_threshold(maps, masks), abs=1e-12)
    assert found["anomalous"] == masks.mean()


def test_in_parts_it_is_the_same(monkeypatch):
    maps, masks = maps_and_masks(3, levels=3)
    whole = pixel_metrics(maps, masks)
    monkeypatch.setattr(pixels, "AT_ONCE", 2 * maps[0].size)
    assert pixel_metrics(maps, masks) == whole


def test_small_defects_count_as_much_as_large_ones_in_pro_alone():
    masks = np.zeros((1, 30, 30), bool)
    masks[0, 1:21, 1:21] = True
    masks[0, 25, 25] = True
    maps = masks.astype(np.float32)
    maps[0, 25, 25] = -1.0  # the small one is lost
    found = pixel_metrics(maps, masks)
    assert found["defects"] == 2 and found["pro_030"] == pytest.approx(0.5)
    assert found["pixel_auroc"] > 0.99


def test_regions_join_across_corners_and_never_across_images():
    masks = np.zeros((2, 4, 4), bool)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[1, 1, 1] = masks[1, 3, 3] = True
    region, count = defects(masks)
    assert count == 3 and region.tolist() == [0, 0, 1, 2]


def test_a_constant_map_knows_nothing():
    _, masks = maps_and_masks(0)
    found = pixel_metrics(np.zeros(masks.shape, np.float32), masks)
    assert found["pixel_auroc"] == pytest.approx(0.5) and found["pro_030"] == pytest.approx(0.15)


@pytest.mark.parametrize("value", [False, True])
def test_one_class_of_pixels_has_no_metrics(value):
    found = pixel_metrics(np.zeros((2, 3, 3), np.float32), np.full((2, 3, 3), value))
    assert found["pixel_auroc"] is None and found["pro_030"] is None
