"""DROCC: BCE(g(x), 1) + lamda BCE(g(x~), 0), x~ the worst point with r <= ||x~ - x|| <= gamma r. Goyal et al. 2020.

A network with one hidden layer learns to tell rows from points around them that it takes for rows itself.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.training import Recipe
from outlie.errors import UserError
from outlie.options import NonNegativeFloat, PositiveFloat, PositiveInt

PROJECT_EVERY = 10  # steps of the ascent


@dataclass(frozen=True)
class DROCCRecipe(Recipe):
    """Adam at lr, 0.1 lr, 0.01 lr and 0.001 lr, from 30, 60 and 90 % of the epochs after the first `alone` ones.

    Source: the released code, adjust_learning_rate; the last epoch of each part belongs to it.
    """

    alone: int = 0

    def lr_at(self, progress: float) -> float:
        """Learning rate after that share of all steps."""
        epoch = int(progress * self.epochs + 1e-9)
        adversarial = self.epochs - self.alone
        return self.lr * 0.1 ** sum(epoch - self.alone > part * adversarial for part in (0.3, 0.6, 0.9))


def into_annulus(points_BD: Tensor, centres_BD: Tensor, inner: float, outer: float) -> Tensor:
    """The nearest points with inner <= ||point - centre|| <= outer; (B, D)."""
    away_BD = points_BD - centres_BD
    length_B1 = away_BD.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return centres_BD + away_BD * (length_B1.clamp(inner, outer) / length_B1)


class DROCC(Detector):
    """-g(x), g a logit that is high on rows and low in a shell around each of them.

    Far outside the shells g was never taught: there a row may score low, too.

    Args:
        radius: r, the shell's inner radius, in standard deviations; the paper advises sqrt(D) / 2.
        gamma: the outer radius is gamma r.
        lamda: weight of the points in the shell.
        alone: share of the epochs, the first ones, without such points.
        ascent_steps: gradient steps from a random point to the one in the shell.
        ascent_rate: length of a step.
        hidden: width of the layer.
        epochs: epochs to train.
        batch_size: rows per optimiser step.
        lr: learning rate of Adam; a tenth, a hundredth, a thousandth of it later.
    """

    needs: ClassVar[tuple[str, ...]] = ("x",)
    paper: ClassVar[str] = "Goyal et al., DROCC: Deep Robust One-Class Classification, ICML 2020"
    first: nn.Linear
    last: nn.Linear
    waiting: Tensor

    def __init__(
        self,
        radius: PositiveFloat = 3.0,
        gamma: PositiveFloat = 2.0,
        lamda: NonNegativeFloat = 1.0,
        alone: NonNegativeFloat = 0.25,
        ascent_steps: PositiveInt = 50,
        ascent_rate: PositiveFloat = 1e-3,
        hidden: PositiveInt = 128,
        epochs: PositiveInt = 200,
        batch_size: PositiveInt = 256,
        lr: PositiveFloat = 1e-4,
    ) -> None:
        super().__init__()
        if gamma < 1:
            raise UserError(f"gamma = {gamma}: the shell's outer radius is gamma r; set detector.gamma to 1 or more")
        if alone > 1:
            raise UserError(f"alone = {alone}: a share of the epochs, 0 to 1; set detector.alone")
        self.radius, self.gamma, self.lamda, self.hidden = radius, gamma, lamda, hidden
        self.ascent_steps, self.ascent_rate = ascent_steps, ascent_rate
        self.recipe = DROCCRecipe(
            epochs, batch_size, lr, decay_lr=True, drop_last=True, alone=int(alone * epochs + 1e-9)
        )
        # steps without adversaries that are still to come; in the state, so that a killed training goes on with it
        self.register_buffer("waiting", torch.tensor(0))

    def setup(self, spec: Spec) -> None:
        """Build the network for the row's width."""
        self.first, self.last = nn.Linear(spec.shapes["x"][0], self.hidden), nn.Linear(self.hidden, 1)

    def prepare(self, train: Views) -> None:
        """Count the steps of the first epochs."""
        self.waiting.fill_(self.recipe.alone * max(1, len(train) // self.recipe.batch_size))

    def logit(self, x_BD: Tensor) -> Tensor:
        """g(x), in the precision of x: a logit crosses 0; (B,)."""
        hidden_BH = F.linear(x_BD, self.first.weight.to(x_BD), self.first.bias.to(x_BD)).relu()
        return F.linear(hidden_BH, self.last.weight.to(x_BD), self.last.bias.to(x_BD))[:, 0]

    def adversaries(self, x_BD: Tensor, generator: torch.Generator) -> Tensor:
        """Points in the shell around each row, from x + N(0, I) along the gradient that makes g larger; (B, D).

        The cross-entropy with label 0 has the logit's gradient times g's sigmoid, which its norm takes away.
        """
        point_BD = x_BD + torch.randn(x_BD.shape, generator=generator, device=x_BD.device)
        for step in range(1, self.ascent_steps + 1):
            with torch.enable_grad():
                point_BD = point_BD.detach().requires_grad_()
                gradient_BD = torch.autograd.grad(self.logit(point_BD).sum(), point_BD)[0]
            point_BD = point_BD.detach() + self.ascent_rate * F.normalize(gradient_BD, dim=1)
            if step % PROJECT_EVERY == 0 or step == self.ascent_steps:
                point_BD = into_annulus(point_BD, x_BD, self.radius, self.gamma * self.radius)
        return point_BD

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """mean -log sigmoid(g(x)), and lamda times mean -log(1 - sigmoid(g(x~))) after the first epochs; scalar."""
        x_BD = views.x.to(self.first.weight)
        on_rows = F.softplus(-self.logit(x_BD)).mean()
        if self.waiting > 0:
            self.waiting -= 1
            return on_rows
        return on_rows + self.lamda * F.softplus(self.logit(self.adversaries(x_BD, generator))).mean()

    def score(self, views: Views) -> Tensor:
        """(B,) -g(x)."""
        return -self.logit(views.x.double())
