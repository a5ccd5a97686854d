"""GEPC against loops over images, levels and flips, SciPy's kernel densities, networks that turn with the image."""

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde

from outlie.detectors.gepc import GEPC, disagreement
from outlie.errors import UserError

from .gaussian_denoiser import GaussianDenoiser, check_detector, fitted, images, score, set_up, tiny_unet

FLIPS = [lambda x: x[:, :, ::-1], lambda x: x[:, ::-1], lambda x: x[:, ::-1, ::-1]]  # of (C, H, W)


def by_definition(u: np.ndarray, v: np.ndarray) -> list[float]:
    """Error over the worst three in ten pixels, and 1 - cosine."""
    errors = sorted(((u - v) ** 2).sum(0).ravel(), reverse=True)
    worst = np.mean(errors[: int(np.ceil(0.3 * len(errors)))])
    cosine = (u * v).sum() / np.sqrt((u**2).sum() * (v**2).sum())
    return [worst / (u**2).sum(0).mean(), 1 - cosine]


def test_disagreement_is_the_definition():
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(4, 3, 5, 6)), rng.normal(size=(4, 3, 5, 6))
    ours = disagreement(torch.as_tensor(u), torch.as_tensor(v), 0.3)
    np.testing.assert_allclose(ours, [by_definition(*pair) for pair in zip(u, v, strict=True)], rtol=1e-10)
    same = disagreement(torch.as_tensor(u), torch.as_tensor(3 * u), 0.3)
    assert (same[:, 0] > 1).all()
    np.testing.assert_allclose(same[:, 1], 0, atol=1e-12)
    assert disagreement(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), 0.3).isfinite().all()


@pytest.mark.parametrize(("process", "shape"), [("ddpm", (1, 8, 8)), ("edm", (2, 6, 10))])
def test_statistics_are_a_loop_over_levels_and_flips(process, shape):
    network, x = tiny_unet(process, shape), images(9, shape)
    found = set_up(GEPC(log_snr=[-1.0, 4.0]), network, shape).statistics(x)
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
    for i in (0, 8):
        columns = []
        for level, log_snr in enumerate([-1.0, 4.0]):
            time = network.process.time_at(log_snr)
            noisy = network.process.noised(x[i : i + 1], time, noise[level : level + 1])
            there = [out[0].numpy() for out in network.denoise(noisy, time)]
            each = {0: [], 1: []}
            for flip in FLIPS:
                turned = torch.as_tensor(flip(noisy[0].numpy()).copy())[None]
                for which, out in enumerate(network.denoise(turned, time)):
                    each[which].append(by_definition(there[which], flip(out[0].numpy())))
            columns += [*np.mean(each[1], 0), *np.mean(each[0], 0)]  # of the score, then of x0_hat
        np.testing.assert_allclose(found[i], columns, rtol=2e-3, atol=1e-6)


def test_the_score_is_scipys_kernel_densities_weighted():
    network, train, x = tiny_unet(), images(25), images(4, s=0.9, seed=4)
    detector = fitted(GEPC(), network, train)
    rows, test = detector.statistics(train).numpy(), detector.statistics(x).numpy()
    weights = rows.mean(0) / rows.std(0)
    log_p = [gaussian_kde(rows[:, s], "silverman").logpdf(test[:, s]) for s in range(8)]
    np.testing.assert_allclose(score(detector, x), -(weights / weights.sum()) @ log_p, rtol=1e-6)


def test_a_wider_kernel_is_in_units_of_silvermans():
    network, train, x = tiny_unet(), images(25), images(4, s=0.9, seed=4)
    detector = fitted(GEPC(bandwidth=2.0), network, train)
    narrow = fitted(GEPC(), network, train)
    torch.testing.assert_close(detector.widths, 2 * narrow.widths)
    assert score(detector, x).ne(score(narrow, x)).all()


def test_columns_without_variance_count_nothing():
    detector, rows = set_up(GEPC(), tiny_unet()), torch.rand(20, 8, dtype=torch.float64)
    rows[:, 3] = 0
    detector.learn(rows)
    other = rows.clone()
    other[:, 3] = 7
    assert detector.weights[3] == 0
    torch.testing.assert_close(detector.judge(other), detector.judge(rows))


def test_a_network_takes_eight_evaluations():
    check_detector(GEPC(), GEPC(), tiny_unet(), 8)


def test_bad_input():
    with pytest.raises(UserError, match="turns with each training image"):
        fitted(GEPC(), GaussianDenoiser(), images(10))
    with pytest.raises(UserError, match=r"log_snr = 30\.0"):
        set_up(GEPC(log_snr=[30.0]), tiny_unet("edm"))
