"""New rows are encoded as the training rows were: the loader that made those is the oracle."""

import numpy as np
import polars as pl
import pytest
import torch

from outlie.backbones.identity import Identity
from outlie.data.tabular import Table
from outlie.detectors.base import Spec
from outlie.detectors.knn import KNN
from outlie.errors import UserError
from outlie.results import checkpoint
from outlie.scoring.schema import Schema, check, encode, of_run

N = 60


def frame(gaps: bool) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    age, colour = rng.normal(size=N).tolist(), rng.choice(["red", "blue", "a=b"], N).tolist()
    if gaps:
        age[3], age[17], colour[5] = None, None, None
    return pl.DataFrame(
        {"id": range(N), "age": age, "colour": colour, "paid": rng.random(N) < 0.5, "sum": rng.integers(0, 9, N),
         "size": rng.choice(["s", "l"], N), "label": [0] * 50 + [1] * 10}
    )  # fmt: skip


def trained(path, missing: str, **options):
    split = Table(path, "label", drop=["id"], categorical="one_hot", missing=missing, **options).load(0)
    return split, of_run({"schema": split.schema, "columns": split.columns}, {}, {})


@pytest.mark.parametrize("missing", ["mean", "median", "keep"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_training_file_is_encoded_as_the_loader_did(tmp_path, missing, suffix):
    path, table = tmp_path / f"mine.{suffix}", frame(gaps=True)
    (table.write_csv if suffix == "csv" else table.write_parquet)(path)
    split, schema = trained(path, missing)
    assert schema.encoded == split.columns
    new = encode(schema, table, keeps_gaps=missing == "keep")
    assert not any(new.errors)
    for rows in (split.train, split.calibration, *split.tests.values()):
        np.testing.assert_array_equal(new.x[rows.index.numpy()], rows.x.numpy())
    assert np.isnan(new.x).any() == (missing == "keep")


def test_the_median_is_that_of_training_rows_and_not_of_the_new_ones(tmp_path):
    path = tmp_path / "mine.csv"
    frame(gaps=True).write_csv(path)
    split, schema = trained(path, "median")
    known = np.array(frame(gaps=True)["age"].fill_null(np.nan))[split.train.index.numpy()]
    new = frame(gaps=False).head(4).with_columns(age=pl.Series([1e6, None, float("nan"), 1e6]))
    np.testing.assert_array_equal(encode(schema, new).x[:, 0], [1e6, np.nanmedian(known), np.nanmedian(known), 1e6])


@pytest.mark.parametrize(("missing", "gaps_taken"), [("error", True), ("drop_rows", True), ("keep", False)])
def test_a_row_that_training_would_not_take_has_no_score(tmp_path, missing, gaps_taken):
    path = tmp_path / "mine.csv"
    frame(gaps=False).write_csv(path)
    _, schema = trained(path, missing)
    found = encode(schema, frame(gaps=True), gaps_taken)
    assert {i: text for i, text in enumerate(found.errors) if text} == {
        3: "missing value in age", 5: "missing value in colour", 17: "missing value in age"
    }  # fmt: skip


def test_infinite_values_have_no_score_and_levels_never_seen_are_none_of_the_known(tmp_path):
    path = tmp_path / "mine.csv"
    frame(gaps=False).write_csv(path)
    _, schema = trained(path, "mean")
    colours = pl.Series(["red", "green", "green", None, "blue"])
    new = frame(gaps=False).head(5).with_columns(age=pl.Series([0.0, np.inf, -np.inf, 1.0, 2.0]), colour=colours)
    found = encode(schema, new)
    assert found.errors.tolist() == [None, "infinite value in age", "infinite value in age", None, None]
    assert found.unseen == {"colour": 2}  # a missing text is none of the known either, and no news
    where = [schema.encoded.index(f"colour={level}") for level in ("a=b", "blue", "red")]
    np.testing.assert_array_equal(found.x[:, where], [[0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0]])


SCHEMA = Schema(("age", "paid", "amount"), ("paid",), {"colour": ["blue", "red"]}, left_out=("label", "id"))


def test_columns_that_are_missing_are_named_with_what_they_were_probably_renamed_to():
    with pytest.raises(
        UserError, match=r"new.csv lacks 2 of the 4 columns .*: amount \(renamed to 'amounts'\?\), paid"
    ):
        check(Schema(("age", "amount", "paid"), (), SCHEMA.levels), ["age", "colour", "amounts"], [], "new.csv")


def test_columns_that_training_had_not_are_noted_and_those_it_left_out_are_not():
    present = ["note", "colour", "amount", "paid", "age", "label", "id", "when"]
    (note,) = check(SCHEMA, present, ["when"], "new.csv")
    assert note == "1 columns are ignored, training had none of that name: note"
    assert check(SCHEMA, ["age", "paid", "amount", "colour", "label"], [], "new.csv") == []
    with pytest.raises(UserError, match=r"no column 'whne'.*did you mean 'when'"):
        check(SCHEMA, present, ["whne"], "new.csv")


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("age", ["old"], "column age was a number in training, and is now String such as 'old'"),
        ("paid", ["maybe"], "column paid was true or false in training, and is now 'maybe'"),
        ("colour", [3], "column colour was text in training, and is now Int64"),
    ],
)
def test_a_retyped_column_is_refused(column, values, says):
    new = pl.DataFrame({"age": [1.0], "paid": [True], "amount": [2], "colour": ["red"]} | {column: values})
    with pytest.raises(UserError, match=says):
        encode(SCHEMA, new)


