"""Activation shaping: the energy -logsumexp(W h' + b) of reshaped features h', or of pruned weights.

h' = min(h, c) ReAct, clamp(h, a, c) VRA, the k largest of h ASH, h exp(s1 / s2) SCALE; W * mask DICE. Percentiles go
from 0 to 100. Defaults are OpenOOD 1.5's; the features are those that the head reads, after pooling.
"""

import math
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.softmax import energy
from outlie.errors import UserError
from outlie.log import log
from outlie.options import PositiveFloat

VALUES_AT_MOST = 100_000_000  # of which percentiles are exact; beyond, rows at a fixed stride
LARGEST_EXPONENT = 500.0  # exp stays finite, also times features and weights


def percentiles(values: Tensor, *percents: float) -> list[float]:
    """Percentiles of all entries of (N, D), linear between order statistics as NumPy's, in float64."""
    stride = math.ceil(values.numel() / VALUES_AT_MOST)
    if stride > 1:
        log.info(f"finding   percentiles of {values.numel():,} values are taken from one row in {stride}")
        values = values[::stride]
    # a sort is vectorised, as a selection of several ranks is not; that of one rank takes 20 times as long among ties
    ordered = np.sort(values.detach().cpu().numpy(), axis=None)
    last = ordered.size - 1
    places = [last * percent / 100 for percent in percents]
    pairs = [(float(ordered[int(p)]), float(ordered[min(int(p) + 1, last)])) for p in places]
    return [low + (place - int(place)) * (high - low) for place, (low, high) in zip(places, pairs, strict=True)]


def kept(dim: int, percentile: float) -> int:
    """k = D - round(D p / 100), half to even; UserError where that is 0."""
    k = dim - round(dim * percentile / 100)
    if k < 1:
        limit = f"{100 * (dim - 0.75) / dim:.6g}"
        raise UserError(
            f"percentile = {percentile} keeps 0 of {dim} features; set detector.percentile to {limit} or less"
        )
    return k


def largest_values(features: Tensor, k: int) -> Tensor:
    """The k largest entries of each row, in any order; (B, D) -> (B, k)."""
    if features.device.type != "cpu":
        return features.topk(k, 1, sorted=False).values
    # NumPy's sort is vectorised: a quarter of topk's time
    return torch.from_numpy(np.sort(features.detach().numpy(), axis=1)[:, features.shape[1] - k :])


def largest(features: Tensor, k: int) -> Tensor:
    """True for exactly k entries of each row, the largest; among equals the first. (B, D) -> (B, D)."""
    kth_B1 = largest_values(features, k).amin(1, keepdim=True)
    kept_BD = features >= kth_B1
    if (kept_BD.sum(1) == k).all():  # no ties: the usual case, and the slow part is left out
        return kept_BD
    above_BD, equal_BD = features > kth_B1, features == kth_B1
    room_B1 = k - above_BD.sum(1, keepdim=True)
    return above_BD | (equal_BD & (equal_BD.cumsum(1) <= room_B1))


def rescaling(before: Tensor, after: Tensor) -> Tensor:
    """exp(s1 / s2), s1 the sum of all features, s2 of the k largest; (B,), (B,) -> (B, 1).

    s1 <= s2 D / k wherever s2 > 0, so only a sum below 0 (no ReLU) misbehaves: there, and for a row of zeros, it is 1.
    """
    ratio = before / after.clamp(min=torch.finfo(torch.float64).tiny)
    return ratio.clamp(0, LARGEST_EXPONENT).exp()[:, None]


def between(name: str, percent: float) -> float:
    """A percentile; UserError from 100 up."""
    if not 0 < percent < 100:
        raise UserError(f"{name} = {percent}: a percentile is above 0 and below 100; set detector.{name} to 90")
    return percent


