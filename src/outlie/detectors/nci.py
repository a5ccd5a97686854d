"""NCI, neural-collapse inspired: -(<w_yhat, h - mu> / ||h - mu|| + alpha ||h||_1), mu the mean training feature."""

from typing import ClassVar

import torch
from torch import Tensor

from outlie.detectors import moments
from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.fdbd import SMALLEST
from outlie.options import NonNegativeFloat


class NCI(Detector):
    """Nearness of the centred feature to the weights of its predicted class, and the feature's length.

    Args:
        alpha: weight of the length; the released code chooses from 1e-4 to 1e-1 on validation data.
    """

    needs: ClassVar[tuple[str, ...]] = ("features", "logits", "head")
    paper: ClassVar[str] = "Liu and Qin, Detecting Out-of-Distribution through the Lens of Neural Collapse, CVPR 2025"
    posthoc: ClassVar[bool] = True
    scoring: ClassVar[tuple[str, ...]] = ("alpha",)
    mean: Tensor
    weight: Tensor

    def __init__(self, alpha: NonNegativeFloat = 1e-4) -> None:
        super().__init__()
        self.alpha = alpha
        self.register_buffer("mean", torch.empty(0, dtype=torch.float64))
        self.register_buffer("weight", torch.empty(0, dtype=torch.float64))

    def setup(self, spec: Spec) -> None:
        self.weight = spec.head.weight.detach().double()

    def fit(self, train: Views) -> None:
        """Keep the training mean."""
        self.mean = moments.mean(train.features)

    def score(self, views: Views) -> Tensor:
        """(B,) float64."""
        h_BD = views.features.double()
        centred_BD = h_BD - self.mean
        toward_B = (self.weight[views.logits.argmax(1)] * centred_BD).sum(1)
        return -(toward_B / centred_BD.norm(dim=1).clamp(min=SMALLEST) + self.alpha * h_BD.abs().sum(1))
