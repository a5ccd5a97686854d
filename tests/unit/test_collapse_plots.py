"""The pictures of neural collapse: what is drawn is what was measured, for few and many sets, and without pyplot."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from sklearn.decomposition import PCA

from outlie.errors import UserError
from outlie.results import collapse_plots

ROWS = [
    {
        "epoch": epoch,
        "nc1": 5.0 / (epoch + 1),
        "nc2_equinorm": 0.3,
        "nc2_equinorm_weights": 0.2,
        "nc2_equiangularity": 0.1,
        "nc2_equiangularity_weights": 0.15,
        "nc3": 0.5,
        "nc4": 0.25 / (epoch + 1),
        "train_accuracy": 1 - 0.5 / (epoch + 1),
        "nc5/svhn": 0.4,
        "nc5/dtd": 0.6,
        "nc1_with/svhn": 7.0,
        "nc2_equiangularity_with/svhn": 0.2,
    }
    for epoch in (20, 0, 10)
]


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that was saved."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw))[1])
    return figures


def lines(axes) -> dict[str, list[list[float]]]:
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


def titles(figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def tables():
    """Four classes on their own axes, test rows alike, OOD rows near the origin."""
    rng = np.random.default_rng(0)
    train_y = np.arange(120) % 4
    train = 4 * np.eye(6)[train_y] + rng.normal(size=(120, 6)) * 0.2
    test = 4 * np.eye(6)[np.arange(40) % 4] + rng.normal(size=(40, 6)) * 0.3
    return train.astype(np.float32), train_y, test, {"svhn": 0.3 * rng.normal(size=(30, 6))}


def points(axes) -> dict[str, np.ndarray]:
    return {dots.get_label(): np.asarray(dots.get_offsets()) for dots in axes.collections}


def test_curves_are_the_rows_in_the_order_of_epochs(tmp_path, drawn):
    path = collapse_plots.curves(ROWS, tmp_path / "pictures" / "collapse.png")
    assert imread(path).shape[2] == 4
    assert [p.name for p in path.parent.iterdir()] == ["collapse.png"]  # no temporary file is left
    nc1, norms, angles, _, nc4, nc5 = drawn[0].axes
    assert lines(nc1)["ID"] == [[0, 5], [10, 5 / 11], [20, 5 / 21]]
    assert lines(nc1)["OOD: svhn"] == [[0, 7], [10, 7], [20, 7]]
    assert nc1.get_yscale() == "log" and norms.get_yscale() == "linear"
    assert lines(norms)["ID: rows of W"][0] == [0, 0.2]
    assert set(lines(angles)) == {"ID", "ID: rows of W", "OOD: svhn"}
    assert lines(nc4)["ID"][0] == [0, 25] and lines(nc4)["train error"][0] == [0, 50]  # percent
    assert set(lines(nc5)) == {"OOD: svhn", "OOD: dtd"}
    svhn = [line.get_color() for axes in (nc1, angles, nc5) for line in axes.lines if "svhn" in line.get_label()]
    assert len(set(svhn)) == 1
    assert legend(drawn[0]) == ["ID", "ID: rows of W", "train error", "OOD: svhn", "OOD: dtd"]


def test_what_was_not_measured_is_left_out(tmp_path, drawn):
    rows = [{"epoch": 0, "nc1": 2.0, "nc3": np.nan}, {"epoch": 1, "nc1": np.nan, "nc5/svhn": 0.5}, {"epoch": 2}]
    collapse_plots.curves(rows, tmp_path / "some.png")
    assert titles(drawn[0]) == ["NC1: within-class scatter", "NC5: OOD orthogonal to classes"]
    assert lines(drawn[0].axes[0]) == {"ID": [[0, 2]]}
    with pytest.raises(UserError, match="no measure of neural collapse"):
        collapse_plots.curves([], tmp_path / "none.png")
    with pytest.raises(UserError, match="no measure of neural collapse"):
        collapse_plots.curves(rows[2:], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_one_snapshot_is_points_and_a_perfect_collapse_can_be_drawn(tmp_path, drawn):
    collapse_plots.curves(ROWS[:1], tmp_path / "one.png")
    assert all(line.get_marker() not in ("", "None") for axes in drawn[0].axes for line in axes.lines)
    collapse_plots.curves([{"epoch": e, "nc1": 0.0, "nc4": 0.0} for e in range(3)], tmp_path / "zero.png")
    assert [axes.get_yscale() for axes in drawn[1].axes] == ["linear", "linear"]
    assert drawn[1].axes[0].get_ylim() == (0, 1)


def test_many_sets_are_told_apart(tmp_path, drawn):
    collapse_plots.curves([{"epoch": 0} | {f"nc5/{i}": 0.1 * i for i in range(9)}], tmp_path / "many.png")
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in drawn[0].axes[0].lines}
    assert len(looks) == 9


def test_scatter_is_scikit_learns_pca_of_the_training_rows(tmp_path, drawn):
    train, y, test, ood = tables()
    path = collapse_plots.scatter(train, y, test, ood, tmp_path / "scatter.png")
    assert imread(path).shape[2] == 4
    (axes,) = drawn[0].axes
    pca = PCA(n_components=2).fit(train)
    shown = points(axes)
    for name, rows in {"ID train (colour = class)": train, "ID test": test, "OOD: svhn": ood["svhn"]}.items():
        np.testing.assert_allclose(abs(shown[name]), abs(pca.transform(rows)), rtol=1e-4, atol=1e-5)
    origin = next(line for line in axes.lines if line.get_label() == "origin (h = 0)").get_xydata()[0]
    np.testing.assert_allclose(abs(origin), abs(pca.transform(np.zeros((1, 6)))[0]), rtol=1e-4, atol=1e-5)
    centre = pca.transform(train).mean(0)
    assert np.linalg.norm(centre - origin) < 4
    assert axes.get_xlabel() == f"component 1 ({100 * pca.explained_variance_ratio_[0]:.3g} % of ID variance)"
    assert titles(drawn[0]) == ["svhn (30 of 30 rows)"]


def test_classes_have_colours_up_to_ten():
    label = np.array([3, 3, 7, 9, 7])
    assert collapse_plots.class_colours(label, label[2:]) == [collapse_plots.CLASSES[i] for i in (1, 2, 1)]
    assert len(set(collapse_plots.class_colours(np.arange(10), np.arange(10)))) == 10
    assert isinstance(collapse_plots.class_colours(np.arange(11), np.arange(11)), str)


def test_scatter_draws_at_most_so_many_rows_and_the_same_again(tmp_path, drawn):
    train, y, test, ood = tables()
    for seed in (0, 0, 1):
        collapse_plots.scatter(train, y, test, ood, tmp_path / "scatter.png", seed=seed, at_most=10)
    first, again, other = (points(figure.axes[0]) for figure in drawn)
    assert [len(xy) for xy in first.values()] == [10, 10, 10]
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)
    assert titles(drawn[0]) == ["svhn (10 of 30 rows)"]


@pytest.mark.parametrize("sets", [0, 1, 4, 8])
def test_one_panel_for_each_ood_set_up_to_six_on_the_same_axes(tmp_path, drawn, sets):
    train, y, test, ood = tables()
    many = {f"set{i}": (i + 1) * ood["svhn"] for i in range(sets)}
    collapse_plots.scatter(train, y, test, many, tmp_path / "scatter.png")
    figure = drawn[0]
    assert len(figure.axes) == max(min(sets, 6), 1)
    assert len({axes.get_xlim() + axes.get_ylim() for axes in figure.axes}) == 1
    assert ("the first 6 of 8 OOD sets" in figure.get_suptitle()) == (sets == 8)
    markers = {dots.get_paths()[0].vertices.tobytes() for axes in figure.axes for dots in axes.collections[2:]}
    assert len(markers) == min(sets, 6)


def test_scatter_of_bad_input(tmp_path):
    train, y, test, ood = tables()
    with pytest.raises(UserError, match="at least 2 features"):
        collapse_plots.scatter(train[:, :1], y, test[:, :1], {}, tmp_path / "scatter.png")
    with pytest.raises(UserError, match="119 class labels for 120 training rows"):
        collapse_plots.scatter(train, y[1:], test, ood, tmp_path / "scatter.png")
    with pytest.raises(UserError, match="svhn has 5 features, but the training rows have 6"):
        collapse_plots.scatter(train, y, test, {"svhn": ood["svhn"][:, 1:]}, tmp_path / "scatter.png")


def test_dimensions_show_the_curves_the_classes_and_the_choice(tmp_path, drawn):
    curves = {"svhn": [(1, 0.6), (9, 0.9), (64, 0.5)], "dtd": [(1, 0.7), (64, 0.06)]}
    path = collapse_plots.dimensions(curves, tmp_path / "d.png", chosen=32, classes=10)
    assert imread(path).shape[2] == 4
    (axes,) = drawn[0].axes
    shown = lines(axes)
    assert shown["OOD: svhn"] == [[1, 0.6], [9, 0.9], [64, 0.5]]
    assert [x for x, _ in shown["d = C = 10"]] == [10, 10] and [x for x, _ in shown["chosen d = 32"]] == [32, 32]
    assert [y for _, y in shown["chance"]] == [0.5, 0.5]
    assert axes.get_xscale() == "log" and axes.get_ylim()[0] < 0.06
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "4", "8", "16", "32", "64"]
    collapse_plots.dimensions({"svhn": [(1, 0.6)]}, path)
    assert legend(drawn[1]) == ["chance", "OOD: svhn"]
    with pytest.raises(UserError, match="no OOD set"):
        collapse_plots.dimensions({}, path)


def test_neither_pyplot_nor_torch_is_imported():
    code = "import outlie.results.collapse_plots, outlie.metrics.dimensions, sys"
    code += "; assert not {'matplotlib', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
