"""fDBD: -mean over c != yhat of (l_yhat - l_c) / |w_yhat - w_c|, distances to decision boundaries, over |h - mu|."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from outlie.detectors import moments
from outlie.detectors.base import Detector, Spec, Views

SMALLEST = 1e-12  # norm that is divided by


def inverse_distances(weight: Tensor) -> Tensor:
    """1 / ||w_a - w_b|| of all pairs of rows, 0 where the rows are equal: (C, D) -> (C, C) float64."""
    distance_CC = torch.cdist(weight.double(), weight.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return torch.where(distance_CC > 0, 1 / distance_CC, 0.0)


class FDBD(Detector):
    """Mean distance of a feature to the decision boundaries of the other classes, relative to its own deviation.

    The mean is the paper's, the released code has the sum, which ranks the same. Classes with the weights of the
    predicted one have no boundary with it and are left out.

    Args:
        distance: norm that is divided by: of the feature minus the training mean (the paper), or of the feature alone.
    """

    needs: ClassVar[tuple[str, ...]] = ("features", "logits", "head")
    paper: ClassVar[str] = "Liu and Qin, Fast Decision Boundary based Out-of-Distribution Detector, ICML 2024"
    posthoc: ClassVar[bool] = True
    scoring: ClassVar[tuple[str, ...]] = ("distance",)
    mean: Tensor
    inverse: Tensor

    def __init__(self, distance: Literal["train_mean", "origin"] = "train_mean") -> None:
        super().__init__()
        self.distance = distance
        self.register_buffer("mean", torch.empty(0, dtype=torch.float64))
        self.register_buffer("inverse", torch.empty(0, dtype=torch.float64))

    def setup(self, spec: Spec) -> None:
        self.inverse = inverse_distances(spec.head.weight.detach())

    def fit(self, train: Views) -> None:
        """Keep the training mean."""
        self.mean = moments.mean(train.features)

    def score(self, views: Views) -> Tensor:
        """(B,) float64."""
        logits_BC, h_BD = views.logits.double(), views.features.double()
        largest_B, predicted_B = logits_BC.max(1)
        inverse_BC = self.inverse[predicted_B]
        others_B = (inverse_BC > 0).sum(1).clamp(min=1)
        boundary_B = ((largest_B[:, None] - logits_BC) * inverse_BC).sum(1) / others_B
        norm_B = (h_BD - self.mean if self.distance == "train_mean" else h_BD).norm(dim=1)
        return -boundary_B / norm_B.clamp(min=SMALLEST)
