"""Readers in batches against whole readings by polars, NumPy and Pillow; and what is wrong, in one line."""

import numpy as np
import polars as pl
import pytest
from PIL import Image

from outlie.data.image_files import Transform, decode
from outlie.errors import UserError
from outlie.scoring import inputs
from outlie.scoring.outputs import require_output, sink
from outlie.scoring.schema import Schema

SCHEMA = Schema(("a", "b"), (), {"kind": ["x", "y"]})
NUMBERS = Schema(("a", "b", "c"))


@pytest.fixture
def few(monkeypatch):
    """Batches of the fewest rows that there are."""
    monkeypatch.setattr(inputs, "CELLS", 1)


def table(n: int = 5000) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    return pl.DataFrame({"id": [f"{i:05}" for i in range(n)], "a": rng.normal(size=n), "b": rng.integers(0, 9, n),
                         "kind": rng.choice(["x", "y", "z"], n), "rest": ["-"] * n})  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_batches_are_the_file_in_order(tmp_path, few, suffix):
    path, whole = tmp_path / f"new.{suffix}", table()
    whole.write_parquet(path) if suffix == "parquet" else whole.write_csv(path, separator=";")
    source = inputs.table(path, SCHEMA, ["id"], ";")
    parts = list(source.batches())
    assert len(parts) > 2 and source.total() == len(whole)
    joined = pl.concat(parts)
    assert joined.columns == ["a", "b", "kind", "id"]  # `rest` is not read
    assert joined["id"].to_list() == whole["id"].to_list()  # 00012 stays 00012
    np.testing.assert_array_equal(joined["a"].to_numpy(), whole["a"].to_numpy())
    np.testing.assert_array_equal(joined["b"].cast(pl.Float64).to_numpy(), whole["b"].to_numpy())


def test_the_words_for_a_missing_value_are_those_of_training(tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("a,b,kind\nNA,1,x\n2,?,\n")
    (batch,) = inputs.table(path, SCHEMA, [], None).batches()
    assert batch.rows() == [(None, 1.0, "x"), (2.0, None, None)]


def test_a_word_among_numbers_is_named_with_its_row(tmp_path, few):
    path = tmp_path / "new.csv"
    whole = table().with_columns(pl.col("b").cast(pl.String))
    whole.with_columns(b=pl.Series(whole["b"]).set(pl.Series(np.arange(5000) == 3210), "two")).write_csv(path)
    with pytest.raises(UserError, match=r"column b was a number in training, and is now 'two' in row 3210"):
        list(inputs.table(path, SCHEMA, [], None).batches())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"a,b,kind\n1,2,x\n1,2,x,4\n", "cannot read .*more fields"),
        (b"\xff\xfe\x00,\x01", "lacks 3 of the 3 columns|cannot read"),
        (b"a;b;kind\n1;2;x\n", "lacks 3 of the 3"),
    ],
)
def test_a_csv_that_is_none(tmp_path, content, says):
    path = tmp_path / "new.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        list(inputs.table(path, SCHEMA, [], None).batches())


def test_a_header_alone_gives_no_rows(tmp_path):
    (tmp_path / "new.csv").write_text("a,b,kind\n")
    assert sum(map(len, inputs.table(tmp_path / "new.csv", SCHEMA, [], None).batches())) == 0


def test_a_truncated_parquet_and_one_of_text_are_refused(tmp_path):
    path = tmp_path / "new.parquet"
    table().write_parquet(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cannot read .*truncated"):
        list(inputs.table(path, SCHEMA, [], None).batches())
    table().with_columns(a=pl.lit("1.5")).write_parquet(path)
    with pytest.raises(UserError, match=r"column a was a number in training, and is now String"):
        inputs.table(path, SCHEMA, [], None)


@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed], ids=["npy", "npz", "packed"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "uint8"])
def test_arrays_in_parts(tmp_path, few, save, dtype):
    x = (np.random.default_rng(0).random((3000, 3)) * 100).astype(dtype)
    path = tmp_path / ("new.npy" if save is np.save else "new.npz")
    save(path, x) if save is np.save else save(path, X=x, y=np.zeros(3000))
    source = inputs.table(path, NUMBERS, [], None)
    parts = list(source.batches())
    assert len(parts) == 3 and source.total() == 3000
    assert "order of training" in source.notes[0]
    np.testing.assert_array_equal(pl.concat(parts).to_numpy(), x.astype(np.float64))


def test_arrays_that_are_refused(tmp_path):
    path = tmp_path / "new.npz"

    def refused(says: str, schema: Schema = NUMBERS, used: tuple[str, ...] = ()) -> None:
        with pytest.raises(UserError, match=says):
            list(inputs.table(path, schema, used, None).batches())

    x = np.zeros((2000, 3))
    np.savez(path, X=x[:, :2])
    refused("has 2 columns, the run was trained on 3")
    np.savez(path, x=x)
    refused("no array 'X'")
    np.savez(path, X=np.asfortranarray(np.random.rand(20, 3)))
    refused("stored by columns")
    np.savez(path, X=np.array([[{}] * 3]))
    refused("object")
    np.savez(path, X=x)
    refused("text columns", SCHEMA)
    refused("no names of columns", used=("id",))
    path.write_bytes(path.read_bytes()[:5000])
    refused("truncated or not a NumPy file")