class HeadEnergy(Detector):
    """Energy of the head's logits, computed again from features."""

    needs: ClassVar[tuple[str, ...]] = ("features", "head")
    posthoc: ClassVar[bool] = True
    weight: Tensor  # (C, D)
    bias: Tensor  # (C,)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(0, dtype=torch.float64))
        self.register_buffer("bias", torch.empty(0, dtype=torch.float64))

    def setup(self, spec: Spec) -> None:
        """Copy the head."""
        assert spec.head is not None  # `needs` is checked when the config is composed
        self.weight = spec.head.weight.detach().double().clone()
        bias = spec.head.bias
        self.bias = self.weight.new_zeros(len(self.weight)) if bias is None else bias.detach().double().clone()

    def read_out(self, features: Tensor) -> Tensor:
        """Energy of the head's logits; (B, D) -> (B,) float64."""
        return energy(features.double() @ self.weight.T + self.bias)


class ReAct(HeadEnergy):
    """Energy of features clipped from above at a percentile of all in-distribution feature values.

    Args:
        percentile: of the values of all features of all rows, above which they are clipped.
        split: rows the percentile is taken from; OpenOOD uses held-out rows, NECO's authors train.
    """

    paper: ClassVar[str] = "Sun, Guo, Li, ReAct: Out-of-distribution Detection with Rectified Activations, NeurIPS 2021"
    clip: Tensor

    def __init__(
        self, percentile: PositiveFloat = 90.0, split: Literal["calibration", "train"] = "calibration"
    ) -> None:
        super().__init__()
        self.percentile, self.split = between("percentile", percentile), split
        self.fits_on = split
        self.register_buffer("clip", torch.empty(0, dtype=torch.float64))

    def fit(self, train: Views) -> None:
        """Find the clip value."""
        clip = percentiles(train.features, self.percentile)
        self.clip = torch.tensor(clip, dtype=torch.float64, device=train.features.device)

    def score(self, views: Views) -> Tensor:
        """(B,) energy of the clipped features, float64."""
        return self.read_out(views.features.double().clamp(max=self.clip))


class VRA(HeadEnergy):
    """Energy of features clipped at two percentiles of all in-distribution feature values.

    Args:
        low: lower percentile.
        high: upper percentile.
        below: what happens to values under the lower one: clamp to it (OpenOOD) or zero (the paper).
        split: rows the percentiles are taken from.
    """

    paper: ClassVar[str] = (
        "Xu et al., VRA: Variational Rectified Activation for Out-of-distribution Detection, NeurIPS 2023"
    )
    scoring: ClassVar[tuple[str, ...]] = ("below",)
    limits: Tensor  # (2,)

    def __init__(
        self,
        low: PositiveFloat = 10.0,
        high: PositiveFloat = 90.0,
        below: Literal["clamp", "zero"] = "clamp",
        split: Literal["calibration", "train"] = "calibration",
    ) -> None:
        super().__init__()
        self.low, self.high = between("low", low), between("high", high)
        if low >= high:
            raise UserError(f"low = {low} is not below high = {high}; set detector.low to less than detector.high")
        self.below, self.split = below, split
        self.fits_on = split
        self.register_buffer("limits", torch.empty(0, dtype=torch.float64))

    def fit(self, train: Views) -> None:
        """Find the two limits."""
        limits = percentiles(train.features, self.low, self.high)
        self.limits = torch.tensor(limits, dtype=torch.float64, device=train.features.device)

    def score(self, views: Views) -> Tensor:
        """(B,) energy of the clipped features, float64."""
        features_BD = views.features.double()
        clamped_BD = features_BD.clamp(self.limits[0], self.limits[1])
        if self.below == "zero":
            clamped_BD = clamped_BD.masked_fill(features_BD < self.limits[0], 0)
        return self.read_out(clamped_BD)


