"""Non-leaky augmentation against Gaussians moved by hand, SciPy's splines and the distributions of the description."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, gaussian_filter
from scipy.signal import freqz
from scipy.stats import kstest, norm, uniform

from outlie.diffusion.nonleaky import DELAY, SYM6, augmented, draw_labels, inverse_maps, mirrored, transformed
from outlie.errors import UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=seeded(1)) * 2 - 1


def label(**columns) -> torch.Tensor:
    """One label row: mirror, upset, scale, angle, w, axis, right, down."""
    get = {"mirror": 0, "upset": 0, "scale": 0, "angle": 0, "w": 0, "axis": 0, "right": 0, "down": 0} | columns
    row = [get["mirror"], get["upset"], get["scale"], math.cos(get["angle"]) - 1, math.sin(get["angle"])]
    row += [get["w"] * math.cos(get["axis"]), get["w"] * math.sin(get["axis"]), get["right"], get["down"]]
    return torch.tensor([row], dtype=torch.float32)


def turned(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def forward(columns: dict) -> np.ndarray:
    """A, from the words: enlarge, turn, then 2^w along the axis and 2^-w across it."""
    w, axis = columns.get("w", 0), columns.get("axis", 0)
    stretch = turned(axis) @ np.diag([2.0**w, 2.0**-w]) @ turned(-axis)
    return stretch @ turned(columns.get("angle", 0)) * 2.0 ** columns.get("scale", 0)


TRANSFORMS = [
    {"scale": 0.4},
    {"scale": -0.3},
    {"angle": 0.5},
    {"angle": -2.2},
    {"w": 0.35},
    {"w": -0.25},
    {"w": 0.3, "axis": 0.8},
    {"w": -0.3, "axis": 1.2},
    {"right": 0.11},
    {"down": -0.07},
    {"scale": 0.2, "angle": 1.1, "w": -0.2, "axis": -0.7, "right": 0.05, "down": 0.08},
]


@pytest.mark.parametrize("columns", TRANSFORMS)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (31, 28)])
def test_a_gaussian_lands_where_the_label_says(columns, height, width):
    y, x = np.mgrid[:height, :width].astype(float)
    r = np.stack([x - (width - 1) / 2, y - (height - 1) / 2], -1)
    at, spread = np.array([4.0, -3.0]), np.diag([9.0, 16.0])  # off the centre, longer in y

    def blob(centre: np.ndarray, covariance: np.ndarray) -> np.ndarray:
        d = r - centre
        return np.exp(-0.5 * np.einsum("hwi,ij,hwj->hw", d, np.linalg.inv(covariance), d))

    a = forward(columns)
    move = np.array([columns.get("right", 0) * width, columns.get("down", 0) * height])
    expected = blob(a @ at + move, a @ spread @ a.T)
    got = transformed(torch.as_tensor(blob(at, spread))[None, None].float(), label(**columns))[0, 0].numpy()
    inside = slice(6, -6), slice(6, -6)  # the blob's tail is mirrored at the border
    assert np.abs(got - expected)[inside].max() < 0.008
    assert np.abs(blob(at, spread) - expected)[inside].max() > 0.1  # it moved
    np.testing.assert_allclose(inverse_maps(label(**columns))[0], np.linalg.inv(a), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("columns", TRANSFORMS)
@pytest.mark.parametrize(("height", "width", "channels"), [(28, 28, 1), (31, 33, 3)])
def test_smooth_images_are_scipys_to_the_mirrored_border(columns, height, width, channels):
    images = gaussian_filter(
        np.random.default_rng(0).normal(size=(channels, height, width)), (0, 2.5, 2.5), mode="mirror"
    )
    images /= np.abs(images).max()
    inverse = np.linalg.inv(forward(columns))[::-1, ::-1]  # SciPy counts rows first
    middle = (np.array([height, width]) - 1) / 2
    move = np.array([columns.get("down", 0) * height, columns.get("right", 0) * width])
    offset = middle - inverse @ (middle + move)
    expected = [affine_transform(i, inverse, offset, order=3, mode="mirror") for i in images]
    got = transformed(torch.as_tensor(images)[None].float(), label(**columns))[0].numpy()
    assert np.abs(got - expected).max() < 0.02
    assert np.abs(got - expected).mean() < 0.0025
    assert np.abs(images - expected).mean() > 0.05


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, -4), (-5, 2)])
def test_whole_pixels_are_moved_exactly(right, down):
    x = noise(2, 3, 31, 28)  # white noise: whatever interpolates would show
    got = transformed(x, label(right=right / 28, down=down / 31).repeat(2, 1))
    inside = slice(12, -12), slice(12, -12)  # the filter reaches 11 / 2 pixels beyond the edge's mirror
    expected = x.roll((down, right), (2, 3))
    torch.testing.assert_close(got[..., *inside], expected[..., *inside], rtol=0, atol=2e-5)


def test_the_filter_is_the_least_asymmetric_of_daubechies():
    h = np.array(SYM6)
    assert h.sum() == pytest.approx(math.sqrt(2), abs=1e-12)
    for k in range(6):
        assert (h[2 * k :] * h[: 12 - 2 * k]).sum() == pytest.approx(float(k == 0), abs=1e-11)
    moments = [((-1.0) ** np.arange(12) * np.arange(12.0) ** m * h).sum() / 11.0**m for m in range(6)]
    np.testing.assert_allclose(moments, 0, atol=1e-11)  # 6 of them, so the filter is one of Daubechies' factors
    w, response = freqz(h, worN=np.linspace(0.01, 0.9 * np.pi, 300))
    phase = np.unwrap(np.angle(response))
    assert np.abs(phase - (w @ phase) / (w @ w) * w).max() < 0.19  # the next best factor: 0.48
    line = np.array([(0.5 * np.arange(-12, 13)[:, None] == np.arange(-6, 7)) @ np.arange(-6, 7)])  # zeros in between
    smooth = np.convolve(line[0], h) / (h.sum() / 2)
    np.testing.assert_allclose(np.diff(smooth[12:24]), 0.5, atol=1e-9)  # a straight line stays one
    assert smooth[18] == pytest.approx((18 - 12 - DELAY) / 2, abs=1e-9)


@pytest.mark.parametrize("shape", [(400, 1, 28, 28), (400, 3, 31, 31), (400, 3, 8, 11)])
def test_a_label_of_zeros_is_an_untouched_image_and_nothing_else_is(shape):
    x = noise(*shape)
    before = x.clone()
    got, labels = augmented(x, 0.12, seeded())
    assert torch.equal(x, before) and got.shape == x.shape and got.isfinite().all()
    assert labels.shape == (400, 9) and labels.dtype == torch.float32
    zero = (labels == 0).all(1)
    assert 80 < zero.sum() < 160  # 0.5 0.94 0.88^4 of 400 = 113
    assert torch.equal(got[zero], x[zero])
    assert (got[~zero] != x[~zero]).flatten(1).any(1).all()
    flips = (labels[:, 2:] == 0).all(1)
    for mirrored_, upset, axes in [(1, 0, [3]), (0, 1, [2]), (1, 1, [2, 3])]:
        rows = flips & (labels[:, 0] == mirrored_) & (labels[:, 1] == upset)
        assert rows.any() and torch.equal(got[rows], x[rows].flip(axes))


def test_flips_come_before_the_rest():
    x = noise(1, 3, 16, 16)
    both = transformed(x, label(mirror=1, upset=1, angle=0.4, right=0.1))
    assert torch.equal(both, transformed(x.flip(2, 3), label(angle=0.4, right=0.1)))


def test_rows_do_not_see_each_other():
    x, labels = noise(30, 3, 20, 20), draw_labels(30, 0.5, seeded())
    together = transformed(x, labels)
    alone = torch.cat([transformed(x[i : i + 1], labels[i : i + 1]) for i in range(30)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_a_constant_image_keeps_its_value():
    got, labels = augmented(torch.full((64, 3, 31, 28), 0.7), 1.0, seeded())
    assert (labels[:, 2:] != 0).all(1).sum() > 20
    torch.testing.assert_close(got, torch.full_like(got, 0.7), rtol=0, atol=1e-5)


def test_the_generator_decides():
    x = noise(50, 3, 16, 16)
    first, again, other = (augmented(x, 0.3, seeded(s)) for s in (3, 3, 4))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_frequencies_and_distributions_are_the_descriptions():
    n, p = 100_000, 0.12
    labels = draw_labels(n, p, seeded()).double().numpy()
    groups = {"y-flip": [1], "scale": [2], "rotation": [3, 4], "stretch": [5, 6], "move": [7, 8]}
    on = {name: (labels[:, columns] != 0).any(1) for name, columns in groups.items()}
    on["x-flip"] = labels[:, 0] == 1
    rates = {"x-flip": 0.5, "y-flip": p / 2} | dict.fromkeys(["scale", "rotation", "stretch", "move"], p)
    names = list(rates)
    for i, name in enumerate(names):
        assert on[name].mean() == pytest.approx(rates[name], abs=5 * math.sqrt(rates[name] / n))
        for other in names[:i]:  # independent
            both = rates[name] * rates[other]
            assert (on[name] & on[other]).mean() == pytest.approx(both, abs=5 * math.sqrt(both / n))
    assert set(np.unique(labels[:, :2])) == {0, 1}
    angle = np.arctan2(labels[:, 4], labels[:, 3] + 1)[on["rotation"]]
    assert kstest(angle, uniform(-np.pi, 2 * np.pi).cdf).pvalue > 1e-3
    assert kstest(labels[on["scale"], 2], norm(0, 0.2).cdf).pvalue > 1e-3
    for column in (7, 8):
        assert kstest(labels[on["move"], column], norm(0, 0.125).cdf).pvalue > 1e-3
    along, across = labels[on["stretch"], 5:7].T
    w = np.sign(along) * np.hypot(along, across)
    assert kstest(w, norm(0, 0.2).cdf).pvalue > 1e-3
    diagonal = across != 0
    assert diagonal.mean() == pytest.approx(0.5, abs=0.03)
    axis = np.arctan(across / along)[diagonal]
    assert kstest(axis, uniform(-np.pi / 2, np.pi).cdf).pvalue > 1e-3


def test_no_two_columns_share_a_draw():
    labels = draw_labels(20_000, 1.0, seeded()).double().numpy()
    w = np.sign(labels[:, 5]) * np.hypot(labels[:, 5], labels[:, 6])
    angle, axis = np.arctan2(labels[:, 4], labels[:, 3] + 1), np.arctan(labels[:, 6] / labels[:, 5])
    drawn = np.stack([labels[:, 0], labels[:, 1], labels[:, 2], angle, w, axis, labels[:, 7], labels[:, 8]])
    assert np.abs(np.corrcoef(drawn) - np.eye(8)).max() < 5 / math.sqrt(20_000)


def test_p_0_flips_half_and_p_1_does_everything():
    assert (draw_labels(100, 0.0, seeded())[:, 1:] == 0).all()
    labels = draw_labels(100, 1.0, seeded())
    assert (labels[:, [2, 3, 4, 5, 7, 8]] != 0).all()
    assert torch.equal(labels[:, 0], draw_labels(100, 0.0, seeded())[:, 0])  # p does not shift the draws
    for p in (-0.1, 1.5, math.nan):
        with pytest.raises(UserError, match=r"is no probability: set the augmentation's p to 0\.\.1"):
            draw_labels(3, p, seeded())


def test_mirrored_is_numpys_reflect_however_far():
    for size in (2, 5, 8):
        expected = np.pad(np.arange(size), 30, mode="reflect")
        np.testing.assert_array_equal(mirrored(torch.arange(-30, size + 30), size), expected)
    assert mirrored(torch.tensor([-2.5, 0.0, 3.0]), 1).tolist() == [0, 0, 0]
    got, _ = augmented(noise(20, 4, 1, 3), 1.0, seeded())  # smaller than the filter
    assert got.isfinite().all()
