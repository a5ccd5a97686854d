"""From the cells of a table to its numbers: ours beside published, inside or outside, means and ranks over common rows.

A dataset of several files is, as DTE print it, the mean over files of the mean over seeds; its std is the mean over
files of the std over seeds (ddof 1). A cell is inside where |ours - published| <= max(2 published std, 1 point).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import isfinite, isnan, nan
from typing import Any, NamedTuple

import numpy as np

from outlie.metrics import stats
from outlie.results import table_cells
from outlie.results.table import Metric, Number, Table
from outlie.results.table_cells import State

STDS, FLOOR = 2.0, 1.0  # of what counts as inside: published stds, points at least
NOTHING = Number(nan, nan, 0)


class Entry(NamedTuple):
    """One number of a table, ours and theirs; nan where there is none."""

    row: str
    column: str
    ours: Number
    published: Number
    interval: tuple[float, float] | None = None  # of ours - published, 95 %, Welch
    leak_free: Number = NOTHING  # ours, without the leak

    @property
    def has_ours(self) -> bool:
        """Whether we computed it."""
        return isfinite(self.ours.mean)

    @property
    def has_published(self) -> bool:
        """Whether the paper has it."""
        return isfinite(self.published.mean)

    @property
    def difference(self) -> float:
        """Ours less published."""
        return self.ours.mean - self.published.mean

    @property
    def inside(self) -> bool | None:
        """None where one of the two is missing."""
        if not (self.has_ours and self.has_published):
            return None
        spread = 0.0 if isnan(self.published.std) else self.published.std
        return abs(self.difference) <= max(STDS * spread, FLOOR) + 1e-9

    @property
    def leak(self) -> float:
        """What the leak is worth: ours less ours without it."""
        return self.ours.mean - self.leak_free.mean


class Column(NamedTuple):
    """What a column comes to."""

    inside: int
    compared: int  # rows that both have
    ours: float  # mean over these rows
    published: float
    our_rank: float  # over the rows that all ranked columns have; nan = not ranked
    published_rank: float
    seeds: str  # of ours: '5', '1 to 3'
    leak: float  # mean over the leaking rows of ours less ours without the leak


@dataclass
class View:
    """A table with its numbers, ready to be written in any format."""

    table: Table
    metric: Metric
    entries: dict[tuple[str, str], Entry]
    states: list[State]
    leak_states: list[State] = field(default_factory=list)
    ranked: tuple[list[str], list[str]] = ((), ())  # type: ignore[assignment]  # rows, columns of the ranks
    statistics: dict[str, Any] | None = None  # of `statistics`, where they were asked for

    @property
    def rows(self) -> list[str]:
        """Names of the rows."""
        return [line.name for line in self.table.rows]

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return [line.name for line in self.table.columns]

    @property
    def leaking(self) -> list[str]:
        """Rows whose numbers without the leak are known for some column."""
        return [row for row in self.rows if any(isfinite(self.entries[row, c].leak_free.mean) for c in self.columns)]


def view(table: Table, metric: Metric, states: list[State], leak_states: list[State]) -> View:
    """Put the numbers of all cells together."""
    ours, leak_free = grouped(states), grouped(leak_states)
    entries = {}
    for row in table.rows:
        for column in table.columns:
            key = row.name, column.name
            mine, theirs = ours.get(key, NOTHING), metric.published.get((row.published, column.published), NOTHING)
            seeds = mine.seeds, theirs.seeds
            interval = None
            if min(seeds) > 1 and not isnan(mine.std) and not isnan(theirs.std):
                interval = stats.welch((mine.mean, theirs.mean), (mine.std, theirs.std), seeds)
            entries[key] = Entry(*key, mine, theirs, interval, leak_free.get(key, NOTHING))
    found = View(table, metric, entries, states, leak_states)
    found.ranked = common(found)
    return found


def grouped(states: list[State]) -> dict[tuple[str, str], Number]:
    """Mean, std and number of seeds of each row and column all of whose files have numbers of some common seeds."""
    parts: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for one in states:
        numbers = parts.setdefault((one.row, one.column), {}).setdefault(one.part, {})
        if one.number is not None:
            numbers[one.seed] = one.number
    found = {}
    for key, files in parts.items():
        seeds = sorted(set.intersection(*(set(numbers) for numbers in files.values())))
        if seeds:
            each = [stats.mean_std([numbers[seed] for seed in seeds]) for numbers in files.values()]
            mean, std = (sum(values) / len(each) for values in zip(*each, strict=True))
            found[key] = Number(mean, std, len(seeds))
    return found


def common(found: View) -> tuple[list[str], list[str]]:
    """Rows and columns of the ranks: columns of ours with at least half as many rows as the fullest, rows all have."""
    count = {c: sum(found.entries[r, c].has_ours for r in found.rows) for c in found.columns}
    most = max(count.values(), default=0)
    columns = [c for c in found.columns if count[c] and 2 * count[c] >= most]
    return [r for r in found.rows if columns and all(found.entries[r, c].has_ours for c in columns)], columns


def matrix(found: View, rows: list[str], columns: list[str], of: str = "ours") -> np.ndarray:
    """(R, C) numbers of ours or of published ones."""
    return np.array([[getattr(found.entries[r, c], of).mean for c in columns] for r in rows], np.float64)


def columns(found: View) -> dict[str, Column]:
    """What each column comes to; both ranks are among the ranked columns that are published, over the same rows."""
    rows, ranked = found.ranked
    both = [c for c in ranked if all(found.entries[r, c].has_published for r in rows)]
    ranks = {
        of: dict(zip(both, stats.average_ranks(matrix(found, rows, both, of), found.metric.higher), strict=True))
        if rows and len(both) > 1
        else {}
        for of in ("ours", "published")
    }
    result = {}
    for c in found.columns:
        known = [e for r in found.rows if (e := found.entries[r, c]).inside is not None]
        mean = {of: float(np.mean([getattr(e, of).mean for e in known])) if known else nan for of in ranks}
        leaks = [e.leak for r in found.rows if isfinite((e := found.entries[r, c]).leak)]
        seeds = _span(e.ours.seeds for r in found.rows if (e := found.entries[r, c]).has_ours)
        result[c] = Column(
            sum(bool(e.inside) for e in known), len(known), mean["ours"], mean["published"],
            float(ranks["ours"].get(c, nan)), float(ranks["published"].get(c, nan)), seeds,
            float(np.mean(leaks)) if leaks else nan,
        )  # fmt: skip
    return result


def statistics(found: View) -> dict[str, Any]:
    """Friedman, average ranks and who cannot be told apart (Wilcoxon-Holm, 5 %), of ours over the ranked rows."""
    rows, ranked = found.ranked
    if len(rows) < 2 or len(ranked) < 3:
        return {"why": f"ranks need 3 columns and 2 rows that all have; here are {len(ranked)} and {len(rows)}"}
    compared = stats.compare(matrix(found, rows, ranked), found.metric.higher)
    groups = stats.cliques(compared.ranks, compared.p_holm >= 0.05)
    return {
        "rows": rows,
        "columns": ranked,
        "ranks": [float(rank) for rank in compared.ranks],
        "chi2": compared.chi2,
        "p": compared.p,
        "p_wilcoxon_holm": compared.p_holm.tolist(),
        "critical_difference_nemenyi": compared.critical_difference,
        "cliques": groups,
    }


def places(found: View, row: str, of: str = "ours") -> dict[str, int]:
    """1 for the best columns of a row as they are shown, 2 for the second; others are left out."""
    shown = {c: round(getattr(found.entries[row, c], of).mean, 2) for c in found.columns}
    known = sorted({v for v in shown.values() if isfinite(v)}, reverse=found.metric.higher)[:2]
    return {c: known.index(v) + 1 for c, v in shown.items() if v in known}


def cpu_hours(states: list[State]) -> float:
    """Of every cell; what several runs share, a trained backbone, is told by each and counted once."""
    return sum({seconds for one in states for seconds in one.cost}) / 3600


def in_words(found: View) -> list[str]:
    """The closing lines: how many are inside, what is absent, missing or failed, by which code, at what cost."""
    entries = list(found.entries.values())
    compared = [e for e in entries if e.inside is not None]
    said = []
    if compared:
        inside = sum(bool(e.inside) for e in compared)
        said.append(
            f"Inside published ± {STDS:g} std (at least {FLOOR:g}): {inside} of {len(compared)} "
            f"({100 * inside / len(compared):.0f} %); seeds: ours {_span(e.ours.seeds for e in compared)}, "
            f"theirs {_span(e.published.seeds for e in compared)}."
        )
    rows, ranked = found.ranked
    if rows and len(ranked) > 1:
        said.append(
            f"Average ranks over {len(rows)} rows that all {len(ranked)} ranked columns have; means over the rows that "
            "both have."
        )
    if (known := found.statistics) and "p" in known:
        said.append(f"Friedman of ours: chi2 {known['chi2']:.1f}, p {known['p']:.2g}; pairs (Wilcoxon-Holm) in cd.svg.")
    elif known and "why" in known and any(e.has_ours for e in entries):
        said.append(f"No statistics: {known['why']}.")
    every = [*found.states, *found.leak_states]
    missing_files = list(
        dict.fromkeys(w for one in every if one.status == table_cells.ABSENT for w in one.why.split(", "))
    )
    if missing_files:
        said.append(_absent(missing_files))
    count = Counter(one.status for one in every)
    for status in (
        table_cells.MISSING,
        table_cells.TRUNCATED,
        table_cells.WITHOUT,
        table_cells.FAILED,
        table_cells.OTHER,
    ):
        if count[status]:
            said.append(_named(status, [one for one in every if one.status == status]))
    codes = sorted({one.code for one in every if one.code})
    if count[table_cells.DONE]:
        hours = cpu_hours(every)
        spent = f"{hours:.1f} CPU hours" if hours >= 1 else f"{60 * hours:.1f} CPU minutes"
        done = len({one.folder for one in every if one.status == table_cells.DONE})
        said.append(f"{done} cells, {spent}; code {', '.join(codes) or 'not told'}.")
    return said + [f"Note: {note}" for note in found.table.notes]


def _span(numbers: Any) -> str:
    known = sorted(set(numbers) - {0})
    return "unknown" if not known else f"{known[0]}" if len(known) == 1 else f"{known[0]} to {known[-1]}"


def _absent(names: list[str]) -> str:
    """Files of one dataset are named once, with their number."""
    from outlie.data.absent import fetchable

    whole = Counter("/".join(name.split("/")[:2]) if fetchable(name) else name for name in names)
    listed = [f"{name} ({n} files)" if n > 1 else name for name, n in whole.items()]
    more = f" and {len(listed) - 60} more" if len(listed) > 60 else ""
    fetch = next((name for name in whole if fetchable(name)), None)
    hint = f"; `run data fetch {fetch}` gets it" if fetch else ""
    return f"Absent: {', '.join(listed[:60])}{more}{hint}."


def _named(status: str, states: list[State]) -> str:
    """How many cells, of which columns; the reasons where there are some."""
    by_column: dict[str, list[str]] = {}
    for one in states:
        rows = by_column.setdefault(one.column, [])
        if one.row not in rows:
            rows.append(one.row)
    where = [f"{c} ({', '.join(rows) if len(rows) <= 3 else f'{len(rows)} rows'})" for c, rows in by_column.items()]
    whys = list(dict.fromkeys(one.why for one in states if one.why))
    reasons = "".join(f"\n  {why}" for why in whys[:5]) + (f"\n  and {len(whys) - 5} more" if len(whys) > 5 else "")
    hint = {table_cells.MISSING: ", compute=true computes them", table_cells.FAILED: ", compute=true tries again"}
    count = len({one.folder for one in states})  # rows that are test sets of one run share its cell
    return f"{status.capitalize()}: {count} cells of {', '.join(where)}{hint.get(status, '')}.{reasons}"
