"""What a report is over: runs by name, glob or folder, sorted by row (protocol, dataset, test set) and detector."""

from __future__ import annotations

import fnmatch
import glob
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from outlie import catalog, runs
from outlie.errors import UserError, nearest
from outlie.results import store
from outlie.results.words import last_line

METRICS = {  # what a matrix is drawn of: key -> name on the page
    "auroc": "AUROC",
    "average_precision": "average precision",
    "f1_at_k": "F1@k",
    "recall_at_fpr01": "recall at 1 % false alarms",
}
NEEDED = {"protocol", "dataset", "detector", "seed", "metrics"}
ROW_KEYS = ("_target_", "protocol", "part", "name")  # of a dataset: said by its name or its protocol already


class Run(NamedTuple):
    """A finished run."""

    folder: Path
    config: dict[str, Any]
    result: dict[str, Any]


class Left(NamedTuple):
    """A selected run without a usable result."""

    folder: Path
    state: str  # failed, not finished, damaged, other schema, twice
    reason: str


class Row(NamedTuple):
    """What numbers may be compared on."""

    protocol: str
    dataset: str
    test: str

    @property
    def label(self) -> str:
        """Dataset, and the test set where it has a name of its own."""
        return self.dataset if self.test == "test" else f"{self.dataset}: {self.test}"


class Selection(NamedTuple):
    """Everything a page is made of."""

    runs: list[Run]
    left: list[Left]
    columns: dict[Path, str]  # run -> its column: detector, and what tells it from others of that name
    cells: dict[Row, dict[str, list[Run]]]  # row -> column -> its runs, one a seed

    def rows(self, protocol: str) -> dict[Row, dict[str, list[Run]]]:
        """The rows of one protocol: they alone may stand in one table."""
        return {row: cell for row, cell in self.cells.items() if row.protocol == protocol}

    def protocols(self) -> list[str]:
        """In the order in which they first come."""
        return list(dict.fromkeys(row.protocol for row in self.cells))


def find(words: Sequence[str], output_dir: str) -> list[Path]:
    """Folders of the runs that names, beginnings, hashes, globs or folders stand for; all of `output_dir` for no word.

    Raises:
        UserError: for a word that stands for no run.
    """
    known = {name: folder for folder in _below(Path(output_dir)) for name in [folder.name]}
    if not words:
        if not known:
            raise UserError(f"there is no run in {output_dir}; run train makes one, or choose another output_dir=")
        return list(known.values())
    found: dict[Path, None] = {}
    for word in words:
        some = _named(word, known)
        if not some:
            guess = nearest(word, known)
            hint = f" (did you mean '{guess}'?)" if guess else ""
            raise UserError(
                f"runs={word} stands for no run{hint}; {len(known)} runs are in {output_dir}: give a name, its "
                "beginning, a glob ('adbench_cardio-*') or a folder"
            )
        found |= dict.fromkeys(some)
    return list(found)


def _named(word: str, known: dict[str, Path]) -> list[Path]:
    if any(one in word for one in "*?["):
        paths = [Path(one) for one in sorted(glob.glob(os.path.expanduser(word)))]
        below = [folder for path in paths if path.is_dir() for folder in _below(path)]
        return below or [folder for name, folder in known.items() if fnmatch.fnmatchcase(name, word)]
    path = Path(word).expanduser()
    if path.is_dir() and (below := _below(path)):
        return below
    return [folder for name, folder in known.items() if runs.matches(word, name)]


def _below(folder: Path) -> list[Path]:
    """Runs at, or one or two levels below a folder."""
    if (folder / "config.yaml").is_file():
        return [folder]
    here = sorted(path for path in folder.glob("*") if (path / "config.yaml").is_file())
    return here or [
        folder / command / name for command in runs.COMMANDS for name in runs.names(str(folder), (command,))
    ]


def read(folder: Path) -> Run | Left:
    """A finished run, or why it is none."""
    if not (folder / "result.json").exists():
        return Left(folder, "not finished", "there is no result.json: the same command goes on where it stopped")
    try:
        result = store.read_result(folder)
    except UserError as error:
        return Left(folder, "other schema", str(error))
    if not isinstance(result, dict):
        return Left(folder, "damaged", "result.json cannot be read (cut off?): the same command computes it again")
    if result.get("status") != "done":
        return Left(folder, "failed", last_line(result.get("error")) or "no reason was recorded")
    if missing := NEEDED - result.keys():
        return Left(folder, "damaged", f"result.json lacks {', '.join(sorted(missing))}")
    try:
        return Run(folder, catalog.load(str(folder / "config.yaml")), result)
    except UserError as error:
        return Left(folder, "damaged", str(error))


