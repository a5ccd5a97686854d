"""A student taught by two processes: its lessons are those of one, its weights alike on both."""

import contextlib
import os
import subprocess
import sys

import pytest
import torch

from outlie import cli

LIMIT_S = 500
pytestmark = pytest.mark.timeout(2 * LIMIT_S)
SCORES = ("distiller=scores", "distiller.corrupted=101", "distiller.held_out_rows=20", "detector.steps=10")


def test_two_processes_share_the_teachers_work(tmp_path):
    quick = ("metrics=fast", "trainer=cpu", "trainer.threads=1")
    with contextlib.chdir(tmp_path):
        assert cli.main(["train", *quick, "detector.epochs=1", "detector.min_steps=20", "output_dir=taught"]) == 0
        (teacher,) = (tmp_path / "taught" / "train").iterdir()
        words = ["distill", f"teacher={teacher}", *quick, *SCORES]
        assert cli.main([*words, "output_dir=one"]) == 0
        done = subprocess.run(
            [sys.executable, "-m", "outlie.cli", *words, "output_dir=two", "trainer.devices=2"], text=True,
            timeout=LIMIT_S, stdin=subprocess.DEVNULL, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Student and teacher") == 1 and "Traceback" not in done.stderr
    one, two = (
        torch.load(next(tmp_path.glob(f"{processes}/stages/lessons-*/lessons.pt")), weights_only=True)
        for processes in ("one", "two")
    )
    assert torch.equal(one["x"], two["x"]) and len(one["x"]) == 143 + 101
    for name in ("score", "rebuilt", "held_out_score"):
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6)
