"""DDPM-OOD against the closed form of its errors on Gaussian data, NumPy's z-scores, and counts of calls."""

import numpy as np
import pytest
import torch

from outlie.backbones.unet import UNet
from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.ddpm_ood import DDPMOOD, start_chains
from outlie.diffusion.image_samplers import ddim_times
from outlie.diffusion.processes import VE, VP
from outlie.errors import UserError

from .test_plms import MU, Bent, Gaussian, S, noise

SHORT = {"k": 3, "steps": 12}


def images(n: int, seed: int = 0) -> torch.Tensor:
    return (MU + S * noise(n, 1, 4, 4, seed=seed)).clamp(-1, 1)


def ready(network, shape=(1, 4, 4), seed=3, **options) -> DDPMOOD:
    detector = DDPMOOD(**options)
    set_up(detector, Spec({"x": shape}, seed=seed, network=network))
    return detector.eval()


def fitted(network, train, **options) -> DDPMOOD:
    detector = ready(network, tuple(train.shape[1:]), **options)
    detector.fit(Views(x=train))
    return detector


def test_the_published_starts():
    colour, grey = start_chains(ddim_times(), 16), start_chains(ddim_times(), 4)
    assert [chain[0] for chain in colour] == [971, 811, 651, 491, 331, 171, 11]
    assert [len(chain) for chain in colour] == [98, 82, 66, 50, 34, 18, 2]
    assert len(grey) == 25 and [chain[0] for chain in grey][-2:] == [51, 11]
    assert {chain[-1] for chain in colour + grey} == {1}


@pytest.mark.parametrize(("k", "calls"), [(16, 350), (4, 1250)])
def test_network_evaluations_of_an_image(k, calls):
    network = Gaussian(VP())
    detector = ready(network, k=k)
    assert detector.statistics(images(3)).shape == (3, len(detector.chains))
    assert network.evaluated == 3 * calls


@pytest.mark.parametrize("s", [S, 1.0])  # the second leaves [-1, 1]
@pytest.mark.parametrize("process", [VP(), VE()])
def test_errors_on_gaussian_data_are_known(process, s):
    """A noised image goes back along the flow: to mu + s (x_t - a mu) / sqrt(a^2 s^2 + b^2), then it is clamped."""
    x = torch.cat([images(3), torch.full((1, 1, 4, 4), 0.9)])
    detector = ready(Gaussian(process, s=s), k=16)
    draws = detector.noise(x, 7)
    expected = []
    for chain, eps in zip(detector.chains, draws):
        a, b = (float(c) for c in process.coefficients(process.checked(chain[0])))
        back = MU + s * (a * x + b * eps - a * MU) / (a**2 * s**2 + b**2) ** 0.5
        expected.append((back.clamp(-1, 1) - x).square().mean((1, 2, 3)))
    np.testing.assert_allclose(detector.statistics(x), torch.stack(expected, 1), rtol=0.03, atol=2e-4)


def test_the_score_is_the_mean_z_score_with_the_deviation_of_a_sample():
    train, test = images(9, seed=1), images(4, seed=2)
    detector = fitted(Bent(VP()), train, **SHORT)
    known, new = (detector.statistics(x).numpy() for x in (train, test))
    expected = ((new - known.mean(0)) / known.std(0, ddof=1)).mean(1)
    np.testing.assert_allclose(detector.score(Views(x=test)), expected, rtol=1e-9)


def test_images_that_are_none_of_the_data_come_back_otherwise():
    detector = fitted(Gaussian(VP()), images(40, seed=1), **SHORT)
    known = detector.score(Views(x=images(20, seed=2)))
    odd = detector.score(Views(x=torch.sign(noise(20, 1, 4, 4, seed=5))))
    assert known.max() < odd.min()
    assert known.dtype == torch.float64


@pytest.mark.parametrize("distance", ["mse", "features"])
def test_a_row_alone_save_and_load_and_calls_of_a_network(distance):
    network = UNet(base=8, multipliers=(1, 2), depth=1, attention=(1,), dropout=0.0)
    torch.manual_seed(0)
    network.build((1, 8, 8), None)
    network.eval()
    train, test = noise(6, 1, 8, 8).clamp(-1, 1), noise(3, 1, 8, 8, seed=1).clamp(-1, 1)
    with torch.no_grad():
        detector = fitted(network, train, distance=distance, **SHORT)
        before = network.evaluated
        together = detector.score(Views(x=test))
        starts = len(detector.chains)
        calls = sum(len(chain) for chain in detector.chains) + (0 if distance == "mse" else starts + 1)
        assert network.evaluated - before == 3 * calls
        torch.testing.assert_close(detector.score(Views(x=test[1:2])), together[1:2], rtol=1e-4, atol=1e-6)
        again = ready(network, (1, 8, 8), distance=distance, **SHORT)
        again.load_state_dict(detector.state_dict())
        assert torch.equal(again.score(Views(x=test)), together)
        other = ready(network, (1, 8, 8), distance=distance, seed=4, **SHORT)
        assert not torch.allclose(other.statistics(test), detector.statistics(test))
    assert torch.isfinite(together).all()


def test_the_features_distance_is_euclidean():
    network, x = Gaussian(VP()), images(2)
    by_pixels, by_features = ready(network, **SHORT), ready(network, distance="features", **SHORT)
    kept = []
    network.features = lambda batch: kept.append(batch) or Gaussian.features(network, batch)
    rows = by_features.statistics(x)
    back_SB = kept[0].unflatten(0, (-1, 2))
    np.testing.assert_allclose((back_SB - x).double().square().mean((2, 3, 4)).T, by_pixels.statistics(x), rtol=1e-6)
    for s in range(len(back_SB)):
        gap = (Gaussian.features(network, back_SB[s]) - Gaussian.features(network, x)).numpy()
        np.testing.assert_allclose(rows[:, s], np.linalg.norm(gap, axis=1), rtol=1e-5)


def test_many_starts_of_many_images_come_in_batches_of_64():
    network = Gaussian(VP())
    detector = ready(network, k=2, steps=12)
    x = images(30)
    whole = detector.statistics(x)
    assert max(network.calls) <= 64
    torch.testing.assert_close(detector.statistics(x[29:]), whole[29:])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k": 99}, r"k = 99 of 100 steps .* set detector\.k to 1 to 98"),
        ({"steps": 1001}, "steps = 1001: a chain of T = 1000 allows 1 to 1000"),
        ({"steps": 2, "k": 1}, r"steps = 2: two starts need 3 or more; set detector\.steps"),
    ],
)
def test_chains_that_cannot_be(options, says):
    with pytest.raises(UserError, match=says):
        ready(Gaussian(VP()), **options)
    assert len(ready(Gaussian(VP()), k=98).chains) == 2


def test_bad_training_images():
    with pytest.raises(UserError, match="DDPMOOD was given 1 training images"):
        fitted(Gaussian(VP()), images(1), **SHORT)
    with pytest.raises(UserError, match="NaN or Inf for 1 of 3"):
        fitted(Gaussian(VP()), torch.cat([images(2), torch.full((1, 1, 4, 4), torch.nan)]), **SHORT)
    same = fitted(Gaussian(VP()), images(1).repeat(4, 1, 1, 1), **SHORT)
    assert torch.isfinite(same.score(Views(x=images(5, seed=1)))).all()
