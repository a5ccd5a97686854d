"""How features lie on the sphere: alignment = E |x - y|^2, uniformity = ln E_{i<j} exp(-2 |x_i - x_j|^2).

x and y are the features of the same image under two draws of the noise, each of length 1. Wang & Isola, ICML 2020; the
only augmentation is the noise, as in DDAE (its specification, section 7.3).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BATCH = 512  # the logarithm is outside the mean, so the value of uniformity belongs to a batch size: this one


def alignment(x_ND: Tensor, y_ND: Tensor) -> Tensor:
    """Mean squared distance of pairs of unit vectors, 0 to 4; (..., N, D) -> (...)."""
    return (x_ND - y_ND).square().sum(-1).mean(-1)


def uniformity(x_ND: Tensor) -> Tensor:
    """ln of the mean of exp(-2 d^2) over all pairs of unit vectors; lower = more evenly spread; scalar float64."""
    return F.pdist(x_ND).double().square().mul(-2).exp().mean().log()


def contrast(x_GNC: Tensor, y_GNC: Tensor, batch: int = BATCH) -> tuple[Tensor, Tensor]:
    """Alignment and uniformity of G kinds of features, means over whole batches; (G,) float64 each.

    Args:
        x_GNC: features of N images; given length 1 here.
        y_GNC: of the same images under another draw of the noise.
        batch: images whose pairs count; what is left over is left out, fewer images than this are one batch.
    """
    whole = max(1, x_GNC.shape[1] // batch)
    aligned, uniform = [], []
    for i in range(whole):
        x, y = (F.normalize(features[:, i * batch : (i + 1) * batch].float(), dim=-1) for features in (x_GNC, y_GNC))
        aligned.append(alignment(x.double(), y.double()))
        uniform.append(torch.stack([(uniformity(one) + uniformity(other)) / 2 for one, other in zip(x, y)]))
    return torch.stack(aligned).mean(0), torch.stack(uniform).mean(0)