def test_booleans_may_be_words_numbers_or_booleans():
    for values in (["true", " False"], [1, 0], [True, False], ["1", "0"]):
        new = pl.DataFrame({"age": [1, 2], "paid": values, "amount": [2.0, 3.0], "colour": ["red", "red"]})
        np.testing.assert_array_equal(encode(SCHEMA, new).x[:, 1], [1, 0])


def test_the_checkpoint_keeps_the_schema(tmp_path):
    frame(gaps=True).write_csv(tmp_path / "mine.csv")
    split, schema = trained(tmp_path / "mine.csv", "median")
    backbone, detector = Identity(), KNN()
    backbone.setup(split)
    detector.bank = torch.zeros(5, len(split.columns))
    path, spec = tmp_path / "model.ckpt", Spec({"features": (len(split.columns),)})
    checkpoint.save_model(path, backbone, detector, spec, split.columns, (len(split.columns),), split.schema)
    loaded = of_run(checkpoint.load_state(path), {}, {})
    np.testing.assert_array_equal(loaded.fill, schema.fill)
    assert (loaded.numbers, loaded.levels, loaded.left_out) == (("age", "paid", "sum"), schema.levels, ("id", "label"))


class TestOlderRuns:
    """A checkpoint without a schema: read from the data again, if they are there and the same."""

    def now(self, path) -> dict:
        section = {"_target_": "outlie.data.tabular.Table", "path": str(path), "label": "label", "drop": ["id"]}
        return {"dataset": section | {"categorical": "one_hot", "missing": "mean"}, "allow": [], "seed": 0}

    def test_it_is_read_again(self, tmp_path):
        path = tmp_path / "mine.csv"
        frame(gaps=True).write_csv(path)
        split, schema = trained(path, "mean")
        found = of_run({"columns": split.columns}, self.now(path), {"data_sha256": split.data_sha256})
        assert found.encoded == schema.encoded
        np.testing.assert_array_equal(found.fill, schema.fill)

    def test_other_data_and_none_are_refused(self, tmp_path):
        path = tmp_path / "mine.csv"
        frame(gaps=True).write_csv(path)
        with pytest.raises(UserError, match=r"is not what it was.*force=true"):
            of_run({"columns": ()}, self.now(path), {"data_sha256": "0"})
        path.unlink()
        with pytest.raises(UserError, match=r"kept no schema.*cannot be read.*force=true"):
            of_run({"columns": ()}, self.now(path), {"data_sha256": "0"})

    def test_other_datasets_are_numbers_as_they_are(self):
        now = {"dataset": {"_target_": "outlie.data.sklearn_tables.SklearnTable", "name": "wine"}}
        assert of_run({"columns": ["a", "b"]}, now, {}) == Schema(("a", "b"))
