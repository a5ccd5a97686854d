"""A small config root of its own, so that tests do not depend on the configs that grow."""

from pathlib import Path

import pytest

FILES = {
    "train.yaml": """# toy
defaults:
  - _self_
  - dataset: table
  - backbone: plain
  - detector: near
  - metrics: few
  - trainer: default
  - logger: none
  - optional experiment: null

seed: 0  # every random draw starts here
output_dir: outputs
force: false
dry_run: false
debug: false
allow: [toy]  # the user's own modules
""",
    "dataset/table.yaml": "# a table\n_target_: toy.data.Table\n",
    "dataset/file.yaml": "# a file of your own\n_target_: toy.data.File\npath: ???\n",
    "dataset/many/one.yaml": "# one of many\n_target_: toy.data.Table\nrows: 7\n",
    "backbone/plain.yaml": "# rows as they are\n_target_: toy.nets.Plain\n",
    "backbone/net.yaml": "# a classifier\n_target_: toy.nets.Net\nwidth: ${seed}\n",
    "detector/near.yaml": "# nearest\n_target_: toy.detectors.Near\n",
    "detector/near/paper.yaml": "# nearest, published\n_target_: toy.detectors.Near\nk: 32\nrate: 1e-3\n",
    "detector/logits.yaml": "# needs logits\n_target_: toy.detectors.Logits\n",
    "metrics/few.yaml": "# a section without a class\nnames: [auroc]\nnested:\n  depth: 1\n",
    "logger/none.yaml": "# nothing\nnames: []\n",
    "experiment/table_1.yaml": """# @package _global_
# Table 1
defaults:
  - override /detector: near/paper
seed: 5
detector:
  mode: mean
""",
    "experiment/wrong.yaml": "# @package _global_\n# has a typo\nsede: 5\ndetector:\n  kk: 1\n",
}
MODULES = {
    "__init__.py": "raise ImportError('reading a signature must not import')\n",
    "data.py": '''
from pathlib import Path

class Table:
    """A table. Made up."""
    def __init__(self, rows: int = 10, fraction: "Fraction" = 0.5, columns: list[str] | None = None): ...

class File:
    """A file.

    Args:
        path: the file
    """
    def __init__(self, path: Path, label: str | None = None): ...
''',
    "nets.py": """
from typing import ClassVar

class Plain:
    provides: ClassVar[tuple[str, ...]] = ("x", "features")
    def __init__(self): ...

class Net:
    provides = ("x", "features", "logits")
    def __init__(self, width: int = 8): ...
""",
    "detectors.py": '''
from dataclasses import dataclass
from typing import Literal
from outlie.options import PositiveInt, NonNegativeFloat

Mode = Literal["kth", "mean"]
RATE = 0.1

class Near:
    """Distance to a neighbour."""
    needs = ("features",)
    paper = "Somebody 2000"
    scoring = ("k",)
    def __init__(self, k: PositiveInt = 5, rate: NonNegativeFloat = RATE, mode: Mode = "kth",
                 options: dict[str, int] | None = None, inner: dict = {"depth": 1}, *, flag: bool = False): ...

class Logits(Near):
    needs = ("logits", "features")
''',
}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The config root; `toy` is a package that explodes when imported; the working directory is empty."""
    from outlie import signatures

    root, package, cwd = tmp_path / "configs", tmp_path / "lib" / "toy", tmp_path / "cwd"
    for folder, files in ((root, FILES), (package, MODULES)):
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    monkeypatch.syspath_prepend(package.parent)
    signatures.read.cache_clear()
    signatures._module.cache_clear()
    return root
