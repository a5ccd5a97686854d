"""The denoiser as a backbone: preconditioning, features of blocks and levels, padding, checkpoints, what is refused."""

import pytest
import torch

from outlie.backbones.denoiser import pool
from outlie.backbones.dit import DiT
from outlie.backbones.unet import UNet
from outlie.data.split import Rows, Split
from outlie.detectors.base import Views
from outlie.errors import UserError

SMALL = {"base": 16, "multipliers": (1, 2), "depth": 1, "attention": (1,), "dropout": 0.0, "images": 64}


def split_of(x: torch.Tensor) -> Split:
    return Split("p", Rows(x, torch.arange(len(x))), {}, None, torch.zeros(1), torch.ones(1), "")


def images(n=6, channels=1, side=8, width=None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (n, channels, side, width or side)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def made(shape=(1, 8, 8), seed=0, cls=UNet, **options):
    network = cls(**(SMALL if cls is UNet else {"images": 64}) | options)
    torch.manual_seed(seed)
    network.build(shape, None)
    return network.eval()


@torch.no_grad()
@pytest.mark.parametrize("process", ["ddpm", "edm"])
def test_clean_image_and_noise_belong_together(process):
    network = made(process=process)
    x = torch.randn(3, 1, 8, 8)
    for level in (-4.0, 0.0, 6.0):
        time = network.process.time_at(level)
        x0, eps = network.denoise(x, time)
        a, b = network.process.coefficients(time)
        torch.testing.assert_close(a * x0 + b * eps, x, rtol=1e-4, atol=1e-4)
        each, _ = network.denoise(x, time.expand(3))  # one time, or one a row
        torch.testing.assert_close(each, x0, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_edm_gives_the_image_back_where_there_is_no_noise():
    network, x = made(process="edm"), torch.rand(3, 1, 8, 8)
    x0, _ = network.denoise(x, torch.tensor(1e-6))
    torch.testing.assert_close(x0, x, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_network_is_told_scaled_times():
    told = []
    for options in ({}, {"time_scale": 1.0}, {"process": "edm"}):
        network = made(**options)
        network.net.register_forward_pre_hook(lambda _, args: told.append((float(args[0].std()), float(args[1][0]))))
        network.denoise(torch.randn(64, 1, 8, 8), network.process.time_at(0.0))
    t = int(made().process.time_at(0.0))
    assert [round(told[i][1], 4) for i in range(3)] == [round(t / 1000, 4), t, 0.0]  # ln 1 / 4
    assert told[2][0] == pytest.approx(1 / 1.25**0.5, rel=0.1)  # c_in x


@pytest.mark.parametrize("process", ["ddpm", "edm"])
def test_the_loss_is_the_published_one(process):
    network, raw = made(process=process, flip=False), images(4)
    views, x = Views(x=raw), network.standardise(raw)
    loss = network.loss(views, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    time = network.process.draw(4, generator)
    noise = torch.randn(x.shape, generator=generator)
    x0, eps = network.denoise(network.process.noised(x, time, noise), time)
    if process == "ddpm":
        expected = (eps - noise).square().mean()
    else:
        weight = (time**2 + 0.25) / (time * 0.5) ** 2
        expected = (weight[:, None, None, None] * (x0 - x).square()).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_features_are_pooled_maps_of_the_noised_image():
    network = made(blocks=["out_1", "out_3"], log_snr=[6.0, 2.0], draws=2, noise_seed=5)
    x = network.standardise(images(3))
    features = network(images(3)).features
    noise = torch.randn(2, 1, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    by_level = []
    for level in (6.0, 2.0):
        time, means = network.process.time_at(level), []
        for draw in noise:
            _, maps = network.net(
                network.process.noised(x, time, draw), (time / 1000).expand(3), None, ["out_1", "out_3"]
            )
            means.append(torch.cat([maps["out_1"].mean((2, 3)), maps["out_3"].mean((2, 3))], 1))
        by_level.append(sum(means) / 2)
    torch.testing.assert_close(features, torch.cat(by_level, 1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_levels_in_one_call_are_levels_one_by_one():
    network, x = made(), torch.randn(3, 1, 8, 8)
    times, noise = torch.tensor([11, 101, 500]), torch.randn(3, 1, 8, 8)
    together = network.pooled(x, times, noise, ["out_2"])
    for i, time in enumerate(times):
        one = network.pooled(x, time[None], noise, ["out_2"])[:, 0]
        torch.testing.assert_close(together[:, i], one, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_a_row_alone_has_the_features_it_has_in_a_batch():
    network, x = made(log_snr=[6.0, 3.0], draws=2), images(5)
    torch.testing.assert_close(network(x).features[3:4], network(x[3:4]).features, rtol=1e-4, atol=1e-5)
    before = torch.get_rng_state()
    network(x)
    assert torch.equal(before, torch.get_rng_state())


@torch.no_grad()
def test_pooling():
    maps = torch.randn(2, 3, 4, 5, dtype=torch.bfloat16)
    both = pool(maps, "mean_std")
    assert both.shape == (2, 6) and both.dtype == torch.float32
    torch.testing.assert_close(both[:, 3:], maps.float().flatten(2).std(2, unbiased=False))
    torch.testing.assert_close(pool(maps), maps.float().mean((2, 3)))


@torch.no_grad()
@pytest.mark.parametrize("cls", [UNet, DiT])
@pytest.mark.parametrize(("side", "width"), [(7, 8), (9, 9), (5, 6)])
def test_odd_sizes_are_padded_with_black_and_cropped(cls, side, width):
    network = made((1, side, width), cls=cls)
    x0, _ = network.denoise(torch.randn(2, 1, side, width), torch.tensor(100))
    assert x0.shape == (2, 1, side, width)
    seen = []
    network.net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network.denoise(torch.zeros(2, 1, side, width), torch.tensor(100))
    assert seen[0].shape[2] % 2 == seen[0].shape[3] % 2 == 0
    assert set(seen[0].unique().tolist()) == {-1.0, 0.0}


@torch.no_grad()
def test_evaluations_are_counted():
    network, x = made(log_snr=[6.0, 3.0], draws=3), images(5)
    network(x)
    assert network.evaluated == 5 * 2 * 3
    network.denoise(torch.randn(4, 1, 8, 8), torch.tensor(5))
    assert network.evaluated == 34


def test_augmentation_tells_the_network():
    network, labels = made(augment=0.9), []
    network.net.register_forward_pre_hook(lambda _, args: labels.append(args[2]))
    network.loss(Views(x=images(16)), torch.Generator().manual_seed(0))
    assert labels[0].shape == (16, 9) and labels[0].any()
    with torch.no_grad():
        network(images(2))
    assert labels[1] is None


def test_weights_of_another_time_are_refused():
    ours = made().state_dict()
    made(seed=1).load_state_dict(ours)
    with pytest.raises(UserError, match=r"trained as ddpm with time_scale = 0.001.*time_scale = 1.*time_scale=0.001"):
        made(time_scale=1.0).load_state_dict(ours)
    with pytest.raises(UserError, match=r"trained as edm.*backbone.process=edm"):
        made().load_state_dict(made(process="edm").state_dict())


def test_weights_are_taken_from_a_file(tmp_path):
    first, split = made(), split_of(images())
    torch.save({"backbone": first.state_dict(), "other": {}}, tmp_path / "model.ckpt")
    second = UNet(**SMALL, weights=tmp_path / "model.ckpt")
    second.setup(split)
    assert not second.trained and UNet(**SMALL, weights=tmp_path / "model.ckpt", finetune=True).trained
    for (name, a), b in zip(first.net.state_dict().items(), second.net.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(UserError, match="time_scale"):
        UNet(**SMALL, weights=tmp_path / "model.ckpt", time_scale=1.0).setup(split)
    with pytest.raises(UserError):
        UNet(**SMALL | {"base": 24}, weights=tmp_path / "model.ckpt").setup(split)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": [0.1]}, r"sigma = \[0.1\].*backbone.t"),
        ({"process": "edm", "t": [11]}, r"t = \[11\].*backbone.sigma"),
        ({"process": "edm", "sigma": [0.0]}, "must be above 0"),
        ({"t": [1001]}, "1 to 1000"),
        ({"log_snr": [40.0]}, "log_snr = 40"),
        ({"log_snr": []}, "no noise level"),
        ({"ema": 1.0}, "ema = 1"),
        ({"dropout": 1.5}, "dropout"),
        ({"base": 12}, "multiple of 8"),
        ({"attention": (2,)}, "no level 2"),
        ({"multipliers": ()}, "multipliers"),
        ({"channels_per_head": 7}, "does not divide"),
        ({"finetune": True}, "there are no weights"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        UNet(**SMALL | options)


def test_a_block_that_does_not_exist_names_those_that_do():
    with pytest.raises(UserError, match=r"no block 'out6'.*did you mean 'out_\d'.*down_1.*out_4"):
        UNet(**SMALL, blocks=["out6"]).setup(split_of(images()))


@pytest.mark.parametrize("x", [torch.rand(5, 3), torch.rand(5, 1, 8, 8), torch.rand(5, 3, dtype=torch.float64)])
def test_rows_that_are_no_bytes_of_images_are_refused(x):
    with pytest.raises(UserError, match="a denoiser takes images"):
        UNet(**SMALL).setup(split_of(x))
