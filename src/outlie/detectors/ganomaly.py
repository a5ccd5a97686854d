"""GANomaly: sum |E1(x) - E2(x')|, x' = decoder(E1(x)): an anomaly's reconstruction has another code. Akcay et al. 2018.

Dense layers for tables, with the losses and the settings of ADBench (Han et al. 2022).
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.student_teacher import SGDRecipe
from outlie.options import NonNegativeFloat, PositiveFloat, PositiveInt


class GANomaly(Detector):
    """Distance between the codes of a row and of its reconstruction, which a discriminator taught to be like rows.

    Generator and discriminator step at once, each by the gradient of its own loss; the released code lets the
    discriminator step first, so that the generator sees it one step later than here.

    Args:
        hidden: width of the code; null = a quarter of the columns, or half of them where there are fewer than 8.
        epochs: epochs to train; rows come in their own order, as published.
        batch_size: rows per optimiser step.
        lr: learning rate of SGD.
        momentum: of SGD.
    """

    needs: ClassVar[tuple[str, ...]] = ("x",)
    paper: ClassVar[str] = (
        "Akcay et al., GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training, ACCV 2018; "
        "for tables: Han et al., ADBench: Anomaly Detection Benchmark, NeurIPS 2022"
    )
    encoder: nn.Sequential
    decoder: nn.Linear
    encoder_2: nn.Sequential
    features: nn.Sequential  # the discriminator's, whose means the generator matches
    classifier: nn.Linear

    def __init__(
        self,
        hidden: PositiveInt | None = None,
        epochs: PositiveInt = 50,
        batch_size: PositiveInt = 64,
        lr: PositiveFloat = 1e-2,
        momentum: NonNegativeFloat = 0.7,
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.recipe = SGDRecipe(epochs, batch_size, lr, drop_last=True, shuffle=False, momentum=momentum)

    def setup(self, spec: Spec) -> None:
        """Build both networks for the row's width, in float64: the two codes are nearly the same."""
        dim = spec.shapes["x"][0]
        hidden = self.hidden or max(1, dim // 2 if dim < 8 else dim // 4)

        def dense(before: int, after: int) -> nn.Linear:
            return nn.Linear(before, after, dtype=torch.float64)

        self.encoder = nn.Sequential(dense(dim, hidden), nn.Tanh())
        self.decoder = dense(hidden, dim)
        self.encoder_2 = nn.Sequential(dense(dim, hidden), nn.Tanh())
        self.features = nn.Sequential(dense(dim, 100), nn.Tanh(), dense(100, 20), nn.Tanh())
        self.classifier = dense(20, 1)

    def reconstructed(self, x_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E1(x), x' and E2(x'); (B, H), (B, D), (B, H)."""
        code_BH = self.encoder(x_BD)
        back_BD = self.decoder(code_BH)
        return code_BH, back_BD, self.encoder_2(back_BD)

    def discriminator_loss(self, x_BD: Tensor, back_BD: Tensor) -> Tensor:
        """Mean cross-entropy of rows as 0 and of reconstructions, taken as given, as 1; scalar."""
        real_B1, fake_B1 = (self.classifier(self.features(rows)) for rows in (x_BD, back_BD.detach()))
        return (F.softplus(real_B1).mean() + F.softplus(-fake_B1).mean()) / 2

    def generator_loss(self, x_BD: Tensor, code_BH: Tensor, back_BD: Tensor, code_2_BH: Tensor) -> Tensor:
        """(MSE(f(x'), f(x)) + mean |x - x'| + mean |E1(x) - E2(x')|) / 3, f the discriminator's features; scalar."""
        fixed = {name: parameter.detach() for name, parameter in self.features.named_parameters()}
        real_BF, fake_BF = (functional_call(self.features, fixed, rows) for rows in (x_BD, back_BD))
        return (F.mse_loss(fake_BF, real_BF) + F.l1_loss(back_BD, x_BD) + F.l1_loss(code_2_BH, code_BH)) / 3

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """Sum of the two: no weight has a gradient of both, so each network descends its own; scalar."""
        x_BD = views.x.double()
        code_BH, back_BD, code_2_BH = self.reconstructed(x_BD)
        return self.discriminator_loss(x_BD, back_BD) + self.generator_loss(x_BD, code_BH, back_BD, code_2_BH)

    def score(self, views: Views) -> Tensor:
        """(B,) sum_h |E1(x) - E2(x')|."""
        code_BH, _, code_2_BH = self.reconstructed(views.x.double())
        return (code_BH - code_2_BH).abs().sum(1)
