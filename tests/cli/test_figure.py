"""`run figure`: draws without training, trains what it needs once, and refuses what is no figure in one line."""

import csv
import os

import pytest

from outlie.cli import main


def test_a_figure_and_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["figure", "iwae_mixture", "seed=1"]) == 0
    assert (tmp_path / "outputs/figures/iwae_mixture.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "outputs/figures/iwae_mixture.csv").open() as file:
        assert [row["k"] for row in csv.DictReader(file)] == ["1", "10", "100"]
    assert "iwae_mixture.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give a figure: iwae_mixture"),
        (["iwae_mixtur"], "did you mean 'iwae_mixture'?"),
        (["iwae_mixture", "file=a.gif"], "ends in .png or .svg"),
        (["iwae_mixture", "detector.k=3"], "trains nothing, so 'detector.k=3' has no place"),
        (["iwae_mixture", "seed=x"], "expected an integer of at least 0"),
        (["iwae_posterior", "detector.k=0"], "expected an integer of at least 1"),
    ],
)
def test_mistakes(words, says, capsys):
    assert main(["figure", *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.skipif(not os.environ.get("OUTLIE_DATA"), reason="needs MNIST under OUTLIE_DATA")
def test_what_it_needs_is_trained_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("outlie.density.trained_figures.IMAGES", 100)
    few = ["dataset.train_rows=500", "detector.epochs=1", "detector.k=5", "detector.draws=2", f"output_dir={tmp_path}"]
    assert main(["figure", "iwae_reconstructions", *few]) == 0
    assert "done already" not in capsys.readouterr().err
    assert main(["figure", "iwae_posterior", f"file={tmp_path}/posterior.svg", *few]) == 0
    assert "done already" in capsys.readouterr().err
    assert (tmp_path / "figures/iwae_reconstructions.png").exists() and (tmp_path / "posterior.svg").exists()
