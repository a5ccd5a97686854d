"""Gaussians in feature space: class means, one shared covariance; Lee et al. 2018, Ren et al. 2021.

Features are whitened once, z = L^T (h - m) with L L^T = Sigma^+, so that each distance is a Euclidean one between
z and the whitened class means.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from outlie.detectors import moments
from outlie.detectors.base import Detector, Spec, Views
from outlie.errors import UserError
from outlie.log import log
from outlie.options import NonNegativeFloat


def whitener(covariance_DD: Tensor, ridge: float = 0.0) -> Tensor:
    """L with L L^T = Sigma^+ (ridge = 0) or (Sigma + ridge I)^-1, from a float64 eigendecomposition; (D, r).

    Without a ridge, eigenvalues below D * eps * lambda_max are rounding, not variance: those directions are dropped.
    """
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD.double())
    if ridge > 0:
        return vectors_DD / (values_D.clamp(min=0) + ridge).sqrt()
    largest = values_D[-1].clamp(min=0)
    kept_D = values_D > len(values_D) * torch.finfo(torch.float64).eps * largest
    return vectors_DD[:, kept_D] / values_D[kept_D].sqrt()


def nearest_squared(z_BR: Tensor, centres_CR: Tensor) -> Tensor:
    """min_c ||z - z_c||^2 = ||z||^2 - 2 max_c (z . z_c - ||z_c||^2 / 2); (B,)."""
    closeness_BC = torch.addmm(centres_CR.square().sum(1) / 2, z_BR, centres_CR.T, beta=-1)
    return z_BR.square().sum(1) - 2 * closeness_BC.amax(1)


class Mahalanobis(Detector):
    """Squared Mahalanobis distance to the nearest class mean, under one covariance within the classes.

    A covariance without full rank is normal once a network has collapsed: by default its pseudo-inverse ignores the
    directions without variance. A ridge counts them, and ranks differently.

    Args:
        ridge: added to the covariance's diagonal, in squared feature units; 0 = pseudo-inverse.
    """

    needs: ClassVar[tuple[str, ...]] = ("features",)
    posthoc: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples and "
        "Adversarial Attacks, NeurIPS 2018"
    )
    mean: Tensor  # (D,)
    whitener: Tensor  # (D, r)
    centres: Tensor  # (C, r), whitened class means

    def __init__(self, ridge: NonNegativeFloat = 0.0) -> None:
        super().__init__()
        self.ridge = ridge
        self.classes: int | None = None
        for name in ("mean", "whitener", "centres"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    def setup(self, spec: Spec) -> None:
        """Keep the number of classes."""
        self.classes = spec.classes

    def fit(self, train: Views) -> None:
        """Class means and the covariance within the classes."""
        self._fit(train)

    def score(self, views: Views) -> Tensor:
        """(B,) float64."""
        return nearest_squared((views.features.double() - self.mean) @ self.whitener, self.centres)

    def _fit(self, train: Views) -> tuple[Tensor, Tensor, Tensor]:
        """Fit, and return class means (C, D), shares (C,) and the covariance within the classes (D, D)."""
        means_CD, share_C = moments.class_means(train.features, train.y, self.classes)
        within_DD = moments.within_class_covariance(train.features, train.y, means_CD)
        self.whitener = whitener(within_DD, self.ridge)
        dim, rank = self.whitener.shape
        if rank == 0:
            raise UserError(
                "every training row equals its class mean: no direction has variance; set detector.ridge above 0"
            )
        if rank < dim:
            log.info(
                f"finding   the covariance within the classes has rank {rank} of {dim}: directions without variance "
                "are ignored; detector.ridge above 0 counts them"
            )
        self.mean = share_C @ means_CD  # of all rows
        self.centres = (means_CD - self.mean) @ self.whitener
        return means_CD, share_C, within_DD


class RelativeMahalanobis(Mahalanobis):
    """Mahalanobis distance to the nearest class mean, less the one to the mean of all rows under their covariance.

    Args:
        ridge: added to the diagonal of both covariances, in squared feature units; 0 = pseudo-inverse.
    """

    paper: ClassVar[str] = (
        "Ren et al., A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection, ICML UDL workshop 2021"
    )
    background: Tensor  # (D, r0), whitener of the total covariance

    def __init__(self, ridge: NonNegativeFloat = 0.0) -> None:
        super().__init__(ridge)
        self.register_buffer("background", torch.empty(0, dtype=torch.float64))

    def fit(self, train: Views) -> None:
        """Class means, and the covariances within the classes and of all rows, both divided by N."""
        means_CD, share_C, within_DD = self._fit(train)
        self.background = whitener(within_DD + moments.between_class_covariance(means_CD, share_C), self.ridge)

    def score(self, views: Views) -> Tensor:
        """(B,) float64, min_c d_c - d_0."""
        centred_BD = views.features.double() - self.mean
        return super().score(views) - (centred_BD @ self.background).square().sum(1)
