"""The program as a user meets it: exit codes, words instead of tracebacks, and nothing heavy imported for them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from outlie import cli
from outlie.errors import UserError

GUARD = """
import sys
from outlie.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "hydra", "omegaconf", "lightning", "numpy", "rich", "polars"} & set(sys.modules)
print("HEAVY", sorted(heavy), file=sys.stderr)
sys.exit(code)
"""


def run(*words: str, cwd: Path | None = None, code: str | None = None) -> subprocess.CompletedProcess:
    start = [sys.executable, "-c", code] if code else [sys.executable, "-m", "outlie.cli"]
    return subprocess.run([*start, *words], capture_output=True, text=True, cwd=cwd, timeout=120)


LIGHT = [
    (["--help"], 0),
    (["-h"], 0),
    ([], 0),
    (["--version"], 0),
    (["train", "--help"], 0),
    (["eval", "--help"], 0),
    (["list", "--help"], 0),
    (["data", "--help"], 0),
    (["list"], 0),
    (["list", "--json"], 0),
    (["show", "knn"], 0),
    (["completion", "bash"], 0),
    (["--complete", "train", "detector=knn", "detector."], 0),
    (["trian"], 2),
    (["--hlep"], 2),
    (["train", "--confg", "x"], 2),
    (["train", "--config-dir"], 2),
    (["train", "--config-dir", "no/such/folder"], 2),
    (["train", "--config", "no_such_file.yaml"], 2),
    (["train", "detecter=knn"], 2),
    (["train", "detector=difusion"], 2),
    (["train", "sede=1"], 2),
    (["train", "detector=knn", "detector.kk=1"], 2),
    (["train", "detector=knn", "detector.k=many", "seed=-1"], 2),
    (["train", "dataset=csv"], 2),
    (["train", "knn"], 2),
    (["eval"], 2),
    (["eval", "run=no_such_run"], 2),
    (["list", "detektors"], 2),
    (["show", "knnn"], 2),
    (["show"], 2),
    (["completion", "fish"], 2),
]


@pytest.mark.parametrize(("words", "code"), LIGHT, ids=[" ".join(words) or "nothing" for words, _ in LIGHT])
def test_answers_without_heavy_imports(words, code, tmp_path):
    done = run(*words, cwd=tmp_path, code=GUARD)
    assert done.returncode == code
    assert "HEAVY []" in done.stderr
    assert "Traceback" not in done.stderr
    message = done.stderr.replace("HEAVY []", "").strip()
    assert message.startswith("error: ") if code else (done.stdout.strip() and not message)


def test_a_config_error_imports_no_torch(tmp_path):
    code = GUARD.replace('"hydra", "omegaconf", "numpy", ', "")
    code = code.replace('"torch", "hydra", "omegaconf", "lightning", "numpy"', '"torch", "lightning", "numpy"')
    done = run("train", "detector=knn", "detector.k=${nothing}", cwd=tmp_path, code=code)
    assert done.returncode == 2
    assert "HEAVY []" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian"], "did you mean 'train'?"),
        (["train", "--confg", "x"], "did you mean '--config'?"),
        (["train", "detector=difusion"], "did you mean 'diffusion'?"),
        (["train", "dataset=adbench/tyroid"], "did you mean 'adbench/thyroid'?"),
        (["train", "trainer.devics=1"], "did you mean 'trainer.devices'?"),
        (["train", "knn"], "did you mean 'detector=knn'?"),
        (["list", "detektors"], "did you mean 'detector'?"),
        (["show", "difusion"], "did you mean 'diffusion'?"),
        (["show", "detector", "difusion"], "did you mean 'diffusion'?"),
        (["show", "detector"], "run list detector"),
    ],
)
def test_nearest_match(words, hint, capsys):
    assert cli.main(words) == 2
    assert hint in capsys.readouterr().err


def test_debug_shows_the_traceback(capsys):
    assert cli.main(["train", "detector=difusion", "debug=true"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "text"),
    [
        (UserError("too few rows"), 2, "error: too few rows\n"),
        (RuntimeError("odd\nthing"), 1, "error: RuntimeError: odd thing\ndebug=true shows the traceback\n"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on where this one stopped\n"),
    ],
)
def test_exit_codes(raised, code, text, monkeypatch, capsys):
    def fail(*_):
        raise raised

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["train"]) == code
    assert capsys.readouterr().err == text


def test_commands_get_the_composed_config(monkeypatch, tmp_path):
    seen = []
    module = type(sys)("outlie.commands.train")
    module.main = lambda config: seen.append(config) or 7
    monkeypatch.setitem(sys.modules, "outlie.commands.train", module)
    monkeypatch.setattr("outlie.commands.train", module, raising=False)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "trainer=cpu", "seed=3"]) == 7
    assert seen[0].seed == 3
    assert seen[0].trainer.accelerator == "cpu"


def test_interrupt_is_one_line(tmp_path):
    code = "import time, outlie.cli as c\nc._run = lambda *_: (print('up', flush=True), time.sleep(60))\n"
    code += "import sys; sys.exit(c.main(['train']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.count("\n") == 1
    assert "interrupted" in err


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m outlie.cli list | head -1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith("dataset")


def test_train_help_names_groups_and_keys(capsys):
    assert cli.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for part in (
        "examples:",
        "  dataset     ",
        "  detector    ",
        "seed=0",
        "every random draw starts here",
        "--config-dir",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 110


def test_list_as_json(capsys):
    assert cli.main(["list", "detectors", "trainers", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["detector", "trainer"]
    knn = next(one for one in found["detector"] if one["name"] == "knn")
    assert "Ramaswamy" in knn["paper"]
    assert knn["description"]


def test_config_dir_is_listed_shown_and_helped(capsys, tmp_path):
    (tmp_path / "detector" / "mine").mkdir(parents=True)
    (tmp_path / "detector" / "mine.yaml").write_text("# my own detector\n_target_: outlie.detectors.knn.KNN\nk: 7\n")
    (tmp_path / "detector" / "mine" / "paper.yaml").write_text(
        "# as published\n_target_: outlie.detectors.knn.KNN\nk: 8\n"
    )
    where = ["--config-dir", str(tmp_path)]
    assert cli.main(["list", "detector", *where]) == 0
    assert "my own detector" in capsys.readouterr().out
    assert cli.main(["train", "--help", *where]) == 0
    assert "mine (/paper)" in capsys.readouterr().out
    assert cli.main([*where, "show", "mine"]) == 0
    text = capsys.readouterr().out
    assert "* detector.k = 7  (default 5)" in text
    assert "detector=mine/paper  as published" in text
    assert "an integer of at least 1; " in text
    assert "run train detector=mine" in text


def test_show_finds_a_run(monkeypatch, tmp_path):
    shown = []
    module = type(sys)("outlie.results.summary")
    module.show = shown.append
    monkeypatch.setitem(sys.modules, "outlie.results.summary", module)
    monkeypatch.setattr("outlie.results.summary", module, raising=False)
    folder = tmp_path / "outputs" / "train" / "wine-knn-1a2b3c4d"
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["show", str(folder)]) == 0
    assert cli.main(["show", "1a2b3c"]) == 0
    assert [path.resolve() for path in shown] == [folder, folder]


def test_empty_folder_is_no_run(capsys, tmp_path):
    assert cli.main(["show", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_works_from_any_directory(tmp_path):
    assert run("list", "trainers", cwd=tmp_path).stdout.startswith("trainer")
    assert os.listdir(tmp_path) == []
