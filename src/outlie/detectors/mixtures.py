"""log p(x) = logsumexp_k (log w_k + log N(x; m_k, S_k)): Gaussian mixtures, and kernels with Silverman's width.

scikit-learn fits the mixtures; both are scored here, in float64, on the device of the rows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from outlie.detectors.base import resize_buffers
from outlie.detectors.neighbours import BLOCK_BYTES
from outlie.errors import UserError
from outlie.log import log

Kind = Literal["full", "tied", "diag", "spherical"]


def mean_and_std(rows_ND: Tensor) -> tuple[Tensor, Tensor]:
    """(D,) mean and population standard deviation, 1 where a column is constant up to rounding."""
    variance_D, mean_D = torch.var_mean(rows_ND.double(), 0, correction=0)
    eps = torch.finfo(torch.float64).eps
    constant_D = variance_D <= len(rows_ND) * eps * variance_D + (len(rows_ND) * mean_D * eps) ** 2
    return mean_D, torch.where(constant_D, 1.0, variance_D.sqrt())


def gaussian_mixture_log_density(x_BD: Tensor, log_weights_K: Tensor, means_KD: Tensor, factors: Tensor) -> Tensor:
    """(B,) logsumexp_k (log w_k + log N(x; m_k, (F_k F_k^T)^-1)).

    Args:
        x_BD: float64.
        log_weights_K: log w_k.
        means_KD: m_k.
        factors: F_k, (K, D, D) and triangular, or the diagonals, (K, D).
    """
    parts = []
    for log_w, mean_D, factor in zip(log_weights_K, means_KD, factors):  # over components: B x K x D is never made
        centred_BD = x_BD - mean_D
        z_BD = centred_BD @ factor if factor.ndim == 2 else centred_BD * factor
        log_det = (factor.diagonal() if factor.ndim == 2 else factor).log().sum()
        parts.append(log_w + log_det - z_BD.square().sum(1) / 2)
    return torch.stack(parts, 1).logsumexp(1) - x_BD.shape[1] / 2 * math.log(2 * math.pi)


class Mixture(nn.Module):
    """A Gaussian mixture whose number of components and kind of covariance were chosen on the rows it was fitted on."""

    log_weights: Tensor  # (K,)
    means: Tensor  # (K, D)
    factors: Tensor  # (K, D, D) or (K, D)

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(resize_buffers)
        for name in ("log_weights", "means", "factors"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    def fit(
        self,
        rows_ND: Tensor,
        components: Sequence[int] = (2, 4, 6, 8),
        kinds: Sequence[Kind] = ("full",),
        by: Literal["bic", "cv"] = "bic",
        seed: int = 0,
        folds: int = 10,
        max_iter: int = 200,
    ) -> None:
        """Fit the best of components x kinds.

        Args:
            rows_ND: standardised: 1e-6 is added to every variance.
            components: numbers to choose from.
            kinds: of covariance, to choose from.
            by: bic = least BIC; cv = largest mean log-likelihood of rows left out, over `folds` folds.
            seed: of the starts and the folds.
            folds: of cv; no more than there are rows.
            max_iter: steps of EM.

        Raises:
            UserError: no components, or more than rows to fit them on.
        """
        from sklearn.exceptions import ConvergenceWarning

        rows = rows_ND.double().cpu().numpy()
        choices = [(int(k), kind) for k in components for kind in kinds]
        n = len(rows)
        folds = min(folds, n)
        fewest = n - -(-n // folds) if by == "cv" and len(choices) > 1 else n  # rows outside the largest fold
        if not choices:
            raise UserError("detector.components = []: give a number of components at least")
        if (most := max(k for k, _ in choices)) > fewest:
            raise UserError(
                f"{most} components, but only {fewest} rows to fit them on; set detector.components to {fewest} or "
                "less, or detector.fit_rows to more"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # said below, of the one that is kept
            best = _best(rows, choices, by, seed, folds, max_iter)
        if not best.converged_:
            log.info(
                f"finding   the mixture of {best.n_components} components did not converge in {max_iter} steps of EM"
            )
        K, D = best.means_.shape
        factors = best.precisions_cholesky_
        match best.covariance_type:
            case "tied":
                factors = np.broadcast_to(factors, (K, D, D))
            case "spherical":
                factors = np.broadcast_to(factors[:, None], (K, D))
            case _:
                pass
        like = {"dtype": torch.float64, "device": rows_ND.device}
        self.log_weights = torch.tensor(np.log(best.weights_), **like)
        self.means, self.factors = torch.tensor(best.means_, **like), torch.tensor(factors.copy(), **like)

    def log_density(self, x: Tensor) -> Tensor:
        """(B, D) -> (B,) log p(x)."""
        return gaussian_mixture_log_density(x.double(), self.log_weights, self.means, self.factors)


def _best(rows: np.ndarray, choices: Iterable[tuple[int, str]], by: str, seed: int, folds: int, max_iter: int) -> Any:
    """The fitted mixture of the least BIC, or of the largest likelihood of rows left out."""
    from sklearn.mixture import GaussianMixture
    from sklearn.model_selection import KFold, cross_val_score

    models = [GaussianMixture(k, covariance_type=kind, max_iter=max_iter, random_state=seed) for k, kind in choices]  # pyright: ignore[reportArgumentType]
    if len(models) == 1:
        return models[0].fit(rows)
    if by == "bic":
        return min((model.fit(rows) for model in models), key=lambda model: model.bic(rows))
    split = KFold(folds, shuffle=True, random_state=seed)
    return max(models, key=lambda model: cross_val_score(model, rows, cv=split).mean()).fit(rows)


def silverman(rows_ND: Tensor) -> Tensor:
    """L with L L^T = (n (D + 2) / 4)^(-2 / (D + 4)) Cov(rows): the kernels' covariance, as SciPy has it; (D, D).

    Raises:
        UserError: a direction without variance.
    """
    n, dim = rows_ND.shape
    covariance_DD = torch.atleast_2d(torch.cov(rows_ND.double().T))
    lower_DD, failed = torch.linalg.cholesky_ex(covariance_DD)
    if failed or not (lower_DD.diagonal() > 0).all():
        raise UserError(f"{n} rows in {dim} dimensions do not vary in each direction: a kernel density needs that")
    return lower_DD * (n * (dim + 2) / 4) ** (-1 / (dim + 4))


def kernel_log_density(x_BD: Tensor, bank_ND: Tensor, width_DD: Tensor) -> Tensor:
    """(B,) log (1/N) sum_i N(x; x_i, L L^T), L = `width_DD` lower triangular; finite however far x is."""
    z_BD, z_ND = (torch.linalg.solve_triangular(width_DD, rows.T, upper=False).T for rows in (x_BD, bank_ND))
    constant = math.log(len(bank_ND)) + bank_ND.shape[1] / 2 * math.log(2 * math.pi)
    at_once = max(1, BLOCK_BYTES // (16 * len(bank_ND)))
    parts = [
        torch.cdist(some, z_ND, compute_mode="donot_use_mm_for_euclid_dist").square().div(-2).logsumexp(1)
        for some in z_BD.contiguous().split(at_once)
    ]
    return torch.cat(parts) - constant - width_DD.diagonal().log().sum()


class Kernels(nn.Module):
    """A Gaussian kernel density of rows (N, D)."""

    bank: Tensor  # (N, D)
    width: Tensor  # (D, D)

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(resize_buffers)
        for name in ("bank", "width"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    def fit(self, rows_ND: Tensor, bandwidth: float | None = None) -> None:
        """Keep the rows; `bandwidth` is the kernels' standard deviation, None = Silverman's rule."""
        self.bank = rows_ND.double()
        self.width = silverman(rows_ND) if bandwidth is None else bandwidth * torch.eye(rows_ND.shape[1]).to(self.bank)

    def log_density(self, x: Tensor) -> Tensor:
        """(B, D) -> (B,) log p(x)."""
        return kernel_log_density(x.double(), self.bank, self.width)
