"""`run eval run=RUN`: a finished run scored again, on its own rows or others, with other metrics, and explained."""

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from outlie.data.sklearn_tables import SklearnTable

from .conftest import QUICK, only, result_of, scores_of

DETECTORS = {
    "knn": ("detector=knn",),
    "dte_np": ("detector=dte_np",),
    "diffusion": ("detector=diffusion", "detector.epochs=2", "detector.min_steps=0", "detector.steps=5"),
    "dte_c": ("detector=dte_c", "detector.epochs=2", "detector.min_steps=0"),
}
METHODS = {
    "knn": "gradient of the score",
    "dte_np": "x minus its denoised image",
    "diffusion": "x minus its denoised image",
    "dte_c": "x minus its denoised image",
}


@pytest.fixture
def evaluate(run):
    """A quick `run eval` that must end well."""

    def call(*words):
        done = run("eval", "run=" + words[0], *QUICK, *words[1:])
        assert done.code == 0, done.err
        return done

    return call


@pytest.mark.parametrize("name", ["knn", "diffusion"])
def test_the_same_rows_give_the_same_metrics(name, train, evaluate, run, tmp_path):
    train(*DETECTORS[name])
    trained = only(tmp_path / "outputs" / "train")
    done = evaluate(trained.name)
    folder = only(tmp_path / "outputs" / "eval")
    assert_frame_equal(scores_of(folder), scores_of(trained), check_exact=False, rel_tol=1e-6)
    assert result_of(folder)["metrics"] == result_of(trained)["metrics"]
    assert {path.name for path in folder.iterdir()} >= {"config.yaml", "result.json", "scores.parquet", "log.txt"}
    assert result_of(folder)["run"] == f"outputs/train/{trained.name}"
    assert str(folder.relative_to(tmp_path)) in done.out
    again = evaluate(trained.name.rpartition("-")[2])  # the hash alone names the run
    assert "done already" in again.err
    assert "done already" in evaluate(str(trained)).err  # so does its path
    forced = evaluate(trained.name, "force=true")
    assert "done already" not in forced.err


def test_other_metrics(train, evaluate, tmp_path):
    train("detector=knn")
    trained = only(tmp_path / "outputs" / "train")
    done = evaluate(trained.name, "metrics.false_alarms=0.1", "metrics.names=[auroc]")
    result = result_of(only(tmp_path / "outputs" / "eval"))
    assert result["threshold"]["false_alarms"] == 0.1
    assert list(result["metrics"]["test"]) == ["auroc"]
    assert result["threshold"]["value"] < result_of(trained)["threshold"]["value"]
    assert "for 10 % false alarms" in done.out


def test_a_scoring_option_is_allowed_and_equals_a_run_with_it(train, evaluate, tmp_path):
    train("detector=knn")
    evaluate(only(tmp_path / "outputs" / "train").name, "detector.k=9")
    train("detector=knn", "detector.k=9", "output_dir=nine")
    assert_frame_equal(
        scores_of(only(tmp_path / "outputs" / "eval")), scores_of(only(tmp_path / "nine" / "train")), rel_tol=1e-9
    )


def test_other_rows_of_the_same_columns(train, evaluate, table, tmp_path):
    table("first.csv")
    train("detector=knn", "dataset=csv", "dataset.path=first.csv", "dataset.label=label")
    trained = only(tmp_path / "outputs" / "train")
    table("second.csv", normal=40, anomalies=9, seed=7)
    evaluate(trained.name, "dataset=csv", "dataset.path=second.csv", "dataset.label=label")
    folder = only(tmp_path / "outputs" / "eval")
    result, scores = result_of(folder), scores_of(folder)
    assert result["counts"]["test"] == {"normal": 40, "anomalies": 9}  # every row, whatever the protocol keeps back
    test = scores.filter(pl.col("split") == "test").sort("index")
    assert test["index"].to_list() == list(range(49))
    assert test["label"].to_list() == [0] * 40 + [1] * 9
    assert result["metrics"]["test"]["auroc"] > 0.95
    assert result["threshold"]["value"] == result_of(trained)["threshold"]["value"]  # the run's calibration rows fix it
    assert result["data_sha256"] != result_of(trained)["data_sha256"]


