"""Batched crops, flips and mixtures against one sample at a time."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import beta, binomtest, chisquare, ks_2samp, kstest

from outlie.backbones.augment import crop_and_resize, flip, mixup, pad_crop, random_boxes, resized_crop


def images(batch: int = 6, height: int = 9, width: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (batch, 3, height, width), generator=generator, dtype=torch.uint8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_crop_is_a_window_of_the_black_padded_image():
    x, found = images(400, 5, 4), []
    cropped = pad_crop(x, 2, seeded())
    assert cropped.shape == x.shape and cropped.dtype == torch.uint8
    for one, out in zip(x, cropped):
        padded = torch.zeros(3, 9, 8, dtype=torch.uint8)
        padded[:, 2:7, 2:6] = one
        windows = [(i, j) for i in range(5) for j in range(5) if torch.equal(padded[:, i : i + 5, j : j + 4], out)]
        assert len(windows) == 1
        found += windows
    counts = [found.count((i, j)) for i in range(5) for j in range(5)]
    assert chisquare(counts).pvalue > 1e-3
    assert torch.equal(pad_crop(x, 0, seeded()), x)


def test_half_the_images_are_mirrored():
    x = images(500)
    flipped = flip(x, seeded())
    same = [torch.equal(a, b) for a, b in zip(x, flipped)]
    mirrored = [torch.equal(a.flip(2), b) for a, b in zip(x, flipped)]
    assert all(a != b for a, b in zip(same, mirrored))
    assert binomtest(sum(same), 500).pvalue > 1e-3


def test_boxes_resized_are_the_crops_resized():
    x = images(5, 12, 10)
    tops, lefts, heights, widths = [0, 3, 11, 2, 5], [0, 1, 9, 0, 4], [12, 5, 1, 7, 3], [10, 8, 1, 10, 6]
    boxes = tuple(torch.tensor(values) for values in (tops, lefts, heights, widths))
    out = crop_and_resize(x, boxes, (8, 6))
    assert out.shape == (5, 3, 8, 6) and out.dtype == torch.uint8
    for i, (top, left, height, width) in enumerate(zip(tops, lefts, heights, widths)):
        crop = x[i : i + 1, :, top : top + height, left : left + width].float()
        expected = F.interpolate(crop, (8, 6), mode="bilinear", align_corners=False)
        assert (out[i].float() - expected[0]).abs().max() <= 0.51  # rounded
    whole = tuple(torch.tensor([v] * 5) for v in (0, 0, 12, 10))
    assert torch.equal(crop_and_resize(x, whole, (12, 10)), x)


def torchvisions_box(height: int, width: int, smallest: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """RandomResizedCrop.get_params as torchvision documents it, one sample."""
    for _ in range(10):
        area = height * width * torch.empty(1).uniform_(smallest, 1, generator=generator).item()
        aspect = math.exp(torch.empty(1).uniform_(math.log(3 / 4), math.log(4 / 3), generator=generator).item())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = torch.randint(0, height - h + 1, (1,), generator=generator).item()
            left = torch.randint(0, width - w + 1, (1,), generator=generator).item()
            return int(top), int(left), h, w
    raise AssertionError("ten draws failed")


@pytest.mark.parametrize(("height", "width", "smallest"), [(32, 32, 0.08), (20, 26, 0.5)])
def test_boxes_are_drawn_as_torchvision_draws_them(height, width, smallest):
    ours = torch.stack(random_boxes(1500, height, width, smallest, seeded())).T
    generator = seeded(1)
    theirs = torch.tensor([torchvisions_box(height, width, smallest, generator) for _ in range(1500)])
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    top, left, h, w = ours.T
    assert top.min() == 0 and left.min() == 0 and h.min() >= 1 and w.min() >= 1
    assert (top + h).max() == height and (left + w).max() == width


@pytest.mark.parametrize(("height", "width", "box"), [(4, 100, (0, 47, 4, 5)), (100, 4, (47, 0, 5, 4))])
def test_where_no_box_fits_it_is_the_centre(height, width, box):
    boxes = torch.stack(random_boxes(20, height, width, 0.9, seeded())).T
    assert {tuple(b) for b in boxes.tolist()} == {box}


def test_resized_crop_gives_another_box_to_each_sample():
    gradient = torch.arange(64, dtype=torch.uint8).repeat(50, 1, 64, 1)
    out = resized_crop(gradient, (16, 16), 0.08, seeded())
    assert out.shape == (50, 1, 16, 16)
    assert len({tuple(row) for row in out[:, 0, 0].tolist()}) > 40
    assert torch.equal(out, resized_crop(gradient, (16, 16), 0.08, seeded()))
    assert not torch.equal(out, resized_crop(gradient, (16, 16), 0.08, seeded(1)))


def test_mixup_mixes_each_sample_with_its_partner():
    z = torch.randn(6, 3, 4, 4, generator=seeded())
    mixed, partner, share = mixup(z, 0.4, seeded())
    assert sorted(partner.tolist()) == list(range(6)) and share.dtype == torch.float32
    for i, j in enumerate(partner.tolist()):
        torch.testing.assert_close(mixed[i], share * z[i] + (1 - share) * z[j])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_share_is_beta_distributed(alpha):
    generator = seeded()
    shares = [float(mixup(torch.zeros(2, 1), alpha, generator)[2]) for _ in range(800)]
    assert kstest(shares, beta(alpha, alpha).cdf).pvalue > 1e-3


def test_a_tiny_alpha_gives_a_share_all_the_same():
    generator = seeded()
    shares = torch.stack([mixup(torch.zeros(2, 1), 1e-6, generator)[2] for _ in range(50)])
    assert ((shares >= 0) & (shares <= 1)).all()
