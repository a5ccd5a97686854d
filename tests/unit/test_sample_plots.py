"""Sample grids read back pixel by pixel, and the heat map's cells, words and frame."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from outlie.errors import UserError
from outlie.results.plots import ANOMALY
from outlie.results.sample_plots import GAP, WIDTH, grid, heat_map


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that was saved."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw))[1])
    return figures


def read_back(path, n: int, columns: int, side: tuple[int, int], title: bool) -> np.ndarray:
    """(N, H, W, 3) pixels of the images in the file, each taken from the middle of its square."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    height, width = side
    scale = picture.shape[1] // (columns * (width + GAP) + GAP)
    picture = picture[40:] if title else picture
    images = []
    for i in range(n):
        top, left = GAP + i // columns * (height + GAP), GAP + i % columns * (width + GAP)
        at = picture[top * scale : (top + height) * scale, left * scale : (left + width) * scale]
        images.append(at[scale // 2 :: scale, scale // 2 :: scale])
    return np.array(images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("title", ["", "samples after 1,000 images"])
def test_every_pixel_is_in_the_picture(tmp_path, channels, title):
    images = torch.randint(0, 256, (11, channels, 28, 20), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    path = grid(images, tmp_path / "below" / "grid.png", columns=4, title=title)
    expected = images.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    np.testing.assert_array_equal(read_back(path, 11, 4, (28, 20), bool(title)), expected)
    assert 0.6 * WIDTH < Image.open(path).size[0] < 1.5 * WIDTH
    assert [file.name for file in path.parent.iterdir()] == ["grid.png"]


def test_floats_from_minus_1_to_1_are_black_to_white(tmp_path):
    values = torch.tensor([-1.0, 0.0, 1.0, -7.0, 7.0, torch.nan, torch.inf, 0.5])
    path = grid(values.view(8, 1, 1, 1).expand(8, 3, 16, 16), tmp_path / "grid.png")
    seen = read_back(path, 8, 8, (16, 16), False)[:, 8, 8, 0]
    np.testing.assert_array_equal(seen, [0, 128, 255, 0, 255, 0, 255, 191])


def test_the_callers_images_are_left_alone(tmp_path):
    images = torch.linspace(-2, 2, 64).view(1, 1, 8, 8)
    before = images.clone()
    grid(images, tmp_path / "grid.png")
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("images", "columns", "words"),
    [
        (torch.zeros(0, 3, 4, 4), 8, r"\(0, 3, 4, 4\)"),
        (torch.zeros(2, 4, 4, 4), 8, "1 or 3"),
        (torch.zeros(3, 4, 4), 8, "expected"),
        (torch.zeros(2, 3, 4, 4), 0, "columns = 0"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, images, columns, words):
    with pytest.raises(UserError, match=words):
        grid(images, tmp_path / "grid.png", columns)


BLOCKS = [f"out_{k}" for k in range(1, 13)]
ACCURACY = {
    (block, level): 0.3 + 0.05 * k + level / 100 for k, block in enumerate(BLOCKS) for level in (9.21, 5.07, 6.12)
}


def test_the_heat_map_has_each_number_in_its_cell(tmp_path, drawn):
    path = heat_map(ACCURACY, tmp_path / "heat.png", "CIFAR-10, held-out rows", ("out_6", 6.12))
    axes = drawn[0].axes[0]
    assert path.is_file() and drawn[0].get_suptitle() == "CIFAR-10, held-out rows"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == BLOCKS  # not out_1, out_10, out_11
    levels = [float(tick.get_text()) for tick in axes.get_xticklabels()]
    assert levels == [5.07, 6.12, 9.21]
    words = {text.get_position(): text.get_text() for text in axes.texts}
    assert len(words) == len(ACCURACY)
    for (block, level), value in ACCURACY.items():
        at = (levels.index(level), BLOCKS.index(block))
        assert words[at] == f"{100 * value:.1f}"
        assert axes.images[0].get_array()[at[1], at[0]] == pytest.approx(100 * value)
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert len(frames) == 1 and to_hex(frames[0].get_edgecolor()) == ANOMALY.lower()
    assert (frames[0].get_x(), frames[0].get_y(), frames[0].get_width()) == (0.5, 4.5, 1)


def test_rows_run_downwards(tmp_path, drawn):
    heat_map(ACCURACY, tmp_path / "heat.png", "")
    bottom, top = drawn[0].axes[0].get_ylim()
    assert bottom > top and not drawn[0].axes[0].patches


def test_missing_cells_stay_empty(tmp_path, drawn):
    heat_map({("a", 5.0): 0.5, ("b", 7.0): 0.7, ("b", 5.0): float("nan")}, tmp_path / "heat.png", "")
    assert sorted(text.get_text() for text in drawn[0].axes[0].texts) == ["50.0", "70.0"]


def test_one_cell_alone_can_be_drawn(tmp_path):
    assert heat_map({("out_6", 6.0): 0.9}, tmp_path / "heat.png", "one", ("out_6", 6.0)).stat().st_size > 1000


@pytest.mark.parametrize(
    ("accuracy", "chosen", "words"),
    [
        ({}, None, "no accuracy to draw"),
        ({("a", 5.0): float("nan")}, None, "no accuracy to draw"),
        ({("a", 5.0): 0.5}, ("b", 5.0), r"\('b', 5.0\) was not measured; blocks: a"),
    ],
)
def test_what_cannot_be_drawn_is_named(tmp_path, accuracy, chosen, words):
    with pytest.raises(UserError, match=words):
        heat_map(accuracy, tmp_path / "heat.png", "", chosen)
