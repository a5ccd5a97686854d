"""Pictures of a trained model: its true posterior beside q and q_EW, and reconstructions from both.

Cremer et al., Reinterpreting Importance-Weighted Autoencoders, 2017; specification of IWAE, section 2.1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outlie.data.split import Split
from outlie.density import scores
from outlie.density.figures import blank, written
from outlie.density.latent import LatentModel, Normal
from outlie.density.objectives import samples_at_once
from outlie.detectors.base import Views
from outlie.detectors.neighbours import nearest_neighbours
from outlie.detectors.vae import VAE
from outlie.errors import UserError

DIGITS = (0, 6, 7, 1, 2)  # of the paper's figure
DRAWS = 10
K = 50  # of q_EW in the figure of reconstructions
SIZES = (1, 10, 50, 100)  # k in the table beside it
IMAGES, NEIGHBOURS, BANK = 2000, 5, 10_000
GRID = 200


@torch.no_grad()
def posterior(path: Path, detector: VAE, backbone: Any, split: Split, k: tuple[int, ...] = (1, 10, 100)) -> Path:
    """Rows: test digits; columns: the image, then p(z | x) on a grid, q and 200 draws from q_EW for each k.

    Raises:
        UserError: for a model whose z is not two-dimensional, or with two stochastic layers.
    """
    model = detector.model
    if model.latent != (2,):
        raise UserError(f"the true posterior is drawn in the plane: set detector.latent=2, not {model.latent}")
    x = detector.rows(first_of_each(backbone, split, DIGITS))
    q = model.encode(x)
    drawing = blank(path, (2.6 * (1 + len(k)), 2.5 * len(x)))
    panels: Any = drawing.subplots(len(x), 1 + len(k), squeeze=False)
    table = []
    for row, image in enumerate(x):
        own, one = image[None], Normal(q.mean[row : row + 1], q.log_std[row : row + 1])
        centre, spread = one.mean[0], one.log_std[0].exp()
        panels[row, 0].imshow(image.view(image.shape[-2:]), cmap="gray_r")
        panels[row, 0].set(xticks=[], yticks=[])
        draws = [resampled(model, own, one, size, 200, detector.seed) for size in k]
        points = torch.cat([*draws, centre + 4 * spread * torch.tensor([[1.0, 1.0], [-1.0, -1.0]])])
        low, high = points.amin(0) - 0.2, points.amax(0) + 0.2
        log_p, lines = on_grid(model, own, low, high)
        for column, (size, z) in enumerate(zip(k, draws), start=1):
            axes = panels[row, column]
            axes.contourf(*lines, log_p.exp().T, levels=12, cmap="Blues")
            around = torch.linspace(0, 2 * torch.pi, 100)
            for radius in (1, 2):
                ring = centre + radius * spread * torch.stack([around.cos(), around.sin()], 1)
                axes.plot(*ring.T, color="tab:red", linewidth=1, label="q: 1 and 2 sigma" if radius == 1 else None)
            axes.scatter(*z.T, s=4, color="black", alpha=0.5, linewidths=0, label="draws")
            axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
            axes.set_title("q" if size == 1 else f"$q_{{EW}}$, k = {size}", fontsize=10)
            step = ((high - low) / (GRID - 1)).prod()
            mean = (log_p.exp()[..., None] * torch.cartesian_prod(*lines).view(GRID, GRID, 2)).sum((0, 1)) * step
            names = ("posterior_mean_1", "posterior_mean_2", "draws_mean_1", "draws_mean_2")
            values = [*mean.tolist(), *z.mean(0).tolist()]
            table.append({"digit": DIGITS[row], "k": size, **dict(zip(names, values))})
    panels[0, 1].legend(fontsize=8, loc="upper left")
    drawing.suptitle("Shaded: the true posterior p(z | x) of the trained model; k = 1 draws from q itself")
    return written(drawing, path, table)


@torch.no_grad()
def reconstructions(path: Path, detector: VAE, backbone: Any, split: Split) -> Path:
    """Digits, ten decoded draws from q, ten from q_EW; the table says how well both reconstruct 2,000 test images.

    Columns of the table: mean -log p(x | z) in nats, and the share of reconstructions that a 5-nearest-neighbour
    classifier of 10,000 training images puts into the class of the input.
    """
    model = detector.model
    if len(model.latent) > 1:
        raise UserError("reconstructions are drawn from one stochastic layer: leave detector.latent_2 away")
    x = detector.rows(first_of_each(backbone, split, DIGITS))
    q = model.encode(x)
    shape = (*x.shape[:1], DRAWS, *x.shape[-2:])
    decoded = {}
    for name, size in (("q", 1), ("$q_{EW}$", K)):
        z = torch.stack([scores.sir(model, x, size, detector.seed + i, q) for i in range(DRAWS)], 1)
        decoded[name] = model.likelihood.mean(model.decode(z)).view(shape)
    drawing = blank(path, (14, 3.6))
    panels: Any = drawing.subplots(1, 3, width_ratios=(1, DRAWS, DRAWS))
    panels[0].imshow(x.view(-1, x.shape[-1]), cmap="gray_r")
    panels[0].set_title("input")
    for axes, (name, images) in zip(panels[1:], decoded.items()):
        axes.imshow(images.permute(0, 2, 1, 3).reshape(-1, DRAWS * x.shape[-1]), cmap="gray_r")
        axes.set_title(f"{DRAWS} draws from {name}" + (f", k = {K}" if name != "q" else ""))
    for axes in panels:
        axes.set(xticks=[], yticks=[])
    return written(drawing, path, measured(detector, backbone, split))


def measured(detector: VAE, backbone: Any, split: Split) -> list[dict[str, float | str]]:
    """How well z from q (k = 1) and from q_EW reconstructs test images, by k."""
    model, test = detector.model, split.tests["test"]
    train = split.train
    assert train.y is not None and test.y is not None
    bank, y = backbone(train.x[:BANK]).x.flatten(1), train.y[:BANK]
    views, label = backbone(test.x[:IMAGES]), test.y[:IMAGES]
    x = detector.rows(views)
    rows: list[dict[str, float | str]] = []
    for size in SIZES:
        nll, right = [], []
        for some, own in zip(x.split(200), label.split(200)):
            z = scores.sir(model, some, size, detector.seed)
            nll.append(-model.log_likelihood(some, z))
            nearest = nearest_neighbours(model.likelihood.mean(model.decode(z)), bank, NEIGHBOURS)[1]
            right.append((y[nearest].mode(1).values == own).double())
        error, share = torch.cat(nll), torch.cat(right)
        rows.append({
            "k": size, "images": len(x), "reconstruction_nll": float(error.mean()),
            "reconstruction_nll_se": float(error.std() / len(x) ** 0.5), "same_class": float(share.mean()),
        })  # fmt: skip
    return rows


def first_of_each(backbone: Any, split: Split, classes: tuple[int, ...]) -> Views:
    """The first test image of each class, as the backbone gives it.

    Raises:
        UserError: where the test rows have no such class.
    """
    test = split.tests["test"]
    wanted = [torch.nonzero(test.y == label)[:1, 0] for label in classes if test.y is not None]
    if not wanted or any(len(rows) == 0 for rows in wanted):
        raise UserError(f"the figure shows classes {', '.join(map(str, classes))}; these data lack some of them")
    return backbone(test.x[torch.cat(wanted)])


def resampled(model: LatentModel, x: Tensor, q: Normal, k: int, draws: int, seed: int) -> Tensor:
    """(draws, d) of q_EW for one row, each from k samples of its own."""
    return torch.cat([scores.sir(model, x, k, seed + i, q) for i in range(draws)])


def on_grid(model: LatentModel, x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, list[Tensor]]:
    """log p(z | x) of one row on a square grid, normalised by its sum over the grid, and the grid's two axes."""
    lines = [torch.linspace(float(a), float(b), GRID) for a, b in zip(low, high)]
    z = torch.cartesian_prod(*lines)[:, None]
    log_p = torch.cat([model.log_joint(x, part) for part in z.split(samples_at_once(model, 1))])[:, 0].view(GRID, GRID)
    volume = ((high - low) / (GRID - 1)).prod().log()
    return log_p - log_p.logsumexp((0, 1)) - volume, lines
