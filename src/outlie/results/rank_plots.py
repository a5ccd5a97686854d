"""The critical-difference diagram of Demsar (2006): average ranks on a line, a bar joins what cannot be told apart."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

INK, QUIET = "#222222", "#888888"
WIDTH, LINE = 7.0, 0.24  # inches: of a text column, of one line of names
LETTERS = 15  # of the title, to an inch
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "outlie", "font.size": 9, "font.family": "sans-serif"}


def critical_difference(
    names: Sequence[str],
    ranks: Sequence[float],
    cliques: Sequence[Sequence[int]],
    title: str = "",
    difference: float | None = None,
) -> Figure:
    """The diagram; the best is on the left.

    Args:
        names: of the C detectors
        ranks: (C,) average ranks, 1 = best
        cliques: of `stats.cliques`: which ones were not told apart
        title: what was ranked, by which test
        difference: Nemenyi's, drawn as a ruler; None = another test made the cliques
    """
    order = sorted(range(len(names)), key=lambda c: ranks[c])
    half = (len(order) + 1) // 2  # the better half is named on the left
    bars = 0.18 * len(cliques)
    said = textwrap.wrap(title, round(WIDTH * LETTERS))
    top, below = 0.75 + 0.16 * max(0, len(said) - 1), 0.3 + bars + LINE * half
    figure = Figure(figsize=(WIDTH, top + below))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(-below, top)
    axes.axis("off")
    margin = min(2.6, 0.3 + 0.075 * max(len(name) + 6 for name in names))
    first, last = 1, max(len(names), 2)

    def place(rank: float) -> float:
        return margin + (rank - first) / (last - first) * (WIDTH - 2 * margin)

    axes.plot([place(first), place(last)], [0, 0], color=INK, lw=1)
    step = max(1, round(last / 12))
    for tick in range(first, last + 1, step):
        axes.plot([place(tick)] * 2, [0, 0.07], color=INK, lw=1)
        axes.text(place(tick), 0.11, str(tick), ha="center", va="bottom", color=INK)
    for i, c in enumerate(order):
        left = i < half
        y = -(0.3 + bars + LINE * (i if left else len(order) - 1 - i))
        x = margin - 0.1 if left else WIDTH - margin + 0.1
        axes.plot([place(ranks[c])] * 2 + [x], [0, y, y], color=QUIET, lw=0.8)
        words = f"{names[c]}  {ranks[c]:.2f}" if left else f"{ranks[c]:.2f}  {names[c]}"
        axes.text(x - 0.05 if left else x + 0.05, y, words, ha="right" if left else "left", va="center", color=INK)
    for i, clique in enumerate(cliques):
        ends = [place(ranks[c]) for c in clique]
        y = -0.16 - 0.18 * i
        axes.plot([min(ends) - 0.04, max(ends) + 0.04], [y, y], color=INK, lw=3, solid_capstyle="butt")
    if difference is not None:
        ends = [place(first), min(place(first + difference), WIDTH)]
        axes.plot(ends, [0.42, 0.42], color=INK, lw=1.5, marker="|", ms=6)
        axes.text(ends[1] + 0.08, 0.42, f"CD {difference:.2f}", va="center", color=INK)
    if title:
        axes.text(0.1, top - 0.08, "\n".join(said), va="top", color=INK, fontsize=8)
    return figure


def save(figure: Figure, path: Path, suffix: str = "") -> None:
    """Write the figure as `suffix` says, or that of `path`; an SVG with text as text, always the same file."""
    form = (suffix or path.suffix).lstrip(".")
    with rc_context(STYLE):
        figure.savefig(path, format=form, dpi=200, metadata={"Date": None} if form == "svg" else None)
