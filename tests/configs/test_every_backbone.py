"""Every yaml of configs/backbone: composed, built, set up on a few rows, stepped once, and its views looked at."""

import importlib.util

import pytest
import torch
from torch import nn

from outlie import catalog, checks, signatures
from outlie.backbones.classifier import Classifier
from outlie.backbones.training import ClassifierRecipe
from outlie.build import build
from outlie.compose import compose
from outlie.data.split import Rows, Split
from outlie.detectors.base import Views
from outlie.errors import UserError

WHERE = catalog.roots()
NAMES = sorted(catalog.choices("backbone", WHERE))
PROVIDES = {name: signatures.read(catalog.target(catalog.choices("backbone", WHERE)[name])).provides for name in NAMES}
NO_HEAD = [name for name in NAMES if "head" not in PROVIDES[name]]  # identity, pixels; denoisers have their own file
CLASSIFIERS = [name for name in NAMES if name not in NO_HEAD and name not in ("timm", "unet_finetune")]
TARGETS = {name: catalog.target(catalog.choices("backbone", WHERE)[name]) for name in NAMES}
SEGMENTERS = [name for name in NAMES if TARGETS[name].endswith((".DilatedResNet", ".SegUNet"))]
HAS_TIMM = importlib.util.find_spec("timm") is not None
CLASSES = 3
SIDES = {"vit_b16": 32}  # four of its patches; the others take 16 pixels
ROWS = {"vit_b16": 2, "resnet50": 4, "wide_resnet": 2}  # large ones


def built(name: str, *words: str) -> Classifier:
    sized = [f"backbone.size={SIDES[name]}"] if name in SIDES else []
    return build(compose("train", [f"backbone={name}", *sized, *words]).backbone)


def split_of(x: torch.Tensor) -> Split:
    axes = (0, 2, 3) if x.ndim == 4 else (0,)
    mean, scale = (f(x.double(), axes, keepdim=True)[0] for f in (torch.mean, torch.std))
    return Split("p", Rows(x, torch.arange(len(x)), None, torch.arange(len(x)) % CLASSES), {}, None, mean, scale, "")


def images(name: str, channels: int = 3, n: int = 6) -> Split:
    generator = torch.Generator().manual_seed(0)
    side = SIDES.get(name, 16)
    return split_of(torch.randint(256, (n, channels, side, side), generator=generator, dtype=torch.uint8))


def set_up(name: str, split: Split) -> Classifier:
    backbone = built(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone.setup(split)
    return backbone


@torch.no_grad()
def settle(backbone: Classifier, x: torch.Tensor) -> None:
    """Give BatchNorm the statistics of these rows: after one step its running ones are those of no data, and the
    activations of a deep network explode."""
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    backbone.train()(x)
    backbone.eval()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_it_learns_and_hands_on_its_views(name):
    split = images(name)
    backbone, some = set_up(name, split), torch.arange(ROWS.get(name, 6))
    assert isinstance(backbone.recipe, ClassifierRecipe)
    assert backbone.trained

    # one step
    optimizer = backbone.recipe.optimizer(backbone.train())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(backbone.parameters()))
    loss = backbone.loss(Views(x=split.train.x[some], y=split.train.y[some]), torch.Generator().manual_seed(0))
    assert loss.shape == () and torch.isfinite(loss)
    assert 0.1 < loss.item() < 10  # near log 3 before anything is learnt
    loss.backward()
    for parameter_name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.any(), parameter_name
    head = backbone.head.weight.detach().clone()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    assert not torch.equal(head, backbone.head.weight)

    # its views
    settle(backbone, split.train.x[some])
    before = [t.clone() for t in backbone.buffers()]
    with torch.no_grad():
        views, alone = backbone(split.train.x[:2]), backbone(split.train.x[1:2])
    assert all(map(torch.equal, before, backbone.buffers()))
    assert isinstance(backbone.head, nn.Linear) and backbone.head.out_features == CLASSES
    assert views.x.shape == (2, 3, SIDES.get(name, 16), SIDES.get(name, 16))
    assert views.features.shape == (2, backbone.head.in_features) and views.logits.shape == (2, CLASSES)
    assert {t.dtype for t in (views.x, views.features, views.logits)} == {torch.float32}
    by_hand = views.features.double() @ backbone.head.weight.double().T + backbone.head.bias.double()
    torch.testing.assert_close(views.logits.double(), by_hand, rtol=1e-4, atol=1e-4)
    for view in ("x", "features", "logits"):
        one, other = getattr(alone, view)[0], getattr(views, view)[1]
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
    assert views.features.isfinite().all() and not torch.allclose(views.features[0], views.features[1])
    with torch.no_grad():
        stages = backbone.stages(views.x) if hasattr(backbone, "stages") else []
        for i, maps in enumerate(stages):  # where they are, what they give is the logits
            torch.testing.assert_close(
                backbone.tail(maps, i), views.logits, rtol=1e-4, atol=1e-4 * float(views.logits.abs().max())
            )


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_what_it_says_it_provides_is_in_its_views(name):
    signature = signatures.read(catalog.target(catalog.choices("backbone", WHERE)[name]))
    split = images(name)
    with torch.no_grad():
        views = set_up(name, split).eval()(split.train.x[:2])
    there = {view for view in ("x", "features", "logits", "maps") if getattr(views, view) is not None}
    assert set(signature.provides) == there | {"head", "network"}
    if views.maps is not None:
        assert views.maps.shape[:2] == views.features.shape and views.maps.dtype == torch.float32


