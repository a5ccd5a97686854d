"""ADBench's 57 datasets by name, with their files (adbench.csv); no torch, no numpy, so that lists are quick.

Counts are `measured` (by loading the file) or `published` (ADBench's README); terms are those of the underlying data,
the repository itself is BSD-2-Clause.
"""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from outlie.errors import UserError, unknown

COUNTS = ("bytes", "rows", "features", "anomalies")


@dataclass(frozen=True)
class DataFile:
    """One file of ADBench; None and "" where nobody has told."""

    name: str  # the config's name: satimage_2
    table_name: str  # the name in published tables: satimage-2
    part: str  # which file of a group: bottle; "" for a dataset of one file
    path: str  # folder/file, in the repository and under `adbench/`
    sha256: str
    bytes: int | None
    rows: int | None
    features: int | None
    anomalies: int | None
    terms: str

    @property
    def title(self) -> str:
        """How a user asks for it: `thyroid`, `mvtec_ad/bottle`."""
        return f"{self.name}/{self.part}" if self.part else self.name


@cache
def datasets() -> dict[str, tuple[DataFile, ...]]:
    """Name -> files, in ADBench's order."""
    table: dict[str, list[DataFile]] = {}
    with files("outlie.data").joinpath("adbench.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            path = f"{row.pop('folder')}/{row.pop('file')}"
            row.pop("counts")
            counts = {key: int(number) if (number := row.pop(key)) else None for key in COUNTS}
            table.setdefault(row["name"], []).append(DataFile(path=path, **row, **counts))  # type: ignore[arg-type]
    return {name: tuple(parts) for name, parts in table.items()}


def group(name: str) -> tuple[DataFile, ...]:
    """The files of one dataset; UserError with the nearest match for an unknown name."""
    if name not in datasets():
        raise UserError(unknown("ADBench dataset", name, datasets()) + "; see: run data list")
    return datasets()[name]


def one_file(name: str, part: str | None = None) -> DataFile:
    """The file of a dataset, for a group the one of `part`; UserError names the parts."""
    parts = {file.part: file for file in group(name)}
    if "" in parts:
        if part is not None:
            raise UserError(f"adbench/{name} is one file and has no parts: leave dataset.part={part} out")
        return parts[""]
    if part is None:
        raise UserError(f"adbench/{name} is {len(parts)} files, each a run of its own: dataset.part={'|'.join(parts)}")
    if part not in parts:
        raise UserError(unknown(f"part of adbench/{name}", part, parts) + "; choose with dataset.part=")
    return parts[part]


def select(words: list[str]) -> list[DataFile]:
    """Files for what a user typed: `all`, `thyroid`, `adbench/thyroid`, `mvtec_ad`, `mvtec_ad/bottle`."""
    chosen: dict[str, DataFile] = {}
    for word in words:
        name, _, part = word.removeprefix("adbench/").partition("/")
        if name == "all":
            found = [file for parts in datasets().values() for file in parts]
        else:
            found = [one_file(name, part)] if part else list(group(name))
        chosen |= {file.path: file for file in found}
    return list(chosen.values())
