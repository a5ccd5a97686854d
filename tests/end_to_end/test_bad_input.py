"""What a user may get wrong, through the command line: exit code 2, no traceback, the value and the fix in words."""

import os
import shutil

import numpy as np
import polars as pl
import pytest
import torch

from outlie.data.sklearn_tables import SklearnTable

from .conftest import QUICK, only, result_of

KNN = ("train", "detector=knn")
MINE = (*KNN, "dataset=csv", "dataset.path=mine.csv", "dataset.label=label")
ROWS = 72


def test_nan_in_a_csv(table, refused):
    table(a=[None, *[1.0] * (ROWS - 1)])
    message = refused(*MINE)
    assert "missing values (NaN) in a (1)" in message
    assert "dataset.missing=mean" in message


@pytest.mark.parametrize("missing", ["mean", "median", "drop_rows"])
def test_the_fix_for_nan_works(missing, table, train):
    table(a=[None, *np.arange(ROWS - 1.0)])
    done = train(*MINE[1:], f"dataset.missing={missing}")
    assert "missing values" in done.out


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_inf_in_a_csv(value, table, refused):
    table(b=[1.0, value, *[1.0] * (ROWS - 2)])
    message = refused(*MINE)
    assert "infinite values in b (1)" in message
    assert "leave the columns out" in message


