"""LMD against a loop over DDPM's posterior, SciPy's Gaussian filter, moments of Gaussian data, and counts of calls."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from outlie.backbones.unet import UNet
from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.lmd import LMD, checkerboard, inpainted
from outlie.diffusion.image_samplers import ddim_times
from outlie.diffusion.plms import falling_times
from outlie.diffusion.processes import VE, VP
from outlie.errors import UserError

from .test_plms import MU, Bent, Gaussian, S, abar, noise


def ready(network, shape=(1, 8, 8), seed=3, **options) -> LMD:
    detector = LMD(**options)
    set_up(detector, Spec({"x": shape}, seed=seed, network=network))
    return detector.eval()


def images(n: int, size: int = 8, seed: int = 0) -> torch.Tensor:
    return (MU + S * noise(n, 1, size, size, seed=seed)).clamp(-1, 1)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Coupled(Gaussian):
    """Each pixel from its left neighbour, too: an unknown pixel sees the noise of a known one."""

    def clean(self, x, a, b):
        left = torch.roll(x, 1, -1) if isinstance(x, torch.Tensor) else np.roll(x, 1, -1)
        return super().clean((x + left) / 2, a, b)


def test_the_checkerboard_is_the_published_one_and_fits_other_sizes():
    one = np.indices((8, 8)).sum(0) % 2 == 0  # 4 x 4 pixels a square
    np.testing.assert_array_equal(checkerboard(32, 32, 8)[0], np.kron(one, np.ones((4, 4))) > 0)
    grey = checkerboard(28, 30, 8)[0].numpy()
    assert grey.shape == (28, 30) and grey[0, 0] and abs(grey.mean() - 0.5) < 0.02
    for line in (grey[0], grey[:, 0]):
        lengths = np.diff(np.flatnonzero(np.diff(np.concatenate([[not line[0]], line, [not line[-1]]]).astype(int))))
        assert len(lengths) == 8 and set(lengths) <= {3, 4}


def by_hand(network: Gaussian, image: np.ndarray, known: np.ndarray, times: list[int], z: list[np.ndarray]):
    """Ho et al. 2020, equations (6) and (7), between the times of a respaced chain; one image, in float64."""
    level, z = abar(), iter(z)
    first, now = next(z), level[times[0]]
    x = np.where(known, np.sqrt(now) * image + np.sqrt(1 - now) * first, np.sqrt(1 - now) * first)
    for t, after in zip(times, [*times[1:], 0]):
        now, then = level[t], level[after]
        beta = 1 - now / then
        x0 = np.clip(network.clean(x, np.sqrt(now), np.sqrt(1 - now)), -1, 1)
        mean = np.sqrt(then) * beta / (1 - now) * x0 + np.sqrt(1 - beta) * (1 - then) / (1 - now) * x
        deviation = np.sqrt((1 - then) / (1 - now) * beta)
        one = next(z) if after else 0
        x = np.where(known, np.sqrt(then) * image + np.sqrt(1 - then) * one, mean + deviation * one)
    return x


@pytest.mark.parametrize("network", [Coupled(VP()), Bent(VP())])
def test_inpainting_is_the_posterior_with_known_pixels_put_back(network):
    x, times = images(3, 4), ddim_times(1000, 7)
    one = checkerboard(4, 4, 2)
    painted = inpainted(network, x, torch.stack([one, ~one]), times, draws(5), 2)
    generator, z = draws(5), []
    for _ in range(7):
        z.append(torch.randn(2, 1, 4, 4, generator=generator).numpy().astype(np.float64))
    for i in range(3):
        for r, known in enumerate((one, ~one)):
            expected = by_hand(network, x[i].double().numpy(), known.numpy(), times, [step[r] for step in z])
            np.testing.assert_allclose(painted[i, r], expected, atol=2e-5)


@pytest.mark.parametrize("process", [VP(), VE()])
def test_known_pixels_stay_and_the_others_are_drawn_from_the_data(process):
    """The best denoiser of independent pixels draws N(mu, s^2) for the unknown ones, whatever is beside them."""
    x = torch.full((1, 1, 16, 16), 0.7)
    one = checkerboard(16, 16, 8)
    known = torch.stack([one, ~one] * 4)
    times = falling_times(process, 200)
    painted = inpainted(Gaussian(process), x, known, times, draws(0), 8)[0]
    assert torch.equal(painted[known], torch.full((8 * 128,), 0.7))
    drawn = painted[~known]  # 1024 of them
    assert float(drawn.mean()) == pytest.approx(MU, abs=4 * S / 1024**0.5)
    assert float(drawn.std()) == pytest.approx(S, rel=0.12)
    score = float(ready(Gaussian(process), (1, 16, 16), steps=200).score(Views(x=x)))
    assert score == pytest.approx(((0.7 - MU) ** 2 + S**2) / 2, rel=0.1)


@pytest.mark.parametrize("repetitions", [1, 4, 5])
def test_the_score_is_the_median_of_mean_squared_errors(repetitions):
    network, x = Bent(VP()), images(3)
    detector = ready(network, repetitions=repetitions, steps=4)
    one = checkerboard(8, 8, 8)
    known = torch.stack([one, ~one, one, ~one, one][:repetitions])
    painted = inpainted(network, x, known, detector.times, draws(3), repetitions)
    errors = ((painted - x[:, None]).double() ** 2).mean((2, 3, 4)).numpy()
    np.testing.assert_allclose(detector.score(Views(x=x)), np.median(errors, axis=1), rtol=1e-9)
    assert repetitions == 1 or len({float(e) for e in errors[0]}) == repetitions


def test_ssim_is_the_published_index():
    """Wang et al. 2004: a Gaussian window of 1.5 pixels, K = (.01, .03), range 2."""
    x = images(2, 12)
    detector = ready(Gaussian(VP()), (1, 12, 12), distance="ssim", repetitions=2, steps=3)
    one = checkerboard(12, 12, 8)
    painted = inpainted(Gaussian(VP()), x, torch.stack([one, ~one]), detector.times, draws(3), 2)

    def blurred(image):
        return gaussian_filter(image, 1.5, truncate=3.5, mode="mirror")

    expected = np.zeros((2, 2))
    for i in range(2):
        for r in range(2):
            p, q = painted[i, r, 0].double().numpy(), x[i, 0].double().numpy()
            mp, mq = blurred(p), blurred(q)
            vp, vq, both = blurred(p * p) - mp**2, blurred(q * q) - mq**2, blurred(p * q) - mp * mq
            c1, c2 = 0.02**2, 0.06**2
            index = (2 * mp * mq + c1) * (2 * both + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
            expected[i, r] = 1 - index.mean()
    np.testing.assert_allclose(detector.score(Views(x=x)), np.median(expected, axis=1), rtol=1e-4)


@pytest.mark.parametrize("distance", ["mse", "ssim", "features"])
def test_a_row_alone_and_calls_of_a_network(distance):
    network = UNet(base=8, multipliers=(1, 2), depth=1, attention=(1,), dropout=0.0)
    torch.manual_seed(0)
    network.build((1, 8, 8), None)
    network.eval()
    x = images(4)
    detector = ready(network, steps=4, repetitions=3, distance=distance)
    with torch.no_grad():
        together = detector.score(Views(x=x))
        assert network.evaluated == 4 * (4 * 3 + (3 + 1 if distance == "features" else 0))
        torch.testing.assert_close(detector.score(Views(x=x[2:3])), together[2:3], rtol=1e-4, atol=1e-6)
        assert torch.equal(detector.score(Views(x=x)), together)
        assert not torch.allclose(ready(network, steps=4, repetitions=3, seed=4).score(Views(x=x)), together)
    assert together.shape == (4,) and together.dtype == torch.float64 and torch.isfinite(together).all()


def test_the_features_distance_is_euclidean():
    network, x = Gaussian(VP()), images(2)
    detector = ready(network, distance="features", repetitions=1, steps=3)
    painted = inpainted(network, x, checkerboard(8, 8, 8)[None], detector.times, draws(3), 1)[:, 0]
    gap = (network.features(painted) - network.features(x)).numpy()
    np.testing.assert_allclose(detector.score(Views(x=x)), np.linalg.norm(gap, axis=1), rtol=1e-5)


def test_the_default_costs_100_calls_in_batches_of_at_most_64():
    network = Gaussian(VP())
    detector = ready(network)
    assert not hasattr(detector, "fit") and not detector.state_dict()
    whole = detector.score(Views(x=images(13)))
    assert network.evaluated == 13 * 100 and max(network.calls) <= 64
    torch.testing.assert_close(detector.score(Views(x=images(13)[12:])), whole[12:])


def test_images_that_are_none_of_the_data_score_higher():
    detector = ready(Gaussian(VP()))
    known = detector.score(Views(x=images(10)))
    odd = detector.score(Views(x=torch.sign(noise(10, 1, 8, 8))))
    assert known.max() < odd.min()


@pytest.mark.parametrize(
    ("options", "shape", "says"),
    [
        ({}, (1, 8, 7), r"squares = 8 along a side of 8 x 7 pixels: allowed are 2 to 7; set detector\.squares"),
        ({"squares": 1}, (1, 8, 8), "squares = 1"),
        ({"distance": "ssim", "squares": 2}, (1, 5, 5), "too small for SSIM"),
        ({"steps": 1001}, (1, 8, 8), "steps = 1001: a chain of T = 1000 allows 1 to 1000"),
    ],
)
def test_options_that_cannot_be(options, shape, says):
    with pytest.raises(UserError, match=says):
        ready(Gaussian(VP()), shape, **options)
    x = images(2, 6)
    assert torch.isfinite(ready(Gaussian(VP()), (1, 6, 6), distance="ssim", squares=2, steps=2).score(Views(x=x))).all()
