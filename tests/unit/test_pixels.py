"""Pixels hands on images between 0 and 1 and takes nothing else."""

import numpy as np
import pytest
import torch

from outlie.backbones.pixels import Pixels
from outlie.data.split import Rows, Split
from outlie.errors import UserError


def split_of(x: torch.Tensor) -> Split:
    return Split("test", Rows(x, torch.arange(len(x))), {}, None, torch.zeros(1), torch.ones(1), "")


def test_every_level_of_grey_becomes_its_share_of_white():
    x = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    backbone = Pixels()
    backbone.setup(split_of(x))
    views = backbone(x)
    expected = np.arange(256).reshape(4, 1, 8, 8).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(views.x.numpy(), expected)
    assert views.x.min() == 0 and views.x.max() == 1 and views.x.dtype == torch.float32
    assert torch.equal((views.x * 255).round().to(torch.uint8), x)  # nothing is lost
    assert views.features is None and views.y is None
    assert Pixels.provides == ("x",) and not list(backbone.parameters()) and not backbone.state_dict()


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        (torch.zeros(4, 5, dtype=torch.float64), r"\(5,\) of float64"),
        (torch.zeros(4, 5, dtype=torch.uint8), r"\(5,\) of uint8"),
        (torch.zeros(4, 1, 2, 2), r"\(1, 2, 2\) of float32"),
    ],
)
def test_what_is_no_image_is_refused(x, shape):
    with pytest.raises(UserError, match=rf"backbone pixels takes images.*{shape}; set backbone=identity"):
        Pixels().setup(split_of(x))
