"""Figures of a trained model: the grid against importance sampling, the table of reconstructions, refusals."""

import csv
import functools
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from outlie import stages
from outlie.backbones.pixels import Pixels
from outlie.data.split import Rows, Split
from outlie.density import scores, trained_figures
from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.vae import VAE
from outlie.errors import UserError
from outlie.trainer import Options


@functools.cache
def digits() -> Split:
    x, y = load_digits(return_X_y=True)
    images = torch.from_numpy(15 * x).to(torch.uint8).view(-1, 1, 8, 8)
    rows = [Rows(images[part], torch.arange(1797)[part], None, torch.from_numpy(y)[part])
            for part in (slice(0, 1500), slice(1500, 1797))]  # fmt: skip
    zero = torch.zeros(1, 1, 1)
    return Split("test", rows[0], {"test": rows[1]}, None, zero, zero + 1, "")


def model(tmp_path: Path, **options) -> VAE:
    settings = {"likelihood": "bernoulli", "latent": 2, "k": 10, "epochs": 8, "lr": 3e-3} | options
    detector = VAE(hidden=[64], **settings)
    set_up(detector, Spec({"x": (1, 8, 8)}))
    stages.train(detector, Pixels()(digits().train.x), 0, Options(accelerator="cpu", threads=1), tmp_path / "training")
    return detector.eval()


def table(path: Path) -> list[dict[str, float]]:
    with path.with_suffix(".csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_the_posterior_on_the_grid_is_the_posterior(tmp_path):
    detector = model(tmp_path)
    path = trained_figures.posterior(tmp_path / "posterior.png", detector, Pixels(), digits())
    rows = table(path)
    assert path.stat().st_size > 10_000
    assert [row["digit"] for row in rows] == [digit for digit in trained_figures.DIGITS for _ in range(3)]
    x = detector.rows(trained_figures.first_of_each(Pixels(), digits(), trained_figures.DIGITS))
    with torch.no_grad():  # self-normalised importance sampling
        q, noise = detector.model.encode(x), scores.draws(detector.model, 20_000, 1)
        z = q.at(noise.first)
        share = detector.model(x, q, z, noise).softmax(0)
    mean = (share[..., None] * z).sum(0)
    for i, expected in enumerate(mean):
        for row in rows[3 * i : 3 * i + 3]:
            found = torch.tensor([row["posterior_mean_1"], row["posterior_mean_2"]])
            torch.testing.assert_close(found.double(), expected.double(), atol=0.05, rtol=0)
        far, near = (abs(rows[3 * i + at]["draws_mean_1"] - expected[0].item()) for at in (0, 2))
        assert near < 0.3 or near < far


def test_the_grid_integrates_to_one(tmp_path):
    detector = model(tmp_path, epochs=1)
    x = detector.rows(Pixels()(digits().tests["test"].x[:1]))
    low, high = torch.tensor([-5.0, -4.0]), torch.tensor([5.0, 4.0])
    with torch.no_grad():
        log_p, lines = trained_figures.on_grid(detector.model, x, low, high)
    area = torch.trapezoid(torch.trapezoid(log_p.exp(), lines[1].double()), lines[0].double())
    assert float(area) == pytest.approx(1, abs=0.01)


def test_resampled_reconstructions_fit_better(tmp_path):
    detector = model(tmp_path)
    path = trained_figures.reconstructions(tmp_path / "reconstructions.svg", detector, Pixels(), digits())
    rows = table(path)
    assert path.read_text().lstrip().startswith("<?xml")
    assert [row["k"] for row in rows] == [1, 10, 50, 100]
    assert rows[-1]["reconstruction_nll"] < rows[0]["reconstruction_nll"]
    assert all(row["images"] == 297 and 0 <= row["same_class"] <= 1 for row in rows)
    assert rows[-1]["same_class"] >= rows[0]["same_class"]


def test_what_cannot_be_drawn_is_refused(tmp_path):
    detector = VAE(likelihood="bernoulli", latent=3, hidden=[8])
    set_up(detector, Spec({"x": (1, 8, 8)}))
    with pytest.raises(UserError, match=r"set detector\.latent=2"):
        trained_figures.posterior(tmp_path / "a.png", detector, Pixels(), digits())
    test = digits().tests["test"]
    some = Split("test", digits().train, {"test": Rows(test.x[:3], test.index[:3], None, torch.tensor([3, 4, 5]))},
                 None, torch.zeros(1), torch.ones(1), "")  # fmt: skip
    with pytest.raises(UserError, match="classes 0, 6, 7, 1, 2"):
        trained_figures.first_of_each(Pixels(), some, trained_figures.DIGITS)
    assert isinstance(trained_figures.first_of_each(Pixels(), digits(), (0, 1)), Views)
