"""Networks for tests of scores: the exact denoiser of N(mu, s^2) pixels, and a tiny U-Net with random weights."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from outlie.backbones.unet import UNet
from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.on_denoiser import OnDenoiser
from outlie.diffusion.processes import VE, VP, spread

SHAPE = (1, 8, 8)
D = TypeVar("D", bound=OnDenoiser)


class GaussianDenoiser:
    """x0_hat = (a s^2 x + b^2 mu) / (a^2 s^2 + b^2): nobody can know more of Gaussian pixels."""

    block_names = ("down_1", "out_1")

    def __init__(self, process: VP | VE | None = None, mu: float = 0.0, s: float = 0.5) -> None:
        self.process, self.mu, self.s, self.evaluated = process or VP(), mu, s, 0

    def denoise(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        self.evaluated += len(x)
        a, b = (spread(c, x) for c in self.process.coefficients(time))
        x0 = (a * self.s**2 * x + b**2 * self.mu) / (a**2 * self.s**2 + b**2)
        return x0, (x - a * x0) / b


def tiny_unet(process: str = "ddpm", shape: tuple[int, ...] = SHAPE) -> UNet:
    """Two levels with a block each; the output layer, zero in nobody's network for long, has weights too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(base=8, multipliers=(1, 2), depth=1, attention=(1,), dropout=0.0, process=process)
        network.build(shape, None)
        for parameter in network.parameters():
            parameter.detach().add_(0.05 * torch.randn_like(parameter))
    return network.eval().requires_grad_(False)


def images(n: int = 40, shape: tuple[int, ...] = SHAPE, s: float = 0.5, mu: float = 0.0, seed: int = 1) -> Tensor:
    return mu + s * torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def set_up(detector: D, network, shape: tuple[int, ...] = SHAPE, seed: int = 3) -> D:
    detector.setup(Spec({"x": shape}, seed=seed, network=network))
    return detector


def fitted(detector: D, network, x: Tensor) -> D:
    """Set up and fitted on images."""
    set_up(detector, network, tuple(x.shape[1:]))
    detector.fit(Views(x=x))
    return detector


@torch.no_grad()
def score(detector: Detector, x: Tensor) -> Tensor:
    return detector.score(Views(x=x))


def check_detector(detector: OnDenoiser, empty: OnDenoiser, network, evaluations: int) -> None:
    """Alone as in a batch, finite, the same when saved and loaded, and so many network evaluations an image."""
    fitted(detector, network, images())
    x = images(5, seed=2)
    x[4] *= 100
    before = network.evaluated
    together = score(detector, x)
    assert network.evaluated - before == 5 * evaluations
    assert together.shape == (5,) and together.isfinite().all()
    torch.testing.assert_close(torch.cat([score(detector, row[None]) for row in x]), together, rtol=1e-4, atol=1e-6)
    assert len(set(together.tolist())) == 5
    state = detector.state_dict()
    assert not any(name.startswith("_network") or "net." in name for name in state)
    set_up(empty, network).load_state_dict(state)
    torch.testing.assert_close(score(empty, x), together, rtol=0, atol=0)
