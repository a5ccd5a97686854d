"""L = alpha T^2 / (N C) sum_nc KL(softmax(F_T / T) || softmax(G(A(F_S) + sigma eps) / T)), over positions: GDD."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.distillers.base import Distiller, Seen, align, at_size_of, require_maps, require_positions
from outlie.distillers.channel_kl import channel_kl
from outlie.errors import UserError
from outlie.options import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class GDD(Distiller):
    """Student features under noise are generated into the teacher's: A aligns channels, G = conv3 (ReLU conv3 ...).

    Args:
        weight: alpha, factor of each location's loss; published 145 to 175 for segmentation.
        temperature: T of the softmax over positions.
        sigma: standard deviation of the noise; 0 = none.
        noise: law of the noise, of mean 0 and variance 1; mask = positions are hidden instead, as in MGD.
        noise_shape: shared = one plane for all channels, as in the released code; per_channel = as the paper writes it.
        noise_relative: sigma counts in standard deviations of A(F_S), so that growing features do not drown it.
        place: where the noise is added: before A, after it (published), inside G after its first ReLU, on the teacher's
            map, or on the image that the student sees.
        target: channel_kl = as published; mse = mean squared error; pixel_kl = over channels at each position.
        gen_layers: convolutions of G; 0 = none.
        gen_width: channels of A and G, with a 1x1 convolution to the teacher's after them; null = the teacher's own
            channels, as published; set it where these are many (A and G would be larger than the student).
        pooled: weight of the squared error between A(F_S) and F_T averaged over positions: their levels, which the
            channel loss does not see and distance scores need.
        mask: share of the positions that noise=mask hides.
        locations: layers that are compared, as STUDENT:TEACHER or one name for both; [] = the last stage of each.
        calibrate: weight is chosen so that the distiller's part is so many times the student's own loss, measured on 50
            batches after a tenth of a training of its own; 0 = weight is taken as it is.
    """

    paper: ClassVar[str] = (
        "Liu et al., Generative Denoise Distillation, Knowledge-Based Systems 2024 (arXiv 2401.08332)"
    )

    def __init__(
        self,
        weight: PositiveFloat = 145.0,
        temperature: PositiveFloat = 4.0,
        sigma: NonNegativeFloat = 1.0,
        noise: Literal["gaussian", "uniform", "laplace", "poisson", "mask"] = "gaussian",
        noise_shape: Literal["shared", "per_channel"] = "shared",
        noise_relative: bool = False,
        place: Literal["after", "before", "inside", "teacher", "image"] = "after",
        target: Literal["channel_kl", "mse", "pixel_kl"] = "channel_kl",
        gen_layers: NonNegativeInt = 2,
        gen_width: PositiveInt | None = None,
        pooled: NonNegativeFloat = 0.0,
        mask: Fraction = 0.75,
        locations: Sequence[str] = (),
        calibrate: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(weight, locations, calibrate)
        self.temperature, self.sigma, self.noise, self.noise_shape = temperature, sigma, noise, noise_shape
        self.noise_relative, self.place, self.target = noise_relative, place, target
        self.gen_layers, self.gen_width, self.pooled, self.mask = gen_layers, gen_width, pooled, mask
        if place == "inside" and gen_layers < 2:
            raise UserError(f"place = inside needs a ReLU inside G; gen_layers is {gen_layers}, set it to 2 or more")
        if noise == "mask" and place == "teacher":
            raise UserError("noise = mask hides what the student shows; set distiller.place to another than teacher")

    def setup(self, student: Seen, teacher: Seen) -> None:
        """Make A and G of each location."""
        require_maps(student, "gdd")
        require_maps(teacher, "gdd")
        if self.target == "channel_kl":
            require_positions(teacher, "gdd")
        self.aligns, self.generators = nn.ModuleList(), nn.ModuleList()
        for from_student, from_teacher in zip(student.maps, teacher.maps):
            channels = from_teacher.shape[1]
            width = min(self.gen_width or channels, channels) if self.gen_layers else channels
            if self.pooled and width != channels:
                raise UserError(
                    f"pooled compares all {channels} channels of the teacher, and gen_width = {width} aligns fewer; "
                    "set distiller.gen_width=null or distiller.pooled=0"
                )
            self.aligns.append(align(from_student, from_teacher[:, :width]))
            self.generators.append(generator_of(width, channels, self.gen_layers))

    def forward(self, student: Seen, teacher: Seen, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """gdd = alpha times the mean loss, summed over locations; pooled, where it is asked for."""
        parts: dict[str, Tensor] = {}
        for i, (f_s, f_t) in enumerate(zip(student.maps, teacher.maps)):
            parts[f"gdd_{i}"] = self.weight * self.difference(
                self.generated(i, at_size_of(f_s, f_t), generator),
                (self.disturbed(f_t, generator) if self.place == "teacher" else f_t),
            )
            if self.pooled:
                levels = self.aligns[i](f_s).float().mean((2, 3))
                parts[f"pooled_{i}"] = self.pooled * F.mse_loss(levels, f_t.float().mean((2, 3)))
        return parts

    def generated(self, i: int, f_s: Tensor, generator: torch.Generator) -> Tensor:
        """Y = G(A(F_S) + sigma eps) of location i; (N, C_T, H, W)."""
        z = self.aligns[i](self.disturbed(f_s, generator) if self.place == "before" else f_s)
        with torch.no_grad():
            self.signal = z.float().std() / max(self.sigma, 1e-12)  # grows where the student outshouts the noise
        if self.place == "after":
            z = self.disturbed(z, generator)
        for position, layer in enumerate(self.generators[i]):  # pyright: ignore[reportArgumentType]
            z = layer(z)
            if position == 1 and self.place == "inside":
                z = self.disturbed(z, generator)
        return z

    def image(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """The student's input, disturbed where `place` says so; (B, C, H, W)."""
        return self.disturbed(z, generator) if self.place == "image" else z

    def disturbed(self, z_NCHW: Tensor, generator: torch.Generator) -> Tensor:
        """z + sigma eps, or z m; (N, C, H, W)."""
        if not self.sigma:
            return z_NCHW
        n, c, h, w = z_NCHW.shape
        shape = (n, 1 if self.noise_shape == "shared" else c, h, w)
        if self.noise == "mask":
            return z_NCHW * (torch.rand(shape, generator=generator, device=z_NCHW.device) >= self.mask)
        eps = standard_noise(self.noise, shape, generator)
        sigma = self.sigma * z_NCHW.detach().float().std() if self.noise_relative else self.sigma
        return z_NCHW + sigma * eps

    def difference(self, y: Tensor, f_t: Tensor) -> Tensor:
        """The loss of a location; scalar. mse is halved, as the channel loss tends to half of it, levels apart."""
        match self.target:
            case "channel_kl":
                return channel_kl(y, f_t, self.temperature)
            case "pixel_kl":  # channels and positions change places
                return channel_kl(y.flatten(2).mT[..., None], f_t.flatten(2).mT[..., None], self.temperature)
            case _:
                return 0.5 * F.mse_loss(y.float(), f_t.float())


def generator_of(width: int, channels: int, layers: int) -> nn.Sequential:
    """conv3 (ReLU conv3) ... on `width` channels, and a 1x1 convolution to `channels` where these are more."""
    parts: list[nn.Module] = []
    for layer in range(layers):
        parts += [nn.ReLU()] * (layer > 0) + [nn.Conv2d(width, width, 3, padding=1)]
    if width != channels:
        parts.append(nn.Conv2d(width, channels, 1))
    return nn.Sequential(*parts)


def standard_noise(law: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Noise of mean 0 and variance 1, on the generator's device."""
    device = generator.device
    if law == "gaussian":
        return torch.randn(shape, generator=generator, device=device)
    uniform = torch.rand(shape, generator=generator, device=device)
    match law:
        case "uniform":
            return 12**0.5 * (uniform - 0.5)
        case "laplace":  # by the inverse of its distribution function, scale 1 / sqrt(2)
            centred = uniform - 0.5
            return -(0.5**0.5) * centred.sign() * (1 - 2 * centred.abs()).clamp(min=1e-7).log()
        case _:
            return torch.poisson(torch.ones(shape, device=device), generator=generator) - 1
