"""Tables with missing values that stay missing, through the command line."""

import numpy as np
import polars as pl
import pytest
import torch

from .conftest import only, result_of, scores_of

MINE = ("dataset=csv", "dataset.path=mine.csv", "dataset.label=label", "dataset.categorical=one_hot")
ROWS = 72
COUNTING = '''
from outlie.detectors.base import Detector


class Counting(Detector):
    """How many columns of a row have no value."""

    def __init__(self, gaps: bool = True) -> None:
        super().__init__()
        self.gaps = gaps

    def setup(self, spec) -> None:
        self.blocks = spec.blocks

    def score(self, views):
        assert self.blocks == (("number", 4), ("boolean", 1), ("levels", 2))
        return views.features.isnan().sum(1).double()
'''


@pytest.fixture
def gaps(table):
    """Write a csv of which a quarter of `a` and of the texts is missing, and say which rows: (n,) bool each."""
    rng = np.random.default_rng(1)
    a, colour = rng.random((2, ROWS)) < 0.25
    values, words = rng.normal(size=ROWS), rng.choice(["red", "blue"], ROWS)
    table(
        a=[None if gap else float(v) for gap, v in zip(a, values, strict=True)],
        flag=(rng.random(ROWS) < 0.5).tolist(),
        colour=[None if gap else str(word) for gap, word in zip(colour, words, strict=True)],
    )
    return a, colour


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """Words of a command that uses a detector of the user's own, which takes gaps."""
    (tmp_path / "counting_gaps.py").write_text(COUNTING)
    (tmp_path / "configs" / "detector").mkdir(parents=True)
    yaml = "# counts gaps\n_target_: counting_gaps.Counting\n"
    (tmp_path / "configs" / "detector" / "counting.yaml").write_text(yaml)
    monkeypatch.syspath_prepend(tmp_path)
    return ("--config-dir", "configs", "detector=counting", "allow=[counting_gaps]")


def test_a_detector_that_takes_gaps_gets_them(gaps, counting, train, run, tmp_path):
    a, colour = gaps
    done = train(*MINE, "dataset.missing=keep", *counting)
    assert f"{a.sum() + colour.sum()} missing values" in done.out and "in 2 columns are kept as gaps" in done.out
    folder = only(tmp_path / "outputs" / "train")
    scores = scores_of(folder)
    index = scores["index"].to_numpy()
    np.testing.assert_array_equal(scores["score"].to_numpy(), a[index] + 2 * colour[index])  # two levels
    assert any("kept as gaps" in finding for finding in result_of(folder)["lints"])
    saved = torch.load(folder / "model.ckpt", weights_only=True)
    assert saved["blocks"] == [["number", 4], ["boolean", 1], ["levels", 2]]
    assert saved["columns"] == ["a", "b", "c", "d", "flag", "colour=blue", "colour=red"]
    values = pl.read_csv("mine.csv")["a"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    learnt_from = np.setdiff1d(np.arange(ROWS), index)
    assert saved["backbone"]["mean"][0].item() == pytest.approx(np.nanmean(values[learnt_from]), rel=1e-12)
    assert saved["backbone"]["scale"][0].item() == pytest.approx(np.nanstd(values[learnt_from]), rel=1e-12)
    # scored again from the checkpoint, which tells the kinds of the columns
    assert run("eval", f"run={folder}", "--config-dir", "configs", "allow=[counting_gaps]", "force=true").code == 0


@pytest.mark.usefixtures("gaps")
def test_a_detector_that_does_not_is_refused_in_one_line(counting, refused, train, tmp_path):
    for words in (("detector=knn",), (*counting, "detector.gaps=false")):
        message = refused("train", *MINE, "dataset.missing=keep", *words)
        assert "takes no gaps" in message and "values of the rows are missing (NaN)" in message
        assert "dataset.missing=mean or =median" in message and "detector=miwae" in message
        error = message.split("error: ")[1].strip()
        assert "\n" not in error, error
    train(*MINE, "dataset.missing=mean", "detector=knn")
    (scores,) = (tmp_path / "outputs" / "train").glob("*/scores.parquet")
    assert np.isfinite(scores_of(scores.parent)["score"].to_numpy()).all()


def test_keep_without_a_gap_is_for_every_detector(table, train):
    table()
    assert "gaps" not in train(*MINE, "dataset.missing=keep", "detector=knn").out


@pytest.mark.usefixtures("gaps")
def test_the_error_names_keep(refused):
    assert "dataset.missing=keep leaves gaps to a detector" in refused("train", *MINE, "detector=knn")


def test_pixels_is_for_images_and_detectors_of_the_input(table, refused, run):
    table()
    assert "needs features" in refused("train", *MINE, "detector=knn", "backbone=pixels")
    assert "backbone pixels takes images" in refused("train", *MINE, "detector=dte_c", "backbone=pixels")
    listed = run("list", "backbones").out
    assert "pixels" in listed and "neither standardised nor flattened" in listed
