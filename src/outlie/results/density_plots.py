"""density.png: how far L_k lies below L_5000, Pareto's k of the rows, the gaps' parts, the latent units."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from outlie.density.diagnostics import ACTIVE, PARETO, SIZES
from outlie.results.plots import ANOMALY, GREY, LINES, NORMAL, POINT, STYLES
from outlie.results.store import whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from outlie.results.density_report import Look, Report

LEAST = 1e-4  # nats that the logarithmic axis begins with


def figure(found: Report, path: Path) -> Path:
    """Draw the four panels of a run's density model."""
    from matplotlib.figure import Figure  # drawn without pyplot, so there is no global state and no display

    drawing = Figure(figsize=(11, 8), dpi=110, layout="constrained")
    (top_left, top_right), (low_left, low_right) = drawing.subplots(2, 2)
    drawing.suptitle("The density model", fontsize=13)
    draw_bounds(top_left, found.looks)
    draw_pareto(top_right, found.looks)
    draw_gaps(low_left, found.looks)
    draw_units(low_right, found)
    for axes in drawing.axes:
        axes.spines[["top", "right"]].set_visible(False)
    with whole(path) as temporary:
        drawing.savefig(temporary, format="png")
    return path


def draw_bounds(axes: Axes, looks: dict[str, Look]) -> None:
    """L_5000 - L_k, mean over rows with its standard error: falls like 1 / k where the weights have a variance."""
    axes.set(title="How far the bound is from L_5000", xlabel="k", ylabel="L_5000 − L_k, nats", xscale="log")
    k, largest = np.array(SIZES[:-1]), 0.0
    for i, (name, one) in enumerate(looks.items()):
        curve = one.weights.curve.numpy()
        gap = curve[-1] - curve[:-1]  # (sizes, B)
        mean, se = gap.mean(1), gap.std(1) / np.sqrt(gap.shape[1])
        style, largest = line(i), max(largest, float(np.nanmax(mean)))
        axes.plot(k, np.maximum(mean, LEAST), label=f"{name}: L_5000 = {curve[-1].mean():.4g}", **style)
        low, high = (np.maximum(end, LEAST) for end in (mean - se, mean + se))
        axes.fill_between(k, low, high, color=style["color"], alpha=0.2)
    if np.isfinite(largest) and largest > LEAST:
        axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=9)


def draw_pareto(axes: Axes, looks: dict[str, Look]) -> None:
    """Histograms of Pareto's k by set; what is not finite lies at the ends."""
    axes.set(title="Can the weights be trusted?", xlabel="Pareto k of a row's weights", ylabel="share of rows")
    edges = np.linspace(-0.5, 3, 36)
    for i, (name, one) in enumerate(looks.items()):
        shape = np.clip(np.nan_to_num(one.weights.pareto_k.numpy(), nan=np.inf), edges[0], edges[-1])
        share = np.full(len(shape), 1 / len(shape))
        text = f"{name}: {100 * one.numbers['pareto_k_above']:.3g} % above {PARETO}"
        axes.hist(shape, edges, weights=share, histtype="step", label=text, **line(i))
    axes.axvline(PARETO, color=POINT, linestyle=":", linewidth=1.2)
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def draw_gaps(axes: Axes, looks: dict[str, Look]) -> None:
    """What the encoder loses of L_5000, and how much of it a normal of the row's own would not."""
    axes.set(title="L_5000 − L_1 (mean over rows, SE)", xlabel="nats")
    for row, one in enumerate(looks.values()):
        whole_gap, own = one.numbers["inference_gap"], one.numbers["amortisation_gap"]
        bars = (
            (row - 0.2, whole_gap, NORMAL, "all: L_5000 − L_1"),
            (row + 0.2, own, ANOMALY, "amortisation: best normal of the row"),
        )
        for y, value, colour, text in bars:
            label = text if row == 0 else None
            axes.barh(y, value["mean"], 0.36, xerr=np.nan_to_num(value["se"]), color=colour, alpha=0.75, label=label)
    axes.set_yticks(range(len(looks)), list(looks), fontsize=9)
    axes.set_ylim(len(looks) - 0.5, -1)  # the first set at the top, the legend above it
    axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=2)


def draw_units(axes: Axes, found: Report) -> None:
    """Histogram of the log variance over rows of q's mean: used and unused units fall apart."""
    axes.set(title="Latent units", xlabel="log10 of the variance of q's mean over training rows", ylabel="units")
    logs = [np.log10(np.maximum(layer.numpy(), 1e-12)) for layer in found.variances]
    edges = np.histogram_bin_edges(np.concatenate([*logs, [np.log10(ACTIVE)]]), 30)
    counts = zip(found.numbers["active_units"], found.numbers["latent_units"], strict=True)
    for i, (values, (active, units)) in enumerate(zip(logs, counts, strict=True)):
        which = f"layer {i + 1}: " if len(logs) > 1 else ""
        axes.hist(values, edges, color=LINES[1 - i], alpha=0.6, label=f"{which}{active} of {units} active")
    axes.axvline(np.log10(ACTIVE), color=GREY, linestyle="--", linewidth=1.2)
    axes.legend(frameon=False, fontsize=9)


def line(i: int) -> dict[str, Any]:
    """The reference set in blue, the test sets in the other colours."""
    others = [colour for colour in LINES if colour != NORMAL]
    colour = NORMAL if i == 0 else others[(i - 1) % len(others)]
    return {"color": colour, "linestyle": STYLES[i // len(LINES) % len(STYLES)], "linewidth": 1.8}
