"""KL matching: min over classes k of KL(p || t_k), t_k = mean p of the rows predicted as k. Hendrycks et al. 2022."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from outlie.detectors.base import Detector, Views
from outlie.detectors.softmax import log_probabilities
from outlie.log import log

ROWS_AT_ONCE = 65_536  # of (rows, C) float64


class KLMatching(Detector):
    """KL divergence from a row's probabilities to the nearest class template.

    A class that is never predicted has no template and is left out of the minimum.

    Args:
        split: rows whose mean probabilities are the templates; the paper uses held-out rows, NECO's authors train.
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    posthoc: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, ICML 2022 (KL matching)"
    )
    log_templates: Tensor

    def __init__(self, split: Literal["calibration", "train"] = "calibration") -> None:
        super().__init__()
        self.split = self.fits_on = split
        self.register_buffer("log_templates", torch.empty(0, dtype=torch.float64))

    def fit(self, train: Views) -> None:
        """Average the probabilities of the rows predicted as each class."""
        classes = train.logits.shape[1]
        sums_KC = torch.zeros(classes, classes, dtype=torch.float64, device=train.logits.device)
        rows_K = torch.zeros(classes, dtype=torch.int64, device=train.logits.device)
        for logits_BC in train.logits.split(ROWS_AT_ONCE):
            predicted = logits_BC.argmax(1)
            sums_KC.index_add_(0, predicted, log_probabilities(logits_BC).exp())
            rows_K += predicted.bincount(minlength=classes)
        seen = rows_K > 0
        if not seen.all():
            log.info(
                f"finding   KL matching: {int((~seen).sum())} of {classes} classes are never predicted on the "
                f"{len(train)} fitted rows: left out of the minimum"
            )
        templates_KC = sums_KC / rows_K.clamp(min=1)[:, None]
        smallest = torch.finfo(torch.float64).tiny
        own_KC = torch.eye(classes, dtype=torch.bool, device=templates_KC.device)
        # t_kk is near 1: its logarithm from what is missing to 1, so that confident rows keep their differences
        log_own_K = (-templates_KC.masked_fill(own_KC, 0).sum(1)).log1p()
        log_KC = torch.where(own_KC, log_own_K, templates_KC.clamp(min=smallest).log())
        self.log_templates = log_KC[seen]

    def score(self, views: Views) -> Tensor:
        """(B,) min KL(p || t_k), float64."""
        log_p_BC = log_probabilities(views.logits)
        p_BC = log_p_BC.exp()
        entropy_B = (p_BC * log_p_BC).sum(1)
        return entropy_B - (p_BC @ self.log_templates.T).max(1).values
