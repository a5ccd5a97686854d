"""Tables with gaps through the density models that take them: scores, filled rows, explanations, what is refused."""

import numpy as np
import polars as pl
import pytest

from .conftest import only, result_of, scores_of

MINE = ("dataset=csv", "dataset.path=mine.csv", "dataset.label=label", "dataset.missing=keep")
MIXED = (*MINE, "dataset.categorical=one_hot")
QUICK = ("detector.epochs=8", "detector.k=5")
NUMBERS = ["a", "b", "c", "d"]
ROWS = 132


@pytest.fixture
def gaps(table):
    """Write a csv with an eighth of its values missing, and a row without any; returns the complete table."""
    rng = np.random.default_rng(1)
    path = table(normal=120)
    numbers = pl.read_csv(path).select(NUMBERS).to_numpy() * [1, 10, 100, 1000] + [0, 5, -500, 1e6]
    flag, colour = numbers[:, 0] > 0, np.where(numbers[:, 1] > 5, "red", "blue")
    gone = rng.random((ROWS, 6)) < 0.125
    gone[-1] = True
    columns = [*numbers.T.tolist(), flag.tolist(), colour.tolist()]
    names = [*NUMBERS, "flag", "colour"]
    complete = pl.DataFrame(dict(zip(names, columns, strict=True)))
    kept = [[None if gap else value for gap, value in zip(*pair)] for pair in zip(gone.T, columns, strict=True)]
    table(normal=120, **dict(zip(names, kept, strict=True)))
    return complete


def test_gaps_of_test_rows_are_filled_in_the_tables_units(gaps, train, run, tmp_path):
    done = train(*MIXED, "detector=miwae", *QUICK)
    folder = only(tmp_path / "outputs" / "train")
    assert "imputed.parquet" in done.out
    given, filled = pl.read_csv("mine.csv"), pl.read_parquet(folder / "imputed.parquet")
    levels = ["colour=blue", "colour=red"]
    assert filled.columns == ["split", "index", "score_per_value", *NUMBERS, "flag", *levels]
    scores = scores_of(folder).filter(pl.col("split") == "test")
    with_gaps = given.drop("label").select(pl.any_horizontal(pl.all().is_null())).to_series().to_numpy()
    assert filled["index"].to_list() == [i for i in scores["index"] if with_gaps[i]]
    own = given[filled["index"].to_numpy()]
    for name in [*NUMBERS, "flag"]:
        was, now = own[name].cast(pl.Float64).to_numpy(), filled[name].to_numpy()
        np.testing.assert_array_equal(now[~np.isnan(was)], was[~np.isnan(was)])  # to the last digit
        assert np.isfinite(now).all()
    for name, centre, spread in (("c", -500, 100), ("d", 1e6, 1000)):
        guessed = filled[name].to_numpy()[own[name].is_null().to_numpy()]
        assert len(guessed) and (np.abs(guessed - centre) < 10 * spread).all()
    share, known = filled.select(levels).to_numpy(), own["colour"].to_numpy()
    assert ((share >= 0) & (share <= 1)).all()
    assert (share[known == "red"] == [0, 1]).all() and (share[known == "blue"] == [1, 0]).all()
    unknown = own["colour"].is_null().to_numpy()
    assert (share[unknown] > 0).all() and (share[unknown].sum(1) < 1 + 1e-6).all()
    score = dict(scores.select("index", "score").iter_rows())
    for index, found in filled.select("index", "score_per_value").iter_rows():
        values = sum(value is not None for value in given.drop("label").row(index))
        assert found is None if not values else found == pytest.approx(score[index] / values)
    assert np.isfinite(scores["score"].to_numpy()).all()
    assert ROWS - 1 in filled["index"]  # the row without any value

    assert run("eval", f"run={folder}", "explain=true", "metrics=fast").code == 0
    evaluated = only(tmp_path / "outputs" / "eval")
    assert "surprise of each value given the others, in nats" in (evaluated / "log.txt").read_text()
    surprise = pl.read_parquet(evaluated / "explanations.parquet")
    for index, *values in surprise.drop("score", "label").iter_rows():
        there = given.drop("label").row(index)
        assert [value != 0 for value in values[:5]] == [value is not None for value in there[:5]]
        assert sum(value != 0 for value in values[5:]) == (there[5] is not None)


def test_not_miwae_fills_numbers(gaps, train, tmp_path):
    gaps.select(NUMBERS)
    frame = pl.read_csv("mine.csv").select(*NUMBERS, "label")
    frame.write_csv("mine.csv")
    train(*MINE, "detector=not_miwae", *QUICK)
    folder = only(tmp_path / "outputs" / "train")
    filled = pl.read_parquet(folder / "imputed.parquet")
    assert len(filled) and filled.select(NUMBERS).null_count().sum_horizontal().item() == 0
    assert np.isfinite(scores_of(folder)["score"].to_numpy()).all()


@pytest.mark.usefixtures("gaps")
def test_a_column_without_a_value_in_training_stays_empty(train, tmp_path):
    frame = pl.read_csv("mine.csv")
    new = [1.0 if label else None for label in frame["label"]]  # anomalies are in the test rows only
    frame.with_columns(b=pl.Series(new, dtype=pl.Float64), split=pl.Series(range(ROWS))).write_csv("mine.csv")
    train(*MIXED, "detector=miwae", *QUICK)
    folder = only(tmp_path / "outputs" / "train")
    assert any("column b has no value in training rows" in finding for finding in result_of(folder)["lints"])
    assert np.isfinite(scores_of(folder)["score"].to_numpy()).all()
    filled = pl.read_parquet(folder / "imputed.parquet")
    assert filled.columns[:3] == ["_split", "index", "score_per_value"]  # the table has a split of its own
    label = frame["label"].to_numpy()[filled["index"].to_numpy()]
    assert filled.filter(label == 0)["b"].null_count() == (label == 0).sum()
    assert set(filled.filter(label == 1)["b"]) == {1.0}
    assert filled.drop("b", "score_per_value").null_count().sum_horizontal().item() == 0


def test_complete_rows_leave_nothing_to_fill(table, train, run, tmp_path):
    table()
    for detector in ("miwae", "not_miwae"):
        assert "imputed" not in train("dataset=csv", "dataset.path=mine.csv", f"detector={detector}", *QUICK).out
    assert not list((tmp_path / "outputs").rglob("imputed.parquet"))


@pytest.mark.usefixtures("gaps")
@pytest.mark.parametrize("detector", ["vae", "iwae"])
def test_a_density_model_without_gaps_is_refused_in_one_line(detector, refused):
    error = refused("train", *MIXED, f"detector={detector}").split("error: ")[1].strip()
    assert f"{detector} takes no gaps" in error and "detector=miwae" in error and "\n" not in error


@pytest.mark.usefixtures("gaps")
def test_a_level_that_training_never_saw(train, tmp_path):
    frame = pl.read_csv("mine.csv")
    new = pl.when(pl.col("label") == 1).then(pl.lit("green")).otherwise(pl.col("colour"))
    frame.with_columns(colour=new).write_csv("mine.csv")
    train(*MIXED, "detector=miwae", *QUICK)
    folder = only(tmp_path / "outputs" / "train")
    assert np.isfinite(scores_of(folder)["score"].to_numpy()).all()
    filled = pl.read_parquet(folder / "imputed.parquet")
    green = frame["label"].to_numpy()[filled["index"].to_numpy()] == 1
    assert green.any() and (filled.select("colour=blue", "colour=red").to_numpy()[green] == 0).all()
