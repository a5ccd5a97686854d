"""`run score` as a user meets it: the scores that training stored are the oracle for the rows it was given again."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from outlie.commands import score as command


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Runs that tests of this file share, by protocol."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def run_of(train, table, tmp_path, trained):
    """Train on a table of columns a to d, an id, a colour and a time; (table, name of the run)."""

    def make(protocol: str = "split") -> tuple[Path, str]:
        n, kept = 240, trained / protocol
        rng = np.random.default_rng(3)
        path = table(
            "mine.csv", 200, 40, id=[f"{i:04}" for i in range(n)], colour=rng.choice(["red", "blue"], n),
            when=[f"2026-0{5 + i % 2}-11 08:00" for i in range(n)],
        )  # fmt: skip
        if not kept.exists():
            train(
                "dataset=csv", f"dataset.path={path}", "dataset.label=label", "dataset.drop=[id,when]", "detector=knn",
                "dataset.categorical=one_hot", f"dataset.protocol={protocol}",
            )  # fmt: skip
            shutil.copytree(tmp_path / "outputs", kept)
        shutil.copytree(kept, tmp_path / "outputs", dirs_exist_ok=True)
        (folder,) = (tmp_path / "outputs" / "train").iterdir()
        return path, folder.name

    return make


def stored(tmp_path: Path) -> pl.DataFrame:
    (path,) = (tmp_path / "outputs" / "train").glob("*/scores.parquet")
    return pl.read_parquet(path).unique("index")


def test_rows_of_the_training_file_get_the_scores_that_are_stored(run_of, run, tmp_path):
    path, name = run_of()
    pl.read_csv(path, schema_overrides={"id": pl.String}).write_parquet("mine.parquet")
    done = run("score", f"run={name}", f"input={path}", "output=scored.csv", "fpr=0.05", "review=0.2", "keep=[id]")
    assert done.code == 0, done.err
    again = run("score", f"run={name}", "input=mine.parquet", "output=scored.parquet", "fpr=0.05", "review=0.2")
    assert again.code == 0, again.err
    scored, from_parquet = (
        pl.read_csv("scored.csv", schema_overrides={"id": pl.String}),
        pl.read_parquet("scored.parquet"),
    )
    assert scored.columns == ["row", "id", "score", "p_value", "verdict"]
    assert scored["id"].to_list() == [f"{i:04}" for i in range(240)]
    assert from_parquet.equals(scored.drop("id"))
    both = stored(tmp_path).join(scored, left_on="index", right_on="row")
    assert len(both) == 160  # 60 calibration, 60 test, 40 anomalies
    np.testing.assert_allclose(both["score_right"].to_numpy(), both["score"].to_numpy(), rtol=1e-12)
    assert set(scored.filter(pl.col("p_value") <= 0.05)["verdict"]) == {"flag"}
    assert set(scored.filter((pl.col("p_value") > 0.05) & (pl.col("p_value") <= 0.2))["verdict"]) == {"ask"}
    assert set(scored.filter(pl.col("p_value") > 0.2)["verdict"]) == {"pass"}
    assert scored.tail(40)["verdict"].to_list() == ["flag"] * 40
    assert "240 rows scored" in done.out and "If all rows were normal, 12 flagged" in done.out
    summary = json.loads(Path("scored.summary.json").read_text())
    assert summary["rows"] == 240 and summary["threshold"]["n_calibration"] == 60


def test_the_month_of_alerts_is_reported_and_reviewed_verdicts_recalibrate(run_of, run, refused, tmp_path):
    path, name = run_of()
    words = ("score", f"run={name}", f"input={path}", "fpr=0.05", "timestamp=when")
    assert run(*words, "output=first.csv").code == 0
    first, report = pl.read_csv("first.csv"), pl.read_csv("first.report.csv")
    assert report["period"].to_list() == ["2026-05", "2026-06"] and report["rows"].to_list() == [120, 120]
    assert report["precision"].null_count() == 2  # nobody has looked yet
    truth = pl.read_csv(path)["label"]
    # people look at every flag, and at every seventh row whatever its score
    reviewed = first.with_columns(label=truth, audit=pl.Series([int(i % 7 == 0) for i in range(240)]))
    reviewed = reviewed.filter((pl.col("verdict") == "flag") | (pl.col("audit") == 1))
    reviewed.select("row", "label", "audit").write_csv("by_row.csv")
    done = run(*words, "output=second.csv", "feedback=by_row.csv")
    assert done.code == 0, done.err
    audited = int(((reviewed["audit"] == 1) & (reviewed["label"] == 0)).sum())
    assert f"60 calibration rows and {audited} audited normal rows" in done.err
    assert json.loads(Path("second.summary.json").read_text())["threshold"]["n_calibration"] == 60 + audited
    report, second = pl.read_csv("second.report.csv"), pl.read_csv("second.csv")
    for i, month in enumerate(["2026-05", "2026-06"]):
        here = second.with_columns(label=truth).filter(pl.Series([j % 2 == i for j in range(240)]))
        flags = here.filter(pl.col("verdict") == "flag")
        row = report.row(i, named=True)
        assert row["period"] == month and row["flag"] == len(flags)
        # every row that is flagged now had been flagged, and so reviewed, before, or else the interval is wider
        assert row["flag_right"] == int(flags.join(reviewed, on="row")["label_right"].sum())
    assert Path("second.alerts.png").stat().st_size > 10_000

    # the reviewed output itself, as the feedback on another input: its scores are taken as they stand
    reviewed.with_columns(when=pl.lit("2026-04-01")).write_parquet("output_4.parquet")
    third = run(*words, "output=third.csv", "feedback=output_4.parquet")
    assert third.code == 0, third.err
    assert pl.read_csv("third.csv").equals(second)
    rows = pl.read_csv("third.report.csv")
    assert rows["source"].to_list() == ["feedback", "input", "input"]
    assert rows["period"].to_list() == ["2026-04", "2026-05", "2026-06"]
    pl.DataFrame({"row": [1000], "label": [0]}).write_csv("other.csv")
    assert "no row of the feedback is in" in refused(*words, "output=fourth.csv", "feedback=other.csv")
    assert not Path("fourth.csv").exists()


def test_a_run_without_a_threshold_gives_scores_alone(run_of, run, refused):
    path, name = run_of(protocol="dte_semi")
    done = run("score", f"run={name}", f"input={path}", "output=scored.parquet")
    assert done.code == 0, done.err
    scored = pl.read_parquet("scored.parquet")
    assert scored["score"].null_count() == 0
    assert scored["p_value"].null_count() == scored["verdict"].null_count() == len(scored)
    assert scored.schema["p_value"] == pl.Float64 and scored.schema["verdict"] == pl.String
    assert "protocol dte_semi keeps no calibration rows" in done.out
    said = refused("score", f"run={name}", f"input={path}", "output=other.csv", "fpr=0.1")
    assert "fpr=0.1" in said and "dataset.protocol=split" in said


def test_what_is_refused_leaves_nothing_behind(run_of, refused, tmp_path, monkeypatch):
    path, name = run_of()
    monkeypatch.setattr("outlie.scoring.inputs.CELLS", 1)
    before = sorted(tmp_path.iterdir())
    frame = pl.read_csv(path)
    new = tmp_path / "new.csv"

    def refuses(says: str, table: pl.DataFrame, *words: str) -> None:
        table.write_csv(new)
        message = refused("score", f"run={name}", f"input={new}", "output=scored.csv", *words)
        assert says in message and "\n" not in message.strip(), message
        new.unlink()
        assert sorted(tmp_path.iterdir()) == before

    refuses("b (renamed to 'bb'?)", frame.rename({"b": "bb"}))
    refuses("column a was a number in training, and is now 'x' in row 0", frame.with_columns(a=pl.lit("x")))
    many = pl.concat([frame] * 9)
    hole = pl.Series([None if i == 2000 else 0.5 for i in range(len(many))])
    refuses("row 2000: missing value in c", many.with_columns(c=hole))
    refuses("row 2000: infinite value in c", many.with_columns(c=hole.fill_null(float("inf"))))
    refuses("has no rows", frame.head(0))
    refuses("no column 'wen'", frame, "timestamp=wen")
    refuses("review=0.01 is not above fpr=0.05", frame, "fpr=0.05", "review=0.01")
    refuses("keep=score", frame, "keep=[score]")
    refuses("give one of them", frame, "month=when", "timestamp=when")
    refuses("detector.k", frame, "detector.k=9")  # a scoring option, and the calibration scores are of k = 5
    refuses("leave dataset= away", frame, "dataset.missing=mean")
    refuses("allowed: .csv, .parquet", frame, "output=scored.xls")
    refuses("is the input", frame, f"output={new}", "force=true")
    assert "expected a path that exists" in refused("score", f"run={name}", "input=nowhere.csv", "output=scored.csv")
    assert "input is missing" in refused("score", f"run={name}", "output=scored.csv")
    assert "is a folder" in refused("score", f"run={name}", f"input={tmp_path}", "output=scored.csv")


def test_rows_that_cannot_be_scored_are_skipped_where_that_is_asked_for(run_of, run):
    path, name = run_of()
    values = pl.read_csv(path)["a"].to_list()
    values[3], values[5] = None, float("inf")
    frame = pl.read_csv(path).with_columns(a=pl.Series(values), colour=pl.Series(["green"] + ["red"] * 239))
    frame.drop("when").write_csv("new.csv")
    done = run("score", f"run={name}", "input=new.csv", "output=scored.csv", "bad_rows=skip")
    assert done.code == 0, done.err
    scored = pl.read_csv("scored.csv")
    skipped = scored.filter(pl.col("error").is_not_null()).select("row", "score", "p_value", "verdict", "error")
    assert skipped.rows() == [
        (3, None, None, None, "missing value in a"), (5, None, None, None, "infinite value in a")
    ]  # fmt: skip
    assert "2 of 240 have no score" in done.err and "colour (1)" in done.err and "238 rows scored" in done.out


def test_an_interrupted_command_leaves_no_output(run_of, run, tmp_path, monkeypatch):
    path, name = run_of()
    monkeypatch.setattr("outlie.scoring.inputs.CELLS", 1)
    pl.concat([pl.read_csv(path)] * 20).write_csv("new.csv")
    count, real = 0, command.scored

    def stops(*given):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(command, "scored", stops)
    before = sorted(tmp_path.iterdir())
    for output in ("scored.csv", "scored.parquet"):
        count = 0
        assert run("score", f"run={name}", "input=new.csv", f"output={output}").code == 130
        assert count == 3
    assert sorted(tmp_path.iterdir()) == before


def test_an_export_scores_in_place_of_the_run(run_of, run, refused, tmp_path):
    pytest.importorskip("onnxruntime")
    path, name = run_of()
    assert run("export", f"run={name}").code == 0
    graph = tmp_path / "outputs" / "export" / name / "model.onnx"
    words = (f"input={path}", "fpr=0.05")
    assert run("score", f"run={name}", *words, "output=torch.csv").code == 0
    done = run("score", f"run={graph}", *words, "output=onnx.csv")
    assert done.code == 0, done.err
    ours, theirs = pl.read_csv("torch.csv"), pl.read_csv("onnx.csv")
    np.testing.assert_allclose(theirs["score"].to_numpy(), ours["score"].to_numpy(), rtol=1e-4)
    assert theirs["verdict"].equals(ours["verdict"])
    assert json.loads(Path("onnx.summary.json").read_text())["model"] == str(graph)
    graph.rename("moved.onnx")
    assert "run=RUN model=moved.onnx" in refused("score", "run=moved.onnx", *words, "output=other.csv")
    assert run("score", f"run={name}", "model=moved.onnx", *words, "output=other.csv").code == 0


def test_images_below_a_folder_one_of_them_broken(train, run, refused, tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train/good", "test/good", "test/hole", "new/deep"):
        (tmp_path / part).mkdir(parents=True)
        for i in range(30 if part == "train/good" else 6):
            Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(tmp_path / part / f"{i}.png")
    (tmp_path / "new" / "broken.png").write_bytes(b"\x89PNG no")
    train("dataset=mvtec", f"dataset.path={tmp_path}", "dataset.size=8", "dataset.channels=1", "detector=knn",
          "dataset.calibration=0.3", "backbone=identity")  # fmt: skip
    (name,) = (path.name for path in (tmp_path / "outputs" / "train").iterdir())
    done = run("score", f"run={name}", f"input={tmp_path / 'new'}", "output=scored.csv", "fpr=0.2")
    assert done.code == 0, done.err
    scored = pl.read_csv("scored.csv")
    assert scored.columns == ["file", "score", "p_value", "verdict", "error"]
    assert scored["file"].to_list() == ["broken.png", *(f"deep/{i}.png" for i in range(6))]
    assert scored["score"].null_count() == 1 and "damaged" in scored["error"][0]
    assert "1 of 7 have no score" in done.err
    assert run("score", f"run={name}", f"input={tmp_path / 'test'}", "output=test.csv").code == 0
    again = pl.read_csv("test.csv").sort("score")["score"].to_numpy()
    (path,) = (tmp_path / "outputs" / "train").glob("*/scores.parquet")
    tested = pl.read_parquet(path).filter(split="test").sort("score")["score"].to_numpy()
    np.testing.assert_allclose(again, tested, rtol=1e-10)
    pl.DataFrame({"file": ["deep/1.png", "deep/3.png"], "label": [0, 0], "audit": [1, 1]}).write_csv("reviewed.csv")
    third = run(
        "score", f"run={name}", f"input={tmp_path / 'new'}", "output=third.csv", "fpr=0.2", "feedback=reviewed.csv"
    )
    assert third.code == 0 and "2 audited normal rows" in third.err, third.err
    (tmp_path / "rows.csv").write_text("a\n1\n")
    assert "trained on images" in refused("score", f"run={name}", "input=rows.csv", "output=fourth.csv")
