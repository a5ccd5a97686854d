"""The U-Nets against the measurements of the official network: parameters, blocks, shapes; truncated passes."""

import pytest
import torch
import torch.nn.functional as F

from outlie.diffusion.unet import Attention, UNet, sinusoid

DDPM = {}
DDPMPP = {"multipliers": (2, 2, 2), "blocks": 4, "resample": "residual"}
SMALL = {"base": 16, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "dropout": 0.0}


def meta(**options) -> UNet:
    with torch.device("meta"):
        return UNet(3, **options)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [(DDPM, 35_746_307), (DDPMPP, 56_524_291), (DDPMPP | {"labels": 9}, 56_525_443)],
    ids=["ddpm", "ddpm++", "ddpm++ with labels"],
)
def test_parameters(options, parameters):
    assert sum(p.numel() for p in meta(**options).parameters()) == parameters


@pytest.mark.parametrize(
    ("options", "shapes", "default"),
    [
        (DDPM, [(256, 4)] * 3 + [(256, 8)] * 3 + [(256, 16)] * 3 + [(128, 32)] * 3, "out_6"),
        (DDPMPP, [(256, 8)] * 5 + [(256, 16)] * 5 + [(256, 32)] * 5, "out_7"),
    ],
    ids=["ddpm", "ddpm++"],
)
def test_blocks_and_shapes(options, shapes, default):
    net = meta(**options).eval()
    out, maps = net(torch.empty(1, 3, 32, 32, device="meta"), torch.empty(1, device="meta"), blocks=net.block_names)
    assert out.shape == (1, 3, 32, 32)
    found = [tuple(maps[f"out_{i + 1}"].shape[1:3]) for i in range(len(shapes))]
    assert found == shapes and f"out_{len(shapes) + 1}" not in maps
    assert net.default_block == default
    assert net.block_names[0] == "down_1" and "middle" in net.block_names


def test_attention_stands_at_its_level_and_in_the_middle():
    net = meta()
    with_attention = [name for name, _ in net.named_modules() if name.endswith("attention.qkv")]
    blocks = {name.removesuffix(".attention.qkv") for name in with_attention}
    assert blocks == {"down.down_3", "down.down_4", "middle.0", "up.out_7", "up.out_8", "up.out_9"}


@torch.no_grad()
def small(seed=0, **options) -> UNet:
    torch.manual_seed(seed)
    return UNet(1, **SMALL | options).eval()


@torch.no_grad()
@pytest.mark.parametrize("block", ["down_1", "down_2", "middle", "out_1", "out_4"])
def test_a_truncated_pass_gives_the_same_maps(block):
    net, x, time = small(), torch.randn(3, 1, 8, 8), torch.rand(3)
    out, whole = net(x, time, blocks=net.block_names)
    nothing, part = net(x, time, blocks=[block], stop=True)
    assert nothing is None and list(part) == [block]
    torch.testing.assert_close(part[block], whole[block], rtol=0, atol=0)
    torch.testing.assert_close(net(x, time)[0], out)


@torch.no_grad()
def test_a_truncated_pass_computes_no_further():
    net, x = small(), torch.randn(1, 1, 8, 8)
    called = []
    for name, module in net.up.items():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    net(x, torch.rand(1), blocks=["out_1"], stop=True)
    assert called == ["out_1"]


@torch.no_grad()
def test_rows_do_not_meet():
    net, x, time = small(), torch.randn(4, 1, 8, 8), torch.rand(4)
    torch.testing.assert_close(net(x, time)[0][2:3], net(x[2:3], time[2:3])[0], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_no_label_is_a_label_of_zeros():
    net, x, time = small(labels=9), torch.randn(2, 1, 8, 8), torch.rand(2)
    torch.testing.assert_close(net(x, time)[0], net(x, time, torch.zeros(2, 9))[0])
    assert not torch.allclose(net(x, time)[0], net(x, time, torch.ones(2, 9))[0])


@torch.no_grad()
def test_time_matters_and_dropout_is_off_in_eval():
    net, x = small(dropout=0.5), torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(net(x, torch.full((2,), 0.3))[0], net(x, torch.full((2,), 0.3))[0])
    assert not torch.allclose(net(x, torch.full((2,), 0.3))[0], net(x, torch.full((2,), 0.9))[0])


def test_every_parameter_learns():
    net = UNet(1, **SMALL, resample="residual", labels=9)
    net(torch.randn(2, 1, 8, 8), torch.rand(2), torch.randn(2, 9))[0].square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@torch.no_grad()
@pytest.mark.parametrize("per_head", [None, 8])
def test_attention_is_softmax_attention(per_head):
    attention, x = Attention(16, per_head), torch.randn(2, 16, 3, 4)
    q, k, v = attention.qkv(F.group_norm(x, 16, attention.norm.weight, attention.norm.bias).flatten(2).mT).chunk(3, 2)
    width, parts = per_head or 16, []
    for i in range(0, 16, width):
        weights = (q[..., i : i + width] @ k[..., i : i + width].mT / width**0.5).softmax(-1)
        parts.append(weights @ v[..., i : i + width])
    torch.testing.assert_close(attention(x), x + attention.out(torch.cat(parts, 2)).mT.view_as(x), rtol=1e-5, atol=1e-6)


def test_sinusoid_is_that_of_the_released_code():
    embedded = sinusoid(torch.tensor([0.0, 2.0]), 8)
    assert embedded[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    frequencies = 10_000 ** -(torch.arange(4) / 3)
    torch.testing.assert_close(embedded[1], torch.cat([(2 * frequencies).sin(), (2 * frequencies).cos()]))


def test_a_scaled_time_moves_the_embedding_a_thousand_times_less():
    t = torch.arange(1.0, 1001)
    step = [(sinusoid(scale * t, 128).diff(dim=0)).norm(dim=1).mean() for scale in (1e-3, 1.0)]
    assert float(step[0]) == pytest.approx(0.002, abs=5e-4)  # the specification's measurement, 9.1
    assert float(step[1]) == pytest.approx(1.94, abs=0.01)
