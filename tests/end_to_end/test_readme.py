"""Every command in README.md is run as it stands there, one after the other in one folder.

In a ```bash block, `run ...` and `python -c ...` must succeed, `run ...  # fails: TEXT` must be refused with TEXT, and
`run ...  # not run: REASON` is left out, as is what is not `run`: make, pip, git, eval, source.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from outlie.cli import main

OTHERS = ("make", "pip", "git", "eval", "source", "#")


class Line(NamedTuple):
    """One command of a block."""

    words: list[str]  # without `run`; of another program with its name
    fails: str | None  # the message it must be refused with


def commands(markdown: str) -> list[Line]:
    """The `run` commands of all bash blocks, in order; ValueError for a line that is nothing known."""
    found = []
    for block in markdown.split("```bash\n")[1:]:
        for text in block.split("```")[0].splitlines():
            command, _, comment = (part.strip() for part in text.partition(" #"))
            if not text.strip() or text.startswith(OTHERS) or comment.startswith("not run:"):
                continue
            if command.startswith("python -c "):
                found.append(Line(shlex.split(command), None))
                continue
            if not command.startswith("run "):
                raise ValueError(f"a README command that is neither tested nor excused: {text}")
            fails = comment.removeprefix("fails:").strip() if comment.startswith("fails:") else None
            found.append(Line(shlex.split(command)[1:], fails))
    return found


README = commands((Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all commands: some use the runs of others."""
    return tmp_path_factory.mktemp("readme")


def test_there_are_commands():
    assert [["train"], None] in [[line.words, line.fails] for line in README]
    assert len(README) >= 8


@pytest.mark.parametrize("line", README, ids=[" ".join(line.words) for line in README])
def test_command(line, folder, monkeypatch, capsys):
    if any("dataset=adbench/" in word for word in line.words) and not os.environ.get("OUTLIE_DATA"):
        pytest.skip("needs OUTLIE_DATA")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WANDB_MODE", "offline")
    if line.words[0] == "python":
        subprocess.run([sys.executable, *line.words[1:]], check=True)
        return
    code = main(line.words)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    if line.fails is None:
        assert code == 0, err
        assert out
    else:
        assert code == 2
        assert line.fails in err


def test_the_parser_sees_what_it_should():
    text = "```bash\nrun train a=1   # say\n\n# why\nmake run\nrun x   # fails: no 'x'\n"
    text += "run data fetch  # not run: net\n```\n"
    assert commands(f"{text}```\nrun other\n```\n") == [Line(["train", "a=1"], None), Line(["x"], "no 'x'")]
    with pytest.raises(ValueError, match="neither tested nor excused: curl"):
        commands("```bash\ncurl example\n```\n")
