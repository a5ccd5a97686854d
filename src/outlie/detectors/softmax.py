"""Scores from the logits l alone: p = softmax(l); confident = in-distribution.

In float32 a confident p_max is exactly 1 and confident rows tie, so everything here is float64 and built on
log((1 - p_max) / p_max), which loses nothing however confident the row.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from outlie.detectors.base import Detector, Views
from outlie.errors import UserError
from outlie.log import log
from outlie.options import PositiveFloat, PositiveInt


def log_odds_of_rest(logits: Tensor) -> Tensor:
    """log((1 - p_max) / p_max) = log sum over c != top of exp(l_c - l_top); (B, C) -> (B,) float64."""
    logits_BC = logits.double()
    top = logits_BC.max(1, keepdim=True)
    return (logits_BC.scatter(1, top.indices, -math.inf) - top.values).logsumexp(1)


def minus_log_p_max(logits: Tensor) -> Tensor:
    """-log p_max = log(1 + (1 - p_max) / p_max); (B, C) -> (B,) float64, above 0 down to 1e-308."""
    return log_odds_of_rest(logits).exp().log1p()


def log_probabilities(logits: Tensor) -> Tensor:
    """log p with the largest exact, where log_softmax rounds it to 0; (B, C) -> (B, C) float64."""
    logits_BC = logits.double()
    return logits_BC - logits_BC.max(1, keepdim=True).values - minus_log_p_max(logits_BC)[:, None]


def generalised_entropy(logits: Tensor, gamma: float, top: int) -> Tensor:
    """sum over the `top` largest p of p^gamma (1 - p)^gamma; (B, C) -> (B,) float64."""
    largest_BM = log_probabilities(logits).topk(min(top, logits.shape[1]), 1).values
    log_complement_BM = (-largest_BM.expm1()).log()
    return (gamma * (largest_BM + log_complement_BM)).exp().sum(1)


def energy(logits: Tensor, T: float = 1.0) -> Tensor:
    """-T logsumexp(l / T); (B, C) -> (B,) float64."""
    return -T * (logits.double() / T).logsumexp(1)


def class_labels(train: Views) -> Tensor:
    """(N,) labels, each a column of `train.logits`; UserError where there is none or one is out of range."""
    if train.y is None:
        raise UserError("the rows have no class labels, which this detector is fitted with; use a labelled dataset")
    classes = train.logits.shape[1]
    wrong = train.y[(train.y < 0) | (train.y >= classes)]
    if len(wrong):
        raise UserError(
            f"{len(wrong)} class labels such as {int(wrong[0])} have no logit; allowed are 0 to {classes - 1}: train "
            "the backbone on these classes"
        )
    return train.y


def best_temperature(logits: Tensor, y: Tensor) -> tuple[float, str | None]:
    """T > 0 of the smallest mean cross-entropy of l / T, and why it was clamped, if so; (N, C), (N,) int64.

    The cross-entropy is convex in 1/T: safeguarded Newton steps on its slope, mean(E_p[l] - l_y). Where every row is
    right the best T is 0, where they are no better than chance it is infinite; T stays between span / 700, where
    the largest gap between two logits of a row still has a probability, and 1000 span.
    """
    gaps_NC = logits.double()
    gaps_NC = gaps_NC - gaps_NC.max(1, keepdim=True).values
    span = -gaps_NC.min().item()
    if span == 0:
        return 1.0, None
    target = gaps_NC.gather(1, y[:, None]).mean()
    blocks = gaps_NC.split(max(1, 100_000 // gaps_NC.shape[1]))  # that stay in the cache

    def slope_and_curvature(inverse_T: float) -> tuple[float, float]:
        means, variances = [], []
        for gaps_BC in blocks:
            p_BC = (inverse_T * gaps_BC).softmax(1)
            weighted_BC = p_BC * gaps_BC
            means.append(weighted_BC.sum(1))
            variances.append((weighted_BC * gaps_BC).sum(1) - means[-1] ** 2)
        return (torch.cat(means).mean() - target).item(), torch.cat(variances).mean().item()

    low, high = 1e-3 / span, 700 / span
    if slope_and_curvature(high)[0] <= 0:
        return 1 / high, "every fitted row is classified right, and a smaller T only helps"
    if slope_and_curvature(low)[0] >= 0:
        return 1 / low, "the fitted rows are classified no better than by chance"
    inverse_T = min(max(1.0, low), high)
    for _ in range(100):
        slope, curvature = slope_and_curvature(inverse_T)
        low, high = (low, inverse_T) if slope > 0 else (inverse_T, high)
        newton = inverse_T - slope / curvature if curvature > 0 else 0.0
        moved = newton if low < newton < high else math.sqrt(low * high)
        done, inverse_T = abs(moved - inverse_T) <= 1e-10 * inverse_T, moved
        if done:
            break
    return 1 / inverse_T, None


class MSP(Detector):
    """Maximum softmax probability, as -log p_max: the same ranking without ties among confident rows."""

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    posthoc: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Hendrycks and Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples, ICLR 2017"
    )

    def score(self, views: Views) -> Tensor:
        """(B,) -log p_max, float64."""
        return minus_log_p_max(views.logits)


class MaxLogit(Detector):
    """Minus the largest logit."""

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    posthoc: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, ICML 2022 (MaxLogit)"
    )

    def score(self, views: Views) -> Tensor:
        """(B,) -max l, float64."""
        return -views.logits.double().max(1).values


class Energy(Detector):
    """Free energy of the logits, -T logsumexp(l / T).

    Args:
        T: temperature; large values approach minus the mean logit, small ones minus the largest.
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    posthoc: ClassVar[bool] = True
    paper: ClassVar[str] = "Liu et al., Energy-based Out-of-distribution Detection, NeurIPS 2020"
    scoring: ClassVar[tuple[str, ...]] = ("T",)

    def __init__(self, T: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.T = T

    def score(self, views: Views) -> Tensor:
        """(B,) energy, float64."""
        return energy(views.logits, self.T)


class TemperatureScaling(Detector):
    """-log p_max of l / T, with T of the smallest cross-entropy on held-out in-distribution rows."""

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    posthoc: ClassVar[bool] = True
    paper: ClassVar[str] = "Guo et al., On Calibration of Modern Neural Networks, ICML 2017"
    fits_on: str = "calibration"
    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.empty(0, dtype=torch.float64))

    def fit(self, train: Views) -> None:
        """Find T from logits and class labels."""
        T, why = best_temperature(train.logits, class_labels(train))
        if why:
            log.info(f"finding   temperature scaling stopped at T = {T:.3g}: {why}")
        self.temperature = torch.tensor(T, dtype=torch.float64, device=train.logits.device)

    def score(self, views: Views) -> Tensor:
        """(B,) -log p_max at T, float64."""
        return minus_log_p_max(views.logits.double() / self.temperature)


class GEN(Detector):
    """Generalised entropy, sum of p^gamma (1 - p)^gamma over the M largest probabilities.

    Args:
        gamma: exponent; small values make small probabilities count.
        M: number of largest probabilities; all where there are fewer classes.
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    posthoc: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Liu, Lochman, Zach, GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection, CVPR 2023"
    )
    scoring: ClassVar[tuple[str, ...]] = ("gamma", "M")

    def __init__(self, gamma: PositiveFloat = 0.1, M: PositiveInt = 100) -> None:
        super().__init__()
        self.gamma, self.M = gamma, M

    def score(self, views: Views) -> Tensor:
        """(B,) generalised entropy, float64."""
        return generalised_entropy(views.logits, self.gamma, self.M)
