"""Pictures of q_EW = E_{z_2..z_k ~ q} [k w(z) / (w(z) + sum_j w(z_j)) q(z)]: specification of IWAE, section 2.1.

Beside each picture lies a table of the same name, .csv, with what was estimated for it.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from outlie.density.latent import Normal
from outlie.density.posterior import draw, log_q_ew, log_q_tilde, log_weights, resample
from outlie.density.targets import EIGHT_MODES, EIGHT_MODES_Q, ONE_MODE, ONE_MODE_Q, THREE_MODES, Mixture
from outlie.density.weights import log_mean_exp
from outlie.errors import UserError
from outlie.results.plots import ANOMALY, LINES, NORMAL, POINT
from outlie.results.store import whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.contour import ContourSet
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")
BOUND_DRAWS = 4000  # of log (1/k) sum w, behind an estimate of L_k
SIR_DRAWS = 20_000  # in a histogram
FIT_STEPS, FIT_ROWS, FIT_RATE = 400, 128, 0.05  # of Adam; START is the log standard deviation it begins at
START = 0.5

Row = Mapping[str, float | str]


def mixture_2d(path: Path, seed: int = 0, k: Sequence[int] = (1, 10, 100), batches: int = 100) -> Path:
    """Eight modes in the plane, and q_EW for each k from q = N(0, e I), on 101 x 101 points of [-6, 6]^2.

    Args:
        path: PNG or SVG, by its suffix; the table is written beside it.
        seed: of every draw.
        k: numbers of samples, a panel each.
        batches: fresh batches of k - 1 draws that q_EW is averaged over.
    """
    generator, drawing = torch.Generator().manual_seed(seed), blank(path, (3.4 * (1 + len(k)) + 0.8, 4.2))
    line = torch.linspace(-6, 6, 101, dtype=torch.float64)
    z, area = torch.cartesian_prod(line, line), (line[1] - line[0]).item() ** 2
    log_target = _on_grid(EIGHT_MODES.log_density(z), area)
    panels, rows = [("target, p(z | x)", log_target)], []
    for samples in k:
        log_q = log_q_ew(z, EIGHT_MODES.log_density, EIGHT_MODES_Q, samples, generator, batches)
        row = _estimates(EIGHT_MODES, EIGHT_MODES_Q, samples, generator, log_q, log_target, area)
        rows.append({"k": samples, "batches": batches, **row})
        name = "$q_{EW}$, k = 1: q itself" if samples == 1 else f"$q_{{EW}}$, k = {samples:,}"
        panels.append((f"{name}\n{_words(row)}", log_q))
    top = max(log_density.exp().max().item() for _, log_density in panels)
    axes_of = drawing.subplots(1, len(panels), sharex=True, sharey=True)
    filled = [_contours(axes, line, panel[1], log_target, top) for axes, panel in zip(axes_of, panels)]
    for axes, (title, _) in zip(axes_of, panels):
        axes.set_title(title, fontsize=10)
    axes_of[0].set_ylabel("$z_2$")
    ticks = [i / 100 for i in range(int(100 * top) + 1)]
    drawing.colorbar(filled[0], ax=list(axes_of), label="density", ticks=ticks, pad=0.01)
    drawing.suptitle(
        f"q = N(0, e I) after importance weighting ({batches:,} batches); lines: the target's contours", fontsize=12
    )
    return written(drawing, path, rows)


def one_d(path: Path, seed: int = 0, k: Sequence[int] = (1, 5, 10)) -> Path:
    """Draws from q_EW where q was fitted by the ELBO and by L_k, and q~_IW for three values of the other sample.

    The target of the former is ours, three normals: the author's is not known. The latter, p = N(-2.5, e) and
    q = N(4.5, e^0.5) with k = 2, is the author's.

    Args:
        path: PNG or SVG, by its suffix; the table is written beside it.
        seed: of every draw.
        k: numbers of samples, a column each.
    """
    generator, drawing = torch.Generator().manual_seed(seed), blank(path, (3.7 * len(k), 9))
    halves: Any = drawing.subfigures(2, 1, height_ratios=(2, 1.25), hspace=0.04)
    upper, lower = halves
    panels = upper.subplots(2, len(k), sharex=True, sharey=True, squeeze=False)
    by_elbo, rows = _fitted(THREE_MODES, 1, generator), []
    for column, samples in enumerate(k):
        by_bound = by_elbo if samples == 1 else _fitted(THREE_MODES, samples, generator)
        for axes, q, by in (
            (panels[0, column], by_elbo, "the ELBO"),
            (panels[1, column], by_bound, f"$L_{{{samples}}}$"),
        ):
            row = _draw_sir(axes, THREE_MODES, q, samples, generator)
            axes.set_title(f"q fitted by {by}, k = {samples}\n{_words(row)}", fontsize=10)
            rows.append({"panel": f"fitted by {by}".replace("$", ""), "k": samples, **row})
    for axes in panels[-1]:
        axes.set_xlabel("z")
    for axes in panels[:, 0]:
        axes.set_ylabel("density")
    panels[0, 0].legend(frameon=False, fontsize=9, loc="upper left")
    upper.suptitle("Resampling k draws of q by their weights (SIR); the target is a mixture of our choice", fontsize=12)
    rows += _draw_q_tilde(lower.subplots(), generator)
    return written(drawing, path, rows)


def _draw_sir(axes: Axes, target: Mixture, q: Normal, k: int, generator: torch.Generator) -> Row:
    """Target, q, and the histogram of resampled draws; the estimates of q_EW."""
    line = torch.linspace(-8, 8, 401, dtype=torch.float64)
    step = (line[1] - line[0]).item()
    log_target = _on_grid(target.log_density(line[:, None]), step)
    log_q = log_q_ew(line[:, None], target.log_density, q, k, generator)
    z = draw(Normal(q.mean.expand(SIR_DRAWS, 1), q.log_std.expand(SIR_DRAWS, 1)), k, generator)
    found = resample(z, log_weights(z, target.log_density, q), generator)
    bins = torch.linspace(-8, 8, 81).numpy()
    axes.hist(found[:, 0].numpy(), bins, density=True, color=LINES[5], alpha=0.6, label="SIR draws")
    axes.plot(line, log_target.exp(), color=POINT, linewidth=1.6, label="target")
    axes.plot(line, q.log_prob(line[:, None]).exp(), color=ANOMALY, linewidth=1.6, linestyle="--", label="q")
    axes.set(xlim=(-8, 8))
    fit = {"q_mean": q.mean.item(), "q_std": q.log_std.exp().item()}
    return {**fit, **_estimates(target, q, k, generator, log_q, log_target, step)}


def _draw_q_tilde(axes: Axes, generator: torch.Generator) -> list[Row]:
    """q~_IW(z | z_2) for three z_2 ~ q, and their mean over many, q_EW, k = 2."""
    line = torch.linspace(-10, 10, 1001, dtype=torch.float64)
    z, step, q, log_joint = line[:, None], (line[1] - line[0]).item(), ONE_MODE_Q, ONE_MODE.log_density
    log_target, log_q, log_w = log_joint(z), q.log_prob(z), log_weights(z, log_joint, q)
    log_ew = log_q_ew(z, log_joint, q, 2, generator, batches=5000)
    rows: list[Row] = [{"panel": "q_EW", "k": 2, **_estimates(ONE_MODE, q, 2, generator, log_ew, log_target, step)}]
    axes.plot(line, log_target.exp(), color=POINT, linewidth=1.6, label="target, N(−2.5, e)")
    axes.plot(line, log_q.exp(), color=ANOMALY, linewidth=1.6, linestyle="--", label=r"q, N(4.5, $e^{0.5}$)")
    axes.plot(
        line, log_ew.exp(), color=NORMAL, linewidth=2.2, label=f"$q_{{EW}}$, integral {rows[0]['mass_on_grid']:.2f}"
    )
    for z_2, colour, style in zip(draw(q, 3, generator), (LINES[2], LINES[3], LINES[4]), ("-.", ":", (0, (5, 1)))):
        log_tilde = log_q_tilde(log_w, log_q, log_weights(z_2[None], log_joint, q), 2)
        mass = log_tilde.exp().sum().item() * step
        words = rf"$\tilde{{q}}_{{IW}}$ given $z_2$ = {z_2.item():.2f}, integral {mass:.2f}"
        axes.plot(line, log_tilde.exp(), color=colour, linestyle=style, linewidth=1.6, label=words)
        rows.append({"panel": "q_tilde", "k": 2, "z_2": z_2.item(), "mass_on_grid": mass})
    axes.set(xlabel="z", ylabel="density", xlim=(-10, 10))
    axes.set_title(r"$\tilde{q}_{IW}$ depends on the other sample, and is not normalised; its mean $q_{EW}$ is (k = 2)")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return rows


def _fitted(target: Mixture, k: int, generator: torch.Generator) -> Normal:
    """The normal q whose L_k is largest: Adam on its mean and log standard deviation, by reparameterised gradients.

    What is returned is the mean of the second half of the steps: the last one alone is noisy.
    """
    parameters = torch.tensor([[0.0], [START]], dtype=torch.float64, requires_grad=True)
    adam, path = torch.optim.Adam([parameters], FIT_RATE), []
    for _ in range(FIT_STEPS):
        q = Normal(parameters[0], parameters[1])
        log_w = log_weights(draw(q, k * FIT_ROWS, generator), target.log_density, q)
        adam.zero_grad()
        (-log_mean_exp(log_w.unflatten(0, (k, FIT_ROWS))).mean()).backward()
        adam.step()
        path.append(parameters.detach().clone())
    return Normal(*torch.stack(path[FIT_STEPS // 2 :]).mean(0))


def _estimates(
    target: Mixture, q: Normal, k: int, generator: torch.Generator, log_q: Tensor, log_target: Tensor, volume: float
) -> Row:
    """L_k with its standard error; KL(q_EW || target) and the mass of q_EW on a grid, whose points have that volume."""
    z = draw(q, k * BOUND_DRAWS, generator)
    bounds = log_mean_exp(log_weights(z, target.log_density, q).unflatten(0, (k, BOUND_DRAWS)))
    on_grid = _on_grid(log_q, volume)
    kl = (on_grid.exp() * (on_grid - log_target)).sum().item() * volume
    return {
        "bound": bounds.mean().item(),
        "bound_se": bounds.std().item() / BOUND_DRAWS**0.5,
        "kl_on_grid": kl,
        "mass_on_grid": log_q.exp().sum().item() * volume,
    }


def _on_grid(log_density: Tensor, volume: float) -> Tensor:
    """The same, normalised on the grid."""
    return log_density - (log_density.exp().sum() * volume).log()


def _contours(axes: Axes, line: Tensor, log_density: Tensor, log_target: Tensor, top: float) -> ContourSet:
    def table(log_values: Tensor) -> Any:
        return log_values.exp().reshape(len(line), len(line)).T.numpy()  # a row is a value of z_2

    levels = torch.linspace(0, top, 25).tolist()
    filled = axes.contourf(line, line, table(log_density), levels, cmap="viridis")
    axes.contour(line, line, table(log_target), levels[3::4], colors="white", linewidths=0.5, alpha=0.6)
    axes.set(xlabel="$z_1$", aspect="equal")
    return filled


def _words(row: Row) -> str:
    return f"$L_k$ = {row['bound']:.3f} ± {row['bound_se']:.3f}, KL = {row['kl_on_grid']:.4f}"


def blank(path: Path, size: tuple[float, float]) -> Figure:
    """An empty drawing, inches wide and high; UserError for a path that is neither PNG nor SVG."""
    from matplotlib.figure import Figure  # drawn without pyplot, so there is no global state and no display

    if path.suffix not in FORMATS:
        raise UserError(f"{path.name}: a picture ends in {' or '.join(FORMATS)}; choose another name")
    return Figure(figsize=size, dpi=110, layout="constrained")


def written(drawing: Figure, path: Path, rows: Sequence[Row]) -> Path:
    """Write the picture, and the table beside it."""
    for axes in drawing.axes:
        axes.spines[["top", "right"]].set_visible(False)
    with whole(path) as temporary:
        drawing.savefig(temporary, format=path.suffix[1:])
    with whole(path.with_suffix(".csv")) as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        table.writeheader()
        table.writerows(rows)
    return path
