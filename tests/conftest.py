"""Real data for the tests: OUTLIE_DATA, by default ../shared/data beside the repository when it is there."""

import os
import signal
from pathlib import Path

import pytest

_BESIDE = Path(__file__).parents[2] / "shared" / "data"
if "OUTLIE_DATA" not in os.environ and _BESIDE.is_dir():
    os.environ["OUTLIE_DATA"] = str(_BESIDE)

# `make test &` in a script starts us deaf to Ctrl-C, and so every program that a test starts and interrupts
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def adbench_dir() -> Path:
    """The folder with ADBench's files; the test is skipped where there is none."""
    folder = Path(os.environ.get("OUTLIE_DATA", "")) / "adbench"
    if not os.environ.get("OUTLIE_DATA") or not folder.is_dir():
        pytest.skip("needs OUTLIE_DATA with adbench/")
    return folder


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own; nothing is found under OUTLIE_DATA."""
    monkeypatch.delenv("OUTLIE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "outlie"
