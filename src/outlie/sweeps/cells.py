"""From the words of a sweep to its cells: Hydra's sweep grammar, groups of datasets, one cell for each file of several.

A cell is what one `run train` computes, and its folder, whose name ends in the hash of the config, is its identity.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from outlie import annotations, catalog, checks, compose, overrides
from outlie.data import adbench_files
from outlie.errors import UserError
from outlie.results import store
from outlie.sweeps import dataset_groups

MOST = 100_000  # cells: a mistyped range should not fill the memory


class Cell(NamedTuple):
    """One run of a sweep."""

    words: tuple[str, ...]  # concrete overrides, as one would type them
    config: dict[str, Any]  # complete, plain and checked; cells share parts of it, so nothing may change it
    folder: Path  # its run's
    command: str = "train"
    also: str = ""  # words, other than those of its name, that tell it from other cells of its sweep

    @property
    def hash(self) -> str:
        """What its numbers depend on; equal for two names of one setting, detector=knn and detector=knn/paper."""
        return self.folder.name.rpartition("-")[2]

    @property
    def name(self) -> str:
        """What to call it: dataset/part, detector, seed, and what else is swept."""
        part = self.config["dataset"].get("part")
        dataset = self.config["choices"]["dataset"] + (f"/{part}" if part else "")
        return f"{dataset} {self.config['choices']['detector']} seed {self.config['seed']} {self.also}".rstrip()

    @property
    def given(self) -> dict[str, str]:
        """Key -> value of its words."""
        return {key: value for key, _, value in (word.partition("=") for word in self.words)}

    @property
    def ground(self) -> str:
        """Equal for cells that share data and backbone: one process computes them one after the other."""
        return store.digest({name: self.config[name] for name in ("dataset", "backbone", "seed")})

    @property
    def setting(self) -> str:
        """Equal for cells that differ in the seed only."""
        return store.digest(self.config | {"seed": 0})


class Event(NamedTuple):
    """What happened to a cell: a launcher tells it to whoever waits."""

    cell: Cell
    what: Literal["found", "started", "done", "failed"]
    seconds: float = 0.0  # wall
    cpu_s: float = 0.0
    error: str = ""


Tell = Callable[[Event], None]


def expand(
    words: list[str], config_dirs: tuple[str, ...] = (), command: str = "train", config_file: Path | None = None
) -> list[Cell]:
    """Every cell of the product of the swept words, in the order typed, the last word fastest; each cell once.

    Raises:
        UserError: with every mistake in the words and in the configs that they make.
    """
    found: dict[str, Cell] = {}
    repeats: list[str] = []
    composed = _Composer(command, config_dirs, config_file)
    for one in product(words, config_dirs):
        for cell in composed.cells(one):
            if (first := found.setdefault(cell.hash, cell)) is not cell:
                repeats.append(f"{_difference(one, first.words)} is the same run as {_difference(first.words, one)}")
    compose.report(composed.problems)
    if repeats:
        more = f", and {len(repeats) - 1} more" if len(repeats) > 1 else ""
        print(f"! cells with one hash are computed once: {repeats[0]}{more}", file=sys.stderr)
    cells = list(found.values())
    told = [key for key in varying(cells) if key not in ("dataset", "detector", "seed", "dataset.part")]
    return [
        cell._replace(also=" ".join(f"{key}={cell.given[key]}" for key in told if key in cell.given)) for cell in cells
    ]


def varying(cells: list[Cell]) -> list[str]:
    """Keys whose words differ between cells, in the order typed."""
    given = [cell.given for cell in cells]
    keys = dict.fromkeys(key for one in given for key in one)
    return [key for key in keys if len({one.get(key) for one in given}) > 1]


def _difference(words: tuple[str, ...], other: tuple[str, ...]) -> str:
    return " ".join(word for word in words if word not in other) or " ".join(words[-1:])


def product(words: list[str], config_dirs: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The concrete words of every cell; UserError for an empty range, an interval or more cells than anybody wants."""
    where = catalog.roots(config_dirs)
    swept, problems = [], []
    for word in words:
        try:
            swept.append(values(word, where))
        except UserError as error:
            problems.append(str(error))
    compose.report(problems)
    count = 1
    for options in swept:
        count *= len(options)
    if count > MOST:
        raise UserError(f"this sweep has {count:,} cells, at most {MOST:,} are taken; split it")
    return list(itertools.product(*swept))


