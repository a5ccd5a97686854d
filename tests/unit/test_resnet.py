"""ResNets: known parameter counts, stages and tails, a wide block written out; torchvision's are in test_backbones."""

import pytest
import torch
from torch import nn

from outlie.backbones.resnet import ResNet
from outlie.backbones.wide_resnet import WideResNet
from outlie.errors import UserError


def randomised(network: nn.Module) -> nn.Module:
    """In eval mode, with batch statistics that are not those of a new network."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if "bn" in name and tensor.is_floating_point():
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return network.eval()


def images(side: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("network", "shape", "classes", "count"),
    [
        (ResNet(depth=18), (3, 224, 224), 1000, 11_689_512),
        (ResNet(depth=34), (3, 224, 224), 1000, 21_797_672),
        (ResNet(depth=50), (3, 224, 224), 1000, 25_557_032),
        (ResNet(depth=18), (3, 32, 32), 10, 11_173_962),
        (ResNet(depth=34, stem="cifar"), (3, 224, 224), 100, 21_328_292),
        (WideResNet(), (3, 32, 32), 10, 36_479_194),
        (WideResNet(depth=16, widen=2), (3, 32, 32), 10, 691_674),
    ],
)
def test_parameter_counts_are_the_known_ones(network, shape, classes, count):
    with torch.device("meta"):
        network.build(shape, classes)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize(
    ("stem", "side", "kernel", "first_map"), [("auto", 96, 3, 96), ("auto", 128, 7, 32), ("imagenet", 64, 7, 16)]
)
def test_the_stem_fits_the_image(stem, side, kernel, first_map):
    network = ResNet(depth=10, width=2, stem=stem)
    network.build((1, side, side), 3)
    assert network.conv1.kernel_size == (kernel, kernel)
    maps = network.stages(torch.zeros(1, 1, side, side))
    assert [m.shape[2] for m in maps] == [first_map, first_map // 2, first_map // 4, first_map // 8]


@pytest.mark.parametrize(
    "network", [ResNet(depth=10, width=4), ResNet(depth=50, width=2), WideResNet(depth=10, widen=1)]
)
def test_the_tail_of_every_stage_gives_the_logits(network):
    network.build((3, 16, 16), 5)
    randomised(network)
    z = images(16)
    views, maps = network.views(z), network.stages(z)
    for stage, one in enumerate(maps):
        before = one.clone()
        torch.testing.assert_close(network.tail(one, stage), views.logits, rtol=1e-6, atol=1e-6)
        assert torch.equal(one, before)
    changed = network.tail(maps[0] + 1, 0)
    assert not torch.allclose(changed, views.logits)
    assert views.logits.std() > 1e-3


def test_wide_resnet_is_its_definition():
    network = WideResNet(depth=10, widen=1, dropout=0.5)
    network.build((3, 8, 8), 4)
    state, z = randomised(network).state_dict(), images(8)

    def conv(x, name, stride=1):
        return nn.functional.conv2d(x, state[name], stride=stride, padding=state[name].shape[-1] // 2)

    def active(x, name):
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return (x * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]).clamp(min=0)

    x = conv(z, "conv1.weight")
    for number, stride in ((1, 1), (2, 2), (3, 2)):  # one block a stage
        block = f"block{number}.layer.0"
        a = active(x, f"{block}.bn1")
        out = conv(active(conv(a, f"{block}.conv1.weight", stride), f"{block}.bn2"), f"{block}.conv2.weight")
        x = out + (x if number == 1 else conv(a, f"{block}.convShortcut.weight", stride))
    features = active(x, "bn1").mean((2, 3))
    views = network.views(z)
    torch.testing.assert_close(views.features, features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(views.logits, features @ state["fc.weight"].T + state["fc.bias"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, r"depth = 20: allowed are 10, 16, 22"),
        ({"dropout": 1.0}, r"dropout = 1\.0"),
        ({"depth": 4}, "6 n"),
    ],
)
def test_a_depth_or_dropout_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        WideResNet(**options)
