"""||m - m'||^2 + Tr(S + S' - 2 (S S')^(1/2)): the Frechet distance of two Gaussians, as FID measures images.

Frechet's formula for Gaussians: Dowson and Landau 1982; of features of images: Heusel et al., NeurIPS 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outlie.detectors import moments
from outlie.errors import UserError


def frechet_distance(features_ND: Tensor, others_MD: Tensor) -> float:
    """Distance of the Gaussians with both sets' means and covariances (divisor N - 1), in float64.

    With features of our own it is no FID and must be named frechet_FEATURES: FID is of Inception's, whose weights
    torchmetrics downloads. Too few rows bias it upwards: compare only distances from equally many.

    Raises:
        UserError: fewer than 2 rows, different widths, features that are not finite.
    """
    for name, rows in (("first", features_ND), ("second", others_MD)):
        if rows.ndim != 2 or len(rows) < 2:
            raise UserError(f"the {name} set has shape {tuple(rows.shape)}: 2 rows of features or more are needed")
    if features_ND.shape[1] != others_MD.shape[1]:
        raise UserError(
            f"features of width {features_ND.shape[1]} and {others_MD.shape[1]}: both sets must be from one network"
        )
    mean_D, covariance_DD = _gaussian(features_ND)
    other_D, other_DD = _gaussian(others_MD)
    # Tr (S S')^(1/2) = Tr (R S' R)^(1/2) with R = S^(1/2), which is symmetric: no square root of a general matrix
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    root_DD = (vectors_DD * values_D.clamp(min=0).sqrt()) @ vectors_DD.T
    squares_D = torch.linalg.eigvalsh(root_DD @ other_DD.to(root_DD) @ root_DD)
    overlap = squares_D.clamp(min=0).sqrt().sum()
    shift = (mean_D - other_D.to(mean_D)).square().sum()
    distance = shift + covariance_DD.trace() + other_DD.trace().to(shift) - 2 * overlap
    return max(float(distance), 0.0)  # below 0 by rounding only


def _gaussian(rows_ND: Tensor) -> tuple[Tensor, Tensor]:
    mean_D = moments.mean(rows_ND)
    return mean_D, moments.covariance(rows_ND, mean_D) * (len(rows_ND) / (len(rows_ND) - 1))