@pytest.mark.parametrize("name", ["resnet10/narrow", "wide_resnet/small", "vit_s", "mlp"])
def test_grey_images(name):
    split = images(name, channels=1)
    with torch.no_grad():
        assert set_up(name, split).eval()(split.train.x).logits.shape == (6, CLASSES)


def test_a_table_takes_the_perceptron_and_no_other():
    table = split_of(torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert set_up("mlp", table).eval()(table.train.x).features.dtype == torch.float32
    for name in CLASSIFIERS:
        if name != "mlp":
            with pytest.raises(UserError, match="are no images; set backbone="):
                set_up(name, table)


def test_identity_is_for_everything_and_never_trained():
    backbone, split = built("identity"), images("identity")
    backbone.setup(split)
    assert not getattr(backbone, "trained", False) and not list(backbone.parameters())
    assert backbone(split.train.x).features.shape == (6, 3 * 16 * 16)


def test_pixels_are_for_images_and_never_trained():
    backbone, split = built("pixels"), images("pixels")
    backbone.setup(split)
    assert not getattr(backbone, "trained", False) and not backbone.state_dict()
    views = backbone(split.train.x)
    torch.testing.assert_close(views.x.double(), split.train.x.double() / 255, rtol=1e-7, atol=0)
    assert views.x.dtype == torch.float32 and views.features is None and views.logits is None
    with pytest.raises(UserError, match="backbone pixels takes images"):
        backbone.setup(split_of(torch.randn(12, 5)))


@pytest.mark.parametrize("needs", [("x",), ("features",), ("x", "features")])
def test_identity_is_suggested_first(needs):
    assert checks.providers(needs, WHERE)[0] == "identity"


def test_timm_or_how_to_get_it():
    split = images("timm")
    if HAS_TIMM:
        with torch.no_grad():
            assert set_up("timm", split).eval()(split.train.x).logits.shape == (6, CLASSES)
    else:
        with pytest.raises(UserError, match=r"pip install outlie\[vision\]"):
            set_up("timm", split)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_segmenter_gives_every_pixel_a_class_and_learns_from_it(name):
    split = images(name, n=4)
    split.train.y = split.train.x[:, 0].long() % CLASSES  # a class for every pixel
    split.train.y[:, 0] = 255  # which does not count
    split.classes = ("a", "b", "c")
    backbone = built(name, "backbone.width=4", "backbone.scales=[1,1]", "backbone.crop=null")
    torch.manual_seed(0)
    backbone.setup(split)
    views = Views(x=split.train.x, y=split.train.y)
    loss = backbone.train().loss(views, torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None for p in backbone.parameters())
    with torch.no_grad():
        found = backbone.eval()(split.train.x)
    assert found.maps.shape == (4, CLASSES, 16, 16) and found.features.isfinite().all()
    layers = dict(backbone.named_modules())
    assert backbone.stage_names and all(stage in layers for stage in backbone.stage_names)


def test_nothing_is_left_out():
    others = {name for name in NAMES if "denoiser" in PROVIDES[name]} | {"identity", "pixels", "timm"}
    assert {*CLASSIFIERS, *others, *SEGMENTERS, "unet_finetune"} == set(NAMES)
    assert {"pspnet_r18", "deeplab_r50", "seg_unet", "pspnet_r18/paper"} <= set(SEGMENTERS)
    assert {"mlp", "resnet18", "vit_b16", "wide_resnet", "resnet18/collapse"} <= set(CLASSIFIERS)
