"""The moving average of weights: the ramp's values, a plain loop, counters, and a checkpoint in between."""

import pytest
import torch
from torch import nn

from outlie.averaging import MovingAverage
from outlie.backbones.denoising import DenoiserRecipe, ema_decay
from outlie.detectors.base import Views
from outlie.lightning import Batches


def test_the_ramp():
    assert ema_decay(0, 0.9999) == 0  # copies
    assert ema_decay(196_000, 0.9999) == pytest.approx(0.9997, abs=5e-5)  # the published training's end
    assert ema_decay(53_990, 0.9993) < 0.9993 == ema_decay(54_000, 0.9993)
    assert ema_decay(10**6, 0.9999) == 0.9999 == ema_decay(10**9, 0.9999)


def test_the_average_is_what_a_plain_loop_gives():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = MovingAverage(module, lambda step: ema_decay(step, 0.6))
    expected = None
    for step in range(5):
        module(torch.randn(4, 3))  # moves the buffers
        with torch.no_grad():
            for p in module.parameters():
                p.add_(torch.randn_like(p))
        average.update(module)
        now = {k: v.clone().double() for k, v in module.state_dict().items()}
        d = min(0.6, 1 - (1 + step) ** (-2 / 3))
        expected = now if expected is None else {k: d * expected[k] + (1 - d) * now[k] for k in now}
    for name, value in average.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
        else:
            assert value == 5  # batches that were seen: a count, not an average
    assert not any(p.requires_grad for p in average.module.parameters())


def test_it_goes_on_from_a_checkpoint():
    module = nn.Linear(2, 2)
    one = MovingAverage(module, lambda step: 0.9)
    one.update(module)
    other = MovingAverage(nn.Linear(2, 2), lambda step: 0.9)
    other.load(one.state())
    with torch.no_grad():
        module.weight.add_(1)
    for average in (one, other):
        average.update(module)
    torch.testing.assert_close(one.module.weight, other.module.weight, rtol=0, atol=0)
    assert other.updates == 2


def test_lengths_are_in_images():
    recipe = DenoiserRecipe(images=1000, batch_size=50, lr=1.0, warmup_images=200, ema=0.9, clip_norm=1.0)
    assert recipe.epochs_of(steps_an_epoch=10) == 2 and recipe.epochs_of(11) == 2 and recipe.epochs_of(1000) == 1
    half = DenoiserRecipe(images=1000, batch_size=100, lr=1.0, warmup_images=200, ema=0.9, clip_norm=1.0)
    assert half.epochs_of(5) == 2  # the same images with another batch size
    assert recipe.lr_at(0.0) == pytest.approx(0.25) and recipe.lr_at(0.1) == pytest.approx(0.75)
    assert recipe.lr_at(0.15) == recipe.lr_at(1.0) == 1.0
    assert DenoiserRecipe(1000, 50, 1.0, 0, 0.9, 1.0).lr_at(0.0) == 1.0


def test_a_pass_in_parts_sees_every_row_once():
    views = Views(x=torch.arange(1000.0)[:, None])
    parts = [0]
    batches = Batches(
        views, 32, True, lambda: torch.Generator().manual_seed(0), part_rows=250, part=lambda: parts[0]
    )  # fmt: skip
    assert batches.parts == 4 and len(batches) == 7  # 31 full batches, 3 are left out
    seen = []
    for parts[0] in range(4):
        rows = [batch.x for batch in batches]
        assert len(rows) == 7
        seen += rows
    assert len(torch.cat(seen).unique()) == 4 * 7 * 32
    assert Batches(views, 32, True, lambda: torch.Generator(), part_rows=10_000).parts == 1
