"""Segmenters: layers against the strided network, objective against loops, weights in and out, a whole small run."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.optim.lr_scheduler import PolynomialLR

from outlie.backbones.dense_heads import ASPP, FCN, PSP
from outlie.backbones.dilated import DilatedResNet
from outlie.backbones.mlp import MLP
from outlie.backbones.resnet import ResNet
from outlie.backbones.seg_unet import SegUNet
from outlie.backbones.segmenter import median_frequency
from outlie.backbones.training import ClassifierRecipe
from outlie.cli import main
from outlie.data.split import Rows, Split
from outlie.detectors.base import Views
from outlie.errors import UserError


def blocks_of_colour(n: int, seed: int, side: int = 32) -> Rows:
    """Images of 8 x 8 squares whose class is their colour, under noise; the class of the first square is unknown."""
    rng = np.random.RandomState(seed)
    y = rng.randint(0, 3, (n, side // 8, side // 8)).repeat(8, 1).repeat(8, 2)
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])
    x = (colours[y].transpose(0, 3, 1, 2) + rng.randint(-30, 30, (n, 3, side, side))).clip(0, 255)
    y[:, :8, :8] = 255
    return Rows(torch.from_numpy(x.astype(np.uint8)), torch.arange(n), None, torch.from_numpy(y.astype(np.uint8)))


def split_of(train: Rows, test: Rows | None = None) -> Split:
    mean, scale = torch.full((3, 1, 1), 90.0), torch.full((3, 1, 1), 70.0)
    return Split("dense", train, {"test": test or train}, None, mean, scale, "", classes=("red", "green", "blue"))


def ready(network: Any, split: Split | None = None) -> Any:
    torch.manual_seed(0)
    network.setup(split or split_of(blocks_of_colour(4, 0)))
    return network.eval()


SMALL = {"psp": lambda **o: DilatedResNet(10, 8, channels=8, **o), "unet": lambda **o: SegUNet(8, 1, **o)}
SMALL["aspp"] = lambda **o: DilatedResNet(10, 8, "aspp", channels=8, dilations=[1, 2], **o)


def test_dilated_stages_are_the_strided_ones_at_more_positions():
    # a trous: what a stride leaves out is all that a dilation adds (exact for bottlenecks, also at the border)
    strided = ResNet(depth=50, width=8, stem="imagenet")
    torch.manual_seed(0)
    strided.build((3, 75, 64), 3)
    dilated = ready(DilatedResNet(50, 8, channels=8))
    strided.eval()
    for layer in strided.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.running_mean, -0.2, 0.2)
    body = {name: t for name, t in strided.state_dict().items() if name.startswith(("conv1", "bn1", "layer"))}
    assert not dilated.load_state_dict(body, strict=False).unexpected_keys
    z = torch.randn(2, 3, 75, 64)
    ours, theirs = dilated.stages(z), strided.stages(z)
    for stage, step in enumerate((1, 1, 2, 4)):
        assert torch.allclose(ours[stage][:, :, ::step, ::step], theirs[stage], atol=1e-4)
    assert [tuple(m.shape[2:]) for m in ours] == [(19, 16), (10, 8), (10, 8), (10, 8)]


def test_bodies_have_torchvisions_sizes():
    for depth, parameters in ((18, 11_689_512 - 513_000), (50, 25_557_032 - 2_049_000), (101, 44_549_160 - 2_049_000)):
        with torch.device("meta"):
            network = DilatedResNet(depth, auxiliary=0)
            network.classes = 3
            network.layers(3)
        own = [p.numel() for name, p in network.named_parameters() if not name.startswith("decoder")]
        assert sum(own) == parameters


def test_pyramid_pooling_by_hand():
    head: Any = PSP(1, 1, 2, (2,), 0.1).eval()
    with torch.no_grad():
        head.branches[0][0].weight.fill_(1)
        head.bottleneck[0].weight.zero_()
        head.bottleneck[0].weight[0, 1, 1, 1] = 1  # the pooled map
        head.classify.weight.copy_(torch.tensor([1.0, -2.0])[:, None, None, None])
        head.classify.bias.copy_(torch.tensor([0.0, 1.0]))
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    pooled = np.array([[2.5, 4.5], [10.5, 12.5]])  # means of the quarters
    up = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    expected = up @ pooled @ up.T / (1 + 1e-5)  # two normalisations by sqrt(1 + eps)
    assert torch.allclose(head(x)[0, 0], torch.tensor(expected).float(), atol=1e-4)
    assert torch.allclose(head(x)[0, 1], 1 - 2 * torch.tensor(expected).float(), atol=1e-4)


def test_an_atrous_branch_looks_so_far_aside():
    head: Any = ASPP(1, 1, 2, (1, 3), 0.1).eval()
    with torch.no_grad():
        head.branches[1][0].weight.zero_()
        head.branches[1][0].weight[0, 0, 0, 2] = 1  # up and to the right
        head.bottleneck[0].weight.zero_()
        head.bottleneck[0].weight[0, 2, 1, 1] = 1
        head.classify.weight.fill_(1)
        head.classify.bias.zero_()
    x = torch.rand(1, 1, 8, 8)
    expected = torch.zeros(8, 8)
    expected[3:, :5] = x[0, 0, :5, 3:]
    assert torch.allclose(head(x)[0, 0], expected, atol=1e-4)
    fcn: Any = FCN(256, 5, 0.1)
    assert fcn.convolve[0].weight.shape == (64, 256, 3, 3)


@pytest.mark.parametrize("kind", SMALL)
def test_views(kind):
    network = ready(SMALL[kind]())
    x = blocks_of_colour(3, 1, 48).x[:, :, :41, :35]
    views = network(x)
    assert views.maps.shape == (3, 3, 41, 35) and views.logits is None and views.auxiliary is None
    last = network.stages(network.standardise(x))[-1]
    assert torch.allclose(views.features, last.mean((2, 3)), atol=1e-5)
    assert torch.allclose(views.x, (x - 90.0) / 70.0)
    alone = torch.cat([network(one[None]).maps for one in x])
    assert torch.allclose(alone, views.maps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SMALL)
def test_stage_names_are_modules_whose_outputs_are_maps(kind):
    network, seen = ready(SMALL[kind]()), {}
    modules = dict(network.named_modules())
    for name in network.stage_names:
        modules[name].register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
    x = blocks_of_colour(2, 1).x
    stages = network.stages(network.standardise(x))
    for name, expected in zip(network.stage_names, stages):
        assert torch.equal(seen[name], expected)
    network(x)
    assert list(seen) == list(network.stage_names) and all(out.ndim == 4 for out in seen.values())


def test_stage_names_of_classifiers():
    resnet, mlp = ResNet(depth=10, width=8), MLP(hidden=[5, 4])
    resnet.build((3, 16, 16), 3)
    mlp.build((7,), 3)
    assert resnet.stage_names == ("layer1", "layer2", "layer3", "layer4")
    assert mlp.stage_names == ("layers.2", "layers.4")


def test_the_objective_by_a_loop():
    network = ready(SMALL["psp"](class_weights="median_frequency"))
    generator = torch.Generator().manual_seed(0)
    maps, auxiliary = torch.randn(2, 2, 3, 4, 5, generator=generator)
    y = torch.randint(0, 3, (2, 4, 5), generator=generator).byte()
    y[0, :2] = 255

    def mean(logits):
        total = weight = 0.0
        for b, i, j in np.ndindex(2, 4, 5):
            if (c := int(y[b, i, j])) != 255:
                total -= float(network.class_weight[c] * logits[b, :, i, j].log_softmax(0)[c])
                weight += float(network.class_weight[c])
        return total / weight

    assert float(network.objective(Views(maps=maps), y)) == pytest.approx(mean(maps), rel=1e-5)
    both = network.objective(Views(maps=maps, auxiliary=auxiliary), y)
    assert float(both) == pytest.approx(mean(maps) + 0.4 * mean(auxiliary), rel=1e-5)
    assert float(network.objective(Views(maps=maps), torch.full_like(y, 255))) == 0.0


def test_the_loss_is_the_objective_of_augmented_images():
    for network in (ready(SMALL["psp"]()), ready(SMALL["unet"](crop=24))):
        rows = blocks_of_colour(4, 2)
        views = Views(x=rows.x, y=rows.y)
        loss = network.loss(views, torch.Generator().manual_seed(5))
        raw = network.augmented_views(views, torch.Generator().manual_seed(5))
        assert raw.x.shape[2:] == raw.y.shape[1:] == ((24, 24) if network.crop else (32, 32))
        assert torch.equal(loss, network.objective(network.views(network.standardise(raw.x)), raw.y))
        network.train()
        assert (network(rows.x).auxiliary is not None) == bool(network.auxiliary)


def test_classifiers_have_the_same_interface():
    torch.manual_seed(0)
    network = ResNet(depth=10, width=4, augment="crop_flip", label_smoothing=0.1)
    rows = Rows(blocks_of_colour(6, 0).x, torch.arange(6), None, torch.tensor([0, 1, 2, 0, 1, 2]))
    network.setup(split_of(rows))
    views = Views(x=rows.x, y=rows.y)
    loss = network.loss(views, torch.Generator().manual_seed(5))
    raw = network.augmented_views(views, torch.Generator().manual_seed(5))
    logits = network.views(network.standardise(raw.x)).logits
    assert torch.equal(loss, network.objective(network.views(network.standardise(raw.x)), raw.y))
    assert torch.allclose(loss, F.cross_entropy(logits, rows.y, label_smoothing=0.1))


def test_median_frequency_by_a_loop():
    y = torch.tensor([[[0, 0, 1, 255]], [[0, 2, 2, 2]], [[0, 0, 0, 0]]]).byte()
    # class 0: 7 pixels of the 11 in images that have it; 1: 1 of 3; 2: 3 of 4
    frequency = np.array([7 / 11, 1 / 3, 3 / 4])
    expected = np.median(frequency) / frequency
    assert median_frequency(y, 4).tolist() == pytest.approx([*expected, 0.0])


def test_poly_is_pytorchs_and_ends_at_the_floor():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, rates = PolynomialLR(optimizer, 50, power=0.9), []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    recipe = ClassifierRecipe(schedule="poly")
    assert [recipe.lr_at(step / 50) for step in range(50)] == pytest.approx(rates)
    # mmseg: (lr - min_lr) (1 - t)^0.9 + min_lr
    recipe = ClassifierRecipe(schedule="poly", lr=0.01, floor=1e-4)
    assert recipe.lr_at(0) == 0.01 and recipe.lr_at(1.0) == 1e-4
    assert recipe.lr_at(0.5) == pytest.approx(0.0099 * 0.5**0.9 + 1e-4)


def test_weights_of_a_segmenter_and_of_a_classifier(tmp_path):
    first = ready(SMALL["psp"]())
    torch.save({"backbone": first.state_dict()}, tmp_path / "own.ckpt")
    other = split_of(blocks_of_colour(4, 7))
    other.mean = other.mean + 5
    again = ready(SMALL["psp"](weights=tmp_path / "own.ckpt"), other)
    x = blocks_of_colour(2, 1).x
    assert not again.trained and torch.equal(again(x).maps, first(x).maps)  # its own standardisation counts

    resnet: Any = ResNet(depth=10, width=8, stem="imagenet")
    resnet.build((3, 32, 32), 5)
    layers = {name: t for name, t in resnet.state_dict().items() if name not in ("mean", "scale")}
    torch.save(layers, tmp_path / "resnet.pt")
    body = ready(SMALL["psp"](weights=tmp_path / "resnet.pt", finetune=True))
    assert torch.equal(body.layer3[0].conv1.weight, resnet.layer3[0].conv1.weight)
    with pytest.raises(UserError, match=r"backbone\.finetune=true trains a new one"):
        ready(SMALL["psp"](weights=tmp_path / "resnet.pt"))

    four = split_of(blocks_of_colour(4, 0))
    four.classes = ("a", "b", "c", "d")
    with pytest.raises(UserError, match="no head for these 4 classes"):
        ready(SMALL["psp"](weights=tmp_path / "own.ckpt"), four)
    new = ready(SMALL["psp"](weights=tmp_path / "own.ckpt", finetune=True), four)
    assert torch.equal(new.decoder.bottleneck[0].weight, first.decoder.bottleneck[0].weight)
    assert new(x).maps.shape[1] == 4
    with pytest.raises(UserError, match="another architecture"):
        ready(SMALL["unet"](weights=tmp_path / "own.ckpt"))
    alone = ready(SMALL["psp"](weights=tmp_path / "own.ckpt", auxiliary=0.0))
    assert torch.equal(alone(x).maps, first(x).maps)


def test_options_and_data_that_cannot_be():
    for options, said in (
        ({"scales": [2.0, 1.0]}, "backbone.scales"), ({"dropout": 1.0}, "backbone.dropout"), ({"ema": 1.0}, "ema"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            SegUNet(**options)
    with pytest.raises(UserError, match="no weights"):
        ready(SegUNet(finetune=True))
    labelled = blocks_of_colour(3, 0)
    labelled.y = torch.tensor([0, 1, 2])
    with pytest.raises(UserError, match="no label maps"):
        SegUNet().setup(split_of(labelled))
    with pytest.raises(UserError, match="choose backbone=seg_unet"):
        ResNet(depth=10).setup(split_of(blocks_of_colour(3, 0)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with the outputs of a finished run on squares of colour."""
    folder = tmp_path_factory.mktemp("dense")
    for part, count, seed in (("train", 16, 1), ("val", 4, 2), ("test", 9, 3)):
        rows = blocks_of_colour(count, seed)
        for kind in ("images", "labels"):
            (folder / "data" / part / kind).mkdir(parents=True)
        for i in range(count):
            assert rows.y is not None
            Image.fromarray(rows.x[i].numpy().transpose(1, 2, 0)).save(folder / f"data/{part}/images/{i}.png")
            Image.fromarray(rows.y[i].numpy()).save(folder / f"data/{part}/labels/{i}.png")
    words = (
        "dataset=dense_folder", f"dataset.path={folder}/data", "dataset.classes=[red,green,blue]", "backbone=seg_unet",
        "backbone.width=8", "backbone.blocks=1", "backbone.steps=100", "backbone.lr=0.05", "backbone.scales=[1,1]",
        "backbone.recolour=false", "detector=knn", "metrics=fast", "trainer.threads=1",
    )  # fmt: skip
    with contextlib.chdir(folder):
        assert main(["train", *words]) == 0
    return folder


