"""heatmaps.png: which images are shown, and that map, threshold and size reach the picture."""

import numpy as np
import torch
from PIL import Image

from outlie.data.split import Rows
from outlie.metrics.pixels import pixel_metrics
from outlie.results import heatmaps


def rows(n: int = 8, side: int = 12) -> Rows:
    mask = torch.zeros(n, side, side, dtype=torch.bool)
    mask[: n // 2, 2:5, 3:9] = True
    x = torch.randint(0, 256, (n, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Rows(x, torch.arange(n), mask.flatten(1).any(1).long(), mask=mask)


def test_three_of_each_kind_evenly_spaced_normal_ones_last():
    kinds = ["good"] * 10 + ["crack"] * 9 + ["dent"] * 2 + ["hole"]
    picked = heatmaps.chosen(kinds)
    assert [kinds[i] for i in picked] == ["crack"] * 3 + ["dent"] * len(picked[3:-4]) + ["hole"] + ["good"] * 3
    assert picked[:3] == [12, 14, 16] and picked[-4] == 21 and set(picked[3:-4]) <= {19, 20}
    assert heatmaps.chosen(["good"]) == [0]


def test_the_report_is_of_maps_at_the_masks_size():
    own = rows()
    maps = own.mask.float() + 0.3 * torch.rand(own.mask.shape, generator=torch.Generator().manual_seed(1))
    assert heatmaps.report({"test": own}, {"test": maps}) == {"test": pixel_metrics(maps.numpy(), own.mask.numpy())}
    large = maps.repeat_interleave(2, 1).repeat_interleave(2, 2)  # the network saw larger images
    found = heatmaps.report({"test": own}, {"test": large})["test"]
    assert found["pixel_auroc"] > 0.99
    assert heatmaps.report({"test": own}, {}) == {}


def test_the_picture_shows_what_is_above_the_threshold(tmp_path):
    own = rows()
    maps = {"test": own.mask.float()}
    scores = {"test": (own.index.numpy(), own.label.numpy(), np.arange(8.0))}
    pixels = {}
    for threshold in (None, 0.5, 7.0):
        (path,) = heatmaps.pictures({"test": own}, maps, {}, scores, threshold, tmp_path)
        assert path == tmp_path / "heatmaps.png"
        pixels[threshold] = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.array_equal(pixels[None], pixels[7.0])  # nothing reaches it: no contour
    cyan = [int(((p[..., 0] < 90) & (p[..., 1] > 150) & (p[..., 2] > 150)).sum()) for p in pixels.values()]
    assert cyan[1] > 20 and cyan[0] == cyan[2]


def test_each_test_set_has_its_own_picture(tmp_path):
    parts = {"day": rows(), "night": rows(4)}
    maps = {name: one.mask.float() for name, one in parts.items()}
    scores = {name: (one.index.numpy(), None, np.zeros(len(one))) for name, one in parts.items()}
    drawn = heatmaps.pictures(parts, maps, {}, scores, None, tmp_path)
    assert [path.name for path in drawn] == ["heatmaps_day.png", "heatmaps_night.png"]
