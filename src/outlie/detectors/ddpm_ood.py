"""DDPM-OOD: mean over starts of z_s = (e_s - mean_s) / std_s, e_s the error of an image noised to t_s and denoised.

Of the S steps of a PLMS chain, the starts are every k-th but the lowest; how far an image comes back from little noise
and from much is measured against in-distribution images.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from outlie.detectors.base import Spec
from outlie.detectors.on_denoiser import OnDenoiser
from outlie.diffusion.plms import falling_times, plms
from outlie.errors import UserError
from outlie.options import PositiveInt


def start_chains(times: list[float], k: int) -> list[list[float]]:
    """Of falling times, the chain from each start down, the longest first; starts = ascending times 1, 1 + k, ...

    Raises:
        UserError: fewer than two starts.
    """
    most = len(times) - 2
    if not 1 <= k <= most:
        raise UserError(
            f"k = {k} of {len(times)} steps leaves fewer than two starts; set detector.k to 1 to {most}"
            if most >= 1
            else f"steps = {len(times)}: two starts need 3 or more; set detector.steps"
        )
    return [times[-1 - start :] for start in reversed(range(1, len(times), k))]


class DDPMOOD(OnDenoiser):
    """Error of reconstructions from several noise levels, each against its spread on training images.

    At steps = 100 and k = 16, 2 + 18 + 34 + 50 + 66 + 82 + 98 = 350 network evaluations an image, at k = 4 1,250.

    The paper's model differs: betas .0015 to .0195 linear in their square roots, images in [0, 1] after each was
    stretched to its own range, validation images in place of training images, fresh noise an image. Its published
    error is MSE + LPIPS; LPIPS is not offered, as its weights would be downloaded. In its code the last step changes
    nothing and the predictions of one start leak into the next; here a chain ends at the clean image and starts afresh.

    Args:
        k: every k-th step is a start; published: 16 for colour images (7 starts), 4 for grey ones (25 starts).
        steps: of the whole chain: DDIM's times for a ddpm, EDM's sigmas for an edm (ours).
        distance: mse = mean over pixels; features = distance of the backbone's features of both images (ours).
        fit_rows: training images whose errors are standardised by; few, as each costs hundreds of evaluations, and a
            mean and a deviation need no more (deviation known to 4 % from 256); null = all.
    """

    paper: ClassVar[str] = "Graham et al., Denoising Diffusion Models for Out-of-Distribution Detection, CVPRW 2023"
    mean: Tensor  # (S,)
    std: Tensor  # (S,)

    def __init__(
        self,
        k: PositiveInt = 16,
        steps: PositiveInt = 100,
        distance: Literal["mse", "features"] = "mse",
        fit_rows: PositiveInt | None = 256,
    ) -> None:
        super().__init__(fit_rows)
        self.k, self.steps, self.distance = k, steps, distance
        self.chains: list[list[float]] = []
        self.register_buffer("mean", torch.empty(0, dtype=torch.float64))
        self.register_buffer("std", torch.empty(0, dtype=torch.float64))

    def setup(self, spec: Spec) -> None:
        """Take the denoiser, lay out the chains."""
        super().setup(spec)
        self.chains = start_chains(falling_times(self.network.process, self.steps), self.k)

    def statistics(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, S) errors, the highest start first."""
        most = max(1, at_once(x) // len(self.chains))
        return torch.cat([self._errors(part) for part in x.split(most)])

    def learn(self, rows: Tensor) -> None:
        """(N, S) errors of training images."""
        self.mean, std = rows.mean(0), rows.std(0)
        self.std = torch.where(std > 1e-12 * self.mean.abs(), std, 1.0)  # constant: no image can be far in units of it

    def judge(self, rows: Tensor) -> Tensor:
        """Mean z-score; (B,) float64."""
        return ((rows - self.mean) / self.std).mean(1)

    def _errors(self, x: Tensor) -> Tensor:
        first = torch.stack([self.network.process.checked(times[0]) for times in self.chains]).to(x.device)
        noise_SCHW = self.noise(x, len(self.chains))
        noised = [self.network.process.noised(x, time, noise) for time, noise in zip(first, noise_SCHW[:, None])]
        back_SB = plms(self.network, torch.stack(noised), self.chains).clamp(-1, 1)
        if self.distance == "mse":
            return (back_SB - x).double().square().mean((2, 3, 4)).T
        features_SBD = self.network.features(back_SB.flatten(0, 1)).unflatten(0, back_SB.shape[:2])
        return (features_SBD - self.network.features(x)).double().norm(dim=2).T


def at_once(x: Tensor) -> int:
    """Noisy images of one network call: without a GPU, activations of more are given back to the system every time."""
    return 512 if x.is_cuda else 64