def test_a_run_learns_and_reports_what_a_loop_counts(trained, capsys):
    run = next((trained / "outputs" / "train").iterdir())
    result = json.loads((run / "result.json").read_text())
    found = result["segmentation"]
    assert found["miou"] > 0.7 and found["images"] == 9 and found["validation"]["images"] == 4
    assert {"predictions.png", "confusion.png", "model.ckpt", "scores.parquet"} <= {p.name for p in run.iterdir()}
    # the same network by hand: one image at a time, one pixel at a time
    network = SegUNet(8, 1)
    saved = torch.load(run / "model.ckpt", weights_only=True)
    network.build(tuple(saved["input_shape"]), saved["classes"])
    network.load_state_dict(saved["backbone"])
    counts, test = np.zeros((3, 3), int), blocks_of_colour(9, 3)
    assert test.y is not None
    for x, y in zip(test.x, test.y, strict=True):
        with torch.no_grad():
            p = network.eval()(x[None]).maps[0].argmax(0)
        for i, j in np.ndindex(32, 32):
            if y[i, j] != 255:
                counts[y[i, j], p[i, j]] += 1
    assert np.abs(counts - np.array(found["confusion"])).sum() <= 2  # a tie may fall either way in another batch
    with contextlib.chdir(trained):
        assert main(["eval", f"run={run}", "metrics=fast"]) == 0
    assert f"Mean IoU {100 * found['miou']:.2f} % over 3 classes" in capsys.readouterr().out


def test_what_a_run_refuses(trained, capsys):
    words = ("train", "dataset=dense_folder", f"dataset.path={trained}/data", "detector=knn", "metrics=fast")
    with contextlib.chdir(trained):
        assert main([*words, "backbone=resnet10"]) == 2
        assert "choose backbone=seg_unet" in capsys.readouterr().err
        assert main(["train", "dataset=digits_ood", "backbone=seg_unet", "detector=knn"]) == 2
        assert "no label maps" in capsys.readouterr().err
        assert main([*words, "backbone=seg_unet", "detector=msp"]) != 0
        assert "logits" in capsys.readouterr().err
