"""PNG sizes, and binary versions of grey images that depend on the image alone."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chi2, kstest

from outlie.density import scores
from outlie.density.complexity import binarised, binarised_alike, png_bits
from outlie.density.latent import LatentModel
from outlie.density.likelihoods import Bernoulli
from outlie.density.mixed import Categorical

from .oracle_models import generator


def pictures(channels: int = 1, rows: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, channels, 9, 7), dtype=np.uint8)


def bits(pixels: np.ndarray, mode: str) -> int:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG", optimize=True, compress_level=9)
    assert np.array_equal(
        np.asarray(Image.open(file).convert("RGB")), np.asarray(Image.fromarray(pixels).convert("RGB"))
    )
    return 8 * len(file.getvalue())


@pytest.mark.parametrize("channels", [1, 3])
def test_bits_are_those_of_a_png_with_the_same_pixels(channels):
    grey = pictures(channels)
    grey[1] = 17  # of one colour: short
    expected = [
        bits(image[0] if channels == 1 else image.transpose(1, 2, 0), "L" if channels == 1 else "RGB") for image in grey
    ]
    ours = png_bits(torch.from_numpy(grey).float() / 255, 256)
    assert ours.tolist() == expected and ours.dtype == torch.float64
    assert expected[1] < expected[0] / 1.3


def test_binary_images_take_a_bit_a_pixel():
    binary = (pictures(rows=2) > 127).astype(np.uint8)
    expected = [bits(255 * image[0], "1") for image in binary]
    assert png_bits(torch.from_numpy(binary).float(), 2).tolist() == expected


def test_binary_channels_are_all_counted():
    """Three binary channels are no binary picture: one that is red or blue at random is not short."""
    binary = np.zeros((1, 3, 32, 32), dtype=np.uint8)
    red = np.random.default_rng(0).integers(0, 2, (32, 32))
    binary[0, 0], binary[0, 2] = red, 1 - red
    (ours,) = png_bits(torch.from_numpy(binary).float(), 2).tolist()
    assert ours == bits(255 * binary[0].transpose(1, 2, 0), "RGB")
    assert ours > 32 * 32


@pytest.mark.parametrize("levels", [2, 256])
def test_input_complexity_is_in_bits(levels):
    torch.manual_seed(0)
    family = Bernoulli(63) if levels == 2 else Categorical(63, 256, pixels=True)
    model = LatentModel((1, 9, 7), family, [2], [[4]])
    grey = pictures()
    x = torch.from_numpy((grey > 99) * 1.0 if levels == 2 else grey / 255).float()
    with torch.no_grad():
        ours = scores.input_complexity(model, x, 8, 1, levels)
        nats = scores.neg_iwae(model, x, 8, 1).numpy()
    length = (
        [bits(image[0], "L") for image in grey]
        if levels == 256
        else [bits((i[0] > 99) * np.uint8(255), "1") for i in grey]
    )
    np.testing.assert_allclose(ours, nats / np.log(2) - length, rtol=1e-12)
    per_pixel = nats / np.log(2) / 63
    assert (
        abs(per_pixel - np.log2(levels)) < 0.2 * np.log2(levels)
    ).all()  # an untrained model: as many bits as levels need


def test_grey_is_binarised_with_its_own_probability():
    x = torch.linspace(0, 1, 6).repeat(20_000, 1)
    drawn = binarised(x, generator())
    assert set(drawn.unique().tolist()) == {0, 1} and drawn.dtype == x.dtype
    share = drawn.mean(0)
    assert share[0] == 0 and share[-1] == 1
    assert ((share - x[0]).abs() <= 4 * (x[0] * (1 - x[0]) / 20_000).sqrt()).all()
    assert not torch.equal(drawn, binarised(x, generator(1)))


def grey_rows(n: int, dim: int = 50) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, dim, 1), generator=generator()).float() / 255


def test_binarised_alike_is_the_same_in_any_batch_and_every_time():
    x = grey_rows(40)
    whole = binarised_alike(x, 3)
    assert set(whole.unique().tolist()) == {0, 1} and whole.shape == x.shape and whole.dtype == x.dtype
    assert torch.equal(binarised_alike(x, 3), whole)
    assert torch.equal(torch.cat([binarised_alike(row, 3) for row in x.split(1)]), whole)
    order = torch.randperm(40, generator=generator())
    assert torch.equal(binarised_alike(x[order], 3), whole[order])
    torch.testing.assert_close(binarised_alike(x.double(), 3), whole.double())
    assert not torch.equal(binarised_alike(x, 4), whole)


def test_binarised_alike_has_the_right_mean_at_every_grey():
    """A chi-squared of the number of ones at each of the 256 levels, over rows that differ."""
    x = grey_rows(4000, 100)
    drawn, level = binarised_alike(x, 0).flatten(), (x.flatten() * 255).round().long()
    count, ones = torch.bincount(level, minlength=256).double(), torch.bincount(level, drawn.double(), minlength=256)
    share = torch.arange(256).double() / 255
    assert ones[0] == 0 and ones[255] == count[255]
    inner = slice(1, 255)
    statistic = ((ones - count * share).square() / (count * share * (1 - share)))[inner].sum()
    assert 1e-4 < chi2.sf(float(statistic), 254) < 1 - 1e-4


def test_the_numbers_behind_binarised_alike_are_uniform_and_rows_differ():
    """P(one) of half-grey pixels over all images that share those: by place, by row, and pairs of neighbours."""
    x = grey_rows(3000, 64)
    x[:, :, ::2] = 128 / 255
    half = binarised_alike(x, 0)[:, 0, ::2, 0].double().numpy()  # (rows, 32), Bernoulli(128 / 255)
    share = 128 / 255

    def z(counts: np.ndarray, n: int) -> np.ndarray:
        return (counts - n * share) / np.sqrt(n * share * (1 - share))

    assert kstest(z(half.sum(0), 3000), "norm").pvalue > 1e-3  # over rows, at a place
    assert (
        kstest(z(half.sum(1), 32) + np.random.default_rng(0).uniform(-1, 1, 3000) / 2 / np.sqrt(8), "norm").pvalue
        > 1e-3
    )
    correlation = np.corrcoef(half.T)[np.triu_indices(32, 1)] * np.sqrt(3000)
    assert kstest(correlation, "norm").pvalue > 1e-3  # of places with one another
    assert len(np.unique(half, axis=0)) == 3000


def test_images_that_differ_in_one_pixel_share_no_numbers():
    x = torch.full((256, 1, 400, 1), 128 / 255)
    x[:, 0, 7, 0] = torch.arange(256) / 255
    drawn = binarised_alike(x, 0).flatten(1).double().numpy()
    rest = np.delete(drawn, 7, 1)
    assert len(np.unique(rest, axis=0)) == 256
    correlation = np.corrcoef(rest)[np.triu_indices(256, 1)] * np.sqrt(399)
    assert np.abs(correlation).max() < 5.5 and abs(correlation.std() - 1) < 0.05


def test_images_whose_pixels_change_places_share_no_numbers():
    """(a, b) and (b + 1, a - 1) beside it."""
    x = torch.full((2, 1, 400, 1), 128 / 255)
    x[0, 0, 3:5, 0] = torch.tensor([90.0, 40]) / 255
    x[1, 0, 3:5, 0] = torch.tensor([41.0, 89]) / 255
    first, second = binarised_alike(x, 0).flatten(1)
    assert 0.3 < (first != second).double().mean() < 0.7
