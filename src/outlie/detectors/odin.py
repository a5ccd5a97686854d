"""ODIN: -log max_c softmax(l(x') / T)_c at x' = x + noise * sign of the gradient of log softmax(l(x) / T)_yhat.

With u the log of the odds against yhat, u = logsumexp over c != yhat of (l_c - l_yhat) / T, that is log(1 + e^u). The
gradient of log(1 + e^u) has the sign of u's, which does not vanish where the softmax is 1 to rounding.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from outlie.detectors.base import Detector, Spec, Views
from outlie.errors import UserError
from outlie.options import NonNegativeFloat, PositiveFloat

ROWS = 128  # of one forward and backward pass, whose activations are all held


def log_odds_against(logits: Tensor, T: float) -> Tensor:
    """log((1 - p) / p) of the largest softmax(l / T) p, in float64; (B, C) -> (B,)."""
    predicted_B1 = logits.argmax(1, keepdim=True)
    gaps_BC = (logits.double() - logits.double().gather(1, predicted_B1)) / T
    return gaps_BC.scatter(1, predicted_B1, -torch.inf).logsumexp(1)


class ODIN(Detector):
    """Softmax at a high temperature, of an input moved toward its predicted class.

    Scores are -log of the published one, in float64: at T = 1000 the probabilities differ in the fourth digit.

    Args:
        T: temperature of the softmax.
        noise: step of every pixel, in units of 0..1; for rows that are no images, of the standardised columns.
    """

    needs: ClassVar[tuple[str, ...]] = ("x", "logits", "network")
    paper: ClassVar[str] = (
        "Liang et al., Enhancing the Reliability of Out-of-distribution Image Detection in Neural Networks, ICLR 2018"
    )
    posthoc: ClassVar[bool] = True
    scoring: ClassVar[tuple[str, ...]] = ("T", "noise")

    def __init__(self, T: PositiveFloat = 1000.0, noise: NonNegativeFloat = 0.0014) -> None:
        super().__init__()
        self.T, self.noise = T, noise
        self._network: list[Any] = []  # in a list: its weights are not this detector's

    def setup(self, spec: Spec) -> None:
        if spec.classes is not None and spec.classes < 2:
            raise UserError(f"ODIN needs at least 2 classes, the network has {spec.classes}")
        self._network = [spec.network]

    def score(self, views: Views) -> Tensor:
        """(B,) float64."""
        return torch.cat([self._score(part) for part in views.x.split(ROWS)])

    def _score(self, x: Tensor) -> Tensor:
        (network,) = self._network
        moved = self._perturbed(x, network) if self.noise else x
        with torch.no_grad():
            return F.softplus(log_odds_against(network.views(moved).logits, self.T), threshold=1e9)

    def _perturbed(self, x: Tensor, network: Any) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():  # callers score without gradients
            z = x.detach().clone().requires_grad_()
            against = log_odds_against(network.views(z).logits, self.T).sum()  # a sum: rows do not meet
            (gradient,) = torch.autograd.grad(against, z)
        # a gradient of 0 counts as positive, as released (pytorch-ood: no step)
        sign = torch.where(gradient >= 0, 1.0, -1.0)
        step = self.noise * 255 / network.scale if x.ndim == 4 else self.noise
        return x - (step * sign).to(x.dtype)
