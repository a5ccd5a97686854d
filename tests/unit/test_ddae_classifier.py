"""A denoiser fine-tuned to classify: what is kept of it, its learning rates, a real training, files and bad input."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from sklearn.datasets import load_digits
from torch import Tensor, nn

from outlie import stages
from outlie.backbones.classifier import Classifier
from outlie.backbones.ddae_classifier import DDAEClassifier
from outlie.backbones.denoiser import Denoiser
from outlie.backbones.dit import DiT
from outlie.backbones.training import ClassifierRecipe
from outlie.backbones.unet import UNet
from outlie.build import build
from outlie.compose import compose
from outlie.data.split import Rows, Split
from outlie.detectors.base import Views
from outlie.errors import UserError
from outlie.results.checkpoint import load_backbone
from outlie.trainer import Options

SMALL = {"base": 8, "multipliers": [1, 2], "depth": 1, "attention": [1], "dropout": 0.0}  # out_1..out_4, of 8 x 8
TRAINED = {"epochs": 2, "augment": "none", "optimizer": "adamw", "lr": 1e-3}


def split_of(x: Tensor, y: Tensor) -> Split:
    mean, scale = x.double().mean((0, 2, 3), keepdim=True)[0], x.double().std((0, 2, 3), keepdim=True)[0]
    return Split("p", Rows(x, torch.arange(len(x)), None, y), {}, None, mean, scale, "hash")


def noise_images(n: int = 12, channels: int = 1, classes: int = 3) -> Split:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (n, channels, 8, 8), generator=generator, dtype=torch.uint8)
    return split_of(x, torch.arange(n) % classes)


def finished(folder: Path, denoiser: Denoiser, section: dict, shape=(1, 8, 8)) -> Path:
    """What a finished run leaves of a denoiser."""
    torch.manual_seed(5)
    denoiser.build(shape, None)
    folder.mkdir(exist_ok=True)
    OmegaConf.save({"seed": 0, "backbone": section}, folder / "config.yaml")
    content = {"backbone": denoiser.state_dict(), "input_shape": list(shape), "classes": None}
    torch.save(content, folder / "model.ckpt")
    return folder / "model.ckpt"


def unet_run(folder: Path, **options) -> tuple[Path, UNet]:
    unet = UNet(**(SMALL | options))
    section = {"_target_": "outlie.backbones.unet.UNet", **SMALL, **options, "images": 1000}
    return finished(folder, unet, section), unet.eval()


@pytest.fixture
def run(tmp_path) -> tuple[Path, UNet]:
    return unet_run(tmp_path / "denoiser")


def ready(split: Split, **options) -> DDAEClassifier:
    torch.manual_seed(0)
    network = DDAEClassifier(**(TRAINED | options))
    network.setup(split)
    return network.eval()


# --- what is kept of the denoiser


@pytest.mark.parametrize("block", [None, "down_2", "middle", "out_1", "out_4"])
@torch.no_grad()
def test_features_are_those_of_the_whole_denoiser(run, block):
    path, unet = run
    split = noise_images()
    network = ready(split, denoiser=path, block=block, log_snr=3.0, noise_seed=7)
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    time = unet.process.time_at(3.0)
    a, b = unet.process.coefficients(time)
    noisy = a * (split.train.x / 127.5 - 1) + b * noise
    _, maps = unet.net(noisy, (time.float() * 0.001).expand(12), blocks=[block or "out_2"])  # all of it: no `stop`
    views = network(split.train.x)
    torch.testing.assert_close(views.features, maps[block or "out_2"].mean((2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(views.logits, network.head(views.features))
    alone = network(split.train.x[3:4])
    torch.testing.assert_close(alone.features[0], views.features[3], rtol=1e-4, atol=1e-5)


def test_what_follows_the_block_is_gone_and_the_rest_learns(run):
    path, unet = run
    split = noise_images()
    kept = {}
    for block in (None, "down_1", "middle", "out_4"):
        network = ready(split, denoiser=path, block=block).train()
        network.loss(Views(x=split.train.x, y=split.train.y), torch.Generator().manual_seed(0)).backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), (block, name)
        kept[block] = {name.split(".")[1] for name, _ in network.denoiser.net.named_parameters() if "." in name}
        before = dict(unet.named_parameters())
        for name, parameter in network.denoiser.named_parameters():
            assert torch.equal(parameter, before[name]), name  # nothing lost on the way
    assert {"out_1", "out_2"} <= kept[None] and not {"out_3", "out_4", "double_1"} & kept[None]
    assert "down_1" in kept["down_1"] and not {"halve_1", "down_2", "out_1"} & kept["down_1"]
    names = dict(ready(split, denoiser=path, block="out_4").denoiser.net.named_modules())
    assert "up.out_4" in names and "head" not in names


@pytest.mark.parametrize("block", ["layer_0", "layer_1"])
def test_a_transformer_and_one_that_knew_its_augmentation(tmp_path, block, monkeypatch):
    monkeypatch.setattr("outlie.diffusion.dit.SIZES", {"S": (16, 3, 2)})
    section = {"_target_": "outlie.backbones.dit.DiT", "size": "S", "patch": 2, "augment": 0.1}
    path = finished(tmp_path / "dit", DiT("S", 2, augment=0.1), section)
    network = ready(noise_images(), denoiser=path, block=block)
    names = [name for name, _ in network.denoiser.named_parameters()]
    depth = int(block[-1]) + 1
    assert {name.split(".")[2] for name in names if ".blocks." in name} == {str(i) for i in range(depth)}
    assert not any("label" in name or "final" in name for name in names)
    views = Views(x=noise_images().train.x, y=noise_images().train.y)
    network.train().loss(views, torch.Generator().manual_seed(0)).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert len(network.parameter_groups()) == 1 + depth


def test_a_unet_that_knew_its_augmentation_and_edm(tmp_path):
    path, _ = unet_run(tmp_path / "edm", process="edm", augment=0.1)
    network = ready(noise_images(), denoiser=path, log_snr=4.0)
    assert network.time == pytest.approx(0.1353353)  # exp(-4 / 2)
    assert not any("label" in name for name, _ in network.named_parameters())


# --- noise


def test_noise_is_each_images_own_in_training_and_shared_after_it(run, monkeypatch):
    split, seen = noise_images(), []
    network = ready(split, denoiser=run[0], log_snr=2.0)
    same = split.train.x[:1].expand(6, -1, -1, -1).contiguous()
    inner = Denoiser.maps
    monkeypatch.setattr(Denoiser, "maps", lambda self, x, *rest: seen.append(x.detach()) or inner(self, x, *rest))
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        network.train().loss(Views(x=same, y=split.train.y[:6]), generator)
    network.eval()(same)
    assert not torch.equal(seen[0][0], seen[0][1]) and not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2][0], seen[2][5])
    a, b = network.denoiser.process.coefficients(torch.tensor(network.time))
    drawn = (torch.cat(seen[:2]) - a * (same[0] / 127.5 - 1)) / b
    assert abs(float(drawn.mean())) < 0.15 and float(drawn.std()) == pytest.approx(1, abs=0.1)


# --- learning rates


def test_the_rate_falls_from_the_head_to_the_stem(run):
    network = ready(noise_images(), denoiser=run[0], layer_decay=0.5, denoiser_lr=0.2, lr=0.1)
    rate = {}
    optimizer = network.recipe.optimizer(network)
    named = {id(parameter): name for name, parameter in network.named_parameters()}
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.1 * group["scale"])
        rate |= {named[id(parameter)]: group["scale"] for parameter in group["params"]}
    assert set(rate) == set(named.values())  # each once: an optimiser refuses a second time
    prefix = "denoiser.net."
    expected = {  # down_1, down_2, middle, out_1, out_2; a resampling layer goes with the block that it leads to
        "head.weight": 1.0,
        "up.out_2.residual.conv_1.weight": 0.2,
        "up.out_1.residual.conv_1.weight": 0.1,
        "middle.1.conv_1.weight": 0.05,
        "middle.0.attention.qkv.weight": 0.05,
        "down.down_2.residual.conv_1.weight": 0.025,
        "down.halve_1.weight": 0.025,
        "down.down_1.residual.conv_1.weight": 0.0125,
        "stem.weight": 0.0125,
        "time.0.weight": 0.0125,
    }
    for name, scale in expected.items():
        assert rate[name if name.startswith("head") else prefix + name] == pytest.approx(scale), name


def test_other_classifiers_keep_one_group():
    assert len(ClassifierRecipe().optimizer(nn.Linear(2, 2)).param_groups) == 1


# --- a real training, and its files


def test_digits_are_learnt_and_load_back_without_the_denoiser(tmp_path):
    data: Any = load_digits()
    x = torch.tensor(data.images * 15.9).to(torch.uint8)[:, None]
    y = torch.tensor(data.target)
    train, test = split_of(x[:600], y[:600]), (x[600:900], y[600:900])
    path, _ = unet_run(tmp_path / "denoiser")
    network = ready(train, denoiser=path, epochs=5, lr=5e-3, denoiser_lr=1.0, batch_size=50, ema=0.5)
    with torch.no_grad():
        before = float((network(test[0]).logits.argmax(1) == test[1]).float().mean())
    stages.train(network, Views(x=train.train.x, y=train.train.y), 0, Options(accelerator="cpu"), tmp_path / "stage")
    with torch.no_grad():
        views = network(test[0])
    accuracy = float((views.logits.argmax(1) == test[1]).float().mean())
    assert before < 0.3 and accuracy > 0.7

    content = {"backbone": network.state_dict(), "input_shape": [1, 8, 8], "classes": 10}
    (tmp_path / "tuned").mkdir()
    model = tmp_path / "tuned" / "model.ckpt"
    torch.save(content, model)

    def same(other: DDAEClassifier) -> None:
        with torch.no_grad():
            torch.testing.assert_close(other.eval()(test[0]).logits, views.logits)

    loaded = DDAEClassifier(denoiser=path)
    load_backbone(model, loaded)
    same(loaded)
    as_weights = ready(train, weights=model)
    assert not as_weights.trained
    same(as_weights)
    for name in ("model.ckpt", "config.yaml"):
        (tmp_path / "denoiser" / name).unlink()
    gone = DDAEClassifier(denoiser=path)
    load_backbone(model, gone)
    same(gone)
    assert isinstance(gone.head, nn.Linear) and gone.head.out_features == 10
    again = ready(noise_images(), weights=model, finetune=True, log_snr=3.0)  # other classes, another level
    assert again.trained and again.head.out_features == 3 and again.made_of["log_snr"] == 3.0
    assert again.time == again.denoiser.process.time_at(3.0)
    kept = again.denoiser.state_dict()["net.stem.weight"]
    assert torch.equal(kept, network.denoiser.state_dict()["net.stem.weight"])

    with pytest.raises(UserError, match=r"fine-tuned at log_snr = 6, not 3; set backbone\.log_snr=6"):
        ready(train, weights=model, log_snr=3.0)
    with pytest.raises(UserError, match=r"fine-tuned at block out_2; set backbone\.block=null"):
        ready(train, weights=model, block="out_1")
    with pytest.raises(UserError, match=r"no denoiser .*model.ckpt; set backbone.denoiser"):
        ready(train, denoiser=path)


def test_a_run_from_weights_loads_without_them(run, tmp_path):
    split = noise_images()
    first = ready(split, denoiser=run[0], block="out_1")
    torch.save({"backbone": first.state_dict()}, tmp_path / "first.ckpt")
    second = ready(split, weights=tmp_path / "first.ckpt", finetune=True)
    torch.save({"backbone": second.state_dict(), "input_shape": [1, 8, 8], "classes": 3}, tmp_path / "second.ckpt")
    (tmp_path / "first.ckpt").unlink()
    loaded = DDAEClassifier(weights=tmp_path / "first.ckpt", finetune=True)
    load_backbone(tmp_path / "second.ckpt", loaded)
    with torch.no_grad():
        torch.testing.assert_close(loaded(split.train.x).logits, second(split.train.x).logits)


def test_dropout_is_the_denoisers_or_ones_own(tmp_path):
    path, _ = unet_run(tmp_path / "d", dropout=0.3)
    for given, expected in ((None, 0.3), (0.0, 0.0), (0.2, 0.2)):
        network = ready(noise_images(), denoiser=path, dropout=given)
        assert network.denoiser.net.down["down_1"].residual.dropout == expected
        assert network.made_of["denoiser"]["dropout"] == 0.3


# --- options and bad input


def test_the_yaml_is_the_recipe(run):
    network = build(compose("train", ["backbone=unet_finetune", f"backbone.denoiser={run[0]}"]).backbone)
    recipe = network.recipe
    assert isinstance(network, DDAEClassifier) and isinstance(network, Classifier)
    assert (recipe.method, recipe.lr, recipe.weight_decay, recipe.warmup) == ("adamw", 1e-3, 0.05, 0.05)
    assert (recipe.epochs, recipe.schedule, recipe.ema) == (100, "cosine", 0.999)
    assert (network.label_smoothing, network.augment, network.denoiser_lr, network.layer_decay) == (
        0.1, "crop_flip", 0.1, 0.75,
    )  # fmt: skip
    assert network.mixup > 0 and network.trained


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": "out_9"}, r"backbone\.block: .*out_9.*out_1"),
        ({"log_snr": 30.0}, r"log_snr = 30\.0: t = 1 to 1000 reach from 9\.21"),
        ({"layer_decay": 1.5}, r"layer_decay = 1\.5: allowed are above 0 to 1"),
        ({"finetune": True}, "finetune = true, but there are no weights"),
        ({"weights": Path("w.ckpt")}, "both denoiser and weights are given"),
        ({"dropout": 1.5}, r"dropout = 1\.5"),
    ],
)
def test_options_that_cannot_be(run, options, message):
    with pytest.raises(UserError, match=message):
        ready(noise_images(), denoiser=run[0], **options)


def test_files_that_cannot_be(run, tmp_path):
    split, (path, unet) = noise_images(), run
    with pytest.raises(UserError, match=r"there is no denoiser to fine-tune; set backbone.denoiser"):
        ready(split)
    with pytest.raises(UserError, match=r"no denoiser .*denoiser; set backbone.denoiser"):
        ready(split, denoiser=path.parent)
    with pytest.raises(UserError, match="is not of a run with this backbone; for the checkpoint of a denoiser"):
        ready(split, weights=path)
    with pytest.raises(UserError, match=r"no weights .*none.ckpt"):
        ready(split, weights=tmp_path / "none.ckpt")
    with pytest.raises(UserError, match="checkpoint of another architecture"):
        ready(noise_images(channels=3), denoiser=path)
    alone = tmp_path / "alone.ckpt"
    torch.save({"backbone": unet.state_dict()}, alone)
    with pytest.raises(UserError, match=r"no .*config.yaml, which tells what network alone.ckpt is of"):
        ready(split, denoiser=alone)
    config = path.with_name("config.yaml")
    for target, named in (
        ("outlie.backbones.resnet.ResNet", "ResNet"),
        ("outlie.cli.main", "main"),
        ("os.system", "system"),
        ("outlie.backbones.none.None", "None"),
    ):
        OmegaConf.save({"backbone": {"_target_": target}}, config)
        with pytest.raises(UserError, match=f"whose backbone is {named}, which is no denoiser"):
            ready(split, denoiser=path)
    for text in ("a: [", "backbone: 3", "seed: 1"):
        config.write_text(text)
        with pytest.raises(UserError, match="is not the config of a run"):
            ready(split, denoiser=path)


def test_a_checkpoint_of_another_time_scale_is_refused(run):
    path = run[0]
    content = OmegaConf.load(path.with_name("config.yaml"))
    content.backbone.time_scale = 1.0
    OmegaConf.save(content, path.with_name("config.yaml"))
    with pytest.raises(UserError, match=r"the weights were trained as ddpm with time_scale = 0.001"):
        ready(noise_images(), denoiser=path)
