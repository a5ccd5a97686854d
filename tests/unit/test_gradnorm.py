"""GradNorm against the gradient that autograd gives, one row at a time."""

import numpy as np
import pytest
import torch
from torch import nn

from outlie.detectors.base import Views
from outlie.detectors.gradnorm import GradNorm


def rows(dim: int, classes: int, n: int = 12) -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(dim, classes).double()
    return head, torch.randn(n, dim, dtype=torch.float64) * torch.linspace(0.1, 20, n, dtype=torch.float64)[:, None]


@pytest.mark.parametrize(("dim", "classes"), [(6, 4), (3, 2), (20, 11)])
def test_it_is_the_norm_of_the_gradient(dim, classes):
    head, h = rows(dim, classes)
    expected = []
    for row in h:
        loss = -head(row).log_softmax(0).sum()
        (gradient,) = torch.autograd.grad(loss, head.weight)
        expected.append(-gradient.abs().sum().item())
    with torch.no_grad():
        views = Views(features=h, logits=head(h))
    np.testing.assert_allclose(GradNorm().score(views), expected, rtol=1e-12)
    as_float = views.map(lambda t: t.float())
    np.testing.assert_allclose(GradNorm().score(as_float), expected, rtol=1e-5)
    alone = [GradNorm().score(as_float[i : i + 1]).item() for i in range(len(h))]
    np.testing.assert_allclose(alone, GradNorm().score(as_float), rtol=1e-12)


def test_zero_features_score_0_and_confident_ones_lower():
    h = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 1, 1], [9, 9, 9]])
    logits = torch.tensor([[0.0, 0], [0, 0.1], [0, 900], [0, 0.1]])
    zero, doubtful, confident, long = GradNorm().score(Views(features=h, logits=logits)).tolist()
    assert zero == 0 and confident < doubtful < 0 and long < doubtful
    assert confident == pytest.approx(-3 * 2)  # ||h||_1 (|0 - 1| + |2 - 1|)
