"""Charts as SVG text: sharp at any size, coloured by the page's style sheet, so that they follow its light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

COLOURS, LINES = 6, 12  # classes l0 ... l11 of the style sheet: six colours, whole and dashed


class Axis(NamedTuple):
    """One axis, in the units of the data."""

    low: float
    high: float
    label: str
    log: bool = False
    percent: bool = False

    def share(self, values: ArrayLike) -> np.ndarray:
        """Where values lie between the ends, 0 to 1; beyond them at the end."""
        low, high, at = self.low, self.high, np.clip(np.asarray(values, dtype=np.float64), self.low, self.high)
        if self.log:
            low, high, at = math.log(low), math.log(high), np.log(at)
        return (at - low) / (high - low)

    def ticks(self) -> dict[float, str]:
        """Positions of the marks, with what stands there."""
        if not self.log:
            step = _round_step((self.high - self.low) / 4)
            count = math.floor(self.high / step + 1e-9) - math.ceil(self.low / step - 1e-9) + 1
            marks = [(math.ceil(self.low / step - 1e-9) + i) * step for i in range(count)]
        else:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            every = max(1, math.ceil((last - first) / 5))
            marks = [10.0**power for power in range(first, last + 1, every)]
            if len(marks) < 2:
                marks = [digit * 10.0**power for power in range(first - 1, last + 1) for digit in (1, 2, 5)]
                marks = [mark for mark in marks if self.low <= mark <= self.high] or [self.low, self.high]
        return {mark: f"{100 * mark:.3g} %" if self.percent else _short(mark) for mark in marks}


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(digit * power for digit in (1, 2, 2.5, 5, 10) if digit * power >= least * (1 - 1e-9))


def _short(value: float) -> str:
    text = f"{value:.3g}" if value else "0"
    return text.replace("e-0", "e-").replace("e+0", "e")


class Chart:
    """A plotting area with two axes; marks are added, `text` gives the SVG."""

    left, top, right, bottom = 58, 10, 22, 40

    def __init__(self, x: Axis, y: Axis, width: int = 360, height: int = 270) -> None:
        self.x, self.y, self.width, self.height = x, y, width, height
        self.marks: list[str] = []

    def points(self, x: ArrayLike, y: ArrayLike) -> np.ndarray:
        """(n, 2) pixels, to a half."""
        wide, high = self.width - self.left - self.right, self.height - self.top - self.bottom
        across = self.left + wide * self.x.share(x)
        down = self.top + high * (1 - self.y.share(y))
        return np.round(2 * np.stack([across, down], 1)) / 2

    def line(self, x: ArrayLike, y: ArrayLike, style: str, title: str = "") -> None:
        """Straight from point to point."""
        at = self.points(x, y)
        at = at[np.append(True, (np.diff(at, axis=0) != 0).any(1))]
        path = "M" + "L".join(f"{a:g} {b:g}" for a, b in at)
        self._path(path, style, title)

    def steps(self, x: ArrayLike, y: ArrayLike, style: str, title: str = "", before: bool = False) -> None:
        """Along, then up or down: y changes at the next x (`before`: at the last one)."""
        at = self.points(x, y)
        path, (across, down) = f"M{at[0, 0]:g} {at[0, 1]:g}", at[0]
        for a, b in at[1:]:  # one character and a short number for each visible step
            moves = [f"h{a - across:g}" if a != across else "", f"v{b - down:g}" if b != down else ""]
            path += "".join(moves[::-1] if before else moves)
            across, down = a, b
        self._path(path, style, title)

    def bars(self, edges: ArrayLike, heights: ArrayLike, style: str) -> None:
        """A filled histogram: (n + 1,) edges, (n,) heights."""
        edges, heights = np.asarray(edges), np.append(np.asarray(heights), 0.0)
        at = self.points(edges, heights)
        base = self.points(edges[:1], [self.y.low])[0, 1]
        path, down = f"M{at[0, 0]:g} {base:g}", base
        for (a, b), (after, _) in zip(at, [*at[1:], (at[-1, 0], 0)]):
            path += (f"v{b - down:g}" if b != down else "") + (f"h{after - a:g}" if after != a else "")
            down = b
        self._path(f"{path}z", style, "")

    def upright(self, x: float, style: str) -> None:
        """A line from bottom to top."""
        at = self.points([x], [self.y.low])[0, 0]
        self._path(f"M{at:g} {self.top}V{self.height - self.bottom}", style, "")

    def dot(self, x: float, y: float, style: str, title: str = "", word: str = "") -> None:
        """A point, with a short word beside it."""
        a, b = self.points([x], [y])[0]
        self.marks.append(f'<circle cx="{a:g}" cy="{b:g}" r="4" class="{style}">{_title(title)}</circle>')
        if word:
            side = f'x="{a + 6:g}"' if a < self.width - 60 else f'x="{a - 6:g}" text-anchor="end"'
            self.marks.append(f'<text {side} y="{max(b - 5, 12):g}" class="word">{escape(word)}</text>')

    def _path(self, path: str, style: str, title: str) -> None:
        end = f">{_title(title)}</path>" if title else "/>"
        self.marks.append(f'<path d="{path}" class="{style}"{end}')

    def text(self, label: str) -> str:
        """The picture; `label` says in words what it shows."""
        low, right = self.height - self.bottom, self.width - self.right
        frame = [f'<path d="M{self.left} {self.top}V{low}H{right}" class="axis"/>']
        for value, word in self.x.ticks().items():
            a = self.points([value], [self.y.low])[0, 0]
            frame.append(f'<path d="M{a:g} {low}v-{low - self.top}" class="grid"/>')
            frame.append(f'<text x="{a:g}" y="{low + 14}" text-anchor="middle">{word}</text>')
        for value, word in self.y.ticks().items():
            b = self.points([self.x.low], [value])[0, 1]
            frame.append(f'<path d="M{self.left} {b:g}h{right - self.left}" class="grid"/>')
            frame.append(f'<text x="{self.left - 5}" y="{b + 4:g}" text-anchor="end">{word}</text>')
        place = f'x="{(self.left + right) / 2:g}" y="{self.height - 6}"'
        frame.append(f'<text {place} text-anchor="middle" class="name">{escape(self.x.label)}</text>')
        place = f'transform="translate(11 {(self.top + low) / 2:g}) rotate(-90)"'
        frame.append(f'<text {place} text-anchor="middle" class="name">{escape(self.y.label)}</text>')
        return (
            f'<svg role="img" aria-label="{escape(label)}" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}">{"".join(frame)}{"".join(self.marks)}</svg>'
        )


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def styles(names: Sequence[str], every: Sequence[str] = ()) -> dict[str, str]:
    """The class of each name's line: the same all over a page, as long as `every` are few enough to tell apart."""
    order = list(every) if 0 < len(every) <= LINES else list(names)
    return {name: f"l{order.index(name) % LINES}" for name in names}


def legend(classes: Mapping[str, str]) -> str:
    """A list of names and their lines, in HTML: it wraps where the page is narrow."""
    keys = "".join(f'<li><span class="key {style}"></span>{escape(name)}</li>' for name, style in classes.items())
    return f'<ul class="legend">{keys}</ul>'
