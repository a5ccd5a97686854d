"""Diffusion time estimation with a network: how much noise does this row seem to carry? Livernoche et al. 2024.

Rows are noised without drift, x_t = x_0 + sigma_t eps with t uniform, and a network without time input learns the time:
DTE-C as one of a few classes, DTE-IG as the scale of an inverse gamma, DTE-Gaussian by regression.
"""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.training import Recipe
from outlie.diffusion.nets import time_mlp
from outlie.diffusion.schedules import alpha_bars, diffuse, diffuse_without_drift, linear_betas
from outlie.errors import UserError
from outlie.options import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class DTEGaussian(Detector):
    """DTE-Gaussian: the noise time by regression, and what all three parametrisations share.

    Args:
        T: number of noise levels.
        drift: shrink the row as DDPM does (published: no).
        far: share of a batch that is noised far beyond the last level, in some columns, and counts as the last level;
            for dte_c only: where the output is unbounded, rows so far out dominate the loss.
        hidden: widths of the layers.
        dropout: after each hidden layer but the first.
        epochs: epochs to train.
        min_steps: more epochs where `epochs` would give fewer optimiser steps than this.
        batch_size: rows per optimiser step.
        lr: learning rate of Adam.
        weight_decay: coupled L2.
        decay_lr: cosine decay of the learning rate to 0.
    """

    needs: ClassVar[tuple[str, ...]] = ("x",)
    paper: ClassVar[str] = "Livernoche et al., On Diffusion Modeling for Anomaly Detection, ICLR 2024 (DTE-Gaussian)"
    outputs = 1
    net: nn.Module
    abar: Tensor

    def __init__(
        self,
        T: PositiveInt = 400,
        drift: bool = False,
        far: NonNegativeFloat = 0.0,
        hidden: list[PositiveInt] = [256, 512, 256],  # noqa: B006 (a signature is a schema; never changed in place)
        dropout: NonNegativeFloat = 0.5,
        epochs: PositiveInt = 60,
        min_steps: NonNegativeInt = 1000,
        batch_size: PositiveInt = 64,
        lr: PositiveFloat = 1.3e-3,
        weight_decay: NonNegativeFloat = 5e-4,
        decay_lr: bool = True,
    ) -> None:
        super().__init__()
        if not dropout < 1:
            raise UserError(f"dropout = {dropout}: allowed are 0 up to, but not, 1; set detector.dropout")
        self.drift, self.far, self.hidden, self.dropout = drift, far, tuple(hidden), dropout
        self.recipe = Recipe(epochs, batch_size, lr, weight_decay, min_steps, decay_lr)
        self.register_buffer("abar", alpha_bars(linear_betas(T)).float(), persistent=False)

    def setup(self, spec: Spec) -> None:
        """Build the network for the row's width."""
        self.dim = spec.shapes["x"][0]
        self.net = time_mlp(self.dim, self.hidden, self.dropout, self.outputs)

    def noised(self, views: Views, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(B, D) noised rows and their (B,) times."""
        x_BD = views.x.to(self.abar)
        t_B = torch.randint(len(self.abar), (len(x_BD),), generator=generator, device=x_BD.device)
        noise_BD = torch.randn(x_BD.shape, generator=generator, device=x_BD.device)
        forward = diffuse if self.drift else diffuse_without_drift
        x_t = forward(x_BD, noise_BD, self.abar[t_B, None])
        if n := int(self.far * len(x_BD)):  # batches are shuffled: the first n rows are any n rows
            x_t = torch.cat([x_BD[:n] + self.far_noise(noise_BD[:n], generator), x_t[n:]])
            t_B[:n] = len(self.abar) - 1
        return x_t, t_B

    def far_noise(self, noise_BD: Tensor, generator: torch.Generator) -> Tensor:
        """sigma eps in a random share of the columns, at least one, with sigma log-uniform in 1..100; (B, D)."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=noise_BD.device)

        n, dim = noise_BD.shape
        mask_BD = uniform(n, dim) < uniform(n, 1)
        mask_BD.scatter_(1, (uniform(n, 1) * dim).long(), True)
        return 10 ** (2 * uniform(n, 1)) * mask_BD * noise_BD

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """mean (t_theta(x_t) - t / T)^2; scalar."""
        x_t, t_B = self.noised(views, generator)
        return (self.net(x_t)[:, 0] - t_B / len(self.abar)).square().mean()

    def score(self, views: Views) -> Tensor:
        """(B,) predicted time, in units of T."""
        return self.net(views.x.to(self.abar))[:, 0]

    def denoise(self, x: Tensor, rate: float = 0.1, steps: int = 200) -> Tensor:
        """x <- x - eta grad_x score(x) with eta falling to 0: the flow carries rows onto the data; (B, D) standardised.

        Args:
            x: (B, D) rows.
            rate: first step size, in standard deviations along the unit gradient.
            steps: number of steps.
        """
        x = x.detach().to(self.abar)
        for step in range(steps):
            with torch.enable_grad():
                x.requires_grad_(True)
                gradient = torch.autograd.grad(self.score(Views(x=x)).sum(), x)[0]
            eta = rate * (1 - step / steps)
            x = (x - eta * F.normalize(gradient, dim=1)).detach()
        return x


class DTEC(DTEGaussian):
    """DTE-C: the noise time as a class; the score is the mean class.

    Args:
        bins: number of classes, equal shares of the T times.
        loss: logits = cross-entropy; double_softmax = cross-entropy of a softmax, which applies another (published).
        score_by: mean or mode of the predicted distribution.
        far: share of a batch that is noised far beyond the last level, in some columns, and counts as the last level
            (published: 0); without it the network may take a row 50 standard deviations away for a clean one.
    """

    paper: ClassVar[str] = "Livernoche et al., On Diffusion Modeling for Anomaly Detection, ICLR 2024 (DTE-C)"
    scoring: ClassVar[tuple[str, ...]] = ("score_by",)

    def __init__(
        self,
        bins: PositiveInt = 7,
        loss: Literal["logits", "double_softmax"] = "logits",
        score_by: Literal["mean", "mode"] = "mean",
        far: NonNegativeFloat = 0.125,
        **shared: Any,
    ) -> None:
        super().__init__(far=far, **shared)
        if not 2 <= bins <= len(self.abar):
            raise UserError(f"bins = {bins}: allowed are 2 to T = {len(self.abar)}; set detector.bins")
        self.outputs, self.double_softmax, self.score_by = bins, loss == "double_softmax", score_by

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """-log p(bin of t | x_t), bin = floor(bins t / T); scalar."""
        x_t, t_B = self.noised(views, generator)
        logits_BK = self.net(x_t)
        if self.double_softmax:
            logits_BK = logits_BK.softmax(1)
        return F.cross_entropy(logits_BK, t_B * self.outputs // len(self.abar))

    def score(self, views: Views) -> Tensor:
        """(B,) log E[k] - log E[K-1-k], increasing in the mean class E[k], no ties where p saturates; or the mode."""
        logits_BK = self.net(views.x.to(self.abar)).double()
        if self.score_by == "mode":
            return logits_BK.argmax(1).double()
        k = torch.arange(self.outputs, dtype=torch.float64, device=logits_BK.device)
        return torch.logsumexp(logits_BK + k.log(), 1) - torch.logsumexp(logits_BK + k.flip(0).log(), 1)


class DTEIG(DTEGaussian):
    """DTE-IG: the noise variance as an inverse gamma with shape D/2 - 1; the score is its predicted scale.

    Unstable: the network's sign and its valley at 0 depend on the initialisation, and far rows lie outside the noise it
    was trained on. Prefer DTE-C.

    Args:
        score_by: beta = u^2; raw = the signed output u, as released, which can rank anomalies last.
        dropout: after each hidden layer but the first.
        lr: learning rate of Adam.
    """

    paper: ClassVar[str] = "Livernoche et al., On Diffusion Modeling for Anomaly Detection, ICLR 2024 (DTE-IG)"
    scoring: ClassVar[tuple[str, ...]] = ("score_by",)

    def __init__(
        self,
        score_by: Literal["beta", "raw"] = "beta",
        dropout: NonNegativeFloat = 0.1,
        lr: PositiveFloat = 5e-4,
        **shared: Any,
    ) -> None:
        super().__init__(dropout=dropout, lr=lr, **shared)
        self.score_by = score_by

    def setup(self, spec: Spec) -> None:
        """Build the network; an inverse gamma with shape D/2 - 1 needs D >= 3."""
        super().setup(spec)
        if self.dim < 3:
            raise UserError(f"dte_ig needs at least 3 features, the data have {self.dim}; use detector=dte_c")

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """-mean[alpha log beta - beta / sigma2_t], alpha = D/2 - 1, beta = u^2; scalar."""
        x_t, t_B = self.noised(views, generator)
        beta_B = self.net(x_t)[:, 0].square()
        alpha = self.dim / 2 - 1
        return -(alpha * torch.log(beta_B + 1e-5) - beta_B / (1 - self.abar[t_B])).mean()

    def score(self, views: Views) -> Tensor:
        """(B,) beta = u^2, or u."""
        u_B = self.net(views.x.to(self.abar))[:, 0]
        return u_B if self.score_by == "raw" else u_B.square()
