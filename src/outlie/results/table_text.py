"""A table as Markdown, LaTeX (booktabs), CSV and an HTML fragment: best in bold, second underlined, outside marked."""

from __future__ import annotations

import csv
import html as escaping
import io
from collections.abc import Callable
from math import isfinite, isnan

from outlie.results import table_numbers
from outlie.results.table import Number
from outlie.results.table_numbers import Entry, View

LATEX_COLUMNS, LEAK_COLUMNS = 6, 3  # beside the names, on a page's width
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"} | {
    sign: f"\\{sign}" for sign in "&%$#_{}"
}
LATEX |= {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\to$", "<": r"\textless{}", ">": r"\textgreater{}"}


def shown(number: Number, between: str = " ± ") -> str:
    """'92.81 ± 0.03', without a std where there is none, '' for no number."""
    if not isfinite(number.mean):
        return ""
    return f"{number.mean:.2f}" + ("" if isnan(number.std) else f"{between}{number.std:.2f}")


def mark(entry: Entry) -> str:
    """An arrow where ours is outside what was published."""
    return "" if entry.inside is not False else "↑" if entry.difference > 0 else "↓"


def signed(difference: float) -> str:
    """'+1.20', '' for none."""
    return f"{difference:+.2f}" if isfinite(difference) else ""


def title(view: View) -> str:
    """What the table is, which number, in which unit, under which protocol."""
    return f"{view.table.title}: {view.metric.name}, {view.metric.unit} ({view.table.protocol})"


def legend(view: View, between: str = ",") -> str:
    """What a cell says."""
    theirs = f"{between} published ± std; ↑ ↓ ours is outside published ± 2 std (at least 1 point)"
    published = any(entry.has_published for entry in view.entries.values())
    return f"ours ± std{theirs if published else ''}; best of a row bold, second underlined"


def _mean(mean: float) -> str:
    return f"{mean:.2f}" if isfinite(mean) else ""


def column_lines(view: View) -> list[list[str]]:
    """Header and one line a column of ours: inside, seeds, means over rows that both have, ranks, leak; [] for none."""
    leak = ["mean leak"] if view.leaking else []
    lines = [["column", "inside", "seeds", "mean ours", "mean theirs", "rank ours", "rank theirs", *leak]]
    for name, one in table_numbers.columns(view).items():
        if not any(view.entries[row, name].has_ours for row in view.rows):
            continue
        inside = f"{one.inside} of {one.compared}" if one.compared else ""
        means = [_mean(one.ours), _mean(one.published), _mean(one.our_rank), _mean(one.published_rank)]
        lines.append([name, inside, one.seeds, *means, *([signed(one.leak)] if leak else [])])
    return lines if len(lines) > 1 else []


def leak_lines(view: View) -> list[list[str]]:
    """Header and one line a leaking row: ours without the leak, in brackets what the leak adds; [] if unknown."""
    if not view.leaking:
        return []
    columns = [c for c in view.columns if any(isfinite(view.entries[r, c].leak_free.mean) for r in view.leaking)]
    lines = [[view.table.leak_free, *columns]]
    for row in view.leaking:
        entries = [view.entries[row, c] for c in columns]
        lines.append([row, *(shown(e.leak_free) + (f" ({signed(e.leak)})" if e.has_ours else "") for e in entries)])
    of_columns = table_numbers.columns(view)
    lines.append(["mean leak", *(signed(of_columns[c].leak) for c in columns)])
    return lines


def leak_title(view: View) -> str:
    """What stands above these lines."""
    return (
        f"Without the leak ({view.table.leak_free}): datasets under 1,000 rows, which the paper's protocol repeats on "
        f"both sides of the split; in brackets how much more {view.table.protocol} gives. Elsewhere the two are equal."
    )


def markdown(view: View) -> str:
    """Tables that GitHub renders."""

    def text(entry: Entry, place: int | None) -> str:
        ours = shown(entry.ours)
        ours = f"**{ours}**" if place == 1 and ours else f"<u>{ours}</u>" if place == 2 and ours else ours
        theirs = f" ({shown(entry.published)})" if entry.has_published else ""
        return (ours or "-") + mark(entry) + theirs

    lines = [["", *view.columns], *_body(view, text)]
    parts = [f"## {title(view)}", view.table.source, legend(view), _pipes(lines)]
    if of_columns := column_lines(view):
        parts.append(_pipes(of_columns))
    if leak := leak_lines(view):
        parts += [leak_title(view), _pipes(leak)]
    parts.append("\n".join(f"- {line}" for line in table_numbers.in_words(view)))
    return "\n\n".join(parts) + "\n"


def _body(view: View, text: Callable[[Entry, int | None], str]) -> list[list[str]]:
    lines = []
    for row in view.rows:
        places = table_numbers.places(view, row)
        lines.append([row, *(text(view.entries[row, c], places.get(c)) for c in view.columns)])
    return lines


def _pipes(lines: list[list[str]]) -> str:
    safe = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [safe[0], rule, *safe[1:]])