def test_a_text_column(table, refused, train):
    table(colour=["red", "blue"] * (ROWS // 2))
    message = refused(*MINE)
    assert "colour (such as 'red')" in message
    assert "dataset.categorical=one_hot" in message
    train(*MINE[1:], "dataset.categorical=one_hot")
    train(*MINE[1:], "dataset.categorical=drop")


def test_no_such_label_column(table, refused):
    table()
    message = refused(*MINE[:-1], "dataset.label=labels")
    assert "unknown column 'labels' (did you mean 'label'?)" in message
    assert "dataset.label" in message


def test_ambiguous_labels(table, refused, train):
    table(label=["good"] * 60 + ["bad"] * 12)
    message = refused(*MINE)
    assert "bad, good" in message
    fix = next(word for word in message.split() if word.startswith("dataset.positive=")).rstrip(",")
    train(*MINE[1:], fix)


def test_no_labels_at_all_gives_scores_and_a_finding(table, train, tmp_path):
    pl.read_csv(table()).drop("label").write_csv(tmp_path / "mine.csv")
    done = train(*MINE[1:4])
    assert "no labels" in done.out
    result = result_of(only(tmp_path / "outputs" / "train"))
    assert result["metrics"] == {"test": {}}
    assert result["threshold"]["value"] > 0
    assert (only(tmp_path / "outputs" / "train") / "scores.parquet").exists()


def test_no_anomalies_gives_a_finding(table, train, tmp_path):
    table(anomalies=0)
    done = train(*MINE[1:])
    assert "test has no anomalies" in done.out
    assert "nan" not in done.out.lower()
    result = result_of(only(tmp_path / "outputs" / "train"))
    assert set(result["metrics"]["test"].values()) == {None}


def test_anomalies_only(table, refused):
    table(normal=0, anomalies=20)
    message = refused(*MINE)
    assert "leaves 0 training rows" in message
    assert "give more normal rows" in message


def test_fewer_rows_than_neighbours(table, refused, train):
    table(normal=8, anomalies=2)
    message = refused(*MINE, "detector.k=50")
    assert "k = 50 neighbours, but only 4 training rows" in message
    fix = message.split("set ")[1].split(" or less")[0]
    assert fix == "detector.k to 4"
    train(*MINE[1:], "detector.k=4")


@pytest.mark.parametrize("name", ["diffusion", "dte_c", "dte_np", "dte_ig"])
def test_three_training_rows_and_a_batch_of_64(name, table, train, tmp_path):
    table(normal=8, anomalies=2)
    epochs = (
        ()
        if name == "dte_np"
        else (
            "detector.epochs=2",
            "detector.min_steps=0",
        )
    )
    k = ("detector.k=2",) if name == "dte_np" else ()
    train(*MINE[2:], f"detector={name}", *epochs, *k, "dataset.calibration=0.25", "dataset.test=0.375")
    result = result_of(only(tmp_path / "outputs" / "train"))
    assert result["rows"]["train"] == 3
    assert np.isfinite(result["metrics"]["test"]["auroc"])


@pytest.mark.parametrize(("name", "rows"), [("diffusion", 65), ("dte_c", 65)])
def test_a_last_batch_of_one_row(name, rows, table, train, tmp_path):
    table(normal=rows * 2, anomalies=5)
    train(
        *MINE[2:],
        f"detector={name}",
        "detector.epochs=2",
        "detector.min_steps=0",
        "dataset.calibration=0.25",
        "dataset.test=0.25",
    )
    assert result_of(only(tmp_path / "outputs" / "train"))["rows"]["train"] in (rows - 1, rows, rows + 1)


def test_a_constant_column_is_a_finding(table, train):
    table(c=[7.0] * ROWS)
    assert "1 of 4 columns are constant in training: c" in train(*MINE[1:]).out


def test_an_object_array_is_not_unpickled(refused, tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    np.savez(tmp_path / "mine.npz", X=np.array([[1.0], Trap()], object), y=np.zeros(2))
    message = refused(*KNN, "dataset=npz", "dataset.path=mine.npz", "dataset.label=y")
    assert "mine.npz" in message
    assert "refused" in message
    assert "np.savez" in message
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_a_truncated_file(kind, table, refused, tmp_path):
    path = tmp_path / f"mine.{kind}"
    if kind == "parquet":
        table(path.name)
    else:
        np.savez(path, X=np.random.default_rng(0).normal(size=(50, 3)), y=np.zeros(50))
    path.write_bytes(path.read_bytes()[:-100])
    message = refused(*KNN, f"dataset={kind}", f"dataset.path=mine.{kind}")
    assert f"mine.{kind}" in message
    assert "truncated" in message


@pytest.mark.parametrize("kind", ["csv", "npz", "parquet"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe rubbish \x80\n" * 9], ids=["empty", "rubbish"])
def test_not_a_table_at_all(kind, content, refused, tmp_path):
    (tmp_path / f"mine.{kind}").write_bytes(content)
    assert f"mine.{kind}" in refused(*KNN, f"dataset={kind}", f"dataset.path=mine.{kind}")


def test_no_such_file(table, refused, tmp_path):
    table("mine.csv")
    assert "did you mean 'mine.csv'?" in refused(*KNN, "dataset=csv", "dataset.path=mien.csv")
    assert "dataset.path" in refused(*KNN, "dataset=csv")
    (tmp_path / "folder").mkdir()
    assert "folder" in refused(*KNN, "dataset=csv", "dataset.path=folder")


@pytest.mark.parametrize("file", ["model.ckpt", "scores.parquet"])
def test_a_finished_run_with_a_truncated_file(file, run, refused, tmp_path):
    assert run(*KNN, *QUICK).code == 0
    path = only(tmp_path / "outputs" / "train") / file
    path.write_bytes(path.read_bytes()[:700])
    command = KNN if file == "scores.parquet" else ("eval", f"run={path.parent.name}")
    message = refused(*command, "metrics.false_alarms=0.2")
    assert file in message
    assert "force=true" in message
    assert run(*KNN, *QUICK, "force=true").code == 0
    assert run(*command, *QUICK, "metrics.false_alarms=0.2").code == 0


def test_truncated_weights(run, refused, tmp_path):
    words = ("train", "detector=dte_c", "detector.epochs=1", "detector.min_steps=0")
    assert run(*words, *QUICK).code == 0
    path = only(tmp_path / "outputs" / "stages") / "weights.ckpt"
    path.write_bytes(path.read_bytes()[:-300])
    message = refused(*words, "detector.score_by=mode")
    assert "weights.ckpt" in message
    assert "force=true" in message
    assert run(*words, "detector.score_by=mode", "force=true", *QUICK).code == 0


def test_a_truncated_result_is_no_result(train, tmp_path):
    train(*KNN[1:])
    path = only(tmp_path / "outputs" / "train") / "result.json"
    path.write_text(path.read_text()[:200])
    assert "done already" not in train(*KNN[1:]).err
    assert result_of(path.parent)["status"] == "done"


@pytest.mark.parametrize("damage", ["changed", "truncated"])
def test_a_wrong_checksum_under_outlie_data(damage, adbench_dir, refused, tmp_path, monkeypatch):
    (original,) = adbench_dir.glob("Classical/*_glass.npz")
    copy = tmp_path / "data" / "adbench" / "Classical" / original.name
    copy.parent.mkdir(parents=True)
    shutil.copyfile(original, copy)
    content = bytearray(copy.read_bytes())
    content[200] ^= 1
    copy.write_bytes(content if damage == "changed" else content[:-1])
    monkeypatch.setenv("OUTLIE_DATA", str(tmp_path / "data"))
    message = refused(*KNN, "dataset=adbench/glass")
    assert original.name in message
    assert ("SHA-256" if damage == "changed" else "truncated") in message
    assert "delete it" in message


def test_outlie_data_that_is_not_there(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("OUTLIE_DATA", str(tmp_path / "nowhere"))
    message = refused(*KNN, "dataset=adbench/glass")
    assert "nowhere does not exist" in message
    assert "unset it" in message


@pytest.mark.parametrize("command", [KNN, ("train", "detector=diffusion")])
def test_an_output_dir_below_a_file(command, refused, tmp_path):
    (tmp_path / "file").write_text("in the way")
    message = refused(*command, "output_dir=file/outputs")
    assert "output_dir='file/outputs'" in message
    assert "not a folder" in message


@pytest.mark.parametrize("option", ["trainer.strategy=nonsense", "trainer.strategy=fsdp", "trainer=gpu"])
def test_what_lightning_refuses(option, refused):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    assert "error: trainer: " in refused(*KNN, option)


def test_a_refused_option_loads_no_data(refused, monkeypatch):
    monkeypatch.setattr(SklearnTable, "load", lambda *_: pytest.fail("loaded data before the check"))
    assert "set detector.rec_start to 1000 or less" in refused("train", "detector=diffusion", "detector.rec_start=5000")


BACKBONE = '''
from typing import ClassVar
import torch
from outlie.backbones.identity import Identity

class Bare(Identity):
    """Network input only."""
    provides: ClassVar[tuple[str, ...]] = ("x",)
'''


def test_what_the_detector_needs_and_the_backbone_has_not(refused, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "bare.py").write_text(BACKBONE)
    (tmp_path / "configs" / "backbone").mkdir(parents=True)
    (tmp_path / "configs" / "backbone" / "bare.yaml").write_text("# bare\n_target_: mine.bare.Bare\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = refused("train", "--config-dir", "configs", "backbone=bare", "detector=knn", "allow=[mine]")
    assert "detector 'knn' needs features" in message
    assert "backbone 'bare' does not provide" in message
    assert "backbone=identity" in message
