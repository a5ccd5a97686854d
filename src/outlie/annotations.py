"""What an option may be: the source text of an annotation against a value from a config, nothing imported.

Knows int, float (takes an int), bool, str, Path (must exist), Literal, list, tuple, dict, X | None and the names in
`outlie.options`. An annotation it does not know accepts everything.
"""

import ast
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from outlie import options

UNKNOWN = object()  # a value that cannot be known here; passes every check
RANGES: dict[str, Callable[[Any], bool]] = {
    "PositiveInt": lambda v: v >= 1,
    "NonNegativeInt": lambda v: v >= 0,
    "PositiveFloat": lambda v: v > 0,
    "NonNegativeFloat": lambda v: v >= 0,
    "Fraction": lambda v: 0 < v < 1,
}
BASES = {
    "int": (lambda v: isinstance(v, int) and not isinstance(v, bool), "an integer"),
    "float": (lambda v: isinstance(v, int | float) and not isinstance(v, bool), "a number"),
    "bool": (lambda v: isinstance(v, bool), "true or false"),
    "str": (lambda v: isinstance(v, str), "text"),
    "Path": (lambda v: isinstance(v, str) and os.path.exists(os.path.expanduser(v)), "a path that exists"),
    "list": (lambda v: isinstance(v, list), "a list"),
    "tuple": (lambda v: isinstance(v, list), "a list"),
    "dict": (lambda v: isinstance(v, dict), "a mapping"),
}
SEQUENCES = ("list", "tuple", "Sequence", "Iterable")


def accepts(annotation: str | None, value: Any) -> bool:
    """Whether a config value is what the annotation says; True where the annotation is unknown."""
    return value is UNKNOWN or annotation is None or _accepts(_parse(annotation), value)


def describe(annotation: str | None) -> str:
    """The annotation in a user's words: `PositiveInt | None` is 'an integer of at least 1, or null'."""
    return "anything" if annotation is None else _describe(_parse(annotation))


def is_open(annotation: str | None) -> bool:
    """Whether keys of its own may follow below this option: a mapping, or an annotation we do not know."""
    if annotation is None:
        return True
    return any(_head(a) == "dict" or _kind(a) is None for a in _alternatives(_parse(annotation)))


def coerce(annotation: str | None, value: Any) -> Any:
    """The value in its declared type: an int given for a float becomes a float, so that 1 and 1.0 are one config."""
    return value if annotation is None else _coerce(_parse(annotation), value)


def literals(annotation: str | None) -> list[Any]:
    """The values that the annotation spells out."""
    nodes = [] if annotation is None else _alternatives(_parse(annotation))
    return [value for node in nodes if _kind(node) == "Literal" for value in _literals(node)]


def takes_path_below(annotation: str | None) -> bool:
    """Whether it is a mapping to paths."""
    return annotation is not None and "dict[str, Path]" in annotation


def takes_path(annotation: str | None) -> bool:
    """Whether a path would do."""
    return annotation is not None and any(_kind(node) == "Path" for node in _alternatives(_parse(annotation)))


def value_types() -> dict[str, tuple[str, str]]:
    """Name -> (base type, text) of the annotated names in `outlie.options`."""
    found = {name: value for name, value in vars(options).items() if hasattr(value, "__metadata__")}
    return {name: (value.__origin__.__name__, value.__metadata__[0]) for name, value in found.items()}


TYPES = value_types()


@lru_cache
def _parse(annotation: str) -> ast.expr:
    return ast.parse(annotation, mode="eval").body


def _head(node: ast.expr) -> str | None:
    """The name before the brackets: `list` of `list[int]`, `Literal` of `typing.Literal["a"]`."""
    if isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


def _arguments(node: ast.expr) -> list[ast.expr]:
    if not isinstance(node, ast.Subscript):
        return []
    return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]


def _alternatives(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _alternatives(node.left) + _alternatives(node.right)
    if _head(node) == "Optional":
        return [*_alternatives(_arguments(node)[0]), ast.Constant(None)]
    if _head(node) == "Union":
        return [one for part in _arguments(node) for one in _alternatives(part)]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):  # a quoted annotation
        return _alternatives(_parse(node.value))
    return [node]


def _kind(node: ast.expr) -> str | None:
    """null, Literal, or a name that we check; None for what we do not know."""
    if isinstance(node, ast.Constant) and node.value is None:
        return "null"
    head = _head(node)
    if head in ("Literal", *SEQUENCES):
        return "list" if head in SEQUENCES else head
    return head if head in BASES or head in TYPES else None


def _literals(node: ast.expr) -> list[Any]:
    return [ast.literal_eval(argument) for argument in _arguments(node)]


def _accepts(node: ast.expr, value: Any) -> bool:
    return value is UNKNOWN or any(_accepts_one(one, value) for one in _alternatives(node))


def _accepts_one(node: ast.expr, value: Any) -> bool:
    kind = _kind(node)
    if kind is None:
        return True
    if kind == "null":
        return value is None
    if kind == "Literal":
        return any(type(value) is type(allowed) and value == allowed for allowed in _literals(node))
    if kind in TYPES:
        return BASES[TYPES[kind][0]][0](value) and RANGES.get(kind, lambda v: True)(value)
    if not BASES[kind][0](value):
        return False
    inner = _arguments(node)
    if not inner or kind not in ("list", "dict"):
        return True
    if kind == "dict":
        return all(_accepts(inner[0], k) and _accepts(inner[-1], v) for k, v in value.items())
    if _head(node) == "tuple" and not _is_ellipsis(inner[-1]):
        return len(inner) == len(value) and all(map(_accepts, inner, value))
    return all(_accepts(inner[0], v) for v in value)


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...


def _describe(node: ast.expr) -> str:
    return ", or ".join(dict.fromkeys(_describe_one(one) for one in _alternatives(node)))


def _describe_one(node: ast.expr) -> str:
    kind, inner = _kind(node), _arguments(node)
    if kind is None:
        return ast.unparse(node)
    if kind == "null":
        return "null"
    if kind == "Literal":
        values = [str(v).lower() if isinstance(v, bool) else str(v) for v in _literals(node)]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if kind in TYPES:
        return TYPES[kind][1]
    if kind == "list" and inner:
        items = [_describe(one) for one in inner if not _is_ellipsis(one)]
        each = len(items) == 1 and (_head(node) != "tuple" or len(inner) == 2)
        return f"a list, each item {items[0]}" if each else f"a list of {len(items)}: {', '.join(items)}"
    if kind == "dict" and inner:
        return "a mapping" if _kind(inner[-1]) is None else f"a mapping, each value {_describe(inner[-1])}"
    return BASES[kind][1]


def _coerce(node: ast.expr, value: Any) -> Any:
    options_ = _alternatives(node)
    if isinstance(value, list):
        inner = next((_arguments(one) for one in options_ if _kind(one) == "list" and _arguments(one)), [])
        if len(inner) == len(value) and len(inner) > 1 and not _is_ellipsis(inner[-1]):
            return [_coerce(one, v) for one, v in zip(inner, value, strict=True)]
        return [_coerce(inner[0], v) for v in value] if inner else value
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    bases = {TYPES[kind][0] if kind in TYPES else kind for one in options_ if (kind := _kind(one))}
    takes_int = "int" in bases or any(_kind(one) == "Literal" and value in _literals(one) for one in options_)
    return float(value) if "float" in bases and not takes_int else value
