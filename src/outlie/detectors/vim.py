"""ViM and Residual: how much of a feature lies outside the training rows' principal subspace; Wang et al. 2022.

With the origin u = -W^+ b and N_S the eigenvectors after the first d of the mean of (h - u)(h - u)^T:
Residual = ||N_S^T (h - u)||, ViM = alpha * Residual - logsumexp(logits), alpha = mean max-logit / mean Residual.
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

FAR_ORIGIN = 100  # ||u|| / mean ||h|| beyond which the subspace is that of the origin, not of the data


def origin(weight_CD: Tensor, bias_C: Tensor | None) -> Tensor:
    """u = -W^+ b in float64, singular values below 1e-6 of the largest cut off; (D,).

    Under neural collapse the rows of W sum to about 0: the smallest singular value is rounding (1e-7), and a
    pseudo-inverse with NumPy's cut-off divides the common part of b, which softmax ignores, by it.
    """
    if bias_C is None:
        return weight_CD.new_zeros(weight_CD.shape[1], dtype=torch.float64)
    return -torch.linalg.pinv(weight_CD.double(), rtol=1e-6) @ bias_C.double()


def principal_dimensions(d: int | Literal["auto"], dim: int) -> int:
    """d of a feature of width `dim`; auto = 1000 from 2048 on, 512 above 512 (ViM's rule), half the width up to 512."""
    if d == "auto":
        return 1000 if dim >= 2048 else 512 if dim > 512 else max(1, dim // 2)
    return d


class Residual(Detector):
    """Norm of the feature outside the training rows' principal subspace.

    Args:
        d: dimensions of the principal subspace, below the feature's width; auto = ViM's rule, 1000 where features have
            2048 columns or more and else 512, which is impossible up to 512 columns: there half of them, 256 at 512 as
            in OpenOOD. NECO's authors take 300 for ResNet-18.
    """

    needs: ClassVar[tuple[str, ...]] = ("features", "head")
    posthoc: ClassVar[bool] = True
    paper: ClassVar[str] = "Wang et al., ViM: Out-Of-Distribution with Virtual-logit Matching, CVPR 2022 (Residual)"
    origin: Tensor  # (D,)
    null_space: Tensor  # (D, D - d)

    def __init__(self, d: PositiveInt | Literal["auto"] = "auto") -> None:
        super().__init__()
        self.d = d
        for name in ("origin", "null_space"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    def setup(self, spec: Spec) -> None:
        """The origin, from the head."""
        if spec.head is None:
            raise UserError("the backbone has no linear head, and the origin is made of it; choose a classifier")
        bias = spec.head.bias
        self.origin = origin(spec.head.weight.detach(), None if bias is None else bias.detach())

    def fit(self, train: Views) -> None:
        """The directions after the first d."""
        self._fit(train)

    def score(self, views: Views) -> Tensor:
        """(B,) float64."""
        return self._residual(views.features.double())

    def _residual(self, h_BD: Tensor) -> Tensor:
        return torch.linalg.vector_norm((h_BD - self.origin) @ self.null_space, dim=1)

    def _fit(self, train: Views) -> None:
        features_ND = train.features
        n, dim = features_ND.shape
        d = principal_dimensions(self.d, dim)
        if d >= dim:
            raise UserError(
                f"d = {d} dimensions leave nothing of {dim} features; set detector.d to {dim - 1} or less, or to auto"
                if dim > 1
                else "features of one column have no subspace; choose another detector"
            )
        if d >= n:
            raise UserError(f"d = {d} dimensions, but only {n} training rows; set detector.d to {n - 1} or less")
        moments.mean(features_ND)  # says what is not finite
        norm = float(moments.total(features_ND, lambda _, h_BD: torch.linalg.vector_norm(h_BD, dim=1).sum())) / n
        far = float(self.origin.norm()) / norm if norm > 0 else 0.0
        if far > FAR_ORIGIN:
            log.info(
                f"finding   the origin -W^+ b lies {far:.0f} times as far out as the features: the head is close to "
                "singular, and the principal subspace spends a direction on the origin"
            )
        # eigenvalues ascend: what follows the first d comes first
        self.null_space = torch.linalg.eigh(moments.covariance(features_ND, self.origin))[1][:, : dim - d].contiguous()


class ViM(Residual):
    """The residual, scaled to a virtual logit, less the energy of the real ones.

    Args:
        d: dimensions of the principal subspace, below the feature's width; auto = ViM's rule, 1000 where features have
            2048 columns or more and else 512, which is impossible up to 512 columns: there half of them, 256 at 512 as
            in OpenOOD. NECO's authors take 300 for ResNet-18.
    """

    needs: ClassVar[tuple[str, ...]] = ("features", "logits", "head")
    paper: ClassVar[str] = "Wang et al., ViM: Out-Of-Distribution with Virtual-logit Matching, CVPR 2022"
    alpha: Tensor  # ()

    def __init__(self, d: PositiveInt | Literal["auto"] = "auto") -> None:
        super().__init__(d)
        self.register_buffer("alpha", torch.zeros((), dtype=torch.float64))

    def fit(self, train: Views) -> None:
        """The directions after the first d, and alpha."""
        self._fit(train)
        n = len(train)
        sums = moments.total(
            train.features,
            lambda _, h_BD: torch.stack([self._residual(h_BD).sum(), (h_BD - self.origin).norm(dim=1).sum()]),
        )
        residual, distance = (sums / n).tolist()
        if residual <= train.features.shape[1] * torch.finfo(torch.float64).eps * distance:
            raise UserError(
                f"no training row leaves the first {train.features.shape[1] - self.null_space.shape[1]} dimensions, "
                "so that alpha = mean max-logit / mean residual is infinite; set detector.d lower"
            )
        self.alpha = train.logits.amax(1).double().mean() / residual
        if self.alpha < 0:
            log.info(
                f"finding   alpha = {float(self.alpha):.3g}: the largest logits are negative on average, and the "
                "residual counts the wrong way round; detector=residual does not use them"
            )

    def score(self, views: Views) -> Tensor:
        """(B,) float64."""
        return self.alpha * self._residual(views.features.double()) - views.logits.double().logsumexp(1)
