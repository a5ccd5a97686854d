"""z ~ N(0, I), x | z ~ p(x | z), q(z | x): the networks of a VAE or IWAE with one or two stochastic layers.

The log-weight is log w = log p(x | z) + log p(z) - log q(z | x); with two layers z = (z_1, z_2), where q goes
x -> z_1 -> z_2 and p goes z_2 -> z_1 -> x. Burda, Grosse, Salakhutdinov, Importance Weighted Autoencoders, ICLR 2016.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from outlie.density.likelihoods import LOG_2PI, wide
from outlie.density.networks import ConvDecoder, ConvEncoder, linear, mlp

LOG_STD = (-7.0, 5.0)  # of q: outside, a weight is 0 or the sample is noise


class Normal(NamedTuple):
    """Independent normals: mean and log standard deviation, (..., B, d) each."""

    mean: Tensor
    log_std: Tensor

    def at(self, noise: Tensor) -> Tensor:
        """z = mean + std * noise."""
        return self.mean + self.log_std.exp() * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """log N(z; mean, std^2) summed over d."""
        standard = (z - self.mean) * (-self.log_std).exp()
        return -(0.5 * standard.square() + self.log_std + 0.5 * LOG_2PI).sum(-1)

    def kl_to_prior(self) -> Tensor:
        """KL(N(mean, std^2) || N(0, I)) summed over d, nats."""
        return (0.5 * (self.mean.square() + (2 * self.log_std).exp() - 1) - self.log_std).sum(-1)

    def detached(self) -> Normal:
        """The same numbers without their history."""
        return Normal(self.mean.detach(), self.log_std.detach())


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I) summed over the last dimension."""
    return -(0.5 * z.square() + 0.5 * LOG_2PI).sum(-1)


class Noise(NamedTuple):
    """The standard normal draws behind k samples a row: (k, B, .), or (k, 1, .) for the same draws in every row."""

    first: Tensor
    second: Tensor | None = None  # of the second stochastic layer
    gaps: Tensor | None = None  # of the missing values, where their absence is modelled

    def chunks(self, samples: int) -> Iterator[Noise]:
        """At most so many samples at a time."""
        parts = [None if t is None else t.split(samples) for t in self]
        for i in range(math.ceil(len(self.first) / samples)):
            yield Noise(*(None if part is None else part[i] for part in parts))


