"""Every classifier backbone: published numbers, the contract with detectors, setup, a real training."""

import copy
import hashlib
import json
import math
import sys
import types
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits, load_wine
from torch import nn

from outlie.backbones.classifier import Classifier
from outlie.backbones.mlp import MLP
from outlie.backbones.resnet import ResNet
from outlie.backbones.timm_model import Timm
from outlie.backbones.vit import ViT
from outlie.backbones.wide_resnet import WideResNet
from outlie.data.split import Rows, Split
from outlie.detectors.base import Views
from outlie.errors import UserError

PUBLISHED = json.loads((Path(__file__).parents[1] / "golden" / "published_networks.json").read_text())
NETWORKS = {
    "resnet10": (ResNet, {"depth": 10, "width": 4}),
    "resnet50": (ResNet, {"depth": 50, "width": 2}),
    "wide_resnet": (WideResNet, {"depth": 10, "widen": 1}),
    "vit": (ViT, {"patch": 4, "dim": 16, "depth": 2, "heads": 2}),
    "mlp": (MLP, {"hidden": [12, 8]}),
}


def split_of(x: torch.Tensor, y: torch.Tensor | None, **more) -> Split:
    """Training rows with their own statistics."""
    axes = (0, 2, 3) if x.ndim == 4 else (0,)
    mean, scale = x.double().mean(axes), x.double().std(axes)
    if x.ndim == 4:
        mean, scale = mean[:, None, None], scale[:, None, None]
    return Split("p", Rows(x, torch.arange(len(x)), None, y), {}, None, mean, scale, "hash", **more)


def images(n: int = 24, channels: int = 3, side: int = 16, classes: int = 4) -> Split:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (n, channels, side, side), generator=generator, dtype=torch.uint8)
    return split_of(x, torch.arange(n) % classes)


def ready(name: str, split: Split, **options) -> Classifier:
    """Set up with fixed weights and non-trivial batch statistics, in eval mode."""
    cls, own = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = cls(**own, **options)
        network.setup(split)
    network.train()
    with torch.no_grad():
        network(split.train.x)
    return network.eval()


@pytest.fixture(params=NETWORKS)
def name(request):
    return request.param


# --- published numbers


def fill(module: nn.Module) -> dict[str, torch.Tensor]:
    """Each weight a sine of its index and its name's place in the alphabet, activations near 1; the weights."""
    state = {name: tensor for name, tensor in module.state_dict().items() if name not in ("mean", "scale")}
    for place, name in enumerate(sorted(n for n, t in state.items() if t.is_floating_point())):
        t = state[name]
        wave = torch.sin(0.7 * torch.arange(t.numel(), dtype=torch.float64) ** 1.1 + place).reshape(t.shape)
        if name.endswith("running_var") or (t.ndim == 1 and name.endswith("weight")):
            wave = 1 + 0.3 * wave
        elif t.ndim > 1:
            wave = wave * math.sqrt(2 / t[0].numel())
        t.copy_(wave)
    return state


def image(side: int) -> torch.Tensor:
    return torch.sin(torch.arange(2 * 3 * side * side, dtype=torch.float64) ** 1.3).reshape(2, 3, side, side).float()


@pytest.mark.parametrize(
    ("key", "network", "side", "classes"),
    [
        ("resnet18", ResNet(depth=18, stem="imagenet"), 64, 1000),
        ("resnet34", ResNet(depth=34, stem="imagenet"), 64, 1000),
        ("resnet50", ResNet(depth=50, stem="imagenet"), 64, 1000),
        ("vit", ViT(patch=16, dim=192, depth=2, heads=3), 48, 5),
    ],
)
def test_names_order_shapes_and_logits_are_torchvisions_and_timms(key, network, side, classes):
    network.build((3, side, side), classes)
    state = fill(network.eval())
    listing = "\n".join(f"{name} {list(tensor.shape)}" for name, tensor in state.items())
    assert len(state) == PUBLISHED[key]["names"]
    assert hashlib.sha256(listing.encode()).hexdigest() == PUBLISHED[key]["names_sha256"]
    with torch.no_grad():
        logits = network.views(image(side)).logits
    torch.testing.assert_close(logits[:, :5], torch.tensor(PUBLISHED[key]["logits"]), rtol=1e-3, atol=1e-3)


