"""Every denoiser of configs/backbone: composed, built, set up on small images, stepped once, its features seen."""

import pytest
import torch

from outlie import catalog, signatures
from outlie.build import build
from outlie.compose import compose
from outlie.data.split import Rows, Split
from outlie.detectors.base import Views

WHERE = catalog.roots()
NAMES = [
    name for name, path in sorted(catalog.choices("backbone", WHERE).items())
    if "denoiser" in signatures.read(catalog.target(path)).provides
]  # fmt: skip
HUGE = {"dit/b", "dit/l", "dit/xl", "unet_pp/edm_aug"}  # built without memory; edm_aug's step is that of edm, labelled
PARAMETERS = {
    "unet": 35_746_307, "unet/edm": 35_746_307, "unet_pp": 56_524_291, "unet_pp/edm": 56_524_291,
    "unet_pp/edm_aug": 56_525_443,
}  # fmt: skip
IMAGES = {"unet": 100e6, "unet/edm": 100e6, "unet_pp": 100e6, "unet_pp/edm": 100e6, "unet_pp/edm_aug": 200e6}


def test_they_are_all_here():
    assert {"unet", "unet/small", "unet_pp", "dit"} <= set(NAMES)


def built(name: str):
    return build(compose("train", [f"backbone={name}"]).backbone)


@pytest.mark.parametrize("name", [name for name in NAMES if name in HUGE or name in PARAMETERS])
def test_sizes(name):
    backbone = built(name)
    with torch.device("meta"):
        backbone.build((3, 32, 32), None)
    count = sum(p.numel() for p in backbone.parameters())
    assert count == PARAMETERS.get(name, count) and count > 1e7
    assert backbone.recipe.images == IMAGES.get(name, backbone.recipe.images)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in HUGE])
def test_it_learns_and_hands_on_its_views(name):
    x = torch.randint(256, (3, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    backbone = built(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone.setup(Split("p", Rows(x, torch.arange(3)), {}, None, torch.zeros(3, 1, 1), torch.ones(3, 1, 1), ""))
    assert backbone.trained
    optimizer = backbone.recipe.optimizer(backbone.train())
    loss = backbone.loss(Views(x=x[:2]), torch.Generator().manual_seed(0))
    assert loss.shape == () and 0.1 < loss.item() < 10
    loss.backward()
    first = next(iter(backbone.parameters()))
    before = first.detach().clone()
    optimizer.step()
    if not name.startswith("dit"):  # adaLN-Zero: the blocks move once the gates have
        assert not torch.equal(before, first)
    with torch.no_grad():
        views = backbone.eval()(x)
    assert views.x.shape == x.shape and views.x.min() >= -1 and views.x.max() <= 1
    assert views.features.ndim == 2 and torch.isfinite(views.features).all()
