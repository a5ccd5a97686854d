"""NECO: the share of a feature's norm inside the training rows' principal subspace; Ben Ammar et al. 2024.

NECO(x) = ||P h|| / ||h||, P the projector on the d leading principal directions; for transformers times the largest
logit. What the authors' code computes, on features z = (h - m) / s: ||V_d^T (z - mean z)|| / ||z||.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from outlie.detectors import moments
from outlie.detectors.base import Detector, Spec, Views
from outlie.errors import UserError
from outlie.log import log
from outlie.options import PositiveInt


def dimensions_for(share: float, values_D: Tensor) -> int:
    """The smallest number of the largest eigenvalues whose sum reaches `share` of all."""
    sums_D = values_D.clamp(min=0).sort(descending=True).values.cumsum(0)
    return int((sums_D < (share - 1e-12) * sums_D[-1]).sum()) + 1


class NECO(Detector):
    """The negated ratio of a feature's norm inside the principal subspace to its whole norm.

    A row of zeros (every ReLU dead), and one without a denominator, has ratio 0.

    Args:
        d: dimensions of the subspace, at most min(N - 1, D); classes = C, classes-1, or var90 = as many as hold 90 % of
            the variance. With d = D the standardised ratio is 1 for every row.
        standardize: whether columns get mean 0 and standard deviation 1 (ddof 0) first, as in the authors' code.
        denominator: norm of what was projected (same), or of the raw feature (raw), as the authors' code has it for
            DeiT and Swin.
        max_logit: whether to multiply by the largest logit: transformers yes, ResNets no.
        center: whether the mean is taken away before the projection (the code); false = the formula as printed.
            Without effect on standardised features, whose mean is 0.
    """

    needs: ClassVar[tuple[str, ...]] = ("features",)
    posthoc: ClassVar[bool] = True
    paper: ClassVar[str] = "Ben Ammar et al., NECO: NEural Collapse Based Out-of-distribution detection, ICLR 2024"
    scoring: ClassVar[tuple[str, ...]] = ("denominator", "max_logit")
    shift: Tensor  # (D,)
    scale: Tensor  # (D,)
    basis: Tensor  # (D, d)
    offset: Tensor  # (d,), projection of the mean of z

    def __init__(
        self,
        d: PositiveInt | Literal["classes", "classes-1", "var90"] = 100,
        standardize: bool = True,
        denominator: Literal["same", "raw"] = "same",
        max_logit: bool = False,
        center: bool = True,
    ) -> None:
        super().__init__()
        self.d, self.standardize, self.denominator = d, standardize, denominator
        self.max_logit, self.center = max_logit, center
        self.classes: int | None = None
        for name in ("shift", "scale", "basis", "offset"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    def setup(self, spec: Spec) -> None:
        """Keep the number of classes."""
        self.classes = spec.classes

    def fit(self, train: Views) -> None:
        """Standardisation and principal directions, from the covariance's eigenvectors."""
        features_ND = train.features
        n, dim = features_ND.shape
        if n < 2:
            raise UserError(f"{n} training rows have no principal directions; give it 2 or more")
        self._warn_of_logits(train)
        mean_D = moments.mean(features_ND)
        zero_D, one_D = torch.zeros_like(mean_D), torch.ones_like(mean_D)
        centre_D = mean_D if self.center or self.standardize else zero_D
        covariance_DD = moments.covariance(features_ND, centre_D)
        if self.standardize:
            self.shift, self.scale = mean_D, moments.std(covariance_DD, mean_D, n)
            covariance_DD = covariance_DD / self.scale / self.scale[:, None]
            centre_D = zero_D  # the mean of z
        else:
            self.shift, self.scale = zero_D, one_D
        values_D, vectors_DD = torch.linalg.eigh(covariance_DD)  # ascending
        d = self._dimensions(train, values_D, min(n - 1, dim))
        if d == dim and self.standardize and self.denominator == "same":
            log.info(f"finding   d = {d} is every dimension: the ratio is 1 for every row; set detector.d lower")
        self.basis = vectors_DD[:, dim - d :].contiguous()
        self.offset = centre_D @ self.basis

    def score(self, views: Views) -> Tensor:
        """(B,) float64."""
        h_BD = views.features.double()
        z_BD = (h_BD - self.shift) / self.scale
        inside_B = torch.linalg.vector_norm(z_BD @ self.basis - self.offset, dim=1)
        norm_B = torch.linalg.vector_norm(h_BD if self.denominator == "raw" else z_BD, dim=1)
        if self.standardize and self.denominator == "same" and self.basis.shape[0] == self.basis.shape[1]:
            inside_B = norm_B  # every dimension: 1, not 1 and its rounding
        dead_B = (norm_B == 0) | (h_BD == 0).all(1)
        ratio_B = torch.where(dead_B, 0.0, inside_B / torch.where(dead_B, 1.0, norm_B))
        if not self.max_logit:
            return -ratio_B
        if views.logits is None:
            raise UserError("max_logit multiplies by logits, and the backbone gives none; set detector.max_logit=false")
        return -ratio_B * views.logits.double().amax(1)

    def _dimensions(self, train: Views, values_D: Tensor, most: int) -> int:
        classes = self.classes
        match self.d:
            case "var90":
                wanted = dimensions_for(0.9, values_D)
            case "classes" | "classes-1":
                if classes is None and train.y is not None:
                    classes = int(train.y.max()) + 1
                if classes is None:
                    raise UserError(f"d = {self.d}, but the data have no classes; set detector.d to a number or var90")
                wanted = classes - (self.d == "classes-1")
                if wanted < 1:
                    raise UserError(f"d = {self.d} is {wanted} of one class; set detector.d to a number or var90")
            case _:
                wanted = int(self.d)
        if wanted > most:
            rows = f"{len(train)} rows of {len(values_D)} features"
            log.info(f"finding   d = {wanted} is more than {rows} can tell: d = {most} is taken")
        return min(wanted, most)

    def _warn_of_logits(self, train: Views) -> None:
        if not self.max_logit or train.logits is None:  # a missing one is said where it is needed
            return
        low = int((train.logits.amax(1) <= 0).sum())
        if low:
            log.info(
                f"finding   {low} of {len(train)} training rows have no logit above 0: multiplied by one, their ratio "
                "counts the wrong way round; detector.max_logit=false leaves it out"
            )
