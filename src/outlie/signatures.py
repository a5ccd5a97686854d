"""A class read from its source, without importing it: its parameters are the schema of its config.

`read("outlie.detectors.knn.KNN")` finds the file, parses it and follows base classes to the `__init__` that counts.
"""

import ast
import importlib.machinery
import itertools
import math
import re
import sys
from functools import lru_cache
from typing import Any, NamedTuple

UNREADABLE = object()  # a default that is no literal: left to Python


class Parameter(NamedTuple):
    """One option of a class."""

    name: str
    annotation: str | None  # source text, aliases of the module replaced by what they stand for
    default: Any  # UNREADABLE where there is none, or where it is not a literal
    doc: str  # its line under Args:
    required: bool


class Signature(NamedTuple):
    """What the source of a class says about it."""

    target: str
    parameters: tuple[Parameter, ...]
    doc: str  # first sentence of the docstring
    paper: str
    needs: tuple[str, ...]
    provides: tuple[str, ...]
    scoring: tuple[str, ...]
    posthoc: bool
    closed: bool  # False: takes other keys too (**kwargs, or a base class whose source is not ours)

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name."""
        return next((p for p in self.parameters if p.name == name), None)


class Module(NamedTuple):
    """A parsed file."""

    name: str
    body: list[ast.stmt]
    imports: dict[str, str]  # name here -> dotted origin
    values: dict[str, ast.expr]  # module-level assignments


@lru_cache
def read(target: str) -> Signature | None:
    """The signature of a dotted class (or function) name; None where no such source can be found."""
    found = _find(target)
    if found is None:
        return None
    module, node = found
    chain = [(module, node), *_bases(module, node)] if isinstance(node, ast.ClassDef) else [(module, node)]
    parameters, closed = _parameters(chain)
    docs = {name: text for _, one in reversed(chain) for name, text in _argument_docs(one).items()}
    attributes = {name: _attribute(chain, name) for name in ("paper", "needs", "provides", "scoring", "posthoc")}
    return Signature(
        target,
        tuple(p._replace(doc=docs.get(p.name, "")) for p in parameters),
        first_sentence(ast.get_docstring(node) or ""),
        attributes["paper"] or "",
        tuple(attributes["needs"] or ()),
        tuple(attributes["provides"] or ()),
        tuple(attributes["scoring"] or ()),
        bool(attributes["posthoc"]),
        closed,
    )


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", paragraph)[0]


def locate(module: str) -> str | None:
    """The source file of a module, found without importing it or its parents."""
    path: list[str] | None = None
    spec = None
    for name in itertools.accumulate(module.split("."), "{}.{}".format):
        if name.partition(".")[0] in sys.builtin_module_names:
            return None
        # find_spec of importlib.util would import the parents
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations) if spec.submodule_search_locations is not None else []
    return spec.origin if spec and spec.origin and spec.origin.endswith(".py") else None


def classes(module: str) -> list[str]:
    """Public classes that a module defines itself."""
    parsed = _module(module)
    return [n.name for n in parsed.body if isinstance(n, ast.ClassDef) and n.name[0] != "_"] if parsed else []


@lru_cache
def _module(name: str) -> Module | None:
    path = locate(name) if re.fullmatch(r"\w+(\.\w+)*", name) else None
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        try:
            body = ast.parse(file.read()).body
        except SyntaxError:
            return None  # whoever imports it will be told where
    imports: dict[str, str] = {}
    values: dict[str, ast.expr] = {}
    for node in body:
        match node:
            case ast.Import():
                imports |= {a.asname or a.name.partition(".")[0]: a.name if a.asname else a.name.partition(".")[0]
                            for a in node.names}  # fmt: skip
            case ast.ImportFrom():
                parent = name.split(".")[: -node.level] if node.level else []
                origin = ".".join([*parent, *([node.module] if node.module else [])])
                imports |= {a.asname or a.name: f"{origin}.{a.name}" for a in node.names}
            case ast.Assign(targets=[ast.Name(id=alias)]):
                values[alias] = node.value
            case ast.AnnAssign(target=ast.Name(id=alias), value=ast.expr() as value):
                values[alias] = value
    return Module(name, body, imports, values)


def _find(target: str) -> tuple[Module, ast.ClassDef | ast.FunctionDef] | None:
    name, _, member = target.rpartition(".")
    module = _module(name) if name else None
    for node in module.body if module else ():
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == member:
            assert module is not None
            return module, node
    return None


def _bases(module: Module, node: ast.ClassDef) -> list[tuple[Module, ast.ClassDef]]:
    """Base classes whose source can be read, nearest first; only in this module, in its package and in outlie."""
    chain = []
    for base in node.bases:
        dotted = ast.unparse(base).partition("[")[0]
        head, _, rest = dotted.partition(".")
        origin = module.imports.get(head, f"{module.name}.{head}") + (f".{rest}" if rest else "")
        if origin.partition(".")[0] in ("outlie", module.name.partition(".")[0]):
            found = _find(origin)
            if found and isinstance(found[1], ast.ClassDef):
                chain += [(found[0], found[1]), *_bases(found[0], found[1])]
    return chain


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(ast.unparse(d).partition("(")[0] in ("dataclass", "dataclasses.dataclass") for d in node.decorator_list)


def _parameters(chain: list) -> tuple[list[Parameter], bool]:
    """Parameters of the constructor, and whether they are all that it takes."""
    for i, (module, node) in enumerate(chain):
        if isinstance(node, ast.FunctionDef):
            return _function(module, node), node.args.kwarg is None
        if _is_dataclass(node):
            fields: dict[str, Parameter] = {}
            for owner, one in reversed(chain[i:]):  # a base's fields come first
                fields |= {p.name: p for p in _fields(owner, one)} if _is_dataclass(one) else {}
            return list(fields.values()), True
        init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if init is not None:
            own = _function(module, init, skip=1)
            if init.args.kwarg is None:
                return own, True
            passed, closed = _parameters(chain[i + 1 :])
            known = {p.name for p in own}
            return own + [p for p in passed if p.name not in known], closed and bool(passed)
    # no constructor of its own: object's and nn.Module's take nothing, a stranger's may take anything
    return [], bool(chain) and chain[0][0].name.partition(".")[0] == "outlie"


def _function(module: Module, node: ast.FunctionDef, skip: int = 0) -> list[Parameter]:
    arguments = [*node.args.posonlyargs, *node.args.args]
    defaults: list[ast.expr | None] = [None] * (len(arguments) - len(node.args.defaults)) + list(node.args.defaults)
    pairs = [*zip(arguments, defaults, strict=True)][skip:]
    pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return [_parameter(module, a.arg, a.annotation, default) for a, default in pairs]


def _fields(module: Module, node: ast.ClassDef) -> list[Parameter]:
    found = []
    for n in node.body:
        if (
            isinstance(n, ast.AnnAssign)
            and isinstance(n.target, ast.Name)
            and "ClassVar" not in ast.unparse(n.annotation)
        ):
            found.append(_parameter(module, n.target.id, n.annotation, n.value))
    return found


def _parameter(module: Module, name: str, annotation: ast.expr | None, default: ast.expr | None) -> Parameter:
    text = None if annotation is None else ast.unparse(_Aliases(module).visit(_copy(annotation)))
    return Parameter(name, text, UNREADABLE if default is None else _value(module, default), "", default is None)


def _copy(node: ast.expr) -> ast.expr:
    return ast.parse(ast.unparse(node), mode="eval").body


class _Aliases(ast.NodeTransformer):
    """Replaces a module's own names for types, `Mode = Literal["a", "b"]`, also those imported from outlie."""

    def __init__(self, module: Module) -> None:
        self.module = module

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        return node if ast.unparse(node.value).endswith("Literal") else self.generic_visit(node)  # type: ignore

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return self.visit(ast.parse(node.value, mode="eval").body) if isinstance(node.value, str) else node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if self.module.imports.get(node.id, "").startswith("outlie.options."):
            return node
        module, value = _origin(self.module, node.id)
        return node if value is None else _Aliases(module).visit(_copy(value))