# --- the contract with detectors


@torch.no_grad()
def test_views_and_head(name):
    split = images()
    network = ready(name, split)
    views = network(split.train.x)
    assert views.x.shape == split.train.x.shape
    assert {t.dtype for t in (views.x, views.features, views.logits)} == {torch.float32}
    torch.testing.assert_close(views.x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(views.x.std((0, 2, 3)), torch.ones(3), atol=1e-5, rtol=0)
    assert isinstance(network.head, nn.Linear)
    by_hand = views.features @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(views.logits, by_hand, rtol=1e-5, atol=1e-5)
    assert views.logits.shape == (24, 4)
    assert views.features.std(0).min() >= 0 and views.features.std(0).max() > 1e-3


@torch.no_grad()
def test_a_row_alone_is_as_in_a_batch(name):
    split = images()
    network = ready(name, split)
    together = network(split.train.x)
    alone = Views.cat([network(row[None]) for row in split.train.x])
    torch.testing.assert_close(alone.features, together.features, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(alone.logits, together.logits, rtol=1e-4, atol=1e-6)


def test_only_convolutions_have_stages(name):
    assert hasattr(NETWORKS[name][0], "stages") == hasattr(NETWORKS[name][0], "tail") == ("resnet" in name)


@torch.no_grad()
def test_features_and_logits_stay_float32_under_autocast(name):
    split = images()
    network = ready(name, split)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        views = network(split.train.x)
    assert views.features.dtype == views.logits.dtype == torch.float32
    # the head itself is not rounded: detectors compute with it
    torch.testing.assert_close(views.logits, network.head(views.features), rtol=1e-6, atol=1e-6)


def test_a_state_dict_holds_every_weight_once_and_makes_the_same_network(name, tmp_path):
    split = images()
    network = ready(name, split)
    pointers = [t.data_ptr() for t in network.state_dict().values()]
    assert len(set(pointers)) == len(pointers)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    cls, own = NETWORKS[name]
    other = cls(**own)
    other.build((3, 16, 16), 4)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    for twin in (other.eval(), copy.deepcopy(network)):
        assert torch.equal(twin(split.train.x).logits, network(split.train.x).logits)
        assert twin.head.weight.data_ptr() in {p.data_ptr() for p in twin.parameters()}


def test_initial_weights_are_the_global_generators(name):
    split, (cls, own) = images(), NETWORKS[name]
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        network = cls(**own)
        network.setup(split)
        states.append(network.head.weight.detach().clone())
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("normalise", ["half", "imagenet"])
def test_fixed_standardisations(normalise, channels):
    network = MLP(normalise=normalise)
    if (normalise, channels) == ("imagenet", 1):
        with pytest.raises(UserError, match="normalise = imagenet is for 3 channels, the data have 1"):
            network.setup(images(channels=1))
        return
    network.setup(images(channels=channels))
    x = torch.tensor([0, 128, 255], dtype=torch.uint8).repeat(channels, 1)[None, :, :, None]
    mean, scale = torch.full((channels,), 0.5), torch.full((channels,), 0.5)
    if normalise == "imagenet":
        mean, scale = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (x / 255 - mean[:, None, None]) / scale[:, None, None]
    torch.testing.assert_close(network.standardise(x), expected, atol=1e-5, rtol=1e-5)
    assert network.scale.shape == (channels, 1, 1)


@torch.no_grad()
def test_images_are_resized(name):
    split = images(side=8)
    network = ready(name, split, size=16)
    views = network(split.train.x)
    assert views.x.shape == (24, 3, 16, 16)
    assert torch.equal(network.views(views.x).logits, views.logits)
    flat = torch.full((1, 3, 8, 8), 77, dtype=torch.uint8)
    torch.testing.assert_close(network.standardise(flat)[0], ((77 - network.mean) / network.scale).expand(3, 16, 16))


# --- setup


@pytest.mark.parametrize(
    ("y", "more", "message"),
    [
        (None, {}, "this dataset has no class labels: .*set backbone=identity"),
        ([0, 1, 3, 3], {}, "no training rows of class 2"),
        ([0, 1, 1, 0], {"classes": ("cat", "dog", "owl")}, "no training rows of class owl"),
        ([0, 1, 2, 0], {"classes": ("cat", "dog")}, "class label 2 in the training rows: allowed are 0 to 1"),
        ([0, 1, -1, 0], {}, "class label -1 in the training rows: allowed are 0 to 1"),
        ([0, 0, 0, 0], {}, "only one class"),
    ],
)
def test_labels_that_cannot_be(y, more, message):
    x = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match=message):
        MLP().setup(split_of(x, None if y is None else torch.tensor(y), **more))


@pytest.mark.parametrize("options", [{"augment": "crop"}, {"size": 8}, {"normalise": "half"}])
def test_a_table_is_no_image(options):
    table = split_of(torch.randn(6, 5).double(), torch.arange(6) % 2)
    with pytest.raises(UserError, match=r"rows of shape \(5,\) are no images; set backbone\.augment=none"):
        MLP(**options).setup(table)
    with pytest.raises(UserError, match=r"rows of shape \(5,\) are no images; set backbone=mlp"):
        ResNet(augment="none").setup(table)


def test_a_mistake_in_the_options():
    with pytest.raises(UserError, match="label_smoothing = 1"):
        ResNet(label_smoothing=1.0)
    with pytest.raises(UserError, match="finetune = true, but there are no weights"):
        ResNet(finetune=True).setup(images())


# --- training


def train(network: Classifier, split: Split, steps: int) -> None:
    optimizer = network.recipe.optimizer(network.train())
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = network.recipe.lr_at(step / steps)
        rows = torch.randperm(len(split.train), generator=generator)[: network.recipe.batch_size]
        loss = network.loss(Views(x=split.train.x[rows], y=split.train.y[rows]), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()


@torch.no_grad()
def accuracy(network: Classifier, x: torch.Tensor, y: torch.Tensor) -> float:
    return float((network(x).logits.argmax(1) == y).float().mean())


def test_digits_are_learnt():
    digits = load_digits()
    x, y = torch.as_tensor(digits.images * 15).byte()[:, None], torch.as_tensor(digits.target).long()
    split = split_of(x[:1400], y[:1400])
    torch.manual_seed(0)
    network = ResNet(depth=10, width=8, batch_size=64, augment="crop")
    network.setup(split)
    assert accuracy(network.eval(), x[1400:], y[1400:]) < 0.5
    train(network, split, 150)
    assert accuracy(network, x[1400:], y[1400:]) > 0.9


def test_a_table_with_classes_is_learnt():
    wine = load_wine()
    x, y = torch.as_tensor(wine.data), torch.as_tensor(wine.target).long()
    split = split_of(x[::2], y[::2])
    torch.manual_seed(0)
    network = MLP(hidden=[16], batch_size=32, lr=0.05)
    network.setup(split)
    train(network, split, 100)
    assert accuracy(network, x[1::2], y[1::2]) > 0.9
    assert network.mean.dtype == torch.float64 and network(x).x.dtype == torch.float32


def test_every_weight_gets_a_gradient(name):
    split = images()
    network = ready(name, split, label_smoothing=0.1).train()
    network.loss(Views(x=split.train.x, y=split.train.y), torch.Generator().manual_seed(0)).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip", "resized_crop"])
@torch.no_grad()
def test_the_loss_draws_from_its_generator_alone(augment):
    split = images()
    network = ready("mlp", split, augment=augment, mixup=0.2)
    batch, before = Views(x=split.train.x, y=split.train.y), split.train.x.clone()
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        global_state = torch.get_rng_state()
        losses.append(float(network.loss(batch, torch.Generator().manual_seed(5))))
        assert torch.equal(torch.get_rng_state(), global_state)
    assert losses[0] == losses[1] == losses[2]
    assert float(network.loss(batch, torch.Generator().manual_seed(6))) != losses[0]
    assert torch.equal(split.train.x, before)


def test_the_loss_is_smoothed_cross_entropy():
    split = images()
    network = ready("mlp", split, label_smoothing=0.3)
    log_p = network(split.train.x).logits.log_softmax(1)
    expected = sum(
        -(0.7 * row[label] + 0.3 * row.mean()) for row, label in zip(log_p, split.train.y.tolist())
    ) / len(log_p)  # fmt: skip
    loss = network.loss(Views(x=split.train.x, y=split.train.y), torch.Generator())
    torch.testing.assert_close(loss, expected)


def test_mixup_is_the_same_mixture_of_inputs_and_losses():
    split = images()
    network = ready("mlp", split, mixup=1.0)
    generator = torch.Generator().manual_seed(3)
    loss = network.loss(Views(x=split.train.x, y=split.train.y), generator)
    generator.manual_seed(3)
    gamma = torch._standard_gamma(torch.ones(2, dtype=torch.float64), generator=generator)
    share = float(gamma[0] / gamma.sum())
    partner = torch.randperm(24, generator=generator)
    z, y = network.standardise(split.train.x), split.train.y
    expected = 0.0
    for i, j in enumerate(partner.tolist()):
        log_p = network.views((share * z[i] + (1 - share) * z[j])[None]).logits.log_softmax(1)[0]
        expected -= (share * log_p[y[i]] + (1 - share) * log_p[y[j]]) / 24
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert 0.05 < share < 0.95


# --- timm, which is not installed everywhere: a stand-in of two layers


class Stub(nn.Module):
    def __init__(self, num_classes: int = 7, in_chans: int = 3) -> None:
        super().__init__()
        self.stem, self.classifier = nn.Conv2d(in_chans, 6, 3), nn.Linear(6, num_classes)

    def get_classifier(self):
        return self.classifier

    def forward_features(self, z):
        return self.stem(z).relu()

    def forward_head(self, maps, pre_logits=False):
        pooled = maps.mean((2, 3))
        return pooled if pre_logits else self.classifier(pooled)


@pytest.fixture
def timm(monkeypatch):
    """A timm whose own weights are all 0.1 and for 7 classes."""

    def create_model(name, pretrained=False, **options):
        if name != "stub":
            raise RuntimeError(f"Unknown model ({name})")
        model = Stub(**options)
        if pretrained:
            for p in model.parameters():
                nn.init.constant_(p, 0.1)
        return model

    module = types.ModuleType("timm")
    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)


@pytest.mark.usefixtures("timm")
def test_timm_model_has_the_contract():
    split = images()
    network = Timm(model="stub")
    assert network.trained
    network.setup(split)
    views = network.eval()(split.train.x)
    assert views.logits.shape == (24, 4) and views.features.shape == (24, 6)
    assert network.head is network.model.classifier
    torch.testing.assert_close(views.logits, network.model.forward_head(network.model.forward_features(views.x)))
    with pytest.raises(UserError, match="timm cannot make 'studd': Unknown model"):
        Timm(model="studd").setup(split)


@pytest.mark.usefixtures("timm")
def test_timms_own_weights(tmp_path):
    seven = images(28, classes=7)
    network = Timm(model="stub", pretrained=True)
    assert not network.trained
    network.setup(seven)
    assert {float(p.detach().unique()) for p in network.parameters()} == {torch.tensor(0.1).item()}
    with pytest.raises(UserError, match="timm's stub: weights for 7 classes, the data have 4"):
        Timm(model="stub", pretrained=True).setup(images())
    finetuned = Timm(model="stub", pretrained=True, finetune=True)
    finetuned.setup(images())
    assert finetuned.trained and len(finetuned.head.weight) == 4
    assert finetuned.model.stem.weight.unique().numel() == 1 and finetuned.head.weight.unique().numel() > 1
    # a run's checkpoint has our names, and goes back in
    path = tmp_path / "model.ckpt"
    torch.save({"backbone": network.state_dict()}, path)
    again = Timm(model="stub", weights=path)
    again.setup(seven)
    assert torch.equal(again.head.weight, network.head.weight)
    with pytest.raises(UserError, match="pretrained = true and weights"):
        Timm(model="stub", pretrained=True, weights=path)


def test_timm_missing_or_broken(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"backbone=timm needs timm.*pip install outlie\[vision\]"):
        Timm().setup(images())
