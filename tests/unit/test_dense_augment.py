"""Images and label maps augmented together, against one pixel at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kstest

from outlie.backbones import dense_augment
from outlie.backbones.dense_augment import recolour, scale_crop_flip

FILL = torch.tensor([10.0, 20.0, 30.0])[:, None, None]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(n: int = 40, height: int = 12, width: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose channels tell the row and the column of each pixel, and label maps that tell both."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x = torch.stack([rows * 20, columns * 20, rows + columns]).byte().expand(n, -1, -1, -1)
    return x.contiguous(), (rows * width + columns).byte().expand(n, -1, -1).contiguous()


def test_without_a_scale_each_part_is_a_window():
    x, y = batch()
    seen = set()
    for image, labels in zip(*scale_crop_flip(x, y, (1.0, 1.0), (5, 4), False, FILL, seeded()), strict=True):
        # positions between pixels: the label is the nearest pixel's, the image is interpolated there
        top, left = float(image[0, 0, 0]) / 20, float(image[1, 0, 0]) / 20
        assert 0 <= top <= 7 and 0 <= left <= 6
        i, j = round(top), round(left)
        assert torch.equal(labels, y[0, i : i + 5, j : j + 4])
        assert image[0, :, 2].tolist() == pytest.approx([20 * (top + k) for k in range(5)], abs=1e-3)
        assert image[1, 3].tolist() == pytest.approx([20 * (left + k) for k in range(4)], abs=1e-3)
        seen.add((i, j))
    assert len(seen) > 15


def test_the_whole_image_at_another_scale_is_pytorchs_interpolation():
    torch.manual_seed(0)
    x, y = torch.randint(0, 256, (3, 3, 8, 6)).byte(), torch.randint(0, 11, (3, 8, 6)).byte()
    for scale in (0.5, 2.0):
        size = (int(8 * scale), int(6 * scale))
        image, labels = scale_crop_flip(x, y, (scale, scale), size, False, FILL, seeded())
        assert torch.allclose(image, F.interpolate(x.float(), size, mode="bilinear"), atol=1e-3)
        nearest = F.interpolate(y[:, None].float(), size, mode="nearest-exact")[:, 0]
        assert torch.equal(labels.float(), nearest)


def test_around_a_small_image_is_the_fill_without_a_label():
    x, y = batch(30)
    image, labels = scale_crop_flip(x, y, (1.0, 1.0), (16, 16), False, FILL, seeded())
    void = labels == 255
    assert (void.sum((1, 2)) == 16 * 16 - 12 * 10).all()  # the image is whole, wherever it lies
    assert torch.equal(image[:, :, :, :][void[:, None].expand_as(image)].unique(), torch.tensor([10.0, 20.0, 30.0]))
    assert len({tuple(one.nonzero()[0].tolist()) for one in ~void}) > 10


def test_half_are_mirrored_with_their_labels():
    x, y = batch(400)
    image, labels = scale_crop_flip(x, y, (1.0, 1.0), (12, 10), True, FILL, seeded())
    mirrored = image[:, 1, 0, 0] > image[:, 1, 0, -1]
    assert 150 < mirrored.sum() < 250
    for one, seen in ((mirrored, y[0].flip(1)), (~mirrored, y[0])):
        assert torch.equal(labels[one], seen.expand(int(one.sum()), -1, -1))
    assert torch.allclose(image[mirrored], x[0].flip(2).float().expand(int(mirrored.sum()), -1, -1, -1), atol=1e-3)


def test_scales_are_uniform_and_draws_follow_the_generator():
    x, y = batch(400)
    image, labels = scale_crop_flip(x, y, (0.5, 2.0), (4, 4), False, FILL, seeded(1))
    scale = 20 / (image[:, 0, 2, 1] - image[:, 0, 1, 1])  # rows pass at 1 / scale a pixel
    inside = (labels != 255).flatten(1).all(1) & (image[:, 0, 0, 0] > 0) & (image[:, 0, -1, 0] < 220)
    assert inside.sum() > 150
    assert kstest(scale[inside], "uniform", (0.5, 1.5)).pvalue > 1e-3
    again = scale_crop_flip(x, y, (0.5, 2.0), (4, 4), False, FILL, seeded(1))
    assert torch.equal(image, again[0]) and torch.equal(labels, again[1])
    assert not torch.equal(image, scale_crop_flip(x, y, (0.5, 2.0), (4, 4), False, FILL, seeded(2))[0])


def test_a_part_of_one_class_is_drawn_again():
    y = torch.zeros(200, 40, 40, dtype=torch.uint8)
    y[:, :8] = 1  # a fifth of the image: most parts have none of it
    x = torch.zeros(200, 3, 40, 40).byte()
    _, labels = scale_crop_flip(x, y, (1.0, 1.0), (16, 16), False, FILL, seeded())
    share = (labels == 0).float().mean((1, 2))
    alone = (share > 0.85).float().mean()
    # a draw fits with chance (8 - 4) / 24 = 1/6; ten fail with (5/6)^10
    assert float(alone) == pytest.approx((5 / 6) ** 10, abs=0.1)


def test_recoloured_as_written(monkeypatch):
    x = torch.randint(0, 256, (6, 3, 4, 5), generator=seeded()).byte()
    found = recolour(x, seeded(3))
    generator = seeded(3)
    draw, coin = torch.rand(3, 6, generator=generator), torch.rand(3, 6, generator=generator) < 0.5
    assert coin.any() and not coin.all()
    for b in range(6):
        image = x[b].double().numpy()
        image = image + (64 * float(draw[0, b]) - 32 if coin[0, b] else 0)
        image = image * (0.5 + float(draw[1, b]) if coin[1, b] else 1)
        if coin[2, b]:
            grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
            image = grey + (0.5 + float(draw[2, b])) * (image - grey)
        assert np.allclose(found[b], np.clip(image, 0, 255), atol=1e-3)
    assert recolour(x[:, :1], seeded()).shape == (6, 1, 4, 5)
    assert dense_augment.IGNORE == 255
