"""The wheel carries the configs, and `run` works from any directory."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def call(*command, cwd, env=None):
    """Run it and give what it printed; fail with the output if it failed."""
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, f"{command} -> {done.returncode}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without network by the back end of the dev extra."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    call(sys.executable, "-m", "pip", *options, "--wheel-dir", folder, ROOT, cwd=folder)
    (found,) = folder.glob("outlie-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with nothing but the wheel's content, and an environment that finds it before this repository."""
    folder = tmp_path_factory.mktemp("installed")
    call(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel),
        cwd=folder,
    )
    return folder, os.environ | {"PYTHONPATH": str(folder)}


def test_wheel_holds_every_config_and_no_test(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"outlie/{path.relative_to(ROOT)}" for path in ROOT.glob("configs/**/*.yaml")}
    assert configs
    assert configs <= names
    assert not [name for name in names if name.startswith(("tests", "configs"))]


def test_installed_run_works_from_another_directory(installed, tmp_path):
    folder, env = installed
    where = call(sys.executable, "-c", "import outlie.cli; print(outlie.cli.__file__)", cwd=tmp_path, env=env)
    assert where.startswith(str(folder))
    run = folder / "bin" / "run"
    listed = call(sys.executable, run, "list", "detector", cwd=tmp_path, env=env)
    for name in ("iforest", "ecod"):
        assert name in listed
    call(sys.executable, run, "train", "detector=iforest", "dry_run=true", cwd=tmp_path, env=env)
    assert not (tmp_path / "configs").exists()
