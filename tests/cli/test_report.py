"""`run report`: mistakes are told in one line, and nothing is written."""

import json

import pytest

from outlie.cli import main
from outlie.completion import candidates


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["knn"], "'knn' is not KEY=VALUE; did you mean 'runs=knn'?"),
        (["run=knn"], "unknown key 'run' (did you mean 'runs'?)"),
        (["runs="], "runs= is empty"),
        (["output=page.pdf"], "the page is one HTML file: output=NAME.html"),
        ([], "there is no run in outputs; run train makes one"),
        (["runs=knn"], "runs=knn stands for no run; 0 runs are in outputs"),
        (["table=dte_sem"], "did you mean 'dte_semi'?"),
    ],
)
def test_mistakes(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.html"))


def test_runs_of_which_none_is_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "outputs/train/wine-knn-0123456789"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    (run / "result.json").write_text(json.dumps({"schema": 1, "status": "failed", "error": "ValueError: too few rows"}))
    assert main(["report"]) == 2
    said = capsys.readouterr().err
    assert "none of the 1 selected runs is finished; wine-knn-0123456789 is failed: ValueError: too few rows" in said


def test_a_page_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["report", "table=iwae_mnist", "output=file/page.html"]) == 2
    assert "cannot write file/page.html" in capsys.readouterr().err


def test_completion(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert candidates(["report", "t"]) == ["table=", "title="]
    assert "table=dte_semi" in candidates(["report", "table=dte"])
