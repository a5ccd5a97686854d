"""The class read from noisy images: EDM's grid as measured, a head by hand, a closed form, digits, bad input."""

import csv
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.datasets import load_digits
from torch import Tensor

from outlie.backbones.unet import UNet
from outlie.diffusion.processes import VE, VP
from outlie.errors import UserError
from outlie.probe import noisy

# the specification of DDAE, section 6
SIGMAS = [0.00200, 0.00753, 0.02293, 0.05995, 0.13952, 0.29644, 0.58535, 1.08817, 1.92334]


def denoiser(shape=(1, 8, 8), **options) -> UNet:
    torch.manual_seed(0)
    network = UNet(base=8, multipliers=(1, 2), depth=1, attention=(1,), dropout=0.0, flip=False, **options)
    network.build(shape, None)
    return network.eval()


def digits(n: int) -> tuple[Tensor, Tensor]:
    data: Any = load_digits()
    return torch.tensor(data.images[:n] * 15.9).to(torch.uint8)[:, None], torch.tensor(data.target[:n])


def test_levels_are_the_published_ones():
    assert noisy.training_times(VP()).tolist() == list(range(1, 1001))
    assert noisy.evaluated_times(VP()).tolist() == list(range(1, 952, 50))
    sigmas = noisy.training_times(VE())
    assert len(sigmas) == 18 and torch.equal(sigmas, noisy.evaluated_times(VE()))
    np.testing.assert_allclose(sigmas[:9], SIGMAS, atol=5e-6)
    assert noisy.index_of(VE(), sigmas).tolist() == list(range(1, 19))
    assert noisy.index_of(VP(), torch.tensor([1, 51, 1000])).tolist() == [1, 51, 1000]


