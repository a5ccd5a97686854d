"""log p(x | z) = sum_j log f(x_j; out_j(z)): what a decoder's numbers say about a row. Section 6 of the specification.

Every family has the same two sizes and four methods (levels and mixed tables: mixed.py):

    outputs, dim            numbers that the decoder gives for a row; D, the width of x
    log_prob(out, x, seen)  out (..., B, outputs), x (B, D) -> (..., B) nats, over columns where `seen` (B, D) is true
    mean(out)               (..., B, D), in the units of x
    sample(out, generator)  (..., B, D), in the units of x
    start(x)                (outputs,) bias of the decoder's last layer, from training rows (n, D), NaN = missing

`out` holds one parameter of all D columns, then the next. Half precision is widened to float32.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from outlie.errors import UserError

LOG_2PI = math.log(2 * math.pi)
LEAST = 1e-4  # what a softplus is raised by, so that no scale is 0


def check_range(x: Tensor) -> None:
    """Raise UserError for values outside [0, 1], which Bernoulli, continuous Bernoulli and pixel levels cannot take."""
    values = x[~x.isnan()]
    if len(values) and (values.min() < 0 or values.max() > 1):
        raise UserError(
            f"values from {values.min():.4g} to {values.max():.4g}, but this likelihood takes values between 0 and 1: "
            "set backbone=pixels for images, or detector.likelihood=gaussian"
        )


def wide(out: Tensor) -> Tensor:
    """At least float32: half precision breaks importance weights."""
    return out if out.dtype == torch.float64 else out.float()


def known(x: Tensor, seen: Tensor | None, like: Tensor) -> Tensor:
    """x with 0 where it was not seen: a NaN that is masked only afterwards comes back in the gradient."""
    x = x.to(like.dtype)
    return x if seen is None else torch.where(seen, x, 0.0)


def total(terms: Tensor, seen: Tensor | None) -> Tensor:
    """Sum over the columns, of those seen."""
    return (terms if seen is None else torch.where(seen, terms, 0.0)).sum(-1)


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform draws in the shape of `like`."""
    return torch.rand(like.shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)


