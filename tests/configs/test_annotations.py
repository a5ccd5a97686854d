"""Annotations: which values they take, what they are called, and that every name in options.py has its check."""

import math

import pytest

from outlie import annotations, options
from outlie.annotations import accepts, coerce, describe, is_open


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int", [0, -3], [1.0, True, "1", None, [1]]),
        ("float", [0, 1.5, math.inf, math.nan], [True, "1", "inf", None]),
        ("bool", [True, False], [0, 1, "true", None]),
        ("str", ["", "a"], [1, None, True]),
        ("int | None", [None, 1], ["null", 1.5]),
        ("Optional[int]", [None, 1], ["a"]),
        ("typing.Union[int, str]", [1, "a"], [1.5, None]),
        ("Literal['a', 1]", ["a", 1], ["b", True, 1.0]),
        ("Literal['a'] | PositiveInt", ["a", 1], ["b", 0]),
        ("list[int]", [[], [1]], [1, ["a"], [1.5], None]),
        ("list", [[1, "a"]], [1]),
        ("tuple[int, str]", [[1, "a"]], [["a", 1], [1], []]),
        ("tuple[int, ...]", [[], [1, 2]], [["a"]]),
        ("Sequence[float]", [[1, 2.5]], [["a"], "ab"]),
        ("dict[str, int]", [{}, {"a": 1}], [{"a": "b"}, {1: 1}, []]),
        ("dict[str, Any]", [{"a": object()}], [1]),
        ("list[list[int]] | None", [[[1], []], None], [[1]]),
        ("PositiveInt", [1, 9], [0, -1, 1.0, True]),
        ("NonNegativeInt", [0, 1], [-1, 0.0]),
        ("PositiveFloat", [0.1, 1, math.inf], [0, -1.0, math.nan, True]),
        ("NonNegativeFloat", [0, 0.0, 1], [-0.1, math.nan]),
        ("Fraction", [0.5], [0, 1, 1.5, math.nan]),
        ("options.PositiveInt", [1], [0]),
        ("Tensor", [1, "anything", None], []),
        ("Path", ["."], ["no/such/file", None, 1]),
    ],
)
def test_accepts(annotation, good, bad):
    assert all(accepts(annotation, value) for value in good)
    assert not any(accepts(annotation, value) for value in bad)
    assert accepts(annotation, annotations.UNKNOWN)
    assert accepts(None, bad)


def test_every_option_type_has_its_check_and_its_text():
    names = {name for name, value in vars(options).items() if hasattr(value, "__metadata__")}
    assert names == set(annotations.RANGES)
    for name in names:
        assert describe(name) == vars(options)[name].__metadata__[0]


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        ("PositiveInt | None", "an integer of at least 1, or null"),
        ("Literal['a', 'b']", "one of a, b"),
        ("Literal['auto'] | int", "auto, or an integer"),
        ("list[str]", "a list, each item text"),
        ("tuple[int, int]", "a list of 2: an integer, an integer"),
        ("tuple[int, ...]", "a list, each item an integer"),
        ("dict[str, Any]", "a mapping"),
        ("Tensor | None", "Tensor, or null"),
        (None, "anything"),
    ],
)
def test_describe(annotation, text):
    assert describe(annotation) == text


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        ("float", 1, 1.0),
        ("PositiveFloat | None", 2, 2.0),
        ("int | float", 1, 1),
        ("Literal[1] | float", 1, 1),
        ("int", 1, 1),
        ("float", True, True),
        ("float", "a", "a"),
        ("list[float]", [1, 2.5], [1.0, 2.5]),
        ("tuple[int, float]", [1, 2], [1, 2.0]),
        ("tuple[float, ...] | None", [1], [1.0]),
        (None, 1, 1),
    ],
)
def test_coerce(annotation, value, expected):
    found = coerce(annotation, value)
    assert found == expected
    assert str(found) == str(expected)


def test_is_open():
    assert is_open("dict[str, int] | None")
    assert is_open("Tensor")
    assert is_open(None)
    assert not is_open("int | None")
    assert not is_open("list[str]")
