"""A density model's run says how far its bounds, weights and latent units can be believed."""

import csv
import json

import numpy as np
import polars as pl
import pytest

from outlie.results import density_report

from .conftest import only, result_of

TABLE = (
    "dataset=csv", "dataset.path=mine.csv", "dataset.label=label", "detector=iwae", "detector.hidden=[8]",
    "detector.epochs=2", "detector.k=2", "detector.batch_size=16", "detector.diagnose=4",
)  # fmt: skip
LOOKED_AT = ("metrics.latency=true", "metrics.latency_seconds=0.01")


def finite_numbers(value):
    """Every number of nested dictionaries; NaN and infinity would not be JSON."""
    if isinstance(value, dict | list):
        return [n for inner in (value.values() if isinstance(value, dict) else value) for n in finite_numbers(inner)]
    return [value]


def density_of(tmp_path):
    text = (only(tmp_path / "outputs" / "train") / "result.json").read_text()

    def refuse(word):
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)["density"]


def test_the_report_of_a_table(table, train, run, tmp_path):
    table(normal=120)
    done = train(*TABLE, *LOOKED_AT)
    density = density_of(tmp_path)
    folder = only(tmp_path / "outputs" / "train")
    assert density["reference"] == "held_out" and list(density["sets"]) == ["held_out", "test"]
    for one in density["sets"].values():
        assert one["rows"] == 4
        means = [one["bounds"][k]["mean"] for k in ("1", "10", "100", "5000")]
        assert means == sorted(means) and len(one["bounds"]) == 12
        assert one["inference_gap"]["mean"] == pytest.approx(means[-1] - means[0], rel=1e-9)
        assert one["reconstruction"]["mean"] - one["kl"]["mean"] == pytest.approx(means[0], rel=1e-9)
        assert 0 < one["ess_share"] <= one["entropy_share"] <= 1 and one["decoded_per_s"] > 0
    assert density["latent_units"] == [2] and len(density["active_units"]) == 1
    assert density["snr"]["rows"] == 16 and 50 <= density["snr"]["repeats"] <= 200
    assert density["snr"]["encoder"]["snr"] > 0 and density["snr"]["decoder"]["dsnr"] > 0
    assert set(density["q_ew"]["k"]) == {"1", "10", "100"} and density["q_ew"]["rows"] == 4
    assert all(n is None or isinstance(n, str) or np.isfinite(n) for n in finite_numbers(density))
    with (folder / "bounds.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 24
    assert float(lines[11]["mean"]) == density["sets"]["held_out"]["bounds"]["5000"]["mean"]
    tracked = density_report.by_set(density)
    assert tracked["density/test/bound_10"] == density["sets"]["test"]["bounds"]["10"]["mean"]
    assert tracked["density/held_out/ess_share"] == density["sets"]["held_out"]["ess_share"]
    assert all(isinstance(value, float | int) for value in tracked.values()) and density_report.by_set(None) == {}
    assert (folder / "density.png").read_bytes().startswith(b"\x89PNG")
    assert "Density: L_5000 = -" in done.out and "on 4 held-out rows (SE" in done.out
    assert "Pareto k above 0.7" in done.out and "of 2 latent units active" in done.out
    # the same rows and draws again; and the summary of a stored result
    shown = run("show", str(folder))
    assert shown.code == 0 and "Density: L_5000" in shown.out
    train(*TABLE, *LOOKED_AT, "force=true")
    again = density_of(tmp_path)
    timed = ("seconds", "cpu_seconds")
    assert again["q_ew"] == density["q_ew"] and again["snr"] == density["snr"] and again.keys() == density.keys()
    assert again["sets"]["test"]["bounds"] == density["sets"]["test"]["bounds"] and set(timed) <= set(again)


def test_what_is_doubtful_is_a_finding_that_stays(table, train, tmp_path, monkeypatch):
    monkeypatch.setattr("outlie.density.diagnostics.PARETO", -9.0)
    monkeypatch.setattr("outlie.density.diagnostics.ACTIVE", 1e9)
    table(normal=60)
    done = train(*TABLE, *LOOKED_AT, "detector.validation=0")
    assert density_of(tmp_path)["reference"] == "calibration"
    result = result_of(only(tmp_path / "outputs" / "train"))
    for kind in ("lints", "findings"):
        (weights,) = [finding for finding in result[kind] if "importance weights cannot be trusted" in finding]
        assert "4 of 4 calibration rows" in weights and "4 of 4 test rows" in weights
        assert any("none of the 2 latent units is active" in finding for finding in result[kind])
    assert "finding   importance weights" in done.err


def test_rows_with_gaps_and_two_layers(table, train, tmp_path):
    gaps = np.where(np.random.default_rng(1).random(132) < 0.25, np.nan, 1.0)
    noise = np.random.default_rng(2).normal(size=132)
    table(normal=120, e=[None if np.isnan(gap) else float(v) for gap, v in zip(gaps, noise, strict=True)])
    assert pl.read_csv("mine.csv")["e"].null_count() > 10
    train(
        *TABLE, *LOOKED_AT, "dataset.missing=keep", "detector.missing=random", "detector.latent_2=1",
        "detector.hidden_2=[3]", "detector.estimator=standard", "detector.members=2",
    )  # fmt: skip
    density = density_of(tmp_path)
    assert density["latent_units"] == [2, 1] and len(density["active_units"]) == 2
    assert density["q_ew"] is None
    assert None not in [one["mean"] for one in density["sets"]["test"]["bounds"].values()]


def test_quick_runs_and_others_do_without(table, train, tmp_path):
    table()
    train(*TABLE)  # metrics=fast
    train(*TABLE, *LOOKED_AT, "detector.diagnose=0", "output_dir=none")
    train(*TABLE[:3], "detector=knn", *LOOKED_AT, "output_dir=knn")
    for name in ("outputs", "none", "knn"):
        folder = only(tmp_path / name / "train")
        assert "density" not in result_of(folder) and not (folder / "density.png").exists()
