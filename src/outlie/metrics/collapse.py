"""Neural-collapse measures of a classifier's features; all are 0 at full collapse. Papyan, Han and Donoho 2020.

NC5, and the variants with an OOD set as one more class, are from Ben Ammar et al., NECO, ICLR 2024. Features are of
training rows, without augmentation and in eval mode; everything is computed in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from outlie.detectors import moments
from outlie.errors import UserError


def nc1(within_DD: Tensor, centred_CD: Tensor) -> float:
    """Tr(Sigma_W Sigma_B^+) / C with Sigma_B = (1/C) sum_c m_c m_c^T: sum_k v_k^T Sigma_W v_k / s_k^2.

    Args:
        within_DD: covariance within the classes.
        centred_CD: class means less the global mean, with singular values s_k and directions v_k.
    """
    _, s_K, v_KD = torch.linalg.svd(centred_CD, full_matrices=False)
    if s_K[0] == 0:
        return math.nan  # all class means are one: there is nothing that the classes could have collapsed to
    kept_K = s_K.square() > 1e-10 * s_K[0].square()  # at most C - 1: the last of centred rows' is rounding
    v_KD, s_K = v_KD[kept_K], s_K[kept_K]
    return float((((v_KD @ within_DD) * v_KD).sum(1) / s_K.square()).sum())


def equinorm(rows_CD: Tensor, ddof: int = 1) -> float:
    """std_c ||m_c|| / mean_c ||m_c||, of centred class means or of the head's weights (NC2)."""
    norm_C = rows_CD.norm(dim=1)
    return float(norm_C.std(correction=ddof) / norm_C.mean())


def equiangularity(rows_CD: Tensor) -> float:
    """Mean over ordered pairs c != c' of |cos(m_c, m_c') + 1 / (C - 1)| (NC2); not attainable if D < C - 1."""
    return float((_cosines(rows_CD) + 1 / (len(rows_CD) - 1)).abs().mean())


def equiangularity_std(rows_CD: Tensor) -> float:
    """Standard deviation (ddof 0) over pairs of the cosine: NC2 as Papyan's figures have it."""
    return float(_cosines(rows_CD).std(correction=0))


def nc3(weight_CD: Tensor, centred_CD: Tensor) -> float:
    """|| W / ||W||_F - M / ||M||_F ||_F^2, self-duality of the head and the centred class means."""
    return float((weight_CD / weight_CD.norm() - centred_CD / centred_CD.norm()).square().sum())


def nc4(features_ND: Tensor, means_CD: Tensor, weight_CD: Tensor, bias_C: Tensor | None) -> float:
    """Share of rows whose largest logit is not that of the nearest class mean."""
    half_C = means_CD.square().sum(1) / 2

    def different(_: Tensor, h_BD: Tensor) -> Tensor:
        nearest_B = (h_BD @ means_CD.T - half_C).argmax(1)  # ||h - mu||^2 without the part common to all classes
        return (_predicted(h_BD, weight_CD, bias_C) != nearest_B).sum().double()

    return float(moments.total(features_ND, different)) / len(features_ND)


def nc5(means_CD: Tensor, ood_mean_D: Tensor) -> float:
    """(1/C) sum_c |cos(mu_c, mu_OOD)|: orthogonality to the mean of an OOD set, nothing centred (NECO, eq. 5)."""
    return float(torch.cosine_similarity(means_CD, ood_mean_D[None], dim=1, eps=1e-300).abs().mean())


def nc5_centred(means_CD: Tensor, ood_mean_D: Tensor) -> float:
    """NC5 with the global mean taken from both: another quantity, which need not fall with training."""
    global_D = means_CD.mean(0)
    return nc5(means_CD - global_D, ood_mean_D - global_D)


def accuracy(features_ND: Tensor, y_N: Tensor, weight_CD: Tensor, bias_C: Tensor | None) -> float:
    """Share of rows that the head classifies as their label."""

    def right(rows_B: Tensor, h_BD: Tensor) -> Tensor:
        return (_predicted(h_BD, weight_CD, bias_C) == y_N[rows_B]).sum().double()

    return float(moments.total(features_ND, right)) / len(features_ND)


def neural_collapse(
    features_ND: Tensor,
    y_N: Tensor,
    weight_CD: Tensor,
    bias_C: Tensor | None,
    ood: dict[str, Tensor] | None = None,
    ddof: int = 1,
) -> dict[str, float]:
    """Every measure by name; for each OOD set also `nc5/SET`, `nc1_with/SET` and `nc2_equiangularity_with/SET`.

    The global mean is the unweighted mean of the class means. With an OOD set as class C + 1 it remains that of the
    C classes, the target angle is -1 / C, and its rows are pooled into the covariance within the classes.

    Args:
        features_ND: training rows of every class.
        y_N: their labels.
        weight_CD: the linear head's weight.
        bias_C: its bias, or None.
        ood: set name -> features.
        ddof: of the standard deviation in equinorm: 1 as in Papyan's notebook, 0 for the population's.

    Raises:
        UserError: fewer than two classes, a class without rows, a label out of range, an empty OOD set.
    """
    if len(weight_CD) < 2:
        raise UserError(f"{len(weight_CD)} class: neural collapse is about two classes or more")
    weight_CD = weight_CD.detach().double()
    bias_C = None if bias_C is None else bias_C.detach().double()
    means_CD, _ = moments.class_means(features_ND, y_N, len(weight_CD))
    within_DD = moments.within_class_covariance(features_ND, y_N, means_CD)
    global_D = means_CD.mean(0)
    centred_CD = means_CD - global_D
    result = {
        "nc1": nc1(within_DD, centred_CD),
        "nc2_equinorm": equinorm(centred_CD, ddof),
        "nc2_equinorm_weights": equinorm(weight_CD, ddof),
        "nc2_equiangularity": equiangularity(centred_CD),
        "nc2_equiangularity_weights": equiangularity(weight_CD),
        "nc3": nc3(weight_CD, centred_CD),
        "nc4": nc4(features_ND, means_CD, weight_CD, bias_C),
        "train_accuracy": accuracy(features_ND, y_N, weight_CD, bias_C),
    }
    for name, ood_MD in (ood or {}).items():
        ood_mean_D = moments.mean(ood_MD)
        n, m = len(features_ND), len(ood_MD)
        pooled_DD = (n * within_DD + m * moments.covariance(ood_MD, ood_mean_D)) / (n + m)
        with_ood = torch.cat([centred_CD, (ood_mean_D - global_D)[None]])
        result[f"nc5/{name}"] = nc5(means_CD, ood_mean_D)
        result[f"nc1_with/{name}"] = nc1(pooled_DD, with_ood)
        result[f"nc2_equiangularity_with/{name}"] = equiangularity(with_ood)
    return result


def _cosines(rows_CD: Tensor) -> Tensor:
    """Cosines of the ordered pairs of different rows; (C (C - 1),)."""
    unit_CD = torch.nn.functional.normalize(rows_CD, dim=1, eps=1e-300)
    cosine_CC = unit_CD @ unit_CD.T
    return cosine_CC[~torch.eye(len(rows_CD), dtype=torch.bool, device=rows_CD.device)]


def _predicted(h_BD: Tensor, weight_CD: Tensor, bias_C: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(h_BD, weight_CD, bias_C).argmax(1)
