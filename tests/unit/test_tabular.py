"""The user's own files: what is handled, what is refused, and in which words."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from outlie.data.tabular import Table
from outlie.errors import UserError

RNG = np.random.RandomState(0)
N = 100
Y = (np.arange(N) % 10 == 0).astype(int)  # 90 normal rows, 10 anomalies


def frame(**columns: object) -> pl.DataFrame:
    return pl.DataFrame({"a": RNG.randn(N), "b": RNG.randn(N), "label": Y} | columns)


def csv(tmp_path: Path, table: pl.DataFrame) -> Path:
    table.write_csv(tmp_path / "data.csv")
    return tmp_path / "data.csv"


def load(path: Path, label: str | None = "label", seed: int = 0, **options):
    return Table(path, label, **options).load(seed)


def with_holes(values: np.ndarray, *where: int) -> list[float | None]:
    return [None if i in where else float(v) for i, v in enumerate(values)]


def test_csv_parquet_and_npz_give_the_same_split(tmp_path):
    table = frame()
    table.write_csv(tmp_path / "data.csv")
    table.write_parquet(tmp_path / "data.parquet")
    np.savez(tmp_path / "data.npz", X=table.select("a", "b").to_numpy(), label=Y)
    splits = [load(tmp_path / f"data.{ending}") for ending in ("csv", "parquet", "npz")]
    for split in splits:
        assert split.calibration is not None
        assert [len(split.train), len(split.calibration), len(split.tests["test"])] == [36, 27, 37]
        np.testing.assert_array_equal(split.train.x.numpy(), splits[0].train.x.numpy())
        assert split.data_sha256 == splits[0].data_sha256
        assert split.findings == []
    assert splits[0].columns == ("a", "b")


def test_index_is_the_row_in_the_file(tmp_path):
    table = frame(a=np.arange(N, dtype=float))
    split = load(csv(tmp_path, table), missing="drop_rows")
    np.testing.assert_array_equal(split.tests["test"].x[:, 0].numpy(), split.tests["test"].index.numpy())
    holes = load(csv(tmp_path, table.with_columns(b=pl.Series(with_holes(RNG.randn(N), 0, 5, 6)))), missing="drop_rows")
    assert holes.calibration is not None
    for rows in (holes.train, holes.calibration, holes.tests["test"]):
        np.testing.assert_array_equal(rows.x[:, 0].numpy(), rows.index.numpy())
        assert not {0, 5, 6} & set(rows.index.tolist())
    assert "3 of 100 rows have missing values and are left out" in holes.findings


def test_nan_is_refused_with_columns_counts_and_option(tmp_path):
    path = csv(tmp_path, frame(b=with_holes(RNG.randn(N), 3, 4)))
    with pytest.raises(UserError, match=r"missing values \(NaN\) in b \(2\).*dataset.missing=mean.*leaves 2 rows out"):
        load(path)
    with pytest.raises(UserError, match=r"dataset.missing=keep leaves gaps to a detector that takes them, such as"):
        load(path)


@pytest.mark.parametrize("word", ["NaN", "?", "NA", ""])
def test_words_for_missing(tmp_path, word):
    (tmp_path / "data.csv").write_text("a,label\n" + "".join(f"{word if i == 7 else i},{i % 2}\n" for i in range(30)))
    with pytest.raises(UserError, match=r"a \(1\)"):
        load(tmp_path / "data.csv")


def test_infinity_is_refused(tmp_path):
    a = RNG.randn(N)
    a[[2, 3, 4]] = np.inf, -np.inf, np.inf
    frame(a=a).write_parquet(tmp_path / "data.parquet")
    for missing in ("error", "mean"):
        with pytest.raises(UserError, match=r"infinite values in a \(3\)"):
            load(tmp_path / "data.parquet", missing=missing)


@pytest.mark.parametrize(("missing", "statistic"), [("mean", np.mean), ("median", np.median)])
def test_imputation_knows_training_rows_only(tmp_path, missing, statistic):
    b = RNG.randn(N) ** 3
    holes = list(range(0, N, 4))
    table = frame(b=with_holes(b, *holes))
    split = load(csv(tmp_path, table), missing=missing)
    index = split.train.index.numpy()
    expected = statistic([b[i] for i in index if i not in holes])
    test = split.tests["test"]
    filled = test.x[np.isin(test.index.numpy(), holes), 1].numpy()
    assert len(filled) > 0
    np.testing.assert_allclose(filled, expected)


def test_a_column_without_any_value(tmp_path):
    path = csv(tmp_path, frame(b=[None] * N))
    for missing in ("error", "mean", "drop_rows"):
        with pytest.raises(UserError, match=r"columns without any value: b; leave them out: dataset.drop=\[b\]"):
            load(path, missing=missing)
    assert load(path, drop=["b"]).columns == ("a",)


def test_a_column_without_a_value_in_training(tmp_path):
    b = [1.0 if y else None for y in Y]
    with pytest.raises(UserError, match=r"without a value in training: b"):
        load(csv(tmp_path, frame(b=b)), missing="mean")


def parts(split) -> list:
    return [split.train, split.calibration, *split.tests.values()]


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("ending", ["csv", "parquet", "npz"])
@pytest.mark.usefixtures("no_warnings")
def test_gaps_that_are_kept(tmp_path, ending):
    x = np.random.RandomState(3).randn(N, 3) * [1, 20, 300] + [0, 5, -7]
    x[np.random.RandomState(4).rand(N, 3) < 0.3] = np.nan
    x[:5] = np.nan
    path = tmp_path / f"data.{ending}"
    table = pl.DataFrame(x, schema=list("abc"), nan_to_null=True).with_columns(label=pl.Series(Y))
    match ending:
        case "csv":
            table.write_csv(path)
        case "parquet":
            table.write_parquet(path)
        case _:
            np.savez(path, X=x, label=Y)
    split = load(path, missing="keep")
    for rows in parts(split):
        np.testing.assert_array_equal(rows.x.numpy(), x[rows.index.numpy()])  # NaN where it was NaN
    assert sorted(np.concatenate([rows.index for rows in parts(split)])) == list(range(N))
    train = x[split.train.index.numpy()]
    np.testing.assert_allclose(split.mean, np.nanmean(train, 0), rtol=1e-12)
    np.testing.assert_allclose(split.scale, np.nanstd(train, 0), rtol=1e-12)
    missing, empty = int(np.isnan(x).sum()), int(np.isnan(x).all(1).sum())
    assert f"{missing} missing values ({100 * missing / x.size:.1f} %) in 3 columns are kept as gaps" in split.findings
    assert f"{empty} of 100 rows have no value at all, and are kept" in split.findings
    assert split.data_sha256 == load(path, missing="mean").data_sha256


def test_keep_changes_nothing_where_nothing_is_missing(tmp_path):
    table = frame(city=["Paris", "Rome"] * (N // 2))
    splits = [load(csv(tmp_path, table), missing=how, categorical="one_hot") for how in ("error", "keep")]
    for first, second in zip(*map(parts, splits), strict=True):
        np.testing.assert_array_equal(first.x, second.x)
    assert splits[0].findings == splits[1].findings == []
    assert splits[0].data_sha256 == splits[1].data_sha256


def test_the_hash_is_of_the_values_and_labels(tmp_path):
    split = load(csv(tmp_path, table := frame()), missing="keep")
    said = hashlib.sha256(b"<f8(100, 2);" + np.ascontiguousarray(table.select("a", "b").to_numpy()).tobytes())
    said.update(b"<i8(100,);" + Y.astype("<i8").tobytes())
    assert split.data_sha256 == said.hexdigest()


@pytest.mark.usefixtures("no_warnings")
def test_columns_of_which_nothing_is_known_are_kept(tmp_path):
    anomalous = [5.0 if y else None for y in Y]
    words = ["new" if y else None for y in Y]
    table = frame(b=[None] * N, c=anomalous, word=words)
    split = load(csv(tmp_path, table), missing="keep", categorical="one_hot")
    assert split.columns == ("a", "b", "c")  # a text without a level has no columns
    assert split.blocks == (("number", 3),)
    assert split.mean[1:].tolist() == [0, 0] and split.scale[1:].tolist() == [1, 1]
    for rows in parts(split):
        assert rows.x[:, 1].isnan().all()
        np.testing.assert_array_equal(rows.x[:, 2], [5.0 if y else np.nan for y in rows.label])
    for name in ("b", "c", "word"):
        assert f"column {name} has no value in training rows: nothing is learnt about it" in split.findings
    assert not any("constant" in finding for finding in split.findings)


def test_a_missing_text_is_a_gap_in_all_its_levels(tmp_path):
    city = np.where(Y == 1, "Atlantis", np.where(np.arange(N) % 2, "Paris", "Rome")).astype(object)
    city[::3] = None
    path = csv(tmp_path, frame(city=city.tolist()))
    split = load(path, missing="keep", categorical="one_hot")
    assert split.columns == ("a", "b", "city=Paris", "city=Rome")
    levels = {None: [np.nan, np.nan], "Paris": [1, 0], "Rome": [0, 1], "Atlantis": [0, 0]}  # never seen: all zeros
    seen = set()
    for rows in parts(split):
        words = city[rows.index.numpy()]
        np.testing.assert_array_equal(rows.x[:, 2:], [levels[word] for word in words])
        seen |= set(words)
    assert seen == set(levels)
    words = [word for word in city[split.train.index.numpy()] if word is not None]
    share = np.mean([word == "Paris" for word in words])
    np.testing.assert_allclose(split.mean[2:], [share, 1 - share], rtol=1e-12)
    np.testing.assert_allclose(split.scale[2:], [np.sqrt(share * (1 - share))] * 2, rtol=1e-12)
    assert "34 missing values (11.3 %) in 1 columns are kept as gaps" in split.findings
    filled = load(path, missing="mean", categorical="one_hot")
    assert not any(rows.x.isnan().any() for rows in parts(filled))


@pytest.mark.parametrize("protocol", ["dte_semi", "dte_unsup", "dte_semi_noleak"])
def test_the_published_protocols_do_not_fill_what_is_kept(tmp_path, protocol):
    b = with_holes(RNG.randn(N), *range(0, N, 3))
    split = load(csv(tmp_path, frame(b=b)), missing="keep", protocol=protocol)
    for rows in (split.train, split.tests["test"]):
        np.testing.assert_array_equal(rows.x[:, 1].isnan(), rows.index % 3 == 0)
    assert not any("column means" in finding for finding in split.findings)


def test_kinds_of_columns(tmp_path):
    flags, words = RNG.rand(N) < 0.5, RNG.choice(["x", "y", "z"], N)
    table = pl.DataFrame({"w": words, "a": RNG.randn(N), "b": flags, "c": ~flags, "d": np.arange(N), "e": RNG.randn(N),
                          "v": np.where(flags, "p", "q"), "f": flags, "id": words, "label": Y})  # fmt: skip
    table = table.with_columns(f=pl.when(pl.col("d") % 5 == 0).then(None).otherwise(pl.col("f")))
    table.write_csv(tmp_path / "data.csv")
    table.write_parquet(tmp_path / "data.parquet")
    expected = (("number", 1), ("boolean", 2), ("number", 2), ("boolean", 1))
    for ending in ("csv", "parquet"):
        split = load(tmp_path / f"data.{ending}", missing="keep", categorical="one_hot", drop=["id"])
        assert split.columns[:6] == ("a", "b", "c", "d", "e", "f")
        assert split.blocks == (*expected, ("levels", 3), ("levels", 2))  # of w, then of v
        assert sum(width for _, width in split.blocks) == split.train.x.shape[1] == len(split.columns)
        assert load(tmp_path / f"data.{ending}", missing="mean", categorical="drop").blocks == expected
    np.savez(tmp_path / "data.npz", X=RNG.randn(N, 3), label=Y)
    assert load(tmp_path / "data.npz").blocks == (("number", 3),)


def test_text_columns(tmp_path):
    path = csv(tmp_path, frame(city=["Paris", "Rome"] * (N // 2)))
    with pytest.raises(UserError, match=r"city .such as 'Paris'.*dataset.categorical=one_hot"):
        load(path)
    assert load(path, categorical="drop").columns == ("a", "b")
    split = load(path, categorical="one_hot")
    assert split.columns == ("a", "b", "city=Paris", "city=Rome")
    assert (split.train.x[:, 2:].sum(1) == 1).all()
    assert (split.train.x[:, 2] == 1 - split.train.index % 2).all()


def test_levels_are_those_of_training_rows(tmp_path):
    city = np.where(Y == 1, "Atlantis", np.where(np.arange(N) % 2, "Paris", "Rome"))
    split = load(csv(tmp_path, frame(city=city)), categorical="one_hot")
    assert split.columns == ("a", "b", "city=Paris", "city=Rome")
    test = split.tests["test"]
    assert test.label is not None
    assert (test.x[test.label == 1][:, 2:] == 0).all()


def test_ids_are_not_categories(tmp_path):
    table = pl.DataFrame({"id": [f"row {i}" for i in range(1000)], "a": RNG.randn(1000), "label": [0] * 999 + [1]})
    with pytest.raises(UserError, match=r"column id has 399 different texts.*dataset.drop=\[id\]"):
        load(csv(tmp_path, table), categorical="one_hot")


def test_dates_are_neither_numbers_nor_text(tmp_path):
    table = frame(when=pl.Series([0] * N).cast(pl.Date))
    table.write_parquet(tmp_path / "data.parquet")
    with pytest.raises(UserError, match=r"when \(Date\).*dataset.drop=\[when\]"):
        load(tmp_path / "data.parquet", categorical="one_hot")


def test_no_labels(tmp_path):
    split = load(csv(tmp_path, frame().drop("label")), label=None)
    assert split.tests["test"].label is None
    assert split.calibration is not None
    assert [len(split.train), len(split.calibration), len(split.tests["test"])] == [40, 30, 30]
    assert any("threshold rests on held-out rows" in finding for finding in split.findings)
    with pytest.raises(UserError, match=r"protocol dte_semi needs labels"):
        load(csv(tmp_path, frame().drop("label")), label=None, protocol="dte_semi")


def test_a_forgotten_label_column_is_reported(tmp_path):
    split = load(csv(tmp_path, frame()), label=None)
    assert any("if it is the label, dataset.label=label" in finding for finding in split.findings)


@pytest.mark.parametrize(
    ("normal", "anomaly"), [("normal", "anomaly"), ("0", "1"), ("false", "TRUE"), ("0.0", "1.0"), ("inlier", "Outlier")]
)
def test_plain_words_for_labels(tmp_path, normal, anomaly):
    split = load(csv(tmp_path, frame(label=np.where(Y == 1, anomaly, normal))))
    assert int(split.tests["test"].label.sum()) == 10


def test_ambiguous_labels_need_a_word(tmp_path):
    path = csv(tmp_path, frame(label=np.where(Y == 1, -1, 1)))
    with pytest.raises(UserError, match=r"the values -1, 1: which one is the anomaly\? dataset.positive=-1"):
        load(path)
    assert int(load(path, positive=-1).tests["test"].label.sum()) == 10
    path = csv(tmp_path, frame(label=np.where(Y == 1, "Malignant", "benign")))
    assert int(load(path, positive="malignant").tests["test"].label.sum()) == 10
    with pytest.raises(UserError, match=r"did you mean 'malignant'"):
        load(path, positive="malignat")


def test_empty_labels_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"label column 'label' is empty in 2 rows"):
        load(csv(tmp_path, frame(label=with_holes(Y, 1, 2))))


def test_mistyped_columns_and_paths(tmp_path):
    path = csv(tmp_path, frame())
    with pytest.raises(UserError, match=r"dataset.label: unknown column 'lable' \(did you mean 'label'\?\)"):
        load(path, label="lable")
    with pytest.raises(UserError, match=r"dataset.drop: unknown column 'bb'"):
        load(path, drop=["bb"])
    with pytest.raises(UserError, match=r"did you mean '.*data.csv'"):
        load(tmp_path / "dta.csv")
    path.rename(tmp_path / "data.xyz")
    with pytest.raises(UserError, match=r"dataset.format="):
        load(tmp_path / "data.xyz")


def test_one_class_only_and_no_anomalies(tmp_path):
    split = load(csv(tmp_path, frame(label=np.zeros(N, int))))
    assert "test has no anomalies: recall and AUROC are not defined" in split.findings
    with pytest.raises(UserError, match=r"leaves 0 training rows, at least 2 needed"):
        load(csv(tmp_path, frame(label=np.ones(N, int))))


def test_too_few_rows(tmp_path):
    with pytest.raises(UserError, match=r"training rows, at least 2 needed"):
        load(csv(tmp_path, frame()[:4]))
    (tmp_path / "empty.csv").write_text("a,b,label\n")
    with pytest.raises(UserError, match=r"has no rows"):
        load(tmp_path / "empty.csv")
    (tmp_path / "nothing.csv").write_text("")
    with pytest.raises(UserError, match=r"cannot read"):
        load(tmp_path / "nothing.csv")


def test_constant_columns_and_leaks_are_findings(tmp_path):
    split = load(csv(tmp_path, frame(b=np.full(N, 2.5), c=Y * 3)))
    assert "2 of 3 columns are constant in training: b, c" in split.findings
    assert any(finding.startswith("c is the label in disguise") for finding in split.findings)
    assert split.scale[1] == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, bool])
def test_every_number_type_becomes_float64(tmp_path, dtype):
    x = RNG.randint(0, 2, (N, 3)).astype(dtype)
    np.savez(tmp_path / "data.npz", X=x, y=Y.astype(np.uint8))
    split = load(tmp_path / "data.npz", label="y")
    np.testing.assert_array_equal(split.train.x.numpy(), x[split.train.index.numpy()].astype(np.float64))


def test_an_object_array_is_refused_not_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "it_ran"), "w"))

    x = np.empty((3, 1), object)
    x[:] = [[Trap()], [Trap()], [Trap()]]
    np.savez(tmp_path / "data.npz", X=x, y=np.zeros(3))
    with pytest.raises(UserError, match=r"object array or a pickle.*refused"):
        load(tmp_path / "data.npz", label="y")
    assert not (tmp_path / "it_ran").exists()


def test_truncated_files(tmp_path):
    np.savez(tmp_path / "data.npz", X=RNG.randn(N, 3), y=Y)
    frame().write_parquet(tmp_path / "data.parquet")
    for name in ("data.npz", "data.parquet"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match=r"truncated"):
            load(path, label="y")


def test_npz_with_other_names_and_shapes(tmp_path):
    np.savez(tmp_path / "data.npz", X=RNG.randn(N, 3), labels=Y)
    with pytest.raises(UserError, match=r"did you mean 'labels'.*dataset.label=null"):
        load(tmp_path / "data.npz", label="label")
    np.savez(tmp_path / "data.npz", X=RNG.randn(N), y=Y)
    with pytest.raises(UserError, match=r"shape \(100,\), expected \(rows, features\)"):
        load(tmp_path / "data.npz", label="y")
    np.savez(tmp_path / "data.npz", X=RNG.randn(N, 3), y=Y[:-1])
    with pytest.raises(UserError, match=r"shape \(99,\), expected \(100,\)"):
        load(tmp_path / "data.npz", label="y")
    np.savez(tmp_path / "data.npz", features=RNG.randn(N, 3), y=Y)
    with pytest.raises(UserError, match=r"unknown array 'X'"):
        load(tmp_path / "data.npz", label="y")


def test_published_protocols_on_own_files(tmp_path):
    split = load(csv(tmp_path, frame()), protocol="dte_semi_noleak")
    assert split.calibration is None
    assert [len(split.train), len(split.tests["test"])] == [45, 55]
    assert len(load(csv(tmp_path, frame()), protocol="dte_unsup").train) == 1000