@pytest.mark.parametrize(("process", "time"), [("ddpm", [3, 700]), ("edm", [0.0229309, 1.9233410])])
@torch.no_grad()
def test_a_head_is_two_layers_on_pooled_maps_and_the_index(process, time):
    network = denoiser(process=process)
    head = noisy.new_head(network, "out_2", (1, 8, 8), 5, seed=1)
    x, times = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(time)
    index = [3, 9] if process == "edm" else time
    for row in range(2):  # a row at a time, in numpy
        width = 16
        pooled = network.maps(x[row : row + 1], times[row : row + 1], ["out_2"])["out_2"].numpy().mean((0, 2, 3))
        angles = [index[row] * 10_000 ** (-k / (width / 2 - 1)) for k in range(width // 2)]
        z = pooled + np.concatenate([np.sin(angles), np.cos(angles)])
        hidden = head.hidden.weight.numpy() @ z + head.hidden.bias.numpy()
        assert hidden.shape == (2 * width,)
        active = hidden / (1 + np.exp(-hidden))
        expected = head.out.weight.numpy() @ active + head.out.bias.numpy()
        np.testing.assert_allclose(head(x, times)[row], expected, atol=2e-4)
    assert {name.split(".")[0] for name in head.state_dict()} == {"hidden", "out"}


@pytest.mark.parametrize("process", ["ddpm", "edm"])
def test_the_best_reader_of_two_flat_classes_reaches_its_closed_form(process):
    network, n, pixels = denoiser(process=process), 4000, 64
    y = torch.arange(n) % 2
    x = torch.where(y == 1, 191, 64).to(torch.uint8)[:, None, None, None].expand(n, 1, 8, 8)  # +-0.498 of [-1, 1]

    def by_the_sign(images: Tensor, time: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([-mean, mean], 1)

    levels = noisy.accuracy_by_noise(by_the_sign, network, x, y, seed=0, at_once=1500)
    a_over_b = np.exp(np.array([level["log_snr"] for level in levels]) / 2)
    expected = norm.cdf(a_over_b * (191 / 127.5 - 1) * np.sqrt(pixels))  # the mean's noise is b / sqrt(pixels)
    found = [level["accuracy"] for level in levels]
    np.testing.assert_allclose(found, expected, atol=4 * 0.5 / np.sqrt(n))
    assert expected[0] > 0.999 and expected[-1] < 0.65
    assert (np.diff(found) <= 0).all()  # the same draw at all levels: what a reader loses it does not find again
    assert {level["n"] for level in levels} == {n}


def test_a_head_learns_nearly_what_can_be_known_and_the_denoiser_does_not_change():
    network = denoiser(process="edm")  # of random weights: what it still tells apart is how bright an image is
    before = {name: t.clone() for name, t in network.state_dict().items()}
    y = torch.arange(500) % 3
    jitter = torch.randint(-20, 21, (500, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    x = (torch.tensor([20, 128, 235])[y][:, None, None, None] + jitter).to(torch.uint8)
    head, losses = noisy.train_head(network, x[:400], y[:400], 3, seed=0, epochs=15, batch_size=50, lr=3e-2)
    assert head.block == "out_2" and len(losses) == 15 and losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    levels = noisy.accuracy_by_noise(head.eval(), network, x[400:], y[400:], seed=1)
    accuracy = np.array([level["accuracy"] for level in levels])
    sigma = np.array([level["time"] for level in levels])
    most = (4 * norm.cdf(107.5 / 127.5 / 2 * 8 / sigma) - 1) / 3  # three levels told apart by the mean of 64 pixels
    assert accuracy[:6].min() > 0.9 and (accuracy < most + 0.15).all()
    assert np.abs(accuracy - most)[sigma < 1].max() < 0.15


def test_the_same_seed_trains_the_same_head():
    network, (x, y) = denoiser(), digits(60)
    weights = [noisy.train_head(network, x, y, 10, seed=s, epochs=2)[0].state_dict() for s in (3, 3, 4)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["out.weight"], weights[2]["out.weight"])


def test_training_asks_for_every_level_and_falls_by_a_cosine(monkeypatch):
    network, (x, y) = denoiser(process="edm"), digits(200)
    seen, rates = [], []
    real = noisy.read
    monkeypatch.setattr(noisy, "read", lambda *given: seen.append(given[3]) or real(*given))
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]))
    noisy.train_head(network, x, y, 10, seed=0, epochs=4, batch_size=200)
    drawn = torch.cat(seen)
    assert torch.equal(drawn.unique(), noisy.training_times(VE()))
    assert drawn.unique(return_counts=True)[1].min() > 15  # of 800 / 18
    np.testing.assert_allclose(rates, [1e-3, 1e-3 * (0.5 + 0.5 * 0.5**0.5), 5e-4, 1e-3 * (0.5 - 0.5 * 0.5**0.5)])


def test_images_are_mirrored_only_as_the_denoisers_were(monkeypatch):
    x, y = digits(20)
    called = []
    monkeypatch.setattr(noisy.augment, "flip", lambda images, generator: called.append(1) or images)
    network = denoiser()
    for flip in (False, True):
        network.flip = flip
        noisy.train_head(network, x, y, 10, seed=0, epochs=1)
        assert len(called) == flip


def test_the_report(tmp_path):
    network, (x, y) = denoiser(process="edm"), digits(300)
    result = noisy.report(network, x[:200], y[:200], x[200:], y[200:], tmp_path, seed=2, epochs=1, rows=50)
    with open(tmp_path / "noisy.csv") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["sigma", "log_snr", "accuracy", "n"] and len(table) == 18
    for row, level in zip(table, result["levels"], strict=True):
        assert float(row["sigma"]) == pytest.approx(level["time"], rel=1e-5)
        assert float(row["log_snr"]) == pytest.approx(-2 * np.log(level["time"]), abs=1e-4)
        assert float(row["accuracy"]) == pytest.approx(level["accuracy"])
    assert (tmp_path / "noisy.png").read_bytes().startswith(b"\x89PNG")
    assert (result["train_rows"], result["test_rows"], result["block"]) == (50, 50, "out_2")
    assert result["accuracy_noisy_mean"] == pytest.approx(np.mean([float(row["accuracy"]) for row in table]))
    assert result["noisy_evaluations"] == 50 + 1 + 18 * 50  # a pass to see the width
    assert 0.1 <= result["most_frequent_class"] < 0.4


def bad(**changed):
    x, y = digits(12)
    return {"train_x": x, "train_y": y, "test_x": x, "test_y": y, "seed": 0, "epochs": 1, "rows": None} | changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_y": None}, "no class labels"),
        ({"test_y": None}, "no class labels"),
        ({"rows": 0}, "rows = 0: must be 1 or more"),
        ({"epochs": 0}, "epochs = 0: must be 1 or more"),
        ({"test_y": torch.full((12,), 10)}, "class label 10 in the test rows: allowed are 0 to 9"),
        ({"train_y": torch.arange(12) - 2}, "class label -2 in the training rows"),
        ({"train_y": torch.zeros(12, dtype=torch.int64)}, "only one class"),
        ({"test_x": torch.zeros(12, 64)}, r"test images of shape \(12, 64\) of float32"),
        ({"train_x": torch.zeros(12, 1, 8, 8)}, "training images of shape .* of float32"),
        ({"test_x": torch.zeros(0, 1, 8, 8, dtype=torch.uint8)}, "0 test images and 12 labels"),
    ],
)
def test_input_that_cannot_be(tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        noisy.report(denoiser(), folder=tmp_path, **bad(**changed))
    assert not list(tmp_path.iterdir())


def test_a_block_that_is_not_there():
    x, y = digits(12)
    with pytest.raises(UserError, match="there is no block 'out_9'; there are down_1"):
        noisy.train_head(denoiser(), x, y, 10, seed=0, block="out_9")
