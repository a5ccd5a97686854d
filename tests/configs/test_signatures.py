"""Signatures read from source against Python's own inspect, and what the source says beside them."""

import inspect
import sys

import pytest

from outlie import signatures
from outlie.signatures import UNREADABLE, read

SOURCE = '''
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

Mode = Literal["a", "b"]
Depth: TypeAlias = int
SIZE = 3

class Base:
    """The base. With more.

    Args:
        size: how big,
            in rows
    """
    needs: ClassVar[tuple[str, ...]] = ("x",)
    paper = "Base 1999"
    def __init__(self, size: int = SIZE, /, mode: Mode = "a", *, depth: "Depth | None" = None, far: float = math.inf,
                 low: float = -1.5, path: Path = Path("here"), pair: tuple[int, int] = (1, 2), odd=object()): ...

class Child(Base):
    """A child."""
    paper: ClassVar[str] = "Child 2001"

class Passing(Base):
    """Passes on.

    Args:
        extra: one more
    """
    def __init__(self, extra: bool, **kwargs):
        super().__init__(**kwargs)

class Open:
    """Open."""
    def __init__(self, a: int, **kwargs): ...

@dataclass
class Fields:
    """Fields.

    Args:
        first: the first
    """
    first: int
    second: list[str] = field(default_factory=list)
    third: float = field(default=2.0)
    shared: ClassVar[int] = 0

@dataclass
class MoreFields(Fields):
    """More."""
    fourth: str = "x"

def function(a: int, b: str = "c"):
    """A function."""
'''


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lib")
    (folder / "shapes_read_only.py").write_text(SOURCE)
    sys.path.insert(0, str(folder))
    yield "shapes_read_only"
    sys.path.remove(str(folder))


@pytest.mark.parametrize("name", ["Base", "Child", "Fields", "MoreFields", "Open", "function"])
def test_same_parameters_as_inspect(module, name):
    signature = read(f"{module}.{name}")
    assert signature is not None
    assert module not in sys.modules
    namespace: dict = {"__name__": "executed"}
    exec(compile(SOURCE, "shapes", "exec", dont_inherit=True), namespace)
    real = [p for p in inspect.signature(namespace[name]).parameters.values() if p.kind is not p.VAR_KEYWORD]
    assert [p.name for p in signature.parameters] == [p.name for p in real]
    for found, expected in zip(signature.parameters, real, strict=True):
        assert found.required == (expected.default is expected.empty)
        if found.default is not UNREADABLE and not isinstance(expected.default, type(dataclass_factory(namespace))):
            default = expected.default
            assert (
                found.default == (list(default) if isinstance(default, tuple) else default)
                or str(default) == found.default
            )


def dataclass_factory(namespace: dict) -> object:
    """The marker that inspect shows for a default_factory."""
    return inspect.signature(namespace["Fields"]).parameters["second"].default


def test_what_cannot_be_read_is_left_to_python(module):
    odd = read(f"{module}.Base").parameter("odd")
    assert odd.default is UNREADABLE
    assert not odd.required
    assert odd.annotation is None


def test_documentation_and_attributes(module):
    base, child = read(f"{module}.Base"), read(f"{module}.Child")
    assert base.doc == "The base."
    assert base.parameter("size").doc == "how big, in rows"
    assert child.doc == "A child."
    assert child.parameter("size").doc == "how big, in rows"
    assert (base.paper, child.paper, child.needs, child.provides) == ("Base 1999", "Child 2001", ("x",), ())


def test_aliases_are_replaced(module):
    base = read(f"{module}.Base")
    assert base.parameter("mode").annotation == "Literal['a', 'b']"
    assert base.parameter("depth").annotation == "int | None"


def test_keyword_arguments_passed_on(module):
    passing, opened = read(f"{module}.Passing"), read(f"{module}.Open")
    assert passing.closed
    assert {p.name for p in passing.parameters} >= {"extra", "size", "mode", "depth"}
    assert passing.parameter("extra").doc == "one more"
    assert not opened.closed


def test_factory_default(module):
    assert read(f"{module}.Fields").parameter("second").default == []


@pytest.mark.parametrize(
    "target",
    ["", "x", "no.such.Module", "outlie.nothing.At", "outlie.errors.Nothing", "sys.exit", "math.sqrt", "a b.C", "..x"],
)
def test_no_source_is_none(target):
    assert read(target) is None


def test_bases_in_other_modules_of_outlie():
    signature = read("outlie.detectors.knn.KNN")
    assert signature.needs == ("features",)
    assert signature.closed


def test_attributes_of_a_class_are_those_of_its_bases_unless_it_has_its_own():
    residual, vim = read("outlie.detectors.vim.Residual"), read("outlie.detectors.vim.ViM")
    assert residual.posthoc and vim.posthoc
    assert (residual.needs, vim.needs) == (("features", "head"), ("features", "logits", "head"))
    assert not read("outlie.detectors.knn.KNN").posthoc
    assert read("outlie.detectors.shaping.ASH").scoring == ("variant", "percentile")
    assert "network" in read("outlie.backbones.resnet.ResNet").provides  # by way of two bases in other modules
    assert read("outlie.data.images.OODImages").scoring == ("near", "far", "scored_rows")


def test_locate_imports_nothing():
    before = set(sys.modules)
    assert signatures.locate("xml.dom.expatbuilder").endswith("expatbuilder.py")
    assert "xml.dom.expatbuilder" not in set(sys.modules) - before