class NaturalSum(torch.autograd.Function):
    """sum_j x_j l_j - A(l_j); by hand, because autograd would keep several tensors as large as the logits.

    `family` gives the log normaliser A and its derivative, the mean.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, x: Tensor, seen: Tensor | None, family: Any) -> Tensor:
        # not sum(x l) - sum A(l): for a sure and right logit both are large and their difference is nothing
        return total((x * logits).sub_(family.log_normaliser(logits)), seen)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        logits, x, seen, ctx.family = inputs
        ctx.save_for_backward(logits, x, seen)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        logits, x, seen = ctx.saved_tensors
        grad = grads[0][..., None]
        of_logits = of_x = None
        if ctx.needs_input_grad[0]:
            of_logits = torch.sub(x, ctx.family.natural_mean(logits)).mul_(grad)
            of_logits = of_logits if seen is None else torch.where(seen, of_logits, 0.0)
        if ctx.needs_input_grad[1]:
            of_x = (grad * logits).sum_to_size(x.shape)
            of_x = of_x if seen is None else torch.where(seen, of_x, 0.0)
        return of_logits, of_x, None, None


class Bernoulli(nn.Module):
    """log f = x l - softplus(l), l the logit; grey x in [0, 1] are taken, but then it is no density."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.outputs = dim, dim

    @staticmethod
    def log_normaliser(logits: Tensor) -> Tensor:
        """log(1 + e^l)."""
        return softplus(logits, threshold=40)  # the default of 20 is 2e-9 off

    @staticmethod
    def natural_mean(logits: Tensor) -> Tensor:
        """1 / (1 + e^-l)."""
        return logits.sigmoid()

    def log_prob(self, out: Tensor, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """(..., B) nats."""
        logits = wide(out)
        return NaturalSum.apply(logits, known(x, seen, logits), seen, self)

    def mean(self, out: Tensor) -> Tensor:
        """(..., B, D) E[x | z]."""
        return self.natural_mean(wide(out))

    def sample(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """(..., B, D) zeros and ones."""
        share = self.mean(out)
        return (uniform(share, generator) < share).to(share.dtype)

    def start(self, x: Tensor) -> Tensor:
        """(D,) logit of the mean, clipped to [0.001, 0.999] as in Burda's code."""
        return x.float().nanmean(0).nan_to_num(0.5).clamp(0.001, 0.999).logit()


class ContinuousBernoulli(Bernoulli):
    """log f = x l - log((e^l - 1) / l), the Bernoulli made a density on [0, 1]. Loaiza-Ganem & Cunningham 2019."""

    @staticmethod
    def log_normaliser(logits: Tensor) -> Tensor:
        """log((e^l - 1) / l) = max(l, 0) + log((1 - e^-|l|) / |l|): their softplus(l) - log C."""
        size = logits.abs().clamp(min=1e-30)
        return size.neg().expm1_().neg_().div_(size).log_().add_(logits.relu())

    @staticmethod
    def natural_mean(logits: Tensor) -> Tensor:
        """1 / (1 - e^-l) - 1 / l, by its Taylor series near 0, where both terms are infinite."""
        near = logits.abs() < 0.2
        s = logits.clamp(-0.2, 0.2).square()
        series = logits * (1 / 12 + s * (-1 / 720 + s * (1 / 30240 - s / 1209600)))  # the next term is below 1e-14
        away = torch.where(near, 1.0, logits)
        return 0.5 + torch.where(near, series, 0.5 / torch.tanh(away / 2) - 1 / away)

    def sample(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """(..., B, D): the distribution function (e^(l x) - 1) / (e^l - 1), inverted."""
        logits = wide(out)
        u, size = uniform(logits, generator), logits.abs().clamp(min=1e-6)  # below, it is uniform to rounding
        x = -torch.log1p(u * torch.expm1(-size)) / size  # from logit -|l|; the other side is its mirror image
        return torch.where(logits > 0, 1 - x, x).clamp(0, 1)


def scale_of(raw: Tensor, floor: float) -> Tensor:
    """max(softplus(raw) + 1e-4, floor), with the softplus's gradient below the floor, too: a scale can grow again."""
    scale = softplus(raw) + LEAST
    return scale + (floor - scale).clamp(min=0).detach()


def raw_of(scale: Tensor, floor: float) -> Tensor:
    """The number that `scale_of` turns into this scale."""
    wanted = (scale.clamp(min=max(floor, 10 * LEAST)) - LEAST).double()
    return (wanted + (-torch.expm1(-wanted)).log()).float()  # log(e^s - 1)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """(D,) mean and standard deviation of what is there; 0 and 1 of a column without values."""
    mean = x.double().nanmean(0)
    std = (x - mean).square().nanmean(0).sqrt()
    return mean.nan_to_num(0.0).float(), std.nan_to_num(1.0).float()


class Gaussian(nn.Module):
    """log f = -(x - mu)^2 / (2 sigma^2) - log sigma - log(2 pi) / 2.

    Args:
        dim: D.
        scale: sigma is fixed, one parameter a feature, or the decoder's for every sample.
        sigma: the fixed one.
        floor: of the others, in the units of x: a column with few distinct values would drive sigma to 0.
    """

    def __init__(
        self,
        dim: int,
        scale: Literal["fixed", "feature", "sample"] = "feature",
        sigma: float = 1.0,
        floor: float = 0.05,
    ) -> None:
        super().__init__()
        self.dim, self.scale, self.sigma, self.floor = dim, scale, sigma, floor
        self.outputs = 2 * dim if scale == "sample" else dim
        if scale == "feature":
            self.raw = nn.Parameter(raw_of(torch.ones(dim), floor))

    def loc_scale(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """mu (..., B, D), and sigma in its shape or (D,)."""
        out = wide(out)
        if self.scale == "sample":
            loc, raw = out.chunk(2, -1)
            return loc, scale_of(raw, self.floor)
        if self.scale == "feature":
            return out, scale_of(self.raw.to(out.dtype), self.floor)
        return out, out.new_full((self.dim,), self.sigma)

    def log_prob(self, out: Tensor, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """(..., B) nats."""
        loc, scale = self.loc_scale(out)
        standard = (known(x, seen, loc) - loc) / scale
        return -0.5 * total(standard.square(), seen) - total(scale.log() + 0.5 * LOG_2PI, seen)

    def mean(self, out: Tensor) -> Tensor:
        """(..., B, D) mu."""
        return self.loc_scale(out)[0]

    def sample(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """(..., B, D) mu + sigma e; gradients reach mu and sigma."""
        loc, scale = self.loc_scale(out)
        noise = torch.randn(loc.shape, generator=generator, device=generator.device, dtype=loc.dtype)
        return loc + scale * noise.to(loc.device)

    def start(self, x: Tensor) -> Tensor:
        """The columns' means and standard deviations; the latter go into the parameter where it is the module's."""
        mean, std = moments(x)
        if self.scale == "feature":
            with torch.no_grad():
                self.raw.copy_(raw_of(std, self.floor))
        return torch.cat([mean, raw_of(std, self.floor)]) if self.scale == "sample" else mean


def t_log_constant(df: Tensor) -> Tensor:
    """log Gamma((df + 1) / 2) - log Gamma(df / 2) - log(pi df) / 2 for df >= 3.

    Two lgamma of float32 differ by their rounding, 4e-3 at df = 1e4, and are slow. So: four steps up by
    Gamma(a + 1) = a Gamma(a), then the asymptotic series of log Gamma(b + 1/2) - log Gamma(b); within 3e-11.
    """
    a = df / 2
    steps = a / (a + 0.5) * ((a + 1) / (a + 1.5)) * ((a + 2) / (a + 2.5)) * ((a + 3) / (a + 3.5))
    v = 1 / (a + 4)
    s = v * v
    series = v * (-1 / 8 + s * (1 / 192 + s * (-1 / 640 + s * (17 / 14336 - s * 31 / 18432))))
    # b / (pi df) = (1 + 4 / a) / (2 pi) stays of order 1
    return torch.log(steps) + 0.5 * torch.log((1 + 4 / a) / (2 * math.pi)) + series


class StudentT(nn.Module):
    """t density with df = 3 + softplus, loc and scale from the decoder, in the order (loc, scale, df) in `out`.

    Args:
        dim: D.
        floor: least scale, in the units of x.
    """

    def __init__(self, dim: int, floor: float = 0.05) -> None:
        super().__init__()
        self.dim, self.outputs, self.floor = dim, 3 * dim, floor

    def loc_scale_df(self, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., B, D) each."""
        loc, raw_scale, raw_df = wide(out).chunk(3, -1)
        return loc, scale_of(raw_scale, self.floor), 3 + softplus(raw_df)

    def loc_scale(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """(..., B, D) each; scale is not the standard deviation."""
        return self.loc_scale_df(out)[:2]

    def log_prob(self, out: Tensor, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """(..., B) nats."""
        loc, scale, df = self.loc_scale_df(out)
        squared = ((known(x, seen, loc) - loc) / scale).square()
        tail = (df + 1) / 2 * torch.log1p(squared / df)
        return total(t_log_constant(df) - scale.log() - tail, seen)

    def mean(self, out: Tensor) -> Tensor:
        """(..., B, D) loc."""
        return self.loc_scale_df(out)[0]

    def sample(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """(..., B, D) by Bailey's polar method, 1994: one formula, and gradients reach loc, scale and df."""
        loc, scale, df = self.loc_scale_df(out)
        least = torch.finfo(loc.dtype).eps / 2
        u, v = uniform(loc, generator).clamp(least, 1 - least), uniform(loc, generator)
        radius = (df * torch.expm1(-2 / df * u.log())).sqrt()
        return loc + scale * radius * torch.cos(2 * math.pi * v)

    def start(self, x: Tensor) -> Tensor:
        """The columns' means, df = 3 + log 2, and the scales that give the columns' standard deviations."""
        mean, std = moments(x)
        df = 3 + math.log(2)
        return torch.cat([mean, raw_of(std * math.sqrt((df - 2) / df), self.floor), torch.zeros_like(mean)])
