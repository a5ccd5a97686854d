"""GradNorm: L1 norm of the head's weight gradient under a uniform target, ||h||_1 ||C p - 1||_1. Huang et al. 2021.

The gradient of -sum_c log p_c by W is the outer product (C p - 1) h^T, so its norm needs no backward pass. The paper's
mean over the targets is this divided by C, and the bias' gradient is left out: both as released.
"""

from typing import ClassVar

from torch import Tensor

from outlie.detectors.base import Detector, Views


class GradNorm(Detector):
    """Minus the L1 norm of the gradient that a uniform target gives the head's weights, in closed form."""

    needs: ClassVar[tuple[str, ...]] = ("features", "logits")
    posthoc: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Huang, Geng, Li, On the Importance of Gradients for Detecting Distributional Shifts in the Wild, NeurIPS 2021"
    )

    def score(self, views: Views) -> Tensor:
        """(B,) float64."""
        from_uniform_BC = views.logits.shape[1] * views.logits.double().softmax(1) - 1
        return -views.features.double().abs().sum(1) * from_uniform_BC.abs().sum(1)
