"""DDPM and DTE-C on pixels: published sizes, layers and the reverse chain written out, closed forms, bad input."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from scipy.special import logsumexp, softmax
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from outlie import stages
from outlie.build import build
from outlie.compose import compose
from outlie.detectors import pixel_diffusion
from outlie.detectors.base import Detector, Spec, Views, set_up
from outlie.detectors.pixel_diffusion import PixelDDPM, PixelDTEC
from outlie.diffusion.image_nets import Attention, LinearAttention, PixelUNet, Residual, TimeResNet
from outlie.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs" / "detector"
SHAPE = (2, 8, 8)
SMALL_DDPM = {"T": 40, "rec_start": 12, "steps": None, "base": 8}
SMALL_DTEC = {"width": 4, "T": 40}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def images(n: int = 5, shape: tuple[int, ...] = SHAPE, seed: int = 1) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def ddpm(shape: tuple[int, ...] = SHAPE, **options) -> PixelDDPM:
    detector = PixelDDPM(**(SMALL_DDPM | options))
    set_up(detector, Spec({"x": shape}, seed=3))
    return detector.eval()


def dtec(shape: tuple[int, ...] = SHAPE, **options) -> PixelDTEC:
    """An untrained detector whose batch statistics are not those of a fresh one."""
    detector = PixelDTEC(**(SMALL_DTEC | options))
    set_up(detector, Spec({"x": shape}, seed=3))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(3):
            detector.loss(Views(x=images(16, shape)), generator)
    return detector.eval()


@torch.no_grad()
def score(detector: Detector, x: torch.Tensor) -> torch.Tensor:
    return detector.score(Views(x=x))


class PointMass(nn.Module):
    """The perfect noise predictor where all data are one flat image; hands the time through as its embedding."""

    def __init__(self, abar: torch.Tensor, image_D: torch.Tensor) -> None:
        super().__init__()
        self.abar, self.image_D = abar, image_D

    def embed_time(self, t):
        return t[:, None]

    def forward(self, x, emb):
        abar = self.abar[emb]
        return (x - abar.sqrt() * self.image_D) / (1 - abar).sqrt()


# --- networks


def test_published_parameter_counts():
    with torch.device("meta"):
        unet, resnet = PixelUNet((3, 32, 32), 32), TimeResNet((3, 32, 32), 7, 50, 64, "imagenet")
    assert round(count(unet) / 1e6, 2) == 8.07
    assert count(resnet) == 25_557_032 - 1000 * 2049 + 7 * 2049  # torchvision's, but for its head of 1,000 outputs


def attention_written_out(module: Attention, x: np.ndarray, linear: bool) -> np.ndarray:
    """One image (C, H, W), head by head, from the definition."""
    state = {name: value.detach().double().numpy() for name, value in module.state_dict().items()}
    C, H, W = x.shape

    def norm_as_one_group(name: str, h_CN: np.ndarray) -> np.ndarray:
        normed = (h_CN - h_CN.mean()) / np.sqrt(h_CN.var() + 1e-5)
        return normed * state[f"{name}.weight"][:, None] + state[f"{name}.bias"][:, None]

    flat_CN = x.reshape(C, H * W)
    qkv = state["qkv.weight"] @ norm_as_one_group("norm", flat_CN)  # (3 * 4 * 32, N)
    heads = []
    for head in range(4):
        q, k, v = (qkv[part * 128 + head * 32 : part * 128 + (head + 1) * 32] for part in range(3))  # each (32, N)
        if linear:
            context = softmax(k, axis=1) @ v.T  # (32, 32)
            heads.append(context.T @ softmax(q, axis=0) / np.sqrt(32))
        else:
            heads.append(v @ softmax(k.T @ q / np.sqrt(32), axis=0))
    out = state["out.weight"] @ np.concatenate(heads) + state["out.bias"][:, None]
    return x + (norm_as_one_group("after", out) if linear else out).reshape(C, H, W)


@pytest.mark.parametrize(("kind", "linear"), [(Attention, False), (LinearAttention, True)])
def test_attention_is_its_definition(kind, linear):
    torch.manual_seed(0)
    module = kind(16)
    for p in module.parameters():
        nn.init.normal_(p, std=0.5)
    x = 3 * torch.randn(2, 16, 5, 3) + 1
    expected = np.stack([attention_written_out(module, one, linear) for one in x.double().numpy()])
    np.testing.assert_allclose(module(x).detach(), expected, rtol=1e-4, atol=1e-4)
    channels_last = module(x.contiguous(memory_format=torch.channels_last)).detach()
    np.testing.assert_allclose(channels_last, expected, rtol=1e-4, atol=1e-4)


def test_residual_block_is_its_equation():
    torch.manual_seed(0)
    block = Residual(6, 16, 10)
    x, emb, state = torch.randn(3, 6, 5, 4), torch.randn(3, 10), dict(block.named_parameters())

    def norm_conv(name, h):
        h = F.conv2d(h, state[f"{name}.0.weight"], state[f"{name}.0.bias"], padding=1)
        groups = h.reshape(3, 8, -1)
        normed = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        return normed.view_as(h) * state[f"{name}.1.weight"][:, None, None] + state[f"{name}.1.bias"][:, None, None]

    h = F.silu(norm_conv("first", x)) + (emb @ state["shift.weight"].T + state["shift.bias"])[:, :, None, None]
    shortcut = F.conv2d(x, state["shortcut.weight"], state["shortcut.bias"])
    torch.testing.assert_close(block(x, emb), shortcut + F.silu(norm_conv("second", h)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 30, 30), (2, 33, 17), (1, 1, 5)])
def test_every_size_has_a_network(shape):
    x = images(2, shape)
    for detector in (ddpm(shape, steps=2), dtec(shape)):
        assert score(detector, x).shape == (2,)
        assert torch.isfinite(score(detector, x)).all()
        loss = detector.train().loss(Views(x=x), torch.Generator().manual_seed(0))
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)


@torch.no_grad()
def test_a_side_of_30_is_filled_up_to_32_with_zeros():
    torch.manual_seed(0)
    small, large = PixelUNet((1, 30, 29), 8), PixelUNet((1, 32, 32), 8)
    large.load_state_dict(small.state_dict())
    x, emb = torch.randn(2, 1, 30, 29), small.embed_time(torch.tensor([3, 700]))
    filled = torch.zeros(2, 1, 32, 32)
    filled[:, :, :30, :29] = x
    expected = large(filled.flatten(1), emb).view(2, 1, 32, 32)[:, :, :30, :29]
    torch.testing.assert_close(small(x.flatten(1), emb).view_as(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("width", "base"), [(8, 8), (28, 32), (32, 32), (33, 40), (5, 8)])
def test_the_base_width_is_that_of_the_image_in_eights(width, base):
    assert ddpm((1, 8, width), base=None).net.base == base


@torch.no_grad()
def test_the_noise_depends_on_every_rows_own_time_and_pixels():
    torch.manual_seed(0)
    net, x = PixelUNet(SHAPE, 8), torch.randn(3, 128)
    mixed = net(x, net.embed_time(torch.tensor([0, 20, 900])))
    for row, t in enumerate((0, 20, 900)):
        alone = net(x[row : row + 1], net.embed_time(torch.tensor([t])))
        torch.testing.assert_close(alone[0], mixed[row], rtol=1e-4, atol=1e-5)
    assert (net(x, net.embed_time(torch.tensor([1]))) - mixed).abs().amax(1).min() > 1e-4


# --- DDPM


@torch.no_grad()
def test_the_score_is_the_papers_loop():
    detector, x = ddpm(divide=0.25), images()
    start = x.double().flatten(1).numpy() / 0.25
    state = start
    for i in range(11, -1, -1):
        betas = 1e-4 + (1e-2 - 1e-4) * np.arange(i + 1) / 39
        abar = np.prod(1 - betas)
        eps = detector.net(torch.tensor(state).float(), detector.net.embed_time(torch.full((5,), i))).double().numpy()
        state = (state - betas[-1] / np.sqrt(1 - abar) * eps) / np.sqrt(1 - betas[-1])
    expected = ((start - state) ** 2).mean(1)
    assert expected.min() > 1e-6
    np.testing.assert_allclose(score(detector, x), expected, rtol=1e-3)
    np.testing.assert_allclose(detector.denoise(x), state.reshape(x.shape) * 0.25, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 3, None])
@pytest.mark.parametrize("divide", [0.25, 1.0])
def test_a_perfect_predictor_reconstructs_the_only_image_there_is(steps, divide):
    detector, x, only = ddpm(steps=steps, divide=divide), images(), images(1, seed=2)
    detector.net = PointMass(detector.abar, only.flatten() / divide)
    expected = ((x - only) / divide).square().mean((1, 2, 3))
    torch.testing.assert_close(score(detector, x), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(detector.denoise(x), only.expand_as(x), rtol=1e-4, atol=1e-5)
    generator = torch.Generator().manual_seed(0)
    assert detector.loss(Views(x=only.expand_as(x)), generator) < 1e-8
    assert detector.loss(Views(x=x), generator) > 1e-3


@pytest.mark.parametrize(
    "options", [{}, {"posterior_noise": True}, {"forward_noise": True}, {"score_by": "noise_error"}]
)
def test_a_row_scores_the_same_alone_and_in_any_part(options, monkeypatch):
    detector, x = ddpm(steps=3, **options), images(5)
    together = score(detector, x)
    monkeypatch.setattr(pixel_diffusion, "PIXELS_AT_ONCE", {"cpu": 2 * 8 * 8})
    torch.testing.assert_close(score(detector, x), together, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(score(detector, x[3:4]), together[3:4], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(score(detector, x.double()), together, rtol=1e-4, atol=1e-7)


# --- DTE-C


class Told(nn.Module):
    """Gives logits that were set beforehand and keeps what it was given."""

    def __init__(self, logits_BK: torch.Tensor) -> None:
        super().__init__()
        self.logits_BK = logits_BK

    def forward(self, x):
        self.x = x
        return self.logits_BK[: len(x)]


def test_the_score_is_increasing_in_the_mean_class():
    detector, x = dtec(divide=0.5), images(40)
    detector.net = Told(3 * torch.randn(40, 7, generator=torch.Generator().manual_seed(0)))
    logits, k = detector.net.logits_BK.double().numpy(), np.arange(7)
    mean = softmax(logits, axis=1) @ k
    np.testing.assert_allclose(score(detector, x), np.log(mean / (6 - mean)), rtol=1e-6)
    torch.testing.assert_close(detector.net.x, x.flatten(1) / 0.5)
    detector.score_by = "mode"
    assert score(detector, x).tolist() == logits.argmax(1).tolist()


@pytest.mark.parametrize("loss", ["logits", "double_softmax"])
def test_images_are_noised_without_drift_and_the_loss_is_that_of_the_bin(loss):
    n = 2000
    detector, x = dtec((1, 4, 4), loss=loss, divide=0.25, bins=4), images(1, (1, 4, 4)).expand(n, -1, -1, -1)
    detector.net = Told(torch.randn(n, 4, generator=torch.Generator().manual_seed(1)))
    value = float(detector.loss(Views(x=x), torch.Generator().manual_seed(5)))
    t = torch.randint(40, (n,), generator=torch.Generator().manual_seed(5)).numpy()
    noise = (detector.net.x - x.flatten(1) / 0.25).numpy()
    variances = 1 - np.cumprod(1 - np.linspace(1e-4, 1e-2, 40))
    assert abs((noise / np.sqrt(variances[t])[:, None]).var() - 1) < 0.03
    assert abs(noise.mean(0)).max() < 0.03
    logits = detector.net.logits_BK.double().numpy()
    logits = softmax(logits, axis=1) if loss == "double_softmax" else logits
    expected = (logsumexp(logits, axis=1) - logits[np.arange(n), 4 * t // 40]).mean()
    assert value == pytest.approx(expected, rel=1e-5)


def test_batch_statistics_of_other_rows_do_not_enter_a_score():
    detector, x = dtec(), images(6)
    together = score(detector, x)
    assert together.unique().numel() == 6
    torch.testing.assert_close(score(detector, x[2:3]), together[2:3], rtol=1e-4, atol=1e-7)


# --- both


@pytest.mark.parametrize("make", [ddpm, dtec])
def test_saved_and_loaded(make):
    detector, x = make(), images()
    again = make()
    for p in again.parameters():
        nn.init.zeros_(p)
    again.load_state_dict(detector.state_dict())
    assert torch.equal(score(again, x), score(detector, x))


@pytest.mark.parametrize("make", [ddpm, dtec])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_the_estimated_operations_are_about_those_counted(make, shape):
    detector = make(shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        detector.loss(Views(x=images(1, shape)), torch.Generator())
    counted = 3 * counter.get_total_flops() * detector.recipe.batch_size
    assert 0.5 < stages.step_flops(detector, Views(x=images(1, shape))) / counted < 2


def test_presets_are_as_published():
    unet, resnet = (build(OmegaConf.load(CONFIGS / name / "paper.yaml")) for name in ("pixel_ddpm", "pixel_dte_c"))
    for detector in (unet, resnet):
        set_up(detector, Spec({"x": (3, 32, 32)}))
        assert (detector.recipe.lr, detector.recipe.weight_decay, detector.recipe.batch_size) == (1e-4, 5e-4, 64)
        assert (detector.recipe.min_steps, detector.recipe.decay_lr, detector.divide) == (0, False, 0.5)
    assert (count(unet.net), unet.rec_start, unet.steps, len(unet.abar)) == (8_073_331, 250, None, 1000)
    assert (unet.recipe.epochs, unet.recipe.drop_last, unet.early_stop) == (100, True, True)
    assert (count(resnet.net), resnet.outputs, resnet.double_softmax, len(resnet.abar)) == (23_522_375, 7, True, 400)
    assert (resnet.recipe.epochs, resnet.recipe.drop_last, resnet.far, resnet.drift) == (400, False, 0, False)


@pytest.mark.parametrize("name", ["pixel_ddpm", "pixel_dte_c/paper"])
@pytest.mark.parametrize("option", ["divide=0", "divide=-0.5", "divide=half", "lr=-1", "T=0"])
def test_values_that_the_signature_refuses(name, option):
    with pytest.raises(UserError, match=rf"detector.{option.partition('=')[0]}="):
        compose("train", [f"detector={name}", "backbone=pixels", f"detector.{option}"])


def test_options_that_cannot_be():
    with pytest.raises(UserError, match=r"rec_start = 41 .* set detector.rec_start to 40"):
        PixelDDPM(T=40, rec_start=41)
    with pytest.raises(UserError, match=r"base = 12: allowed are multiples of 8; set detector.base to 16"):
        PixelDDPM(base=12)
    with pytest.raises(UserError, match="bins = 41"):
        PixelDTEC(T=40, bins=41)


@pytest.mark.parametrize("kind", [PixelDDPM, PixelDTEC])
def test_input_that_is_no_image(kind):
    with pytest.raises(UserError, match=r"takes images.*shape \(64,\); set backbone=pixels"):
        kind().setup(Spec({"x": (64,)}))


@pytest.mark.parametrize("make", [ddpm, dtec])
@pytest.mark.parametrize(("value", "says"), [(-1.0, "-1 to"), (255.0, "to 255"), (float("nan"), "nan")])
def test_values_that_are_no_pixels(make, value, says):
    x = images()
    make().prepare(Views(x=x))
    x[2, 1, 3, 4] = value
    with pytest.raises(UserError, match=rf"{says}.*allowed are values in \[0, 1\]; set backbone=pixels"):
        make().prepare(Views(x=x))