class LatentModel(nn.Module):
    """Encoder, decoder and observation model; every method works on a batch, samples first.

    Args:
        shape: of one row of x: (D,), or (C, H, W) for images.
        likelihood: a family of `likelihoods.py` over the flattened row.
        latent: width of z, of both layers from the data inwards where there are two.
        hidden: hidden widths of the encoder of each layer; the decoders mirror them. [] = linear.
        activation: of the hidden layers.
        network: mlp, or conv for images; the second layer is always an mlp.
        gaps: rows may hold NaN: the encoder sees 0 there, and beside the row which values it saw.
        absence: also model which values are missing: logit p(missing) = a_j x_j + b_j (not-MIWAE, self-masking).
    """

    encoder: Any  # perceptrons or convolutions
    decoder: Any

    def __init__(
        self,
        shape: Sequence[int],
        likelihood: Any,
        latent: Sequence[int],
        hidden: Sequence[Sequence[int]],
        activation: str = "tanh",
        network: str = "mlp",
        gaps: bool = False,
        absence: bool = False,
    ) -> None:
        super().__init__()
        self.latent: tuple[int, ...] = tuple(latent)
        self.gaps, self.absence, self.likelihood = gaps, absence, likelihood
        D = math.prod(shape)
        first = tuple(hidden[0])
        if network == "conv":
            self.encoder = ConvEncoder(shape, first, activation, copies=1 + gaps)
            width = self.encoder.width
            self.decoder = ConvDecoder(shape, first, latent[0], likelihood.outputs // D, activation)
        else:
            self.encoder = mlp((D * (1 + gaps), *first), activation)
            self.decoder = mlp((latent[0], *first[::-1]), activation, likelihood.outputs)
            width = first[-1] if first else D * (1 + gaps)
        self.posterior = linear(width, latent[0], latent[0])
        if len(latent) > 1:
            second = tuple(hidden[1])
            self.encoder_2 = mlp((latent[0], *second), activation)
            self.posterior_2 = linear(second[-1] if second else latent[0], latent[1], latent[1])
            self.decoder_2 = mlp((latent[1], *second[::-1]), activation)
            self.prior_1 = linear(second[0] if second else latent[1], latent[0], latent[0])
        if absence:
            self.slope, self.offset = nn.Parameter(torch.zeros(D)), nn.Parameter(torch.zeros(D))

    def start(self, x: Tensor) -> None:
        """Set the bias of the decoder's last layer by training rows (n, D), so that p(x | z) starts at their mean."""
        bias = self.likelihood.start(x)
        if bias is not None:
            with torch.no_grad():
                last = self.decoder.last if isinstance(self.decoder, ConvDecoder) else self.decoder[-1]
                last.bias.copy_(bias if isinstance(last, nn.Linear) else bias.view(len(last.bias), -1).mean(1))

    @property
    def generative(self) -> set[str]:
        """Names of the parameters of p; the others are q's."""
        of_p = ("decoder", "prior", "likelihood", "slope", "offset")
        return {name for name, _ in self.named_parameters() if name.startswith(of_p)}

    @property
    def numbers_a_sample(self) -> int:
        """About the numbers that one sample of one row needs in memory."""
        widths = [m.out_features for m in self.decoder.modules() if isinstance(m, nn.Linear)]
        return 2 * sum(widths) + 2 * self.likelihood.outputs

    def draw(self, k: int, rows: int, generator: torch.Generator) -> Noise:
        """Noise for k samples of so many rows."""
        weight = next(self.parameters())

        def normal(width: int) -> Tensor:
            return torch.randn(k, rows, width, generator=generator, device=weight.device, dtype=weight.dtype)

        first, *second = (normal(width) for width in self.latent)
        return Noise(first, second[0] if second else None, normal(self.likelihood.dim) if self.absence else None)

    def seen(self, x: Tensor) -> Tensor | None:
        """(B, D), false where a value is missing; None where rows are complete by construction."""
        return ~x.flatten(1).isnan() if self.gaps else None

    def encode(self, x: Tensor) -> Normal:
        """q(z_1 | x) of (B, ...) rows."""
        x = x.to(self.posterior.weight.dtype)
        if self.gaps:
            missing = x.isnan()
            x = torch.cat([x.masked_fill(missing, 0.0), (~missing).to(x)], 1)
        return normal(self.posterior(self.encoder(x if isinstance(self.encoder, ConvEncoder) else x.flatten(1))))

    def encode_2(self, z_1: Tensor) -> Normal:
        """q(z_2 | z_1)."""
        return normal(self.posterior_2(self.encoder_2(z_1)))

    def prior(self, z_2: Tensor) -> Normal:
        """p(z_1 | z_2)."""
        return normal(self.prior_1(self.decoder_2(z_2)))

    def decode(self, z_1: Tensor) -> Tensor:
        """(..., B, d) -> (..., B, outputs): the parameters of p(x | z_1)."""
        return wide(self.decoder(z_1))

    def log_joint(self, x: Tensor, z_1: Tensor) -> Tensor:
        """log p(x, z) of one stochastic layer; (..., B) float64."""
        return self.log_likelihood(x, z_1) + standard_normal_log_prob(z_1).double()

    def log_likelihood(self, x: Tensor, z_1: Tensor, gaps: Tensor | None = None) -> Tensor:
        """log p(x | z_1), of the values that are there; with `gaps` also log p(which are there | x, z_1); float64."""
        out = self.decode(z_1)
        rows, seen = x.flatten(1).to(out.dtype), self.seen(x)
        with torch.autocast(out.device.type, enabled=False):
            log_p = self.likelihood.log_prob(out, rows, seen).double()
            if gaps is None or seen is None:
                return log_p
            loc, scale = self.likelihood.loc_scale(out)
            filled = torch.where(seen, rows.nan_to_num(), loc + scale * gaps)
            logit = self.slope * filled + self.offset  # of a value to be missing
            return log_p + logsigmoid(torch.where(seen, -logit, logit)).sum(-1).double()

    def forward(self, x: Tensor, q: Normal, z_1: Tensor, noise: Noise) -> Tensor:
        """log w of z_1 ~ q(z_1 | x), (k, B, d) -> (k, B) float64; `noise` draws the second layer and the gaps."""
        log_p = self.log_likelihood(x, z_1, noise.gaps)
        if noise.second is None:
            return log_p + (standard_normal_log_prob(z_1) - q.log_prob(z_1)).double()
        q_2 = self.encode_2(z_1)
        z_2 = q_2.at(noise.second)
        rest = self.prior(z_2).log_prob(z_1) + standard_normal_log_prob(z_2) - q_2.log_prob(z_2)
        return log_p + (rest - q.log_prob(z_1)).double()


def normal(both: Tensor) -> Normal:
    """Mean and log standard deviation, clamped, from one layer's output; half precision is widened."""
    mean, log_std = wide(both).chunk(2, -1)
    return Normal(mean, log_std.clamp(*LOG_STD))
