"""A table on a terminal: as many columns at a time as fit, ours above published, the closing lines."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from outlie.results import table_numbers, table_text
from outlie.results.table_numbers import Entry, View
from outlie.results.table_text import mark, shown

WIDTH = 100
GAP = 2  # between columns


def render(view: View, console: Console | None = None) -> None:
    """Print the table, page by page of its columns, then what each column comes to, then the closing lines."""
    console = console or Console(highlight=False)
    console.print()
    console.print(Text(table_text.title(view), style="bold"))
    width = min(console.width, WIDTH)
    for columns in pages(view, width):
        console.print(_page(view, columns))
    console.print(Text(table_text.legend(view, ", below it") + ".", style="dim"))
    if of_columns := table_text.column_lines(view):
        console.print(_lines(of_columns))
    if leak := table_text.leak_lines(view):
        few = len(leak[0]) <= 1 + table_text.LEAK_COLUMNS  # row by row, many columns fill screens
        console.print(Text(table_text.leak_title(view) + ("" if few else " Row by row in the stored files.")))
        if few:
            console.print(_lines(leak))
    for line in table_numbers.in_words(view):
        console.print(Text(line))
    console.print()


def pages(view: View, width: int) -> list[list[str]]:
    """The columns, in runs that fit beside the names of the rows."""
    left = GAP + max(map(len, view.rows), default=0)
    found: list[list[str]] = []
    used = width + 1
    for column in view.columns:
        own = GAP + max(len(column), *(max(len(_ours(e)), len(_theirs(e))) for e in _column(view, column)))
        if used + own > width:
            found.append([])
            used = left
        found[-1].append(column)
        used += own
    return found


def _column(view: View, column: str) -> list[Entry]:
    return [view.entries[row, column] for row in view.rows]


def _ours(entry: Entry) -> str:
    return shown(entry.ours, "±") + (mark(entry) or " ")


def _theirs(entry: Entry) -> str:
    return shown(entry.published, "±") + " "


def _page(view: View, columns: list[str]) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP, 0, 0))
    grid.add_column("", no_wrap=True)
    for column in columns:
        grid.add_column(column, justify="right", no_wrap=True)
    for row in view.rows:
        entries, places = [view.entries[row, c] for c in columns], table_numbers.places(view, row)
        ours = any(e.has_ours for e in entries)
        theirs = any(e.has_published for e in entries)
        if ours or not theirs:
            grid.add_row(Text(row), *(_styled(e, places.get(e.column)) for e in entries))
        if theirs:
            grid.add_row(Text("" if ours else row, style="dim"), *(Text(_theirs(e), style="dim") for e in entries))
    return grid


def _styled(entry: Entry, place: int | None) -> Text:
    if not entry.has_ours:
        return Text("- ")
    outside = entry.inside is False
    text = Text(shown(entry.ours, "±"), style={1: "bold", 2: "underline"}.get(place or 0, ""))
    text.append(mark(entry) or " ", style="yellow" if outside else "")
    if outside:
        text.stylize("yellow")
    return text


def _lines(lines: list[list[str]]) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, head in enumerate(lines[0]):  # where it is narrow, the words above a column fold, not what is in it
        widest = max(len(line[i]) for line in lines[1:])
        grid.add_column(head, justify="right" if i else "left", min_width=widest, no_wrap=not i)
    for line in lines[1:]:
        grid.add_row(*(Text(cell) for cell in line))
    return grid