def latex(view: View) -> str:
    """Long tables with booktabs, so many columns at a time as a page holds; published numbers small below ours."""
    parts = [r"% \usepackage{booktabs,longtable} and, for pdfTeX before 2018, \usepackage[utf8]{inputenc}"]
    for start in range(0, len(view.columns), LATEX_COLUMNS):
        columns = view.columns[start : start + LATEX_COLUMNS]
        head = " & ".join(["", *map(tex, columns)]) + r" \\"
        lines = [rf"\begin{{longtable}}{{l{'r' * len(columns)}}}"]
        if start == 0:
            lines.append(rf"\caption{{{tex(title(view))}. {tex(legend(view))}.}} \\")
        lines += [r"\toprule", head, r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot"]
        for row in view.rows:
            places = table_numbers.places(view, row)
            entries = [view.entries[row, c] for c in columns]
            lines.append(" & ".join([tex(row), *(_tex_ours(e, places.get(e.column)) for e in entries)]) + r" \\")
            if any(e.has_published for e in entries):
                theirs = [rf"{{\scriptsize {tex(shown(e.published))}}}" if e.has_published else "" for e in entries]
                lines.append(" & ".join(["", *theirs]) + r" \\")
        parts.append("\n".join([*lines, r"\end{longtable}"]))
    if of_columns := column_lines(view):
        parts.append(_tex_table(of_columns))
    if leak := leak_lines(view):
        parts += [
            _tex_table([[line[0], *line[1 + at : 1 + at + LEAK_COLUMNS]] for line in leak])
            for at in range(0, len(leak[0]) - 1, LEAK_COLUMNS)
        ]
    return "\n\n".join(parts) + "\n"


def _tex_ours(entry: Entry, place: int | None) -> str:
    text = tex(shown(entry.ours))
    if place and text:
        text = rf"\{'textbf' if place == 1 else 'underline'}{{{text}}}"
    return (text or "--") + tex(mark(entry))


def _tex_table(lines: list[list[str]]) -> str:
    cells = [" & ".join(map(tex, line)) + r" \\" for line in lines]
    begin = rf"\begin{{longtable}}{{l{'r' * (len(lines[0]) - 1)}}}"
    return "\n".join([begin, r"\toprule", cells[0], r"\midrule", *cells[1:], r"\bottomrule", r"\end{longtable}"])


def tex(text: str) -> str:
    """Text with LaTeX's signs escaped."""
    return "".join(LATEX.get(sign, sign) for sign in text)


def html(view: View) -> str:
    """A fragment for a page: no style of its own but the marks, all text escaped."""

    def text(entry: Entry, place: int | None) -> str:
        ours = e(shown(entry.ours)) or "-"
        ours = f"<strong>{ours}</strong>" if place == 1 else f"<u>{ours}</u>" if place == 2 else ours
        theirs = f"<br><small>{e(shown(entry.published))}</small>" if entry.has_published else ""
        return ours + (f" {sign}" if (sign := mark(entry)) else "") + theirs

    e = escaping.escape
    parts = [
        _html_table([["", *map(e, view.columns)], *[[e(r), *rest] for r, *rest in _body(view, text)]], title(view)),
        f"<p>{e(legend(view))}.</p>",
        f"<p>{e(view.table.source)}</p>" if view.table.source else "",
    ]
    if of_columns := column_lines(view):
        parts.append(_html_table([[e(cell) for cell in line] for line in of_columns], "Columns"))
    if leak := leak_lines(view):
        parts.append(_html_table([[e(cell) for cell in line] for line in leak], leak_title(view)))
    said = "".join(f"<li>{e(line)}</li>" for line in table_numbers.in_words(view))
    parts.append(f"<ul>{said}</ul>")
    return '<div class="paper-table">\n' + "\n".join(part for part in parts if part) + "\n</div>\n"


def _html_table(lines: list[list[str]], caption: str) -> str:
    head = "".join(f'<th scope="col">{cell}</th>' for cell in lines[0])
    body = "\n".join(
        f'<tr><th scope="row">{line[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in line[1:]) + "</tr>"
        for line in lines[1:]
    )
    return (
        f'<div class="scroll"><table><caption><span>{escaping.escape(caption)}</span></caption>\n'
        f"<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def comma_separated(view: View) -> str:
    """One line a row and column, every number unrounded; the interval is of ours - published, 95 %, Welch."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["row", "column", "metric", "unit", "protocol", "ours_mean", "ours_std", "ours_seeds", "published_mean",
         "published_std", "published_seeds", "difference", "welch_low", "welch_high", "inside", "leak_free_mean",
         "leak_free_std", "leak_free_seeds", "leak"]
    )  # fmt: skip
    for entry in view.entries.values():
        low, high = entry.interval or (float("nan"), float("nan"))
        inside = {None: "", True: "yes", False: "no"}[entry.inside]
        numbers = [*entry.ours, *entry.published, entry.difference, low, high, inside, *entry.leak_free, entry.leak]
        about = [entry.row, entry.column, view.metric.name, view.metric.unit, view.table.protocol]
        writer.writerow([*about, *("" if isinstance(n, float) and not isfinite(n) else n for n in numbers)])
    return out.getvalue()


def cells_csv(view: View) -> str:
    """One line a cell: what it is, its number and interval over test rows, its folder and the code that computed it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["row", "column", "part", "seed", "protocol", "status", "number", "low", "high", "cpu_s", "code_version",
         "folder", "why"]
    )  # fmt: skip
    for one in [*view.states, *view.leak_states]:
        number = "" if one.number is None else one.number
        writer.writerow(
            [one.row, one.column, one.part, one.seed, one.protocol, one.status, number, *(one.interval or ("", "")),
             sum(one.cost) or "", one.code, one.folder, one.why]
        )  # fmt: skip
    return out.getvalue()