@pytest.fixture
def pictures(tmp_path):
    """Ten images, below each other; the fourth is cut off, the sixth is larger."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    for i in range(10):
        (folder / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        side = 24 if i == 6 else 12
        Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(folder / f"{i % 2}" / f"{i}.png")
    broken = folder / "0" / "4.png"
    broken.write_bytes(broken.read_bytes()[:60])
    return folder


def test_an_image_that_cannot_be_read_stops_no_other(pictures):
    transform = Transform(12, 3)
    source = inputs.image_folder(pictures, transform, at_once=3)
    batches = list(source.batches())
    names = [name for batch in batches for name in batch.names]
    assert names == sorted(f"{i % 2}/{i}.png" for i in range(10)) and source.total() == 10
    errors = [error for batch in batches for error in batch.errors]
    assert [name for name, error in zip(names, errors) if error] == ["0/4.png"]
    assert "damaged" in str(errors[names.index("0/4.png")])
    expected = np.stack([decode(pictures / name, transform) for name in names if name != "0/4.png"])
    np.testing.assert_array_equal(np.concatenate([batch.x for batch in batches]), expected)
    assert sum(batch.resized for batch in batches) == 1
    (some,) = inputs.image_folder(pictures, transform, 3, only={"1/3.png"}).batches()
    assert some.names == ["1/3.png"]


@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 1), (5, 1, 8, 8), (5, 8, 8, 3), (5, 16, 16)])
def test_images_in_an_array(tmp_path, shape):
    x = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    np.savez(tmp_path / "new.npz", images=x)
    batches = list(inputs.image_array(tmp_path / "new.npz", Transform(8, 1), 2).batches())
    got = np.concatenate([batch.x for batch in batches])
    assert got.shape == (5, 1, 8, 8) and got.dtype == np.uint8
    assert [name for batch in batches for name in batch.names] == list("01234")
    assert sum(batch.resized for batch in batches) == (5 if shape[1] == 16 else 0)
    if shape[-1] == 8 or shape[-1] == 1:
        np.testing.assert_array_equal(got.ravel(), x.ravel())


def test_arrays_that_are_no_images(tmp_path):
    np.save(tmp_path / "new.npy", np.zeros((5, 8, 8)))
    with pytest.raises(UserError, match=r"expected uint8"):
        inputs.image_array(tmp_path / "new.npy", Transform(8, 1), 2)
    np.save(tmp_path / "new.npy", np.zeros((5, 8, 8), np.uint8))
    with pytest.raises(UserError, match=r"dataset.resize=10\): give a folder"):
        inputs.image_array(tmp_path / "new.npy", Transform(8, 1, 10), 2)


class TestSink:
    """Whole or not at all."""

    @pytest.mark.parametrize("suffix", ["csv", "parquet"])
    def test_frames_one_after_the_other(self, tmp_path, suffix, monkeypatch):
        monkeypatch.setattr("outlie.scoring.outputs.PART_ROWS", 30)
        path, frames = tmp_path / f"out.{suffix}", [pl.DataFrame({"row": range(i, i + 20)}) for i in range(0, 200, 20)]
        with sink(path) as write:
            for frame in frames:
                write(frame)
            assert not path.exists()
        read = pl.read_csv(path) if suffix == "csv" else pl.read_parquet(path)
        assert read["row"].to_list() == list(range(200))
        assert [one.name for one in tmp_path.iterdir()] == [path.name]

    @pytest.mark.parametrize("suffix", ["csv", "parquet"])
    @pytest.mark.parametrize("stop", [KeyboardInterrupt, UserError("no"), ValueError])
    def test_nothing_is_left_of_one_that_stops(self, tmp_path, suffix, stop, monkeypatch):
        monkeypatch.setattr("outlie.scoring.outputs.PART_ROWS", 1)
        with pytest.raises((KeyboardInterrupt, UserError, ValueError)), sink(tmp_path / f"out.{suffix}") as write:
            write(pl.DataFrame({"row": [1]}))
            raise stop
        assert list(tmp_path.iterdir()) == []

    def test_what_is_there_is_not_lost(self, tmp_path):
        path = tmp_path / "out.csv"
        path.write_text("a\n")
        with pytest.raises(UserError, match=r"force=true replaces it"):
            require_output(path, [], force=False)
        require_output(path, [], force=True)
        with pytest.raises(UserError, match=r"is the input or the feedback"):
            require_output(path, [tmp_path / "." / "out.csv"], force=True)
        with pytest.raises(UserError, match=r"allowed: .csv, .parquet"):
            require_output(tmp_path / "out.json", [], force=False)
        with pytest.raises(UserError, match=r"no folder"):
            require_output(tmp_path / "not" / "out.csv", [], force=False)
