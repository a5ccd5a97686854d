"""LMD, lift, map, detect: distance between an image and itself with half of it painted anew, median over repetitions.

Half of the squares of a checkerboard are kept, the others are drawn by the reverse chain: x_s ~ q(x_s | x_t, x0_hat)
where unknown, x_s = a_s x + b_s eps where known. Repetitions keep the one half and the other in turn.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.ddpm_ood import at_once
from outlie.diffusion.image_samplers import Denoises, ddim_step, levels
from outlie.diffusion.plms import falling_times
from outlie.errors import UserError
from outlie.options import PositiveInt

SSIM_SIDE = 6  # pixels that the reflected border of its window of 11 needs


def checkerboard(height: int, width: int, squares: int) -> Tensor:
    """(1, H, W) bool, True = known: squares x squares fields, the first one known; sizes differ by a pixel at most."""
    row_H, column_W = (torch.arange(n) * squares // n for n in (height, width))
    return ((row_H[:, None] + column_W) % 2 == 0)[None]


@torch.no_grad()
def inpainted(
    network: Denoises, x: Tensor, known: Tensor, times: list[float], generator: torch.Generator, repetitions: int
) -> Tensor:
    """The unknown pixels drawn by the reverse chain, given the known ones; (B, R, C, H, W), the last step's mean.

    The noise of a step is one draw a repetition, shared by all images. x0_hat is clipped to [-1, 1].

    Args:
        network: denoises.
        x: (B, C, H, W) in [-1, 1].
        known: (R, 1, H, W) bool; those pixels come out as they are.
        times: of falling noise, without the clean image.
        generator: of the noise, on the CPU so that devices agree.
        repetitions: R.
    """
    B, R = len(x), repetitions
    time_S, a, b = levels(network, times, x)
    image, keep = x.repeat_interleave(R, 0), known.repeat(B, 1, 1, 1)  # an image's repetitions side by side

    def noise() -> Tensor:
        return torch.randn(R, *x.shape[1:], generator=generator).to(x.device).repeat(B, 1, 1, 1)

    z = noise()
    state = torch.where(keep, a[0] * image + b[0] * z, b[0] * z)
    for i, time in enumerate(time_S):
        x0 = network.denoise(state, time)[0].clamp(-1, 1)
        eps = (state - a[i] * x0) / b[i]
        # the variance of q(x_s | x_t, x0): the other choice of Ho et al. leaves images noisy where steps are long
        rest = a[i] / a[i + 1] * b[i + 1] ** 2 / b[i]  # of the noise in x_t
        c = (b[i + 1] ** 2 - rest**2) ** 0.5
        drawn, clean = ddim_step(x0, eps, a[i + 1], rest), a[i + 1] * image
        if b[i + 1] > 0:
            z = noise()
            drawn, clean = drawn + c * z, clean + b[i + 1] * z
        state = torch.where(keep, clean, drawn)
    return state.unflatten(0, (B, R))


class LMD(Detector):
    """Distance between an image and its inpainted versions; nothing is fitted.

    By default steps x repetitions = 100 network evaluations an image (ours), 10,000 in the paper. Its chain is an
    Euler-Maruyama discretisation of a continuous sub-VP SDE; here it is the reverse chain of the given denoiser, in as
    many steps. Its distance is LPIPS, which is not offered: its weights would be downloaded. Its code feeds the network
    known pixels without noise at the first step; here they are noised from the start.

    Args:
        steps: of the reverse chain: DDIM's times for a ddpm, EDM's sigmas for an edm; published: 1000.
        repetitions: inpainted versions of an image.
        squares: of the checkerboard along a side.
        distance: mse = mean over pixels; ssim = 1 - structural similarity; features = distance of the backbone's
            features of both images (LMD-DDAE, ours).
    """

    needs: ClassVar[tuple[str, ...]] = ("x", "network", "denoiser")
    paper: ClassVar[str] = (
        "Liu et al., Unsupervised Out-of-Distribution Detection with Diffusion Inpainting, ICML 2023 (LMD)"
    )
    posthoc: ClassVar[bool] = True
    images: ClassVar[bool] = True
    scoring: ClassVar[tuple[str, ...]] = ("steps", "repetitions", "squares", "distance")

    def __init__(
        self,
        steps: PositiveInt = 10,
        repetitions: PositiveInt = 10,
        squares: PositiveInt = 8,
        distance: Literal["mse", "ssim", "features"] = "mse",
    ) -> None:
        super().__init__()
        self.steps, self.repetitions, self.squares, self.distance = steps, repetitions, squares, distance
        self.seed = 0
        self.times: list[float] = []
        self._network: list[Any] = []  # in a list: its weights are not this detector's

    def setup(self, spec: Spec) -> None:
        """Take the denoiser, lay out the chain.

        Raises:
            UserError: images smaller than the checkerboard or SSIM's border, a single square, steps out of range.
        """
        height, width = spec.shapes["x"][-2:]
        if not 2 <= self.squares <= min(height, width):
            raise UserError(
                f"squares = {self.squares} along a side of {height} x {width} pixels: allowed are 2 to "
                f"{min(height, width)}; set detector.squares"
            )
        if self.distance == "ssim" and min(height, width) < SSIM_SIDE:
            raise UserError(
                f"images of {height} x {width} pixels are too small for SSIM, which needs {SSIM_SIDE} a side; "
                "set detector.distance=mse"
            )
        self._network, self.seed = [spec.network], spec.seed
        self.times = falling_times(self._network[0].process, self.steps)

    def score(self, views: Views) -> Tensor:
        """(B,) float64."""
        x = views.x
        one = checkerboard(x.shape[-2], x.shape[-1], self.squares)
        known = torch.stack([one if r % 2 == 0 else ~one for r in range(self.repetitions)]).to(x.device)
        most = max(1, at_once(x) // self.repetitions)
        distance_BR = torch.cat([self._distances(part, known) for part in x.split(most)])
        return distance_BR.quantile(0.5, dim=1)  # of an even number the mean of the middle two

    def _distances(self, x: Tensor, known: Tensor) -> Tensor:
        """(B, R) float64."""
        network, R = self._network[0], self.repetitions
        generator = torch.Generator().manual_seed(self.seed)
        painted_BR = inpainted(network, x, known, self.times, generator, R)
        if self.distance == "mse":
            return (painted_BR - x[:, None]).double().square().mean((2, 3, 4))
        flat = painted_BR.flatten(0, 1)
        if self.distance == "features":
            features_BRD = network.features(flat).unflatten(0, (len(x), R))
            return (features_BRD - network.features(x)[:, None]).double().norm(dim=2)
        image = x.repeat_interleave(R, 0).double()
        similar = structural_similarity_index_measure(flat.double(), image, data_range=2.0, reduction="none")
        return 1 - torch.as_tensor(similar).view(len(x), R)
