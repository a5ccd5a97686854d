"""build: what a section may name, and how a refused value is told."""

import pytest
from omegaconf import OmegaConf

from outlie.build import build
from outlie.compose import compose
from outlie.errors import UserError

MODULE = """
import os
from functools import partial
from outlie.errors import UserError

class Box:
    def __init__(self, size=1, inner=None, error=None):
        if error == "value": raise ValueError("size is too small")
        if error == "user": raise UserError("do this")
        if error == "io": raise OSError("disk")
        self.size, self.inner = size, inner

def make(size=1):
    return Box(size)

run = partial(os.system)
"""


@pytest.fixture
def box(tmp_path, monkeypatch):
    (tmp_path / "boxes.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return {"_target_": "boxes.Box"}


def test_builds_nested_and_plain(box):
    section = OmegaConf.create(box | {"size": 2, "inner": {"list": [1, box | {"size": 3}]}})
    built = build(section, allow=["boxes"])
    assert built.size == 2
    assert type(built.inner) is dict
    assert type(built.inner["list"]) is list
    assert built.inner["list"][1].size == 3
    assert build({"_target_": "boxes.make", "size": 4}, ["boxes"]).size == 4


def test_builds_ours():
    options = build(compose("train", ["trainer=cpu", "trainer.threads=2"]).trainer)
    assert (options.accelerator, options.threads, options.checkpoint_seconds) == ("cpu", 2, 10.0)


@pytest.mark.parametrize(
    "section",
    [
        {"_target_": "os.system"},
        {"_target_": "outliers.Box"},
        {"_target_": "outlie"},
        {"_target_": "outlie.cli.os.system"},
        {"_target_": "outlie.cli.main"},
        {"_target_": "outlie.build.build"},
        {"_target_": "boxes.os.system"},
        {"_target_": "boxes.run"},
        {"_target_": "boxes.Nothing"},
        {"_target_": 3},
        {"_target_": "boxes.Box", "inner": {"_target_": "subprocess.run"}},
        {"_target_": "boxes.Box", "inner": [{"deep": {"_target_": "subprocess.run"}}]},
        {"_target_": "boxes.Box", "_partial_": True},
        {"_target_": "boxes.Box", "_args_": [1]},
        {"_target_": "boxes.Box", "_recursive_": False},
        {"_target_": "boxes.Box", "inner": {"_convert_": "none"}},
        {"_target_": "boxes.Box", "inner": "${oc.create:{_target_: os.system}}"},
        {"_target_": "${oc.env:HOME}"},
    ],
)
def test_refuses(box, section):
    with pytest.raises(UserError):
        build(section, allow=["boxes"])


def test_nothing_is_allowed_by_default(box):
    with pytest.raises(UserError, match=r"'boxes.Box' is outside outlie; .* allow=\[boxes\]"):
        build(box)


def test_errors_of_a_constructor(box):
    config = OmegaConf.create({"detector": box | {"error": "value"}})
    with pytest.raises(UserError, match="detector: size is too small"):
        build(config.detector, ["boxes"])
    with pytest.raises(UserError, match=r"^do this$"):
        build(box | {"error": "user"}, ["boxes"])
    with pytest.raises(UserError, match=r"Box: .*unexpected keyword"):
        build(box | {"colour": 1}, ["boxes"])
    with pytest.raises(OSError, match="disk"):
        build(box | {"error": "io"}, ["boxes"])