def test_a_row_has_one_score_whichever_file_it_comes_in(train, evaluate, table, tmp_path):
    first = table("first.csv")
    train("detector=knn", "dataset=csv", "dataset.path=first.csv", "dataset.label=label")
    trained = only(tmp_path / "outputs" / "train")
    pl.read_csv(first).head(70).write_csv(tmp_path / "shorter.csv")  # other mean and scale, were they computed anew
    evaluate(trained.name, "dataset.path=shorter.csv")
    again = scores_of(only(tmp_path / "outputs" / "eval")).filter(pl.col("split") == "test")
    both = scores_of(trained).filter(pl.col("split") == "test").join(again, on="index")
    assert len(both) > 20
    assert both["score"].to_numpy() == pytest.approx(both["score_right"].to_numpy(), rel=1e-6)


def test_a_file_that_moved_is_the_same_data(train, evaluate, table, tmp_path):
    first = table("first.csv")
    train("detector=knn", "dataset=csv", "dataset.path=first.csv", "dataset.label=label")
    trained = only(tmp_path / "outputs" / "train")
    (tmp_path / "moved.csv").write_bytes(first.read_bytes())
    evaluate(trained.name, "dataset.path=moved.csv")
    assert result_of(only(tmp_path / "outputs" / "eval"))["metrics"] == result_of(trained)["metrics"]


def test_other_columns_are_refused(train, refused, table, tmp_path):
    table("first.csv")
    train("detector=knn", "dataset=csv", "dataset.path=first.csv", "dataset.label=label")
    name = only(tmp_path / "outputs" / "train").name
    table("wider.csv", e=[0.0, 1.0] * 36)
    message = refused("eval", f"run={name}", "dataset.path=wider.csv")
    assert "4 columns (a, b, c, d" in message
    assert "5 (a, b, c, d, e" in message
    pl.read_csv(tmp_path / "first.csv").rename({"a": "z"}).write_csv(tmp_path / "renamed.csv")
    assert "4 (z, b, c, d" in refused("eval", f"run={name}", "dataset.path=renamed.csv")
    assert "64" in refused("eval", f"run={name}", "dataset=digits")
    assert not list(tmp_path.glob("outputs/eval/*/result.json"))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("detector.epochs=3", "detector.epochs"),
        ("detector.lr=0.1", "detector.lr"),
        ("detector=knn", "detector._target_"),
        ("seed=1", "seed"),
    ],
)
def test_what_would_need_another_training_is_refused(override, named, train, refused, tmp_path, monkeypatch):
    train(*DETECTORS["diffusion"])
    monkeypatch.setattr(SklearnTable, "load", lambda *_: pytest.fail("loaded data before the check"))
    message = refused("eval", f"run={only(tmp_path / 'outputs' / 'train').name}", override)
    assert named in message
    assert "run train" in message
    assert "detector.steps" in message  # what could be changed


@pytest.mark.parametrize("name", DETECTORS)
def test_explanations(name, train, evaluate, tmp_path):
    train(*DETECTORS[name], "dataset=wine")
    trained = only(tmp_path / "outputs" / "train")
    done = evaluate(trained.name, "explain=true")
    folder = only(tmp_path / "outputs" / "eval")
    table = pl.read_parquet(folder / "explanations.parquet")
    test = scores_of(folder).filter(pl.col("split") == "test").sort("score", descending=True, maintain_order=True)
    assert table.columns[:3] == ["index", "score", "label"]
    assert len(table.columns) == 3 + 13
    assert table["score"].to_list() == test["score"].to_list()
    assert sorted(table["index"]) == sorted(test["index"])
    features = table.select(table.columns[3:])
    assert features.null_count().sum_horizontal().item() == 0
    assert all(features[column].is_finite().all() for column in features.columns)
    assert "Why: the highest scores" in done.out
    assert METHODS[name] in (folder / "log.txt").read_text()
    top = table.row(0)
    loudest = max(range(13), key=lambda j: abs(top[3 + j]))
    assert table.columns[3 + loudest] in done.out
    assert "done already" in evaluate(trained.name, "explain=true").err


def test_a_run_that_is_not_finished_is_refused(run, refused, train, tmp_path):
    assert "unknown run 'nothing'" in refused("eval", "run=nothing")
    train("detector=knn")
    folder = only(tmp_path / "outputs" / "train")
    (folder / "result.json").unlink()
    message = refused("eval", f"run={folder.name}")
    assert "not a finished run" in message
    command = message[message.index("run train ") :].split(" finishes")[0].split()
    assert run(*command[1:]).code == 0  # the fix that it names is one
    (folder / "model.ckpt").write_bytes((folder / "model.ckpt").read_bytes()[:500])
    assert "model.ckpt" in refused("eval", f"run={folder.name}")
