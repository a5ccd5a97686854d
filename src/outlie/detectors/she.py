"""SHE, simplified Hopfield energy: -<h, S_yhat>, S_c the mean feature of class c's correctly classified rows."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from outlie.detectors.base import Detector, Spec, Views
from outlie.errors import UserError
from outlie.log import log

ROWS = 65_536  # turned to float64 at once


def patterns(features: Tensor, label: Tensor, predicted: Tensor, classes: int) -> tuple[Tensor, list[int]]:
    """Mean feature of each class's correctly classified rows, of all its rows where none is.

    Returns:
        (C, D) float64 means, and the classes without a correctly classified row.

    Raises:
        UserError: a label out of range, or a class without rows.
    """
    wrong = label[(label < 0) | (label >= classes)]
    if len(wrong):
        raise UserError(f"class label {int(wrong[0])}, but the head has the classes 0 to {classes - 1}")
    group = 2 * label + (label == predicted)  # of a class: its misclassified rows, then the others
    sums = torch.zeros(2 * classes, features.shape[1], dtype=torch.float64, device=features.device)
    for part, its_group in zip(features.split(ROWS), group.split(ROWS)):
        sums.index_add_(0, its_group, part.double())
    sums_C2D, count_C2 = sums.view(classes, 2, -1), torch.bincount(group, minlength=2 * classes).view(classes, 2)
    empty = (count_C2.sum(1) == 0).nonzero()[:, 0].tolist()
    if empty:
        raise UserError(f"no training row of class {', '.join(map(str, empty))}; SHE needs rows of every class")
    none = count_C2[:, 1] == 0
    means_CD = sums_C2D[:, 1] / count_C2[:, 1:]
    return torch.where(none[:, None], sums_C2D[:, 0] / count_C2[:, :1], means_CD), none.nonzero()[:, 0].tolist()


class SHE(Detector):
    """Inner product of a feature with the stored pattern of its predicted class.

    A class none of whose training rows is classified correctly has the mean of all its rows for a pattern, and a
    finding says so; the released code makes its scores NaN.

    Args:
        metric: inner product as published; cosine or negative euclidean distance.
    """

    needs: ClassVar[tuple[str, ...]] = ("features", "logits")
    paper: ClassVar[str] = (
        "Zhang et al., Out-of-Distribution Detection based on In-Distribution Data Patterns Memorization with Modern "
        "Hopfield Energy, ICLR 2023"
    )
    posthoc: ClassVar[bool] = True
    scoring: ClassVar[tuple[str, ...]] = ("metric",)
    patterns: Tensor

    def __init__(self, metric: Literal["inner", "cosine", "euclidean"] = "inner") -> None:
        super().__init__()
        self.metric = metric
        self.classes = 0
        self.register_buffer("patterns", torch.empty(0, dtype=torch.float64))

    def setup(self, spec: Spec) -> None:
        self.classes = spec.classes or 0

    def fit(self, train: Views) -> None:
        """Store a pattern per class."""
        if train.y is None:
            raise UserError("SHE needs class labels of the training rows; set dataset to one that has them")
        self.patterns, none = patterns(train.features, train.y, train.logits.argmax(1), self.classes)
        if none:
            log.info(
                "finding   SHE: no training row of class %s is classified correctly; the pattern is the mean of all",
                ", ".join(map(str, none)),
            )

    def score(self, views: Views) -> Tensor:
        """(B,) float64."""
        h_BD, stored_BD = views.features.double(), self.patterns[views.logits.argmax(1)]
        match self.metric:
            case "inner":
                return -(h_BD * stored_BD).sum(1)
            case "cosine":
                return -F.cosine_similarity(h_BD, stored_BD)
            case _:
                return (h_BD - stored_BD).norm(dim=1)