def collect(folders: Iterable[Path]) -> Selection:
    """Read the runs and sort them into rows and columns."""
    done: dict[str, Run] = {}
    left: list[Left] = []
    for folder in folders:
        one = read(folder)
        if isinstance(one, Left):
            left.append(one)
        elif folder.name in done:
            left.append(Left(folder, "twice", f"the same run as {done[folder.name].folder}, which is shown"))
        else:
            done[folder.name] = one
    found = list(done.values())
    names = methods(found)
    columns = dict(zip((run.folder for run in found), told_apart(names, [_options(run) for run in found])))
    datasets = told_apart([str(run.result["dataset"]) for run in found], [_data(run) for run in found])
    cells: dict[Row, dict[str, list[Run]]] = {}
    for run, dataset in sorted(zip(found, datasets), key=lambda one: (one[1], columns[one[0].folder], _seed(one[0]))):
        own = run.result.get("protocols") or {}
        for test in run.result["metrics"]:
            row = Row(str(own.get(test, run.result["protocol"])), dataset, str(test))
            cells.setdefault(row, {}).setdefault(columns[run.folder], []).append(run)
    return Selection(found, left, columns, cells)


def methods(found: Sequence[Run]) -> list[str]:
    """Each run's detector, and its backbone and distiller where one detector has several."""
    names = [str(run.result["detector"]) for run in found]
    for group, word in (("backbone", "on"), ("distiller", "by")):
        chosen = [(run.config.get("choices") or {}).get(group) for run in found]
        several: dict[str, set[Any]] = {}
        for name, choice in zip(names, chosen):
            several.setdefault(name, set()).add(choice)
        names = [
            f"{name} {word} {choice}" if choice and len(several[name]) > 1 else name
            for name, choice in zip(names, chosen)
        ]
    return names


def _options(run: Run) -> dict[str, Any]:
    """All that a number depends on beside data and seed."""
    return {
        key: value
        for key, value in flat(run.config).items()
        if (top := key.partition(".")[0]) not in (*store.NO_NUMBER, "dataset", "seed")
        and (top != "trainer" or key.partition(".")[2] in store.TRAINER_NUMBERS)
    }


def _data(run: Run) -> dict[str, Any]:
    section = run.config.get("dataset") or {}
    return {key: value for key, value in flat(section).items() if key not in ROW_KEYS}


def told_apart(names: Sequence[str], options: Sequence[dict[str, Any]]) -> list[str]:
    """A label each: its name, and the options in which it differs from others of that name.

    >>> told_apart(["knn", "knn", "pca"], [{"detector.k": 5}, {"detector.k": 9}, {}])
    ['knn k=5', 'knn k=9', 'pca']
    """
    taken: dict[str, dict[str, set[str]]] = {name: {} for name in names}
    for name in taken:
        mine = [one for other, one in zip(names, options) if other == name]
        keys = dict.fromkeys(key for one in mine for key in one)
        taken[name] = {key: {said(one.get(key)) for one in mine} for key in keys}
    return [
        " ".join(
            [
                name,
                *(
                    f"{key.removeprefix('detector.')}={said(one.get(key))}"
                    for key in taken[name]
                    if len(taken[name][key]) > 1
                ),
            ]
        )
        for name, one in zip(names, options)
    ]


def flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys.

    >>> flat({"a": {"b": 1, "c": [2]}})
    {'a.b': 1, 'a.c': [2]}
    """
    found: dict[str, Any] = {}
    for key, value in section.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def said(value: Any) -> str:
    """A value of a config as one would type it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _seed(run: Run) -> tuple[int, str]:
    seed = run.result["seed"]
    return (seed, "") if isinstance(seed, int) else (0, str(seed))


def values(cell: Sequence[Run], test: str, metric: str) -> list[float]:
    """The metric of each run that has it."""
    found = [(run.result["metrics"].get(test) or {}).get(metric) for run in cell]
    return [float(one) for one in found if isinstance(one, int | float) and np.isfinite(one)]


def findings(selection: Selection) -> dict[str, list[str]]:
    """Each finding with the runs that it was made in; what only a comparison shows comes first."""
    found: dict[str, list[str]] = {}
    versions: dict[str, dict[str, list[str]]] = {}
    for run in selection.runs:
        versions.setdefault(run.result["dataset"], {}).setdefault(str(run.result.get("data_sha256")), []).append(
            run.folder.name
        )
    for dataset, several in versions.items():
        if len(several) > 1:
            hashes = ", ".join(f"{one[:10]} ({len(names)} runs)" for one, names in several.items())
            names = min(several.values(), key=len)
            found[f"{dataset}: the data are not the same in all runs ({hashes}): do not compare their numbers"] = names
    for run in selection.runs:
        for finding in dict.fromkeys(run.result.get("findings") or []):
            found.setdefault(f"{run.result['dataset']}: {finding}", []).append(run.folder.name)
    return found
