"""L = D(DDIM(gamma A(F_S) + (1 - gamma) eps), F_T): the student's features as noisy ones of the teacher (DiffKD)."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.diffusion.image_samplers import ddim_step, ddim_times
from outlie.diffusion.processes import VP
from outlie.distillers.base import Distiller, Seen, at_size_of, require_maps
from outlie.distillers.hinton import soft_labels
from outlie.options import NonNegativeFloat, PositiveFloat, PositiveInt


class DiffKD(Distiller):
    """A small diffusion model learns the teacher's features and denoises the student's, which are compared then.

    Args:
        weight: factor of all terms.
        features: of the squared error between denoised features and the teacher's.
        logits: of the KL between denoised logits and the teacher's, T = 1; 0 = none.
        code: channels of the linear autoencoder that shortens the teacher's features; null = they are taken as they
            are; the paper has 1024.
        steps: of DDIM over the lower half of the chain; each is a pass of the noise predictor.
        locations: layers that are compared, as STUDENT:TEACHER or one name for both; [] = the last stage of each.
        calibrate: weight is chosen so that the distiller's part is so many times the student's own loss, measured on 50
            batches after a tenth of a training of its own; 0 = weight is taken as it is.
    """

    paper: ClassVar[str] = "Huang et al., Knowledge Diffusion for Distillation, NeurIPS 2023 (arXiv 2305.15712)"

    def __init__(
        self,
        weight: PositiveFloat = 1.0,
        features: NonNegativeFloat = 1.0,
        logits: NonNegativeFloat = 1.0,
        code: PositiveInt | None = 256,
        steps: PositiveInt = 5,
        locations: Sequence[str] = (),
        calibrate: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(weight, locations, calibrate)
        self.features, self.logits, self.code, self.steps = features, logits, code, steps
        self.of_logits: Denoised | None = None

    def setup(self, student: Seen, teacher: Seen) -> None:
        """Make autoencoder, noise predictor and adapter of each location, and those of the logits."""
        require_maps(student, "diffkd")
        require_maps(teacher, "diffkd")
        self.autoencoders, self.of_maps = nn.ModuleList(), nn.ModuleList()
        for f_s, f_t in zip(student.maps, teacher.maps):
            channels = f_t.shape[1]
            width = min(self.code or channels, channels)
            self.autoencoders.append(Autoencoder(channels, width) if width < channels else nn.Identity())
            self.of_maps.append(Denoised(f_s.shape[1], width, 3, self.steps))
        if self.logits:
            self.of_logits = Denoised(student.logits.shape[1], teacher.logits.shape[1], 1, self.steps)

    def forward(self, student: Seen, teacher: Seen, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """diffkd, noise (the predictor's own loss) and, where there is one, autoencoder, of each location."""
        parts: dict[str, Tensor] = {}
        for i, (f_s, f_t) in enumerate(zip(student.maps, teacher.maps)):
            if isinstance(autoencoder := self.autoencoders[i], Autoencoder):
                f_t, parts[f"autoencoder_{i}"] = autoencoder(f_t)
            refined, parts[f"noise_{i}"] = self.of_maps[i](at_size_of(f_s, f_t), f_t, generator)
            parts[f"diffkd_{i}"] = self.features * F.mse_loss(refined.float(), f_t.float())
        if self.of_logits is not None:
            z_s, z_t = at_size_of(student.logits, teacher.logits), teacher.logits
            maps = [z if z.ndim == 4 else z[..., None, None] for z in (z_s, z_t)]
            refined, parts["noise_logits"] = self.of_logits(*maps, generator)
            parts["diffkd_logits"] = self.logits * soft_labels(refined.view(z_t.shape), z_t, 1.0, y)
        return {name: self.weight * part for name, part in parts.items()}


class Autoencoder(nn.Module):
    """Channels to a code and back by 1x1 convolutions, with a loss of its own."""

    def __init__(self, channels: int, code: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(channels, code, 1), nn.BatchNorm2d(code))
        self.decoder = nn.Conv2d(code, channels, 1)

    def forward(self, f_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(code, without gradient; mean squared error of what the decoder makes of it)."""
        code = self.encoder(f_NCHW)
        return code.detach(), F.mse_loss(self.decoder(code).float(), f_NCHW.float())


class Denoised(nn.Module):
    """What DDIM makes of a student's features, with a noise predictor that learns on the teacher's."""

    def __init__(self, student: int, channels: int, kernel: int, steps: int) -> None:
        super().__init__()
        self.align = nn.Conv2d(student, channels, 1)
        self.predictor = NoisePredictor(channels, kernel)
        self.adapter = nn.Sequential(
            Bottleneck(channels, kernel, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2)
        )
        self.project = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))
        self.process = VP()
        self.times = ddim_times(self.process.T, 2 * steps)[steps:]  # the lower half of the chain

    def forward(self, f_s: Tensor, f_t: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(denoised features of the student; mean squared error of the noise predicted in the teacher's)."""
        z = self.align(f_s)
        gamma_N111 = self.adapter(z).softmax(1)[:, :1, None, None]
        start = gamma_N111 * z + (1 - gamma_N111) * normal_like(z, generator)
        refined = self.project(ddim(self.predictor, start, self.process, self.times))
        time, noise = self.process.draw(len(f_t), generator), normal_like(f_t, generator)
        predicted = self.predictor(self.process.noised(f_t, time, noise), time)
        return refined, F.mse_loss(predicted.float(), noise.float())


class NoisePredictor(nn.Module):
    """eps(x_t, t): a learnt vector of each time is added to the map, two bottlenecks and a 1x1 convolution follow."""

    def __init__(self, channels: int, kernel: int, T: int = 1000) -> None:
        super().__init__()
        self.times = nn.Embedding(T + 1, channels)
        self.layers = nn.Sequential(
            Bottleneck(channels, kernel, 4),
            Bottleneck(channels, kernel, 4),
            nn.Conv2d(channels, channels, 1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x_NCHW: Tensor, time_N: Tensor) -> Tensor:
        """(N, C, H, W) the noise in x."""
        return self.layers(x_NCHW + self.times(time_N)[..., None, None])


class Bottleneck(nn.Module):
    """relu(x + conv1(conv3(conv1(x)))) with batch normalisation."""

    def __init__(self, channels: int, kernel: int, reduction: int) -> None:
        super().__init__()
        inside = max(1, channels // reduction)
        sizes = ((channels, inside, 1), (inside, inside, kernel), (inside, channels, 1))
        parts: list[nn.Module] = []
        for before, after, k in sizes:
            parts += [nn.Conv2d(before, after, k, padding=k // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*parts[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """The shape of x."""
        return (x + self.layers(x)).relu()


def ddim(predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, process: VP, times: Sequence[int]) -> Tensor:
    """From x at times[0] down to t = 0 by the deterministic steps of DDIM, with gradients; the shape of x."""
    for t, after in zip(times, [*times[1:], 0]):
        time = torch.full((len(x),), t, device=x.device)
        (a, b), (a_after, b_after) = (process.coefficients(torch.tensor(u, device=x.device)) for u in (t, after))
        eps = predict(x, time)
        x = ddim_step((x - b * eps) / a, eps, a_after, b_after)
    return x


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of the shape and type of x."""
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