class DICE(HeadEnergy):
    """Energy from the head's weights of the largest mean contribution, the others set to 0.

    Args:
        percentile: of mean(h) * W over all its entries; only weights of contributions above it are kept.
    """

    paper: ClassVar[str] = "Sun and Li, DICE: Leveraging Sparsification for Out-of-Distribution Detection, ECCV 2022"

    def __init__(self, percentile: PositiveFloat = 90.0) -> None:
        super().__init__()
        self.percentile = between("percentile", percentile)

    def fit(self, train: Views) -> None:
        """Mask the weights."""
        contribution_CD = train.features.mean(0, dtype=torch.float64) * self.weight
        (threshold,) = percentiles(contribution_CD, self.percentile)
        self.weight = self.weight * (contribution_CD > threshold)

    def score(self, views: Views) -> Tensor:
        """(B,) energy at the masked weights, float64."""
        return self.read_out(views.features)


class ASH(HeadEnergy):
    """Energy of each row's k largest features, k = D - round(D p / 100).

    Args:
        variant: what becomes of the kept features: p as they are, b all the same with the sum unchanged, s times
            exp(sum before / sum after).
        percentile: share of the features that is set to 0.
    """

    paper: ClassVar[str] = (
        "Djurisic et al., Extremely Simple Activation Shaping for Out-of-Distribution Detection, ICLR 2023"
    )
    scoring: ClassVar[tuple[str, ...]] = ("variant", "percentile")

    def __init__(self, variant: Literal["p", "b", "s"] = "b", percentile: PositiveFloat = 90.0) -> None:
        super().__init__()
        self.variant, self.percentile = variant, percentile
        self._told = False

    def setup(self, spec: Spec) -> None:
        """Copy the head; check that a feature is left."""
        super().setup(spec)
        kept(self.weight.shape[1], self.percentile)

    def score(self, views: Views) -> Tensor:
        """(B,) energy of the shaped features, float64."""
        features_BD = views.features
        k = kept(features_BD.shape[1], self.percentile)
        kept_BD = largest(features_BD, k)
        before_B = features_BD.sum(1, dtype=torch.float64)
        if self.variant == "b":
            return self.read_out(kept_BD * (before_B / k)[:, None])
        pruned_BD = features_BD.masked_fill(~kept_BD, 0).double()
        if self.variant == "p":
            return self.read_out(pruned_BD)
        self._told = self._told or tell_of_negative_sums("ASH-S", before_B)
        return self.read_out(pruned_BD * rescaling(before_B, pruned_BD.sum(1)))


class SCALE(HeadEnergy):
    """Energy of features times exp(sum of all / sum of the k largest), k = D - round(D p / 100).

    Args:
        percentile: share of the features that the lower sum leaves out; all are kept.
    """

    paper: ClassVar[str] = (
        "Xu et al., Scaling for Training Time and Post-hoc Out-of-distribution Detection Enhancement, ICLR 2024"
    )
    scoring: ClassVar[tuple[str, ...]] = ("percentile",)

    def __init__(self, percentile: PositiveFloat = 85.0) -> None:
        super().__init__()
        self.percentile = percentile
        self._told = False

    def setup(self, spec: Spec) -> None:
        """Copy the head; check that a feature is left."""
        super().setup(spec)
        kept(self.weight.shape[1], self.percentile)

    def score(self, views: Views) -> Tensor:
        """(B,) energy of the scaled features, float64."""
        features_BD = views.features
        before_B = features_BD.sum(1, dtype=torch.float64)
        largest_BK = largest_values(features_BD, kept(features_BD.shape[1], self.percentile))
        self._told = self._told or tell_of_negative_sums("SCALE", before_B)
        return self.read_out(features_BD.double() * rescaling(before_B, largest_BK.sum(1, dtype=torch.float64)))


def tell_of_negative_sums(name: str, sums: Tensor) -> bool:
    """Log a finding where a row's features sum to less than 0; true where it did."""
    negative = int((sums < 0).sum())
    if negative > 0:
        log.info(
            f"finding   {name}: the features of some rows ({negative} of the first {len(sums)}) sum to less than 0, "
            "which the method is not made for (no ReLU before the head?): they are left unscaled"
        )
    return negative > 0
