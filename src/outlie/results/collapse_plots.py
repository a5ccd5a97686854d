"""Pictures of neural collapse: its measures along training, features on two axes, NECO's AUROC against d."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from outlie.errors import UserError
from outlie.metrics.dimensions import coordinates, principal, require_same_width, rows_of
from outlie.results.plots import ANOMALY, GREY, LINES, NORMAL, POINT, STYLES
from outlie.results.store import whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Petroff, Accessible Color Sequences for Data Visualization, 2021: ten colours for ten classes.
CLASSES = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
MARKERS = ("o", "^", "s", "D", "v", "P")
PANELS_AT_MOST = 6

# Panel title, y label, measures of the ID rows, prefix of the measures with an OOD set, y scale.
PANELS: tuple[tuple[str, str, tuple[str, ...], str, str], ...] = (
    ("NC1: within-class scatter", r"$\mathrm{Tr}(\Sigma_W \Sigma_B^+)\,/\,C$", ("nc1",), "nc1_with/", "log"),
    ("NC2: equal norms", "std / mean of norms", ("nc2_equinorm", "nc2_equinorm_weights"), "", "linear"),
    (
        "NC2: equal angles",
        "mean |cos + 1/(C − 1)|",
        ("nc2_equiangularity", "nc2_equiangularity_weights"),
        "nc2_equiangularity_with/",
        "linear",
    ),
    ("NC3: weights = class means", "squared distance, both normalised", ("nc3",), "", "linear"),
    ("NC4: nearest class mean", "% of ID train rows", ("nc4", "train_error"), "", "linear"),
    ("NC5: OOD orthogonal to classes", "mean |cos| to the OOD mean", (), "nc5/", "linear"),
)


def curves(rows: Sequence[Mapping[str, float]], path: Path) -> Path:
    """Draw the measures of neural collapse against the epoch; a measure that no row has is left out.

    Args:
        rows: one for each snapshot: `epoch`, `train_accuracy`, and what `neural_collapse` returns
    """
    from matplotlib.ticker import MaxNLocator

    rows = sorted(rows, key=lambda row: row["epoch"])
    keys = {key for row in rows for key, value in row.items() if math.isfinite(value)}
    panels = [panel for panel in PANELS if any(_belongs(key, panel) for key in keys)]
    if not panels:
        raise UserError("no measure of neural collapse to draw: there is no snapshot, or none was measured")
    sets = list(dict.fromkeys(key.split("/", 1)[1] for row in rows for key in row if "/" in key))
    drawing, axes_of = _figure(len(panels), "Neural collapse along training (0 is ideal everywhere)")
    for axes, (title, unit, inside, prefix, scale) in zip(axes_of, panels, strict=True):
        joined = any(key.startswith(prefix) for key in keys) and prefix.endswith("with/")
        axes.set(title=f"{title} (ID; ID + OOD)" if joined else title, xlabel="epoch", ylabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        for key in inside:
            factor, style = 100 if unit.startswith("%") else 1, _inside(key)
            _plot(axes, *series(rows, key), style, factor)
        for i, name in enumerate(sets):
            if prefix:
                _plot(axes, *series(rows, prefix + name), _outside(i, name))
        _scale(axes, scale)
    _finish(drawing, path, _together(axes_of))
    return path


def series(rows: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Epochs and values of one measure, where it is there and finite; `train_error` is 1 - `train_accuracy`."""
    if key == "train_error":
        epochs, values = series(rows, "train_accuracy")
        return epochs, [1 - value for value in values]
    kept = [row for row in rows if math.isfinite(row.get(key, math.nan))]
    return [row["epoch"] for row in kept], [row[key] for row in kept]


