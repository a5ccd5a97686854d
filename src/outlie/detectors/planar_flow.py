"""Planar flow: f(x) = x + u tanh(w.x + b), log p(x) = log N(f_K(..f_1(x)); 0, I) + sum_k log |1 + u_k.psi_k|.

psi = (1 - tanh^2(w.x + b)) w. Rezende and Mohamed 2015; here the flow carries the rows to the normal distribution.
"""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.training import Recipe
from outlie.options import NonNegativeFloat, PositiveFloat, PositiveInt


def invertible(u_KD: Tensor, w_KD: Tensor) -> Tensor:
    """u-hat = u + (m(w.u) - w.u) w / ||w||^2 with m(a) > -1, for then f is one to one; (K, D).

    Source: Rezende and Mohamed 2015, appendix A.1; their softplus(a) - 1 is shifted so that m(0) = 0: where w and u are
    nearly 0, as in the beginning, u-hat is so, too.
    """
    a_K1 = (w_KD * u_KD).sum(1, keepdim=True)
    m_K1 = F.softplus(a_K1 + math.log(math.e - 1)) - 1
    return u_KD + (m_K1 - a_K1) * w_KD / w_KD.square().sum(1, keepdim=True).clamp_min(1e-12)


def planar(x_BD: Tensor, w_D: Tensor, b: Tensor, u_D: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and log |det df/dx|; (B, D), (B,)."""
    h_B = torch.tanh(x_BD @ w_D + b)
    determinant_B = 1 + (1 - h_B.square()) * (w_D @ u_D)
    return x_BD + h_B[:, None] * u_D, determinant_B.abs().clamp_min(1e-6).log()


class PlanarFlow(Detector):
    """-log p(x) under a normalising flow of planar layers.

    Args:
        layers: number of planar layers.
        constrained: keep every layer invertible; without it (the code behind the published tables) p need not be a
            density.
        score_by: density = -log p(x); log_det = -sum_k log |1 + u_k.psi_k| alone, which is what the code behind the
            published tables scores: a broadcast averages the normal term over the test set.
        epochs: epochs to train.
        batch_size: rows per optimiser step.
        lr: learning rate of Adam.
        weight_decay: coupled L2.
    """

    needs: ClassVar[tuple[str, ...]] = ("x",)
    paper: ClassVar[str] = "Rezende and Mohamed, Variational Inference with Normalizing Flows, ICML 2015"
    scoring: ClassVar[tuple[str, ...]] = ("score_by",)
    w: nn.Parameter  # (K, D)
    b: nn.Parameter  # (K,)
    u: nn.Parameter  # (K, D)

    def __init__(
        self,
        layers: PositiveInt = 10,
        constrained: bool = True,
        score_by: Literal["density", "log_det"] = "density",
        epochs: PositiveInt = 200,
        batch_size: PositiveInt = 64,
        lr: PositiveFloat = 2e-3,
        weight_decay: NonNegativeFloat = 1e-4,
    ) -> None:
        super().__init__()
        self.layers, self.constrained, self.score_by = layers, constrained, score_by
        self.recipe = Recipe(epochs, batch_size, lr, weight_decay)

    def setup(self, spec: Spec) -> None:
        """Draw the layers from N(0, 0.01^2) for the row's width, in float64: a density's logarithm crosses 0."""
        dim = spec.shapes["x"][0]
        self.w, self.b, self.u = (
            nn.Parameter(0.01 * torch.randn(shape, dtype=torch.float64))
            for shape in ((self.layers, dim), (self.layers,), (self.layers, dim))
        )

    def flow(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """f_K(..f_1(x)) and its log |det|; (B, D), (B,)."""
        log_det_B = x_BD.new_zeros(len(x_BD))
        u_KD = invertible(self.u, self.w) if self.constrained else self.u
        for w_D, b, u_D in zip(self.w, self.b, u_KD):
            x_BD, more_B = planar(x_BD, w_D, b, u_D)
            log_det_B = log_det_B + more_B
        return x_BD, log_det_B

    def log_density(self, x_BD: Tensor) -> Tensor:
        """(B,) log p(x)."""
        z_BD, log_det_B = self.flow(x_BD)
        return log_det_B - z_BD.square().sum(1) / 2 - x_BD.shape[1] / 2 * math.log(2 * math.pi)

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """-mean log p(x); scalar."""
        return -self.log_density(views.x.double()).mean()

    def score(self, views: Views) -> Tensor:
        """(B,) by `score_by`."""
        x_BD = views.x.double()
        return -self.flow(x_BD)[1] if self.score_by == "log_det" else -self.log_density(x_BD)
