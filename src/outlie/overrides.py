"""KEY=VALUE words of a command line, in Hydra's grammar; the plain ones are read without importing Hydra."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from outlie import catalog
from outlie.errors import UserError, unknown
from outlie.sweeps import dataset_groups

WORD = re.compile(r"(~|\+\+|\+)?([^=\s~+][^=]*?)(?:=(.*))?", re.S)
PLAIN = re.compile(r"[A-Za-z0-9_/.\-][A-Za-z0-9_/.\-@]*")
QUOTED = re.compile(r"'[^'\\$]*'|\"[^\"\\$]*\"")
INT = re.compile(r"[+-]?(0|[1-9][0-9]*)")
FLOAT = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][+-]?[0-9]+)?|[+-]?inf", re.I)


class Override(NamedTuple):
    """One word: `key` set to `value`, or deleted."""

    key: str
    value: Any
    delete: bool
    text: str  # as the user typed it


class Line(NamedTuple):
    """A command line, sorted."""

    groups: dict[str, str]  # group -> choice
    values: list[Override]
    spoilt: set[str]  # sections about which nothing more can be said
    problems: list[str]


class TooRichError(Exception):
    """A word that only Hydra's parser can read."""


def read(text: str) -> Override:
    """Parse a plain word; TooRichError where Hydra's grammar is needed, UserError where there is no KEY=VALUE."""
    match = WORD.fullmatch(text)
    if match is None or (match[1] != "~" and match[3] is None):
        raise UserError(f"'{text}' is not KEY=VALUE")
    value = None if match[3] is None else _value(match[3])
    return Override(match[2], value, match[1] == "~", text)


def read_rich(text: str) -> Override:
    """Parse any word with Hydra's own parser; UserError where it is not in the grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        found = OverridesParser.create().parse_override(text)
        if found.is_sweep_override():
            raise UserError(
                f"'{text}' is several values: run train -m computes them all; write [a,b] for a list, or quote a text "
                "that has a comma"
            )
        value = _unquoted(found.value())
    except HydraException as error:
        reason = str(error).splitlines()[0] if str(error) else "not in Hydra's grammar"
        raise UserError(f"cannot read '{text}' ({reason}); quote special characters: \"key='a b=c'\"") from error
    return Override(found.key_or_group, value, found.is_delete(), text)


def _unquoted(value: Any) -> Any:
    if isinstance(value, list):
        return [_unquoted(v) for v in value]
    if isinstance(value, dict):
        return {_unquoted(k): _unquoted(v) for k, v in value.items()}
    return value.text if type(value).__name__ == "QuotedString" else value


def _value(text: str) -> Any:
    if text == "":
        return ""
    if text.startswith("[") and text.endswith("]") and not re.search(r"[\[\]{}'\"$\\]", text[1:-1]):
        items = [item.strip() for item in text[1:-1].split(",")] if text[1:-1].strip() else []
        if "" in items:
            raise TooRichError(text)
        return [_value(item) for item in items]
    if QUOTED.fullmatch(text):
        return text[1:-1]
    lower = text.lower()
    if lower in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[lower]
    if INT.fullmatch(text):
        return int(text)
    if FLOAT.fullmatch(text):
        return float(text)
    if PLAIN.fullmatch(text) and lower != "nan" and not (text[0] in "0123456789-" and "_" in text):
        return text
    raise TooRichError(text)


def sort(words: list[str], where: tuple[str, ...], read: Callable[[str], Override]) -> Line:
    """Group choices apart from values; TooRichError where `read` cannot parse a word."""
    line = Line({}, [], set(), [])
    known = catalog.sections(where)
    for word in words:
        try:
            one = read(word)
        except UserError as error:
            line.problems.append(_not_a_pair(word, where) or str(error))
            continue
        if one.key not in known:
            line.values.append(one)
            continue
        choices = catalog.choices(one.key, where)
        if one.key == "experiment" and (one.delete or one.value is None):
            line.groups.pop("experiment", None)
        elif one.delete or one.value is None:
            line.problems.append(f"{one.key} cannot be left out; run list {one.key}")
        elif one.value in choices:
            line.groups[one.key] = one.value
        elif one.key == "dataset" and one.value in dataset_groups.groups():
            line.spoilt.add(one.key)
            line.problems.append(f"dataset={one.value} is {dataset_groups.description(str(one.value))}: run train -m")
        else:
            line.spoilt.add(one.key)
            line.problems.append(f"{unknown(one.key, str(one.value), choices)}. run list {one.key}")
    return line


def _not_a_pair(word: str, where: tuple[str, ...]) -> str | None:
    if "=" in word or word.startswith("-"):
        return None
    found = [group for group in catalog.groups(where) if word in catalog.choices(group, where)]
    return f"'{word}' is not KEY=VALUE; did you mean '{found[0]}={word}'?" if found else None