def values(word: str, where: tuple[str, ...]) -> list[str]:
    """The words that one word stands for: detector=a,b; seed=range(5); dataset=adbench/small; dataset=glob(open*)."""
    key, _, text = word.partition("=")
    if key == "dataset" and text in dataset_groups.groups():
        return [f"{key}={name}" for name in dataset_groups.groups()[text]]
    try:
        overrides.read(word)
        return [word]
    except overrides.TooRichError:
        found = _rich(word, where)
    if key == "dataset":
        groups = dataset_groups.groups()
        found = [name for one in found for name in groups.get(one, (one,))]
    return [word] if found == [text] else [f"{key}={one}" for one in found]


def _rich(word: str, where: tuple[str, ...]) -> list[str]:
    """The values of a word that needs Hydra's parser, each as it would be typed."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob, Transformer
    from hydra.errors import HydraException

    try:
        found = OverridesParser.create().parse_override(word)
    except HydraException as error:
        reason = str(error).splitlines()[0] if str(error) else "not in Hydra's grammar"
        raise UserError(f"cannot read '{word}' ({reason}); quote special characters: \"key='a b=c'\"") from error
    if not found.is_sweep_override():
        return [word.partition("=")[2]]
    if found.is_interval_sweep():
        raise UserError(f"'{word}' is an interval: a grid takes a,b or range(a,b); search=tpe searches intervals")
    if isinstance(glob := found._value, Glob):
        known = catalog.choices(found.key_or_group, where)
        every = glob.filter(list(known))
        if not every:
            raise UserError(f"'{word}' matches nothing; run list {found.key_or_group}")
        return every
    try:
        every = [str(one) for one in found.sweep_iterator(transformer=Transformer.encode)]
    except (HydraException, ValueError) as error:
        raise UserError(f"cannot read '{word}': {' '.join(str(error).split())}") from error
    if not every:
        raise UserError(f"'{word}' is an empty range: it gives no value, so the sweep would have no cell")
    return every


class _Composer:
    """Composes the config of each cell; cells that differ in the seed only are composed once."""

    def __init__(self, command: str, config_dirs: tuple[str, ...], config_file: Path | None) -> None:
        self.command, self.config_dirs, self.config_file = command, config_dirs, config_file
        self.problems: list[str] = []
        self._bases: dict[tuple[str, ...], dict[str, Any] | None] = {}

    def cells(self, words: tuple[str, ...]) -> list[Cell]:
        seeds = [word for word in words if word.startswith("seed=")]
        others = tuple(word for word in words if not word.startswith("seed="))
        seed: Any = None
        try:
            seed = overrides.read(seeds[-1]).value if seeds else None
        except overrides.TooRichError:
            others = words
        if others not in self._bases:
            self._bases[others] = self._composed(others)
        base = self._bases[others]
        if base is None:
            return []
        config = base
        if seed is not None and others != words:
            if not annotations.accepts(checks.ROOT["seed"], seed):
                self.problems += checks.root_problems({"seed": seed}, ["seed"])
                return []
            config = base | {"seed": seed}
        return [self._cell(words, config, part) for part in parts(config)]

    def _composed(self, words: tuple[str, ...]) -> dict[str, Any] | None:
        try:
            return compose.composed(self.command, list(words), self.config_dirs, self.config_file)
        except UserError as error:
            self.problems += compose.problems_of(error)
            return None

    def _cell(self, words: tuple[str, ...], config: dict[str, Any], part: str | None) -> Cell:
        if part is not None:
            config = config | {"dataset": config["dataset"] | {"part": part}}
            words = (*words, f"dataset.part={part}")
        return Cell(words, config, store.run_folder(config), self.command)


def parts(config: dict[str, Any]) -> list[str | None]:
    """The files of a dataset of several, each a cell of its own; [None] for one file, or where one is chosen."""
    dataset = config["dataset"]
    if dataset["_target_"] != "outlie.data.adbench.ADBench" or dataset.get("part") is not None:
        return [None]
    return [file.part or None for file in adbench_files.group(dataset["name"])]
