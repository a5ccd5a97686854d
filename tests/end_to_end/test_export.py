"""`run export run=RUN`: a graph of a finished run, found again, refused where it differs; `run bench` of both."""

import contextlib
import json

import numpy as np
import polars as pl
import pytest

from outlie.cli import main
from outlie.commands import export as command

from .conftest import QUICK, only, result_of, scores_of

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
HERE = ("trainer.threads=1",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished run and its export."""
    folder = tmp_path_factory.mktemp("exported")
    with contextlib.chdir(folder):
        assert main(["train", *QUICK, "detector=knn"]) == 0
        assert main(["export", f"run={only(folder / 'outputs' / 'train').name}", *HERE]) == 0
    return folder / "outputs"


@pytest.fixture
def graph(outputs, tmp_path):
    """The exported file, in the folder of this test's commands."""
    return tmp_path / "outputs" / "export" / outputs.name / "model.onnx"


def test_the_file_scores_raw_rows_as_the_run_did(graph, outputs):
    from sklearn.datasets import load_breast_cancer

    from outlie.export.session import Exported

    exported, stored = Exported(graph, 1), scores_of(outputs).filter(pl.col("split") == "test")
    rows = load_breast_cancer().data[stored["index"].to_numpy()]  # nothing standardised, nothing scaled
    score, verdict = exported.judge(rows)
    np.testing.assert_allclose(score, stored["score"].to_numpy(), rtol=1e-9)
    threshold = result_of(outputs)["threshold"]
    assert exported.threshold == threshold["value"]
    assert verdict.tolist() == (stored["score"] > threshold["value"]).to_list()
    calibration = scores_of(outputs).filter(pl.col("split") == "calibration")["score"]
    assert exported.calibration.tolist() == calibration.to_list()
    names = [f"{kind} {what}" for kind in ("mean", "worst") for what in ("radius", "texture")]
    assert len(exported.columns) == 30 and {name.replace("_", " ") for name in exported.columns} >= set(names)


def test_it_says_what_was_measured(graph, outputs):
    done, result = json.loads(graph.with_name("export.json").read_text()), result_of(outputs)
    assert done["status"] == "done" and done["error"] is None
    for name in ("data_sha256", "detector", "seed", "protocol"):
        assert done[name] == result[name]
    assert done["run"] == outputs.name and done["false_alarms"] == 0.01
    tested = result["rows"]["test"]
    assert [one["rows"] for one in done["check"]["batches"]] == [64, min(448, tested), tested]
    assert all(one["of_what_is_allowed"] < 1 for one in done["check"]["batches"])
    assert all(one["verdicts_that_differ"] == 0 for one in done["check"]["batches"])
    assert done["bytes"] == graph.stat().st_size
    assert "onnxruntime" in done["environment"]


def test_the_same_command_finds_it(run, graph, outputs, monkeypatch):
    monkeypatch.setattr(command, "compute", lambda *_: pytest.fail("exported again"))
    done = run("export", f"run={outputs.name}", *HERE)
    assert done.code == 0
    assert "done already" in done.err and str(graph.name) in done.out and "all equal" in done.out
    assert "# plan" in run("export", f"run={outputs.name}", "dry_run=true").out


def test_a_changed_file_is_written_again(run, graph, outputs, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "compute", lambda *_: asked.append(1) or json.loads(before))
    before = graph.with_name("export.json").read_text()
    graph.write_bytes(graph.read_bytes()[:-10])
    assert run("export", f"run={outputs.name}", *HERE).code == 0
    assert run("export", f"run={outputs.name}", "force=true", *HERE).code == 0
    assert run("export", f"run={outputs.name}", "opset=20", *HERE).code == 0
    assert len(asked) == 3


def test_a_graph_that_differs_is_refused_and_removed(run, graph, outputs, tmp_path, monkeypatch):
    class Wrong(command.Exported):
        def judge(self, x):
            score, verdict = super().judge(x)
            return score * (1 + 1e-3), verdict

    monkeypatch.setattr(command, "Exported", Wrong)
    monkeypatch.setattr(command.graph, "write", copy_of(graph))
    done = run("export", f"run={outputs.name}", "file=fresh/detector.onnx", *HERE)
    assert done.code == 2
    assert "differs from the original" in done.err and "run score" in done.err
    assert [path.name for path in (tmp_path / "fresh").iterdir() if path.name[0] != "."] == ["log.txt"]
    assert not list((tmp_path / "fresh").glob(".*onnx"))


def copy_of(graph):
    """Stands in for `write`: the export that is there already."""

    def write(path, *_):
        path.write_bytes(graph.read_bytes())
        done = json.loads(graph.with_name("export.json").read_text())
        return {**done, "calibration": None}

    return write


def test_file_names_the_graph(run, graph, outputs, tmp_path, monkeypatch):
    monkeypatch.setattr(command.graph, "write", copy_of(graph))
    assert run("export", f"run={outputs.name}", "file=mine/detector.onnx", *HERE).code == 0
    assert {path.name for path in (tmp_path / "mine").iterdir()} >= {"detector.onnx", "detector.json"}


def test_what_cannot_be_asked_is_refused(refused, outputs, run):
    assert "ends in .onnx" in refused("export", f"run={outputs.name}", "file=model.pt")
    message = refused("export", f"run={outputs.name}", "detector.k=3")
    assert "takes a run as it is" in message and "run train with detector.k first" in message
    assert "keep its dataset" in refused("export", f"run={outputs.name}", "dataset=wine")
    assert "opset" in refused("export", f"run={outputs.name}", "opset=new")
    assert "unknown run" in refused("export", "run=nothing")
    (outputs / "result.json").unlink()
    assert "is not a finished run" in refused("export", f"run={outputs.name}")


def test_images_without_a_threshold(train, run, tmp_path):
    """uint8 images in, and no verdict out where the run has no threshold."""
    from outlie.export.session import Exported

    train("dataset=digits_ood", "backbone=identity", "detector=knn")
    folder = only(tmp_path / "outputs" / "train")
    (folder / "result.json").write_text(json.dumps(result_of(folder) | {"threshold": None}))
    done = run("export", f"run={folder.name}", *HERE)
    assert done.code == 0, done.err
    assert "no verdict" in done.out
    exported = Exported(tmp_path / "outputs" / "export" / folder.name / "model.onnx", 1)
    score, verdict = exported.judge(np.zeros((3, 1, 8, 8), np.uint8))
    assert score.shape == (3,) and verdict is None


def test_bench_measures_the_run_and_its_export(run, graph, outputs, tmp_path):
    words = ("batch_sizes=[1,8]", "rounds=2", "seconds=0.02")
    done = run("bench", f"runs=[{outputs.name},{graph}]", *words)
    assert done.code == 0, done.err
    result = json.loads((only(tmp_path / "outputs" / "bench") / "bench.json").read_text())
    kinds = [(one["kind"], one["metrics"]["recall_at_fpr01"]) for one in result["runs"]]
    recall = result_of(outputs)["metrics"]["test"]["recall_at_fpr01"]
    assert sorted(kinds) == [("onnx", recall), ("onnx", recall), ("run", recall)]
    assert len({one["label"] for one in result["runs"]}) == 3
    (outputs / "model.ckpt").write_bytes(b"other weights")  # the export is no longer of this run
    assert "left out" in run("bench", f"runs=[{outputs.name},{graph}]", *words).out
