"""DAGMM: E(x) = -log sum_k phi_k N(z; mu_k, Sigma_k), z = [code, ||x - x'|| / ||x||, cos(x, x')]. Zong et al. 2018.

An autoencoder compresses a row to one number, two more say how well it was given back, and a small network says which
component of a Gaussian mixture the three belong to. The components' parameters follow from these memberships.
"""

from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.mixtures import gaussian_mixture_log_density
from outlie.detectors.training import Recipe
from outlie.options import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


def mixture_of(z_BE: Tensor, gamma_BK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """phi_k = mean_i gamma_ik, and the weighted means and covariances; (K,), (K, E), (K, E, E)."""
    mass_K = gamma_BK.sum(0).clamp_min(1e-12)
    means_KE = gamma_BK.T @ z_BE / mass_K[:, None]
    covariances = []
    for gamma_B, mean_E in zip(gamma_BK.T, means_KE):
        centred_BE = z_BE - mean_E
        covariances.append((gamma_B[:, None] * centred_BE).T @ centred_BE)
    covariances_KEE = torch.stack(covariances) / mass_K[:, None, None]
    # 1e-12 as published; the share of the variance is for a direction that is all but determined by the others
    ridge_KE = 1e-12 + 1e-9 * covariances_KEE.diagonal(dim1=1, dim2=2)
    return mass_K / len(z_BE), means_KE, covariances_KEE + torch.diag_embed(ridge_KE)


def precision_factors(covariances_KEE: Tensor) -> Tensor:
    """F_k = L_k^-T with Sigma_k = L_k L_k^T, so that F_k F_k^T = Sigma_k^-1; (K, E, E)."""
    lower_KEE = torch.linalg.cholesky(covariances_KEE)
    unit_EE = torch.eye(lower_KEE.shape[1]).to(lower_KEE)
    return torch.linalg.solve_triangular(lower_KEE, unit_EE, upper=False).mT


def tanh_layers(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with tanh between them; float64, for the mixture's covariances may be tiny."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, dtype=torch.float64), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class DAGMM(Detector):
    """Energy of a row's code and reconstruction errors under the mixture of the training rows.

    Args:
        components: Gaussians of the mixture.
        latent: width of the code.
        hidden: widths of the encoder's hidden layers, mirrored in the decoder.
        lambda_energy: weight of the mean energy.
        lambda_cov: weight of the sum over 1 / Sigma_kjj, which keeps variances from 0.
        untrained: as the code behind the published tables, whose loss is detached from the weights: they are drawn from
            N(0, 0.02^2) and stay so.
        epochs: epochs to train.
        min_steps: more epochs where `epochs` would give fewer optimiser steps than this.
        batch_size: rows per optimiser step.
        lr: learning rate of Adam (published: 1e-4; the 200 epochs of a small table are too few for that).
        clip_norm: longest gradient; 0 = any.
    """

    needs: ClassVar[tuple[str, ...]] = ("x",)
    paper: ClassVar[str] = (
        "Zong et al., Deep Autoencoding Gaussian Mixture Model for Unsupervised Anomaly Detection, ICLR 2018"
    )
    encoder: nn.Sequential
    decoder: nn.Sequential
    estimator: nn.Sequential
    log_weights: Tensor  # (K,)
    means: Tensor  # (K, E)
    factors: Tensor  # (K, E, E)

    def __init__(
        self,
        components: PositiveInt = 4,
        latent: PositiveInt = 1,
        hidden: list[PositiveInt] = [60, 30, 10],  # noqa: B006 (a signature is a schema; never changed in place)
        lambda_energy: NonNegativeFloat = 0.1,
        lambda_cov: NonNegativeFloat = 0.005,
        untrained: bool = False,
        epochs: PositiveInt = 200,
        min_steps: NonNegativeInt = 2000,
        batch_size: PositiveInt = 256,
        lr: PositiveFloat = 1e-3,
        clip_norm: NonNegativeFloat = 5.0,
    ) -> None:
        super().__init__()
        self.components, self.latent, self.hidden, self.untrained = components, latent, tuple(hidden), untrained
        self.lambda_energy, self.lambda_cov = lambda_energy, lambda_cov
        epochs, min_steps, rate = (1, 0, 0.0) if untrained else (epochs, min_steps, lr)
        self.recipe = Recipe(epochs, batch_size, rate, 0.0, min_steps, clip_norm=clip_norm, drop_last=True)
        for name in ("log_weights", "means", "factors"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    def setup(self, spec: Spec) -> None:
        """Build the compression and the estimation network for the row's width."""
        dim = spec.shapes["x"][0]
        self.encoder = tanh_layers(dim, *self.hidden, self.latent)
        self.decoder = tanh_layers(self.latent, *self.hidden[::-1], dim)
        self.estimator = tanh_layers(self.latent + 2, 10, self.components)
        self.estimator.insert(2, nn.Dropout(0.5))
        if self.untrained:
            for parameter in self.parameters():
                nn.init.normal_(parameter, 0.0, 0.02)

    def compressed(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """(B, E) codes with the two errors of reconstruction, and the (B, D) reconstructions."""
        code_BL = self.encoder(x_BD)
        back_BD = self.decoder(code_BL)
        # a standardised row is sqrt(D) long: shorter than 1e-3 is a row of zeros
        relative_B = (x_BD - back_BD).norm(dim=1) / x_BD.norm(dim=1).clamp_min(1e-3)
        cosine_B = F.cosine_similarity(x_BD, back_BD, dim=1)
        return torch.cat([code_BL, relative_B[:, None], cosine_B[:, None]], 1), back_BD

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """mean (x - x')^2 + lambda_energy mean E(z) + lambda_cov sum_kj 1 / Sigma_kjj, the batch's mixture; scalar."""
        x_BD = views.x.double()
        z_BE, back_BD = self.compressed(x_BD)
        phi_K, means_KE, covariances_KEE = mixture_of(z_BE, self.estimator(z_BE).softmax(1))
        factors_KEE = precision_factors(covariances_KEE)
        energy = -gaussian_mixture_log_density(z_BE, phi_K.log(), means_KE, factors_KEE).mean()
        thinness = covariances_KEE.diagonal(dim1=1, dim2=2).reciprocal().sum()
        return (x_BD - back_BD).square().mean() + self.lambda_energy * energy + self.lambda_cov * thinness

    def fit(self, train: Views) -> None:
        """Keep the mixture of all training rows."""
        z_NE, _ = self.compressed(train.x.double())
        phi_K, self.means, covariances_KEE = mixture_of(z_NE, self.estimator(z_NE).softmax(1))
        self.log_weights, self.factors = phi_K.log(), precision_factors(covariances_KEE)

    def score(self, views: Views) -> Tensor:
        """(B,) E(z)."""
        z_BE, _ = self.compressed(views.x.double())
        return -gaussian_mixture_log_density(z_BE, self.log_weights, self.means, self.factors)
