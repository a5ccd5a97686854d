"""Completion inside a real bash; zsh's script is parsed where zsh is there."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from outlie import completion

ASK = """
PATH="{bin}:$PATH"
eval "$({python} -m outlie.cli completion bash)"
COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; COMPREPLY=()
complete -p {program} >/dev/null || exit 3
_outlie_complete
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Path:
    """`run` and `outlie` as programs, whether or not the package is installed with its scripts."""
    folder = tmp_path_factory.mktemp("bin")
    for name in ("run", "outlie"):
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -m outlie.cli "$@"\n')
        path.chmod(0o755)
    return folder


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("run ", "train"),
        ("run tr", "train"),
        ("outlie ev", "eval"),
        ("run train detec", "detector="),
        ("run train detector=kn", "knn"),
        ("run train --config-dir here detector=mi", "mine"),
        ("run train dataset=adbench/thy", "adbench/thyroid"),
        ("run train detector=knn detector.", "detector.k="),
        ("run train detector=knn detector.ag", "detector.aggregate="),
        ("run train detector=knn detector.aggregate=m", "mean"),
        ("run train dry_run=", "true"),
        ("run train dataset=csv dataset.path=here/ro", "here/rows.csv"),
        ("run train --config h", "here/"),
        ("run show kn", "knn"),
        ("run list det", "detector"),
        ("run completion z", "zsh"),
        ("run data fe", "fetch"),
        ("run eval run=wi", "wine-knn-1a2b"),
    ],
)
def test_bash(line, expected, programs, tmp_path):
    (tmp_path / "here" / "detector").mkdir(parents=True)
    (tmp_path / "here" / "rows.csv").touch()
    (tmp_path / "here" / "detector" / "mine.yaml").touch()
    stored = tmp_path / "outputs" / "train" / "wine-knn-1a2b"
    stored.mkdir(parents=True)
    (stored / "config.yaml").touch()
    script = ASK.format(bin=programs, python=sys.executable, line=line, program=line.split()[0])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout.splitlines()


@pytest.mark.parametrize("words", [["nonsense", ""], ["train", "detector=nope", "detector."], ["train", "a.b.c="], []])
def test_silent_about_mistakes(words, capsys):
    assert completion.answer(words) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_parses():
    done = subprocess.run(["zsh", "-n"], input=completion.script("zsh"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_table_keys_are_those_of_the_command():
    from outlie.commands import table

    offered = [word.removesuffix("=") for word in completion.candidates(["table", "dte_semi", ""])]
    assert sorted(offered) == sorted([*table.KEYS, "launcher", "logger"])
    assert completion.candidates(["table", "dte_semi", "intervals=t"]) == ["intervals=true"]
    assert "logger=wandb" in completion.candidates(["table", "dte_semi", "logger=w"])
