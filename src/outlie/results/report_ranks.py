"""The ranks of a report: average ranks over rows that all have, and a critical-difference diagram."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from outlie.metrics import stats
from outlie.results.page import Page, text
from outlie.results.report import Row, Selection
from outlie.results.report_tables import means


def common(found: Mapping[Row, Mapping[str, Any]], least: int = 5) -> tuple[list[Row], list[str]]:
    """Rows and columns without a gap: the column with the fewest rows goes, until `least` rows have them all."""
    columns = sorted({column for mine in found.values() for column in mine})
    while True:
        rows = [row for row, mine in found.items() if all(column in mine for column in columns)]
        if len(rows) >= least or len(columns) <= 3:
            return rows, columns
        counts = {column: sum(column in mine for mine in found.values()) for column in columns}
        columns.remove(min(columns, key=lambda column: counts[column]))


def ranks(page: Page, selection: Selection) -> None:
    """Add average ranks with a critical-difference diagram: three detectors or more on five rows or more."""
    parts = []
    for protocol in selection.protocols():
        found = means(selection.rows(protocol), "auroc")
        rows, columns = common(found)
        if len(rows) < 5 or len(columns) < 3:
            continue
        table = [[found[row][column][0] for column in columns] for row in rows]
        compared = stats.compare(table)
        cliques = stats.cliques(compared.ranks, compared.p_holm > 0.05)
        title = f"AUROC, {protocol}: Wilcoxon-Holm"
        words = (
            f"Average ranks by AUROC on {len(rows)} rows, 1 = best; Friedman p = {compared.p:.2g}. "
            "A bar joins detectors that Wilcoxon's signed-rank test with Holm's correction does not tell apart at 5 %."
        )
        gone = sorted({column for mine in found.values() for column in mine} - set(columns))
        words += f" Left out, they have too few rows: {', '.join(gone)}." if gone else ""
        averages = [float(one) for one in compared.ranks]
        parts += [diagram(page, columns, averages, cliques, title), f"<p>{text(words)}</p>"]
    if parts:
        page.add(page.heading(2, "Ranks"), *parts)


def diagram(
    page: Page, names: Sequence[str], averages: Sequence[float], cliques: Sequence[Sequence[int]], title: str
) -> str:
    """The critical-difference diagram as inline SVG, in a box that scrolls: colours of the page, ids of its own."""
    from matplotlib import rc_context

    from outlie.results import rank_plots

    file = io.StringIO()
    with rc_context(rank_plots.STYLE):
        drawing = rank_plots.critical_difference(names, averages, cliques, title)
        drawing.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    picture = file.getvalue()
    picture = re.sub(r"<metadata>.*?</metadata>", "", picture[picture.index("<svg") :], flags=re.S)
    picture = re.sub(r' xmlns(:xlink)?="[^"]*"', "", picture)
    picture = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{page.anchor('cd')}-", picture)
    for ink in (rank_plots.INK, rank_plots.QUIET):
        picture = picture.replace(ink, "currentColor")
    order = sorted(range(len(names)), key=lambda c: averages[c])
    label = f"{title}; critical-difference diagram: " + ", ".join(f"{names[c]} {averages[c]:.2f}" for c in order)
    picture = picture.replace("<svg ", f'<svg role="img" aria-label="{text(label)}" ', 1).strip()
    return f'<div class="scroll wide" tabindex="0" role="region" aria-label="{text(title)}">{picture}</div>'
