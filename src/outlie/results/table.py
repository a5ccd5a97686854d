"""A paper's table as data: configs/table/NAME.yaml says its rows, columns, protocol, metrics and published csv.

    title: ...                      what the paper calls it
    source: ...                     where the published numbers come from
    protocol: dte_semi              of every result; a table mixes no two
    leak_free: dte_semi_noleak      shown beside it where it differs; may be left out
    seeds: 5
    words: [metrics=fast]           overrides of every cell
    rows: adbench/all               a group of datasets, or NAME: WORDS
    columns:                        NAME: detector, or words, or {words, published, at}
      DDPM: diffusion/paper
    metrics:                        the first is what is shown unless metric= says otherwise
      auroc:
        value: metrics.test.auroc   a path into result.json; {row} and {column} are their `at`
        published: {file: ..., row: ..., column: ..., mean: ..., std: ..., seeds: 5, where: {KEY: VALUE}}
    notes: [...]                    printed below

`published` of a row or column is its name in the csv, if that is another; `at` stands for it in a path. A column with
`teacher: WORDS` is a student's: `run distill` of the run that these words make, with seed 0. A csv with `seed: KEY` has
a line for every seed instead of mean and std.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from importlib.resources import files
from math import isfinite, nan
from pathlib import Path
from typing import Any, NamedTuple

from outlie import catalog
from outlie.data import adbench_files
from outlie.errors import UserError, unknown
from outlie.metrics import stats
from outlie.sweeps import dataset_groups

KEYS = ("title", "source", "protocol", "leak_free", "seeds", "words", "rows", "columns", "metrics", "notes")
LINE_KEYS = ("words", "published", "at", "teacher")
METRIC_KEYS = ("value", "published", "scale", "better", "unit")
PUBLISHED_KEYS = ("file", "row", "column", "mean", "std", "seeds", "seed", "where", "scale")


class Line(NamedTuple):
    """A row or a column."""

    name: str
    words: tuple[str, ...]  # overrides of its cells
    published: str  # its name in the published csv
    at: str  # what {row} or {column} stands for
    teacher: tuple[str, ...] = ()  # overrides of the run that is its teacher; () = it has none
    rows: int | None = None  # of the largest file of a dataset, where that is known


class Number(NamedTuple):
    """A published number, in the unit that is shown."""

    mean: float
    std: float  # nan where none is published
    seeds: int  # 0 where nobody says


class Metric(NamedTuple):
    """What is read off a result, and the numbers that it is set beside."""

    name: str
    value: str  # path into result.json
    scale: float  # ours times this is what is shown
    higher: bool  # better
    unit: str
    published: dict[tuple[str, str], Number]  # by the published names of row and column
    file: str = ""  # where they are from


@dataclass(frozen=True)
class Table:
    """One table; numbers of runs are no part of it."""

    name: str
    title: str
    source: str
    protocol: str
    seeds: int
    words: tuple[str, ...]
    rows: tuple[Line, ...]
    columns: tuple[Line, ...]
    metrics: dict[str, Metric]
    leak_free: str = ""
    notes: tuple[str, ...] = field(default=())


def names(where: tuple[str, ...]) -> list[str]:
    """Every table."""
    return list(catalog.choices("table", where))


def load(name: str, where: tuple[str, ...]) -> Table:
    """The table of that name.

    Raises:
        UserError: no such table, a key that a table does not have, a csv that does not fit.
    """
    known = catalog.choices("table", where)
    if name not in known:
        raise UserError(f"{unknown('table', name, known)}. run list table")
    path = known[name]
    found = catalog.load(path)
    _check(found, KEYS, path)
    for key in ("title", "protocol", "rows", "columns", "metrics"):
        if not found.get(key):
            raise UserError(f"{path} has no {key}")
    return Table(
        name, found["title"], found.get("source", ""), found["protocol"], int(found.get("seeds", 5)),
        tuple(found.get("words", ())), _rows(found["rows"], path), _lines(found["columns"], path),
        {key: _metric(key, one, path) for key, one in found["metrics"].items()},
        found.get("leak_free", ""), tuple(found.get("notes", ())),
    )  # fmt: skip


def _check(found: Any, keys: tuple[str, ...], where: str) -> None:
    if not isinstance(found, dict):
        raise UserError(f"{where}: expected {', '.join(keys)}, found '{found}'")
    for key in found:
        if key not in keys:
            raise UserError(f"{where}: {unknown('key', str(key), keys)}")


def _rows(found: Any, path: str) -> tuple[Line, ...]:
    if not isinstance(found, str):
        return _lines(found, path)
    groups = dataset_groups.groups()
    if found not in groups:
        raise UserError(f"{path}: {unknown('group of datasets', found, groups)}")
    lines = []
    for dataset in groups[found]:
        name = dataset.removeprefix("adbench/")
        parts = adbench_files.group(name)
        rows = None if any(part.rows is None for part in parts) else max(part.rows or 0 for part in parts)
        lines.append(Line(name, (f"dataset={dataset}",), parts[0].table_name, name, rows=rows))
    return tuple(lines)


def _lines(found: Any, path: str) -> tuple[Line, ...]:
    if not isinstance(found, dict):
        raise UserError(f"{path}: rows and columns are NAME: WORDS lines, found '{found}'")
    lines = []
    for key, one in found.items():
        name = str(key)
        if one is None or isinstance(one, str | list):
            one = {"words": [f"detector={one}"] if isinstance(one, str) else one or []}
        _check(one, LINE_KEYS, f"{path}: {name}")
        words = one.get("words", ())
        words = [f"detector={words}"] if isinstance(words, str) else words
        own = str(one.get("published", name)), str(one.get("at", name)), tuple(one.get("teacher", ()))
        lines.append(Line(name, tuple(words), *own))
    return tuple(lines)


def _metric(name: str, found: Any, path: str) -> Metric:
    _check(found, METRIC_KEYS, f"{path}: {name}")
    if not isinstance(found.get("value"), str):
        raise UserError(f"{path}: {name} has no value, the path of its number in a result.json")
    published = found.get("published") or {}
    _check(published, PUBLISHED_KEYS, f"{path}: {name}: published")
    numbers = _published(published, path) if published else {}
    scale = float(found.get("scale", 100))
    higher, unit = found.get("better", "high") == "high", found.get("unit", "%")
    return Metric(name, found["value"], scale, higher, unit, numbers, published.get("file", ""))


def _published(found: dict[str, Any], path: str) -> dict[tuple[str, str], Number]:
    """The numbers of a csv: of results/published, or beside the user's own yaml."""
    beside = Path(path).with_name(str(found.get("file")))
    file: Any = beside if beside.is_file() else files("outlie.results").joinpath("published", str(found.get("file")))
    if not file.is_file():
        raise UserError(f"{path}: published file '{found.get('file')}' is not there")
    row, column, mean, std, seed = (found.get(key) for key in ("row", "column", "mean", "std", "seed"))
    only = found.get("where") or {}
    each: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}  # row, column -> seed -> mean, std
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        needed = [str(key) for key in (row, column, mean, std, seed, *only) if key]
        if missing := [key for key in needed if key not in (reader.fieldnames or ())]:
            there = ", ".join(reader.fieldnames or ()) or "nothing"
            raise UserError(f"{file} has no column '{missing[0]}', which {path} names; there is: {there}")
        for line in reader:
            if any(line[str(key)] != str(value) for key, value in only.items()):
                continue
            key = (line[str(row)] if row else "", line[str(column)] if column else "")
            m = _number(line, str(mean), file, reader.line_num)
            s = _number(line, str(std), file, reader.line_num) if std else nan
            numbers = each.setdefault(key, {})
            if (which := line[str(seed)] if seed else "") in numbers:
                raise UserError(f"{file}, line {reader.line_num}: a second number of {' and '.join(key)}")
            numbers[which] = m, s
    if not each:
        raise UserError(f"{file} has no line with {only}, which {path} asks for")
    scale, seeds = float(found.get("scale", 1)), int(found.get("seeds", 0))
    if not seed:
        return {key: Number(scale * m, abs(scale) * s, seeds) for key, ((m, s),) in _values(each).items()}
    by_seed = {key: stats.mean_std([m for m, _ in numbers]) for key, numbers in _values(each).items()}
    return {key: Number(scale * m, abs(scale) * s, len(each[key])) for key, (m, s) in by_seed.items()}


def _values(each: dict[tuple[str, str], dict[str, tuple[float, float]]]) -> dict[tuple[str, str], list[Any]]:
    return {key: list(numbers.values()) for key, numbers in each.items()}


def _number(line: dict[str, Any], key: str, file: Any, at: int) -> float:
    try:
        value = float(line[key])
    except (TypeError, ValueError):
        value = nan
    if not isfinite(value):
        raise UserError(f"{file}, line {at}, column {key}: '{line[key]}' is no number")
    return value
