"""From the words of a search to its space: intervals, ranges and choices in Hydra's sweep grammar.

detector.lr=tag(log, interval(1e-4,1e-2)), detector.k=range(1,51), detector.k=int(interval(1,50)), detector.net=a,b.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from outlie import catalog
from outlie.errors import UserError
from outlie.results import store
from outlie.sweeps import cells

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DIGITS = 6  # of a number: enough for any setting, and a command that can be read


class Dimension(NamedTuple):
    """One word whose value is searched: numbers from low to high, or a few values as they would be typed."""

    key: str
    low: float = 0
    high: float = 0  # included
    step: float | None = None  # None = any number between
    log: bool = False
    choices: tuple[str, ...] = ()

    @property
    def ends(self) -> tuple[str, ...]:
        """The values that show whether every value can be right: all choices, or the two ends."""
        return self.choices or tuple(dict.fromkeys((self.word(self.low), self.word(self.high))))

    @property
    def whole(self) -> bool:
        """Whether it is of integers."""
        return isinstance(self.low, int)

    def word(self, value: Any) -> str:
        """The value as one would type it."""
        if isinstance(value, str) or self.whole:
            return str(value)
        return repr(float(f"{value:.{DIGITS}g}"))

    def distribution(self) -> BaseDistribution:
        """Optuna's word for it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


class Space(NamedTuple):
    """The words of a search, in the order typed; some stand for many values."""

    words: tuple[str, ...]
    dimensions: dict[str, Dimension]  # word -> what it stands for

    def at(self, values: dict[str, Any]) -> list[str]:
        """The concrete words of one setting; `values` by key."""
        found = []
        for word in self.words:
            one = self.dimensions.get(word)
            found.append(f"{one.key}={one.word(values[one.key])}" if one else word)
        return found

    def corners(self) -> Iterator[list[str]]:
        """Settings in which every end of every dimension comes once: what is wrong with a value shows in one."""
        first = {one.key: one.ends[0] for one in self.dimensions.values()}
        yield self._typed(first)
        for one in self.dimensions.values():
            for end in one.ends[1:]:
                yield self._typed(first | {one.key: end})

    def _typed(self, ends: dict[str, str]) -> list[str]:
        known = self.dimensions
        return [f"{known[word].key}={ends[known[word].key]}" if word in known else word for word in self.words]


def read(words: list[str], config_dirs: tuple[str, ...] = ()) -> Space:
    """The space of a search; UserError with every word that cannot be searched, or where none has several values."""
    where = catalog.roots(config_dirs)
    found: dict[str, Dimension] = {}
    problems = []
    for word in words:
        try:
            one = dimension(word, where)
            if one is not None:
                refuse(one.key)
                found[word] = one
        except UserError as error:
            problems.append(str(error))
    keys = [one.key for one in found.values()]
    problems += [f"{key} is searched twice: give one word for it" for key in dict.fromkeys(keys) if keys.count(key) > 1]
    if not found and not problems:
        problems = ["nothing is searched: give a key several values, as 'detector.k=range(1,51)'; see docs/search.md"]
    from outlie import compose

    compose.report(problems)
    return Space(tuple(words), found)


def refuse(key: str) -> None:
    """UserError for a key that a search cannot choose."""
    section, _, rest = key.partition(".")
    if section == "seed":
        raise UserError("seed is nothing to choose: search.seeds=3 takes the mean over three seeds for each setting")
    if section == "dataset":
        raise UserError(f"{key} is nothing to choose: settings are compared on the same rows; give it one value")
    if section in store.NO_NUMBER or (section == "trainer" and rest and rest not in store.TRAINER_NUMBERS):
        raise UserError(f"{key} changes no number, so there is nothing to choose; give it one value")


def dimension(word: str, where: tuple[str, ...]) -> Dimension | None:
    """What a word with several values stands for; None for a plain word."""
    if not any(mark in word for mark in ",()"):
        several = cells.values(word, where)  # dataset=adbench/small
        return Dimension(word.partition("=")[0], choices=_texts(several)) if several != [word] else None
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(word)
    except HydraException:
        cells.values(word, where)  # says what is wrong
        raise
    if not parsed.is_sweep_override():
        return None
    key, found = parsed.key_or_group, parsed._value
    if isinstance(found, IntervalSweep):
        assert found.start is not None and found.end is not None
        return _numbers(word, Dimension(key, found.start, found.end, log="log" in found.tags))
    several = cells.values(word, where)  # an empty range is refused here
    if isinstance(found, RangeSweep):
        numbers = [float(text.partition("=")[2]) for text in several]
        step = abs(found.step)
        if all(isinstance(number, int) for number in (found.start, found.step)):
            numbers, step = [int(number) for number in numbers], int(step)
        log = "log" in found.tags
        if log and step != 1:
            raise UserError(f"'{word}': a range on a logarithmic scale has steps of 1")
        return _numbers(word, Dimension(key, min(numbers), max(numbers), step, log))
    return Dimension(key, choices=_texts(several))


def _texts(words: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.partition("=")[2] for word in words))


def _numbers(word: str, one: Dimension) -> Dimension:
    if not one.low < one.high or not math.isfinite(one.high - one.low):
        raise UserError(f"'{word}' is an empty space: it goes from {one.low} to {one.high}")
    if one.log and one.low <= 0:
        raise UserError(f"'{word}': a logarithmic scale starts above 0")
    return one
