"""The denoising loss against the closed form for Gaussian pixels and a loop over rows and levels; bad input."""

import numpy as np
import pytest
import torch

from outlie.detectors.denoising_loss import DenoisingLoss, denoised_at, noised_at, times_at
from outlie.diffusion.processes import VE, VP
from outlie.errors import UserError

from .gaussian_denoiser import GaussianDenoiser, check_detector, fitted, images, score, set_up, tiny_unet

PROCESSES = [VP, VE]


@pytest.mark.parametrize("process", PROCESSES)
def test_mean_loss_is_the_posterior_variance_of_the_noise(process):
    network, x = GaussianDenoiser(process()), images(30, (3, 32, 32))
    detector = set_up(DenoisingLoss(), network, (3, 32, 32))
    a, b = network.process.coefficients(detector.times)
    expected = a**2 * 0.25 / (a**2 * 0.25 + b**2)  # what x_t leaves open of eps
    np.testing.assert_allclose(detector.statistics(x).mean(0), expected, rtol=0.05)
    assert expected.max() / expected.min() > 5


@pytest.mark.parametrize("process", PROCESSES)
def test_score_is_a_loop_over_rows_and_levels(process):
    network, train, x = GaussianDenoiser(process(), mu=0.1), images(20), images(6, s=0.8, seed=7)
    detector = fitted(DenoisingLoss(log_snr=[-2.0, 3.0]), network, train)
    noise = torch.randn(2, *x.shape[1:], generator=torch.Generator().manual_seed(3))

    def loss(image, level):
        time = network.process.time_at([-2.0, 3.0][level])
        a, b = (float(c) for c in network.process.coefficients(time))
        x0 = (a * 0.25 * (a * image + b * noise[level]) + b**2 * 0.1) / (a**2 * 0.25 + b**2)
        eps = (a * image + b * noise[level] - a * x0) / b
        return float(((eps - noise[level]) ** 2).mean())

    of_train = np.array([[loss(image, level) for level in (0, 1)] for image in train])
    of_x = np.array([[loss(image, level) for level in (0, 1)] for image in x])
    expected = ((of_x - of_train.mean(0)) / of_train.std(0)).mean(1)
    np.testing.assert_allclose(score(detector, x), expected, rtol=1e-3, atol=1e-4)
    assert np.median(expected) > 1  # wider pixels than the training images'


def test_levels_of_an_image_lie_side_by_side():
    process, x = VP(), images(3)
    times, noise = times_at(process, [-3.0, 0.0, 4.0]), images(3, s=1.0, seed=5)
    noisy, time = noised_at(process, x, times, noise)
    torch.testing.assert_close(noisy[4], process.noised(x[1:2], times[1], noise[1:2])[0])
    assert time.tolist() == times.tolist() * 3
    shared, _ = noised_at(process, x, times, noise[:1])
    torch.testing.assert_close(shared[5], process.noised(x[1:2], times[2], noise[:1])[0])


def test_many_images_come_in_parts_and_in_order():
    network, x = GaussianDenoiser(), images(50)
    times, noise = times_at(network.process, [-3.0, 0.0, 4.0]), images(1, s=1.0, seed=5)
    parts = list(denoised_at(network, x, times, noise))
    assert [len(eps) for _, eps in parts] == [21, 21, 8]
    one = network.denoise(network.process.noised(x[30:31], times[2], noise), times[2])
    torch.testing.assert_close(torch.cat([eps for _, eps in parts])[30, 2], one[1][0])
    torch.testing.assert_close(torch.cat([x0 for x0, _ in parts])[30, 2], one[0][0])


@pytest.mark.parametrize("process", ["ddpm", "edm"])
def test_a_network_takes_four_evaluations(process):
    check_detector(DenoisingLoss(), DenoisingLoss(), tiny_unet(process), 4)


def test_levels_that_cannot_be():
    with pytest.raises(UserError, match="give one at least"):
        set_up(DenoisingLoss(log_snr=[]), GaussianDenoiser())
    with pytest.raises(UserError, match=r"log_snr = 20\.0: t = 1 to 1000 reach from"):
        set_up(DenoisingLoss(log_snr=[0.0, 20.0]), GaussianDenoiser())