def scatter(
    train_features: ArrayLike,
    train_y: ArrayLike,
    test_features: ArrayLike,
    ood: Mapping[str, ArrayLike],
    path: Path,
    seed: int = 0,
    at_most: int = 2000,
) -> Path:
    """Draw ID and OOD features on the first two principal components of the ID training features.

    Args:
        train_features: (N, D), coloured by class where there are at most ten
        train_y: (N,) class labels
        test_features: (n, D) in-distribution rows
        ood: set name -> (m, D); one panel for each of the first six
        at_most: rows drawn of each set, chosen at random with `seed`
    """
    train, label = rows_of(train_features), np.asarray(train_y)
    if train.shape[1] < 2:
        raise UserError("a scatter plot needs at least 2 features, not 1")
    if label.shape != train.shape[:1]:
        raise UserError(f"{label.size} class labels for {len(train)} training rows")
    test = rows_of(test_features)
    shown = {name: rows_of(ood[name]) for name in list(ood)[:PANELS_AT_MOST]}
    require_same_width(train, {"test": test, **shown})
    basis = principal(train, standardize=False, center=True)
    rng = np.random.default_rng(seed)
    chosen = _some(len(train), at_most, rng)
    train_xy, colours = coordinates(basis, train[chosen], 2), class_colours(label, label[chosen])
    test_xy = coordinates(basis, test[_some(len(test), at_most, rng)], 2)
    origin = coordinates(basis, np.zeros((1, train.shape[1])), 2)[0]
    names = list(shown)
    left_out = f"; the first {PANELS_AT_MOST} of {len(ood)} OOD sets" if len(ood) > PANELS_AT_MOST else ""
    title = f"First two principal components of the ID features\n(ideal: OOD at the origin{left_out})"
    drawing, axes_of = _figure(max(len(names), 1), title, sharex=True, sharey=True)
    classes = "one colour" if isinstance(colours, str) else "colour = class"
    share = basis.values / max(basis.values.sum(), np.finfo(np.float64).tiny)
    for i, axes in enumerate(axes_of):
        axes.scatter(*test_xy.T, s=9, c=GREY, alpha=0.4, linewidths=0, label="ID test")
        axes.scatter(*train_xy.T, s=7, c=colours, alpha=0.7, linewidths=0, label=f"ID train ({classes})")
        if names:
            rows = shown[names[i]]
            xy = coordinates(basis, rows[_some(len(rows), at_most, rng)], 2)
            axes.scatter(*xy.T, s=9, c=POINT, marker=MARKERS[i], alpha=0.45, linewidths=0, label=f"OOD: {names[i]}")
            axes.set_title(f"{names[i]} ({len(xy):,} of {len(rows):,} rows)")
        axes.plot(*origin, "o", color=ANOMALY, markersize=13, markerfacecolor="none", markeredgewidth=2.5, zorder=4)
        axes.plot(*origin, "+", color=ANOMALY, markersize=13, markeredgewidth=2.5, zorder=4, label="origin (h = 0)")
        axes.set_xlabel(f"component 1 ({100 * share[0]:.3g} % of ID variance)")
        axes.set_ylabel(f"component 2 ({100 * share[1]:.3g} %)")
        axes.tick_params(labelbottom=True, labelleft=True)
    _finish(drawing, path, _together(axes_of))
    return path


def class_colours(label: NDArray, chosen: NDArray) -> list[str] | str:
    """A colour for each of the `chosen` labels; one for all where `label` has more classes than there are colours."""
    classes = np.unique(label)
    if len(classes) > len(CLASSES):
        return NORMAL
    return [CLASSES[i] for i in np.searchsorted(classes, chosen)]


