"""Distances between DDAE features: standardised by the training images', then the distance of another detector.

The specification of DDAE, section 8.1; ours, nobody's published setting.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import torch
from torch import Tensor

from outlie.detectors import moments
from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.knn import KNN
from outlie.detectors.mahalanobis import Mahalanobis
from outlie.detectors.neco import NECO
from outlie.options import PositiveInt

EPS = 1e-6  # of the standard deviation: a channel that is always off


class DDAE(Detector):
    """How far an image's features lie from those of training images, by one of four distances.

    Noise level, block and draws are options of the backbone (backbone.log_snr, .blocks, .draws).

    Args:
        distance: knn = to the k-th neighbour; mahalanobis = to the nearest class mean, or to the mean of all rows where
            there are no labels; neco = 1 - the share of the norm in the principal subspace; dte_np = mean squared
            distance to k neighbours, whose order is that of DTE-NP's posterior without its ties.
        k: neighbours of knn and dte_np.
        cosine: compare directions: features have length 1 after standardisation (knn, dte_np).
        d: dimensions of neco's subspace; classes, classes-1, var90 or a number.
    """

    needs: ClassVar[tuple[str, ...]] = ("features", "denoiser")
    posthoc: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Xiang et al., Denoising Diffusion Autoencoders are Unified Self-supervised Learners, ICCV 2023 (features)"
    )
    scoring: ClassVar[tuple[str, ...]] = ("k",)
    shift: Tensor  # (D,)
    scale: Tensor  # (D,)

    def __init__(
        self,
        distance: Literal["knn", "mahalanobis", "neco", "dte_np"] = "knn",
        k: PositiveInt = 5,
        cosine: bool = False,
        d: PositiveInt | Literal["classes", "classes-1", "var90"] = "var90",
    ) -> None:
        super().__init__()
        self.distance, self.cosine = distance, cosine and distance in ("knn", "dte_np")
        match distance:
            case "knn":
                self.inner: KNN | Mahalanobis | NECO = KNN(k)
            case "mahalanobis":
                self.inner = Mahalanobis()
            case "neco":
                self.inner = NECO(d)
            case _:
                self.inner = KNN(k, "mean_sq")
        for name in ("shift", "scale"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    def setup(self, spec: Spec) -> None:
        """Hand the sizes on."""
        self.inner.setup(spec)

    def fit(self, train: Views) -> None:
        """Standardise, then fit the distance."""
        self.shift = moments.mean(train.features)
        variance_D = moments.covariance(train.features, self.shift).diagonal()
        self.scale = variance_D.clamp(min=0).sqrt() + EPS
        y = train.y
        if self.distance == "mahalanobis" and y is None:
            y = torch.zeros(len(train), dtype=torch.int64, device=train.device)
        self.inner.fit(dataclasses.replace(train, features=self._standard(train.features), y=y))

    def score(self, views: Views) -> Tensor:
        """(B,) by `distance`."""
        return self.inner.score(dataclasses.replace(views, features=self._standard(views.features)))

    def _standard(self, features_BD: Tensor) -> Tensor:
        z_BD = ((features_BD.double() - self.shift) / self.scale).float()
        return torch.nn.functional.normalize(z_BD, dim=1) if self.cosine else z_BD
