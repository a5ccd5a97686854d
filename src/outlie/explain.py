"""Why this row? What each column adds: x minus its denoised image, its surprise, or the gradient of the score."""

from typing import Any, cast

import torch
from torch import Tensor

from outlie.detectors.base import Detector, Views
from outlie.errors import UserError


def denoised_difference(detector: Any, views: Views) -> Tensor:
    """(B, D) x minus what the detector takes for its noiseless image, in standard deviations of each feature."""
    x_BD = views.x
    with torch.no_grad():
        return x_BD - detector.denoise(x_BD).to(x_BD)


def score_gradient(detector: Detector, views: Views) -> Tensor:
    """(B, D) |d score / d x|: where a small change would change the score most; UserError if there is no gradient."""
    x_BD = views.x.detach().requires_grad_(True)
    with torch.enable_grad():
        scores = detector.score(Views(x=x_BD, features=x_BD))
    if scores.grad_fn is None:
        raise UserError(
            f"explain: the score of {type(detector).__name__} has no gradient: it does not run in torch, or it is the "
            "result of an optimisation; leave explain=true away"
        )
    gradient = torch.autograd.grad(scores, x_BD, torch.ones_like(scores))[0].abs()
    return gradient.nan_to_num(nan=0.0)  # a distance of 0 has no derivative: 0 is one of its subgradients


def explain(detector: Detector, views: Views) -> tuple[str, Tensor]:
    """The method's name and a (B, D) explanation: by what the detector itself can tell, elsewhere by the gradient."""
    if hasattr(detector, "denoise"):
        return "x minus its denoised image", denoised_difference(detector, views)
    if detector.gaps and hasattr(detector, "attribute"):  # without gaps, a model cannot leave a value out
        return "surprise of each value given the others, in nats", cast(Any, detector).attribute(views)
    return "gradient of the score", score_gradient(detector, views)
