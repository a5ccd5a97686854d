"""The one interface: a backbone hands on Views, a detector turns them into scores.

Higher = more anomalous; anomaly = OOD = positive = 1. Everywhere, no exception.

Which hooks a detector defines is its kind (there is no base class per kind):

    score only        score
    fitted            fit, score
    trained           setup, loss, score
    trained + fitted  setup, loss, fit, score
    localising        score_map besides
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


@dataclass
class Views:
    """What a backbone knows about a batch of B samples; None = this backbone does not provide it."""

    x: Tensor | None = None  # (B, ...) network input, standardised
    features: Tensor | None = None  # (B, D)
    logits: Tensor | None = None  # (B, C)
    maps: Tensor | None = None  # (B, C, H, W), for dense tasks
    y: Tensor | None = None  # (B,) class label; the anomaly label never reaches a detector
    auxiliary: Tensor | None = None  # (B, C, H', W') of a head that only helps a segmenter to learn

    def map(self, fn) -> Views:
        """Apply `fn` to every view that is there: `views.map(lambda t: t[rows])`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Views(**{name: None if t is None else fn(t) for name, t in values.items()})

    def __getitem__(self, rows: Any) -> Views:
        return self.map(lambda t: t[rows])

    def __len__(self) -> int:
        return next(len(t) for f in fields(self) if (t := getattr(self, f.name)) is not None)

    @property
    def device(self) -> torch.device:
        return next(t.device for f in fields(self) if (t := getattr(self, f.name)) is not None)

    @staticmethod
    def cat(parts: Iterable[Views]) -> Views:
        """Join batches along the rows."""
        parts = list(parts)
        return Views(
            **{
                f.name: torch.cat([getattr(p, f.name) for p in parts])
                for f in fields(Views)
                if getattr(parts[0], f.name) is not None
            }
        )


@dataclass(frozen=True)
class Spec:
    """What is known only once data and backbone are there; given to `Detector.setup`."""

    shapes: dict[str, tuple[int, ...]]  # view name -> shape of one sample
    seed: int = 0
    classes: int | None = None  # C, number of ID classes
    head: nn.Linear | None = None  # the backbone's linear head: logits = head(features)
    network: nn.Module | None = None  # the backbone itself, for the few that need its gradients or inner maps
    blocks: tuple[tuple[str, int], ...] = ()  # kinds of the columns (data/split.py); () = not known, or a network's

    @property
    def dim(self) -> int:
        """D, the width of `features`."""
        return self.shapes["features"][0]


def resize_buffers(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Give buffers that were registered empty the size that the checkpoint holds (a load_state_dict pre-hook)."""
    for name, buffer in module._buffers.items():
        saved = state_dict.get(prefix + name)
        if buffer is not None and saved is not None and saved.shape != buffer.shape:
            module._buffers[name] = torch.empty_like(saved, device=buffer.device)


class Detector(nn.Module):
    """Scores samples; subclasses define the hooks they need, and `recipe` (training.py) where there is a loss.

    `setup(spec)`            builds what depends on sizes; called once, before everything else, or before loading.
    `loss(views, generator)` define it and Lightning trains you; every random draw comes from `generator`.
    `prepare(train)`         called once before a fresh training with every view: what starts at the mean of the data.
    `validate(views)`        mean loss on the rows that `recipe.validation` holds out; the best weights are kept.
    `stop(losses)`           true ends the training after this epoch; losses are the epochs' means so far.
    `fit(train)`             define it and it is called once, with every training view of every rank.
    `score(views)`           required: (B,) or (B, H, W), higher = more anomalous, each row as if it came alone.
    `score_map(views)`       (B, H, W) at the size of views.x: where the anomaly is; then score is score_of(score_map).
    """

    needs: ClassVar[tuple[str, ...]] = ("features",)  # views that must be provided; also `head`, `network`, `denoiser`
    posthoc: ClassVar[bool] = False  # scores what a trained network gives: one of `run eval detectors=all`
    paper: ClassVar[str] = ""  # where the method is from
    scoring: ClassVar[tuple[str, ...]] = ()  # options that change the score only: a new value trains nothing
    images: ClassVar[bool] = False  # takes images as they are, (C, H, W)
    raw: ClassVar[bool] = False  # `loss`, `prepare` and `validate` are given samples as the data have them (uint8)
    fits_on: str = "train"  # rows that `fit` is given: train, or calibration (held-out in-distribution rows)
    gaps: bool = False  # takes rows with NaN where a value is missing

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(resize_buffers)

    def setup(self, spec: Spec) -> None:
        """Sizes, number of classes, linear head: known only once data and backbone are."""

    def score(self, views: Views) -> Tensor:
        """(B,) anomaly scores, higher = more anomalous."""
        raise TypeError(f"{type(self).__name__} defines no score(views)")

    def score_of(self, maps_BHW: Tensor) -> Tensor:
        """(B,) anomaly scores of images whose maps these are: the largest value."""
        return maps_BHW.flatten(1).amax(1)


def set_up(detector: Detector, spec: Spec) -> Detector:
    """Build the detector's parts; the same seed gives the same initial weights, whatever ran before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        detector.setup(spec)
    return detector