def _origin(module: Module, name: str) -> tuple[Module, ast.expr | None]:
    """What a module-level name stands for, also one imported from outlie, and the module that says so."""
    origin = module.imports.get(name, "")
    if origin.startswith("outlie."):
        owner, _, name = origin.rpartition(".")
        module = _module(owner) or module
    return module, module.values.get(name)


def _value(module: Module, node: ast.expr) -> Any:
    """A default as a config value; tuples become lists."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):
        value = UNREADABLE
        match node:
            case ast.Name(id=name):
                owner, found = _origin(module, name)
                return UNREADABLE if found is None else _value(owner, found)
            case ast.JoinedStr(values=parts):
                texts = [_value(module, p.value if isinstance(p, ast.FormattedValue) else p) for p in parts]
                value = UNREADABLE if any(t is UNREADABLE for t in texts) else "".join(map(str, texts))
            case ast.Attribute(attr="inf") | ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value="inf")]):
                return math.inf
            case ast.Call(func=ast.Name(id="field"), keywords=[ast.keyword(arg="default_factory", value=factory)]):
                return {"list": [], "dict": {}}.get(ast.unparse(factory), UNREADABLE)
            case ast.Call(func=ast.Name(id="field"), keywords=[ast.keyword(arg="default", value=inner)]):
                return _value(module, inner)
            case ast.Call(func=ast.Name(id="Path"), args=[ast.Constant(value=str(path))]):
                return path
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value if value is UNREADABLE or isinstance(value, int | float | str | None) else UNREADABLE


def _attribute(chain: list, name: str) -> Any:
    for module, node in chain:
        for statement in node.body if isinstance(node, ast.ClassDef) else ():
            match statement:
                case ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as value) if found == name:
                    pass
                case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                    pass
                case _:
                    continue
            got = _value(module, value)
            return None if got is UNREADABLE else got
    return None


def _argument_docs(node: ast.ClassDef | ast.FunctionDef) -> dict[str, str]:
    """`Args:` lines of the class and of its __init__, continuation lines joined."""
    inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    docs: dict[str, str] = {}
    for text in (ast.get_docstring(n) or "" for n in (node, *inits)):
        block = re.search(r"^(?:Args|Attributes):\n((?:[ \t]+.*\n?|\n)+)", text, re.M)
        name = ""
        for line in block[1].splitlines() if block else ():
            entry = re.match(r"(?: {2}| {4})(\w+)(?: \([^)]*\))?:\s*(.*)", line)
            if entry:
                name, docs[entry[1]] = entry[1], entry[2].strip()
            elif name and line.strip():
                docs[name] += " " + line.strip()
    return docs