def dimensions(
    curves: Mapping[str, Sequence[tuple[int, float]]],
    path: Path,
    chosen: int | None = None,
    classes: int | None = None,
) -> Path:
    """Draw NECO's AUROC against d for each OOD set.

    Args:
        curves: as `auroc_by_dimension` returns them
        chosen: the detector's d
        classes: C
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    if not any(curves.values()):
        raise UserError("no AUROC to draw: there is no OOD set")
    drawing, (axes,) = _figure(1, "NECO: ID test rows against OOD rows", figsize=(8, 5.5))
    for i, (name, pairs) in enumerate(curves.items()):
        d, value = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
        axes.plot(d, value, markersize=4, **_outside(i, name))
    axes.axhline(0.5, color=GREY, linewidth=1, linestyle=":", label="chance")
    if classes is not None:
        axes.axvline(classes, color=POINT, linewidth=1.2, linestyle="--", label=f"d = C = {classes}")
    if chosen is not None:
        axes.axvline(chosen, color=POINT, linewidth=1.2, linestyle="-", label=f"chosen d = {chosen}")
    axes.set(xlabel="d, principal directions kept", ylabel="AUROC (1 is ideal)", xscale="log")
    largest = max(d for pairs in curves.values() for d, _ in pairs)
    ticks = [2**i for i in range(largest.bit_length())]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_ylim(top=1.02)
    _finish(drawing, path, _together([axes]))
    return path


def _belongs(key: str, panel: tuple[str, str, tuple[str, ...], str, str]) -> bool:
    _, _, inside, prefix, _ = panel
    return key in inside or (prefix != "" and key.startswith(prefix))


def _inside(key: str) -> dict[str, Any]:
    if key == "train_error":
        return {"color": POINT, "linestyle": ":", "marker": "^", "label": "train error"}
    if key.endswith("_weights"):
        return {"color": NORMAL, "linestyle": "--", "marker": "s", "markerfacecolor": "w", "label": "ID: rows of W"}
    return {"color": NORMAL, "linestyle": "-", "marker": "o", "label": "ID"}


def _outside(i: int, name: str) -> dict[str, Any]:
    colours = [colour for colour in LINES if colour != NORMAL]
    turn = i // len(colours) % len(STYLES)
    look = {"color": colours[i % len(colours)], "linestyle": STYLES[turn], "marker": MARKERS[turn]}
    return {**look, "label": f"OOD: {name}"}


def _plot(axes: Axes, epochs: list[float], values: list[float], style: dict[str, Any], factor: float = 1) -> None:
    if epochs:
        size = 3.5 if len(epochs) > 1 else 6
        axes.plot(epochs, [factor * value for value in values], linewidth=1.6, markersize=size, **style)


def _scale(axes: Axes, scale: str) -> None:
    largest = max(float(np.max(np.asarray(line.get_ydata(), dtype=np.float64))) for line in axes.lines)
    if scale == "log" and largest > 0:
        axes.set_yscale("log", nonpositive="mask")
        return
    axes.set_ylim(0, 1.1 * largest if largest > 0 else 1)
    for line in axes.lines:
        line.set_clip_on(False)  # a marker at 0, the ideal, is drawn whole


def _figure(panels: int, title: str, **options: Any) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure  # drawn without pyplot, so there is no global state and no display

    across = 2 if panels == 4 else min(panels, 3)
    down = math.ceil(panels / across)
    size = options.pop("figsize", (max(4.2 * across, 6.5), 3.6 * down + 1.2))
    drawing = Figure(figsize=size, dpi=110, layout="constrained")
    drawing.suptitle(title, fontsize=13)
    grid = drawing.subplots(down, across, squeeze=False, **options).ravel()
    for spare in grid[panels:]:
        spare.remove()
    return drawing, list(grid[:panels])


def _together(axes_of: Sequence[Axes]) -> dict[str, Any]:
    handles = {}
    for axes in axes_of:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    return dict(sorted(handles.items(), key=lambda item: item[0].startswith("OOD: ")))


def _finish(drawing: Figure, path: Path, legend: Mapping[str, Any]) -> None:
    for axes in drawing.axes:
        axes.spines[["top", "right"]].set_visible(False)
    # One legend below all panels: inside a panel it would lie on the curves.
    columns = min(len(legend), 5)
    drawing.legend(
        list(legend.values()), list(legend), loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )
    with whole(path) as temporary:
        drawing.savefig(temporary, format="png")


def _some(n: int, at_most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return np.arange(n) if n <= at_most else np.sort(rng.choice(n, at_most, replace=False))
