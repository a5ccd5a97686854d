"""A disk that takes no more: exit code 2, the file and the fix in words; what is there stays as it was."""

import errno
import os
import resource

import pytest

from outlie.results import store

from .conftest import QUICK


def test_nothing_is_replaced(run, refused, tmp_path, monkeypatch):
    assert run("train", "detector=knn", *QUICK).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "outputs").rglob("*") if path.is_file()}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.os, "replace", full)
    message = refused("train", "detector=knn", "metrics.false_alarms=0.3")
    assert "No space left on device" in message
    assert "output_dir=" in message
    assert "No space left on device" in refused("train", "detector=knn", "force=true")
    after = {path: path.read_bytes() for path in (tmp_path / "outputs").rglob("*") if path.is_file()}
    changed = {path.name for path, content in after.items() if before.get(path) != content}
    assert changed <= {"log.txt", "summary.png"}


# the config, the scores, the model, the picture, the trained weights, the state of an unfinished training
@pytest.mark.parametrize(
    ("size", "words"),
    [
        (200, ("detector=knn",)),
        (3_000, ("detector=knn",)),
        (7_000, ("detector=knn",)),
        (45_000, ("detector=knn",)),
        (100_000, ("detector=dte_c", "detector.epochs=2", "detector.min_steps=0")),
        (
            2_500_000,
            ("detector=dte_c", "detector.epochs=2", "detector.min_steps=0", "trainer.checkpoint_seconds=0"),
        ),
    ],
)
def test_no_file_may_grow_beyond(size, words, refused, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        message = refused("train", *words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot write outputs/" in message
    assert "free space or choose another output_dir=" in message
    left = [path for path in (tmp_path / "outputs").rglob(".*") if path.name != ".lock"]
    assert not left  # no half-written file
