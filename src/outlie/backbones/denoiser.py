"""A diffusion model of images as a backbone: trained by denoising, then probed, or asked for clean images and noise.

    DDPM: L = mean (eps - F(x_t, t / T))^2;  EDM: L = mean w(s) (x_0 - D(x_s; s))^2

Features are pooled maps of inner blocks, of the image at fixed, small noise: Xiang et al., Denoising Diffusion
Autoencoders are Unified Self-supervised Learners, ICCV 2023. The U-Net and DiT derive from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.backbones.augment import flip
from outlie.backbones.denoising import DenoiserRecipe
from outlie.backbones.weights import load_weights, match
from outlie.data.split import Split
from outlie.detectors.base import Views
from outlie.diffusion.nonleaky import augmented
from outlie.diffusion.processes import VE, VP, spread
from outlie.errors import UserError, nearest
from outlie.options import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

LABELS = 9  # numbers that tell how an image was augmented


class Denoiser(nn.Module):
    """A network F(x, time) and the process whose noise it removes; a subclass defines `make`.

    Args:
        process: ddpm = T = 1000 steps that keep the variance; edm = noise added, preconditioned.
        time_scale: what a step t of ddpm is multiplied by before the network is told it: 0.001 = t / T, as published;
            1 = the range that its sinusoid was made for. Not of edm, which tells ln(sigma) / 4.
        weights: checkpoint to take: .pt, .safetensors, .npz or a run's model.ckpt; nothing is trained then.
        finetune: train although weights are given.
        images: images seen in training (published: 100 million, 200 million with `augment`).
        batch_size: images per optimiser step.
        lr: learning rate of Adam after the warm-up.
        warmup_images: images in which the learning rate rises from 0.
        ema: cap of the decay of the moving average of the weights that is kept in the end; 0 = off.
        clip_norm: largest norm of the gradient; 0 = any.
        dropout: in residual blocks.
        flip: mirror every other training image.
        augment: probability of each non-leaky augmentation, whose label the network is told (published: 0.12); 0 = off.
        snapshots: weights kept along the training.
        blocks: blocks whose maps are the features; [] = the published middle one.
        log_snr: noise levels ln(a^2 / b^2) at which the features are taken.
        t: the same as steps of ddpm, in place of log_snr.
        sigma: the same as sigma of edm, in place of log_snr.
        draws: noise draws that the features are averaged over; the same for every image.
        noise_seed: of these draws.
        pool: mean = over a map's pixels; mean_std = and their standard deviation.
    """

    provides: ClassVar[tuple[str, ...]] = ("x", "features", "network", "denoiser")
    scoring: ClassVar[tuple[str, ...]] = ("blocks", "log_snr", "t", "sigma", "draws", "noise_seed", "pool")
    channels_last: ClassVar[bool] = True
    net: Any
    told: Tensor

    def __init__(
        self,
        process: Literal["ddpm", "edm"] = "ddpm",
        time_scale: PositiveFloat = 0.001,
        weights: Path | None = None,
        finetune: bool = False,
        images: PositiveInt = 100_000_000,
        batch_size: PositiveInt = 512,
        lr: PositiveFloat = 4e-4,
        warmup_images: NonNegativeInt = 650_000,
        ema: NonNegativeFloat = 0.9999,
        clip_norm: NonNegativeFloat = 1.0,
        dropout: NonNegativeFloat = 0.1,
        flip: bool = True,
        augment: NonNegativeFloat = 0.0,
        snapshots: NonNegativeInt = 0,
        blocks: list[str] = [],  # noqa: B006 (a signature is a schema; never changed in place)
        log_snr: list[float] = [6.0],  # noqa: B006
        t: list[PositiveInt] | None = None,
        sigma: list[PositiveFloat] | None = None,
        draws: PositiveInt = 1,
        noise_seed: NonNegativeInt = 0,
        pool: Literal["mean", "mean_std"] = "mean",
    ) -> None:
        super().__init__()
        for name, value in (("ema", ema), ("dropout", dropout), ("augment", augment)):
            if not value < 1:
                raise UserError(f"{name} = {value}: allowed are 0 up to, but not, 1; set backbone.{name}")
        if finetune and weights is None:
            raise UserError(
                "finetune = true, but there are no weights; set backbone.weights, or backbone.finetune=false"
            )
        self.weights = None if weights is None else Path(weights).expanduser()
        self.finetune, self.dropout, self.flip, self.augment = finetune, dropout, flip, augment
        self.snapshots, self.blocks, self.draws = snapshots, tuple(blocks), draws
        self.noise_seed, self.pool = noise_seed, pool
        self.recipe = DenoiserRecipe(images, batch_size, lr, warmup_images, ema, clip_norm)
        self.process: VP | VE = VP() if process == "ddpm" else VE()
        self.times = self._times(list(log_snr), t, sigma)
        self.time_scale = time_scale if process == "ddpm" else 0.0
        self.register_buffer("told", torch.tensor(self.time_scale))  # travels with the weights: see _refuse
        self.register_load_state_dict_pre_hook(_refuse)
        self._evaluated = 0  # images that the network was asked for, over all calls

    def _times(self, log_snr: list[float], t: list[int] | None, sigma: list[float] | None) -> list[float]:
        """The noise levels of the features in the process's own unit."""
        given = {"t": t, "sigma": sigma}
        wrong = "sigma" if self.process.unit == "t" else "t"
        if given[wrong] is not None:
            raise UserError(
                f"{wrong} = {given[wrong]} is a noise level of the other process: this one has {self.process.unit}; "
                f"set backbone.{self.process.unit}, or backbone.log_snr, which both have"
            )
        own = given[self.process.unit]
        if own == [] or (own is None and not log_snr):
            raise UserError("no noise level: give one in backbone.log_snr")
        times = [self.process.time_at(x) for x in log_snr] if own is None else [self.process.checked(x) for x in own]
        return [time.item() for time in times]

    @property
    def trained(self) -> bool:
        """Whether there is a training stage."""
        return self.finetune or self.weights is None

    def setup(self, split: Split) -> None:
        """Build the network for the data's images, load given weights.

        Raises:
            UserError: rows that are no images, a block that does not exist, weights that do not fit.
        """
        shape, dtype = tuple(split.train.x.shape[1:]), split.train.x.dtype
        if len(shape) != 3 or dtype != torch.uint8:
            kind = str(dtype).removeprefix("torch.")
            raise UserError(
                f"a denoiser takes images, (C, H, W) of uint8; these rows have shape {shape} of {kind}; "
                "set dataset to images, fashion_ood say"
            )
        self.build(shape, None)
        if self.weights is not None:
            state = {name.removeprefix("net."): value for name, value in load_weights(self.weights).items()}
            _refuse(self, {"told": state.pop("told", self.told)}, "")
            match(state, self.net, str(self.weights))

    def build(self, shape: tuple[int, ...], classes: int | None) -> None:
        """Make the layers for images of that shape, with random weights; also before a checkpoint is loaded."""
        self.shape = shape
        self.net = self.make(shape, LABELS if self.augment else 0)
        names = self.block_names
        for name in self.blocks:
            if name not in names:
                guess = nearest(name, names)
                hint = f" (did you mean '{guess}'?)" if guess else ""
                raise UserError(f"backbone.blocks: there is no block '{name}'{hint}; there are {', '.join(names)}")

    def make(self, shape: tuple[int, ...], labels: int) -> nn.Module:
        """The network for images of that shape that is told a label of so many numbers."""
        raise NotImplementedError(f"{type(self).__name__} defines no make(shape, labels)")

    @property
    def evaluated(self) -> int:
        """Images that the network was asked for, over all calls: what NFE is counted by."""
        return self._evaluated

    @property
    def block_names(self) -> tuple[str, ...]:
        """Blocks that `maps` can hand out, in order of execution."""
        return self.net.block_names

    @property
    def feature_blocks(self) -> tuple[str, ...]:
        """Blocks whose maps are the features."""
        return self.blocks or (self.net.default_block,)

    def standardise(self, x: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> float32 in [-1, 1]."""
        return (x.to(torch.float32) / 127.5 - 1).contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Views:
        """(B, C, H, W) uint8 -> Views(x in [-1, 1], features (B, D))."""
        z = self.standardise(x)
        return Views(x=z, features=self.features(z))

    def features(self, x: Tensor) -> Tensor:
        """Pooled maps at every noise level, averaged over the draws, levels one after another; (B, D) float32."""
        generator = torch.Generator().manual_seed(self.noise_seed)  # of the CPU: the same on every device
        noise = torch.randn(self.draws, 1, *x.shape[1:], generator=generator).to(x.device)
        times = torch.tensor(self.times, device=x.device)
        total = self.pooled(x, times, noise[0])
        for one in noise[1:]:
            total = total + self.pooled(x, times, one)
        return (total / self.draws).flatten(1)

    def pooled(self, x: Tensor, times: Tensor, noise: Tensor, blocks: Sequence[str] = ()) -> Tensor:
        """One truncated pass of every image at every level; (B, L, D), blocks side by side.

        Args:
            x: (B, C, H, W) clean.
            times: (L,).
            noise: (B or 1, C, H, W), the same at all levels.
            blocks: () = `feature_blocks`.
        """
        B, L = len(x), len(times)
        at_BL = times.repeat(B)  # an image's levels side by side
        noisy = self.process.noised(x.repeat_interleave(L, 0), at_BL, _repeated(noise, L))
        maps = self.maps(noisy, at_BL, blocks or self.feature_blocks)
        return torch.cat([pool(one, self.pool) for one in maps.values()], 1).view(B, L, -1)

    def maps(self, x: Tensor, time: Tensor, blocks: Sequence[str]) -> dict[str, Tensor]:
        """Block -> (B, C_k, H_k, W_k) of noisy images, computed no further than the last of them."""
        _, maps = self._network(*self._conditioned(x, time), blocks=blocks, stop=True)
        return {name: maps[name] for name in blocks}

    def denoise(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """x0_hat and eps_hat with x = a x0_hat + b eps_hat, float32, not clipped.

        Args:
            x: (B, C, H, W) noisy.
            time: t or sigma, 0-d or (B,).
        """
        out, _ = self._network(*self._conditioned(x, time))
        a, b = (spread(c, x) for c in self.process.coefficients(time))
        if isinstance(self.process, VP):
            return (x - b * out) / a, out
        c_skip, c_out, _, _ = (spread(c, x) for c in self.process.preconditioning(time.float()))
        x0 = c_skip * x + c_out * out
        return x0, (x - x0) / b

    def _conditioned(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """What F is given: c_in x, and the time as it is told, (B,)."""
        if isinstance(self.process, VP):
            return x, (time.float() * self.time_scale).expand(len(x))
        _, _, c_in, c_noise = self.process.preconditioning(time.float())
        return spread(c_in, x) * x, c_noise.expand(len(x))

    def _network(
        self, x: Tensor, told: Tensor, label: Tensor | None = None, blocks: Sequence[str] = (), stop: bool = False
    ) -> tuple[Any, dict[str, Tensor]]:
        """F, float32, on images that are padded with black to the sizes it takes, and cropped again."""
        self._evaluated += len(x)
        H, W = x.shape[-2:]
        more = [-size % self.net.multiple for size in (W, H)]
        if any(more):
            before = [n // 2 for n in more]
            x = F.pad(x, (before[0], more[0] - before[0], before[1], more[1] - before[1]), value=-1.0)
            out, maps = self.net(x, told, label, blocks, stop)
            out = None if out is None else out[..., before[1] : before[1] + H, before[0] : before[0] + W]
        else:
            out, maps = self.net(x, told, label, blocks, stop)
        return (None if out is None else out.float()), maps

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """Weighted mean squared error of raw images (B, C, H, W) uint8, mirrored and augmented; scalar."""
        images = flip(views.x, generator) if self.flip else views.x
        x, label = self.standardise(images), None
        if self.augment:
            x, label = augmented(x, self.augment, generator)
        time_B = self.process.draw(len(x), generator)
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        noisy = self.process.noised(x, time_B, noise)
        out, _ = self._network(*self._conditioned(noisy, time_B), label=label)
        if isinstance(self.process, VP):
            return F.mse_loss(out, noise)
        c_skip, c_out, _, _ = (spread(c, x) for c in self.process.preconditioning(time_B))
        return (spread(self.process.weight(time_B), x) * (x - c_skip * noisy - c_out * out).square()).mean()


def pool(map_BCHW: Tensor, how: str = "mean") -> Tensor:
    """Mean over the pixels, and their standard deviation if asked for, in float32; (B, C) or (B, 2C)."""
    wide = map_BCHW.float()
    mean = wide.mean((2, 3))
    return mean if how == "mean" else torch.cat([mean, wide.std((2, 3), correction=0)], 1)


def _repeated(noise: Tensor, times: int) -> Tensor:
    return noise if len(noise) == 1 else noise.repeat_interleave(times, 0)


def _refuse(module: Denoiser, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """UserError where weights were trained with another process, or another scale of its time."""
    theirs = float(state.get(f"{prefix}told", module.told))
    ours = module.time_scale
    if abs(theirs - ours) <= 1e-6 * max(theirs, ours):
        return
    names = ["edm (ln(sigma) / 4)" if scale == 0 else f"ddpm with time_scale = {scale:g}" for scale in (theirs, ours)]
    raise UserError(
        f"the weights were trained as {names[0]}, and would be told times of {names[1]}: every output would be wrong; "
        + ("set backbone.process=edm" if theirs == 0 else f"set backbone.process=ddpm backbone.time_scale={theirs:g}")
    )
