"""The summary of a report: what was selected and found, the best of each row, the matrix of rows and detectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from outlie.metrics import stats
from outlie.results.page import Page, details, facts, text
from outlie.results.report import METRICS, Left, Row, Run, Selection, findings, values
from outlie.results.words import seconds as in_seconds

Cells = Mapping[Row, Mapping[str, list[Run]]]
MOST_FINDINGS = 60


def summary(page: Page, selection: Selection, words: Sequence[str]) -> None:
    """Add the section."""
    parts = [page.heading(2, "Summary"), _facts(selection, words)]
    if selection.left:
        parts += [page.heading(3, "Not on this page"), left_out(page, selection.left)]
    parts.append(_findings(page, selection))
    shown = [metric for metric in METRICS if any(_numbers(selection.cells, metric))]
    if shown:
        parts += [page.heading(3, "Numbers"), _chooser(page, shown)]
    for protocol in selection.protocols():
        rows = selection.rows(protocol)
        for metric in shown:
            if any(_numbers(rows, metric)):
                inner = f"{best(page, rows, metric)}{matrix(page, rows, metric)}"
                parts.append(f'<div class="by-metric of-{metric}">{inner}</div>')
    page.add(*parts)


def _facts(selection: Selection, words: Sequence[str]) -> str:
    runs = selection.runs
    versions = Counter(str(run.result.get("code_version")) for run in runs)
    seeds = sorted({str(run.result["seed"]) for run in runs}, key=lambda seed: (len(seed), seed))
    protocols = selection.protocols()
    return facts([
        ("selected", f"<code>{text(' '.join(words) or 'every run')}</code>"),
        ("finished runs", f"{len(runs):,} of {len(runs) + len(selection.left):,}"),
        ("datasets", f"{len({row.dataset for row in selection.cells}):,}"),
        ("detectors", f"{len(set(selection.columns.values())):,}"),
        ("seeds", text(", ".join(seeds[:10]) + (f" and {len(seeds) - 10} more" if len(seeds) > 10 else ""))),
        ("protocols, never mixed in a table", text(", ".join(protocols) or "none")),
        ("code", text(", ".join(f"{version} ({count} runs)" for version, count in versions.most_common()))),
        ("CPU time, as the runs stored it", cpu_time(cpu_seconds(runs))),
    ])  # fmt: skip


def cpu_seconds(runs: Iterable[Run]) -> float:
    """What runs spent in training, fitting and scoring; weights that several share are told by each, counted once."""
    return sum(value for _, value in {
        (key, value)
        for run in runs
        for key, value in (run.result.get("cost") or {}).items()
        if key.endswith("_cpu_s") and isinstance(value, int | float)
    })  # fmt: skip


def cpu_time(seconds: float) -> str:
    """In words, hours where there are many."""
    return f"{seconds / 3600:,.1f} h" if seconds >= 7200 else in_seconds(seconds)


def left_out(page: Page, left: Sequence[Left]) -> str:
    """Selected runs that have no numbers, and why."""
    caption = in_states(left)
    rows = [(text(one.folder.name), text(one.state), text(_short(one.reason))) for one in left]
    table = page.table(caption, ["run", "state", "why"], rows, "words")
    return table if len(rows) <= 12 else details(caption, table)


def in_states(left: Sequence[Left]) -> str:
    """How many are what."""
    counts = Counter(one.state for one in left)
    return "without numbers: " + ", ".join(f"{count} {state}" for state, count in counts.items())


def _short(reason: str) -> str:
    return reason if len(reason) <= 400 else f"{reason[:400]} ..."


def _findings(page: Page, selection: Selection) -> str:
    found = findings(selection)
    if not found:
        return ""
    lines = []
    for finding, names in list(found.items())[:MOST_FINDINGS]:
        several = f"{len(names)} runs" if len(names) > 1 else names[0]
        lines.append(f"<li>{text(_short(finding))} <small>({text(several)})</small></li>")
    more = len(found) - len(lines)
    if more > 0:
        lines.append(f"<li>and {more} more: run show RUN lists a run's own</li>")
    head = page.heading(3, f"Findings ({len(found)})")
    return head + details("what the runs noticed about data and fit", f"<ul>{''.join(lines)}</ul>", len(found) <= 8)


def _chooser(page: Page, shown: Sequence[str]) -> str:
    """Radio buttons that choose the metric of all tables; without :has() in the browser all are shown."""
    buttons = ""
    for i, metric in enumerate(shown):
        anchor, checked = page.anchor(f"metric {metric}"), " checked" if i == 0 else ""
        buttons += f'<label><input type="radio" name="metric" id="{anchor}"{checked}> {text(METRICS[metric])}</label>'
        page.rules += f"body:has(#{anchor}:checked) .by-metric:not(.of-{metric}){{display:none}}"
    return f"<fieldset><legend>metric of the tables</legend>{buttons}</fieldset>"


def _numbers(cells: Cells, metric: str) -> list[float]:
    return [value for row, mine in cells.items() for runs in mine.values() for value in values(runs, row.test, metric)]


def means(cells: Cells, metric: str) -> dict[Row, dict[str, tuple[float, float, int]]]:
    """Row -> column -> mean, standard deviation (nan of one run) and number of runs; what has no number is left out."""
    found: dict[Row, dict[str, tuple[float, float, int]]] = {}
    for row, mine in cells.items():
        for column, runs in mine.items():
            if numbers := values(runs, row.test, metric):
                found.setdefault(row, {})[column] = (*stats.mean_std(numbers), len(numbers))
    return found


def plus_minus(one: tuple[float, float, int], usual: int) -> str:
    """In per cent: mean, standard deviation where there are several runs, their number where it is not the usual."""
    mean, std, count = one
    spread = f" <small>± {100 * std:.1f}</small>" if count > 1 else ""
    return f"{100 * mean:.1f}{spread}" + (f" <small>n={count}</small>" if count != usual else "")


def matrix(page: Page, cells: Cells, metric: str) -> str:
    """Rows by detectors of one protocol; the best of a row in bold, the mean over rows that all have at the end."""
    found = means(cells, metric)
    columns = sorted({column for mine in found.values() for column in mine})
    usual = Counter(one[2] for mine in found.values() for one in mine.values()).most_common(1)[0][0]
    lines = []
    for row, mine in found.items():
        top = max(f"{100 * one[0]:.1f}".rjust(6) for one in mine.values())  # what reads as equal is equally good
        line = [text(row.label)]
        for column in columns:
            one = mine.get(column)
            shown = "" if one is None else plus_minus(one, usual)
            if one is not None and f"{100 * one[0]:.1f}".rjust(6) == top and len(mine) > 1:
                shown = f'<strong><span class="vh">best: </span>{shown}</strong>'
            line.append(shown or '<span class="quiet">-</span>')
        lines.append(line)
    common = [mine for mine in found.values() if len(mine) == len(columns)]
    if len(found) > 1 and common:
        averages = [100 * sum(mine[column][0] for mine in common) / len(common) for column in columns]
        which = "all rows" if len(common) == len(found) else f"the {len(common)} rows that all have"
        lines.append([f"mean of {which}", *(f"{value:.1f}" for value in averages)])
    protocol = next(iter(found)).protocol
    several = any(one[2] > 1 for mine in found.values() for one in mine.values())
    runs = f"{usual} run{'s' if usual > 1 else ''} each unless n says otherwise" + ", ± over seeds" * several
    caption = f"{METRICS[metric]} in %, protocol {protocol}; {runs}; bold = best of the row"
    return page.table(caption, ["", *columns], lines, "matrix")


def best(page: Page, cells: Cells, metric: str) -> str:
    """The best detector of each row and the one after it, and how often each is best."""
    found = {row: mine for row, mine in means(cells, metric).items() if len(mine) > 1}
    if not found:
        return ""
    lines, wins = [], Counter[str]()
    for row, mine in found.items():
        first, second, *_ = sorted(mine, key=lambda column: -mine[column][0])
        wins[first] += 1
        lead = 100 * (mine[first][0] - mine[second][0])
        one, other = plus_minus(mine[first], 1), plus_minus(mine[second], 1)
        lines.append([text(row.label), text(first), one, text(second), other, f"{lead:.1f}"])
    protocol = next(iter(found)).protocol
    said = ", ".join(f"{name} {count}" for name, count in wins.most_common())
    caption = f"best by {METRICS[metric]} (%), protocol {protocol}"
    table = page.table(caption, ["", "best", "", "second", "", "ahead by"], lines, "best")
    folded = details(f"the best of each of {len(lines)} rows", table) if len(lines) > 10 else table
    return f"<p>{text(protocol)}, rows on which each is best by {text(METRICS[metric])}: {text(said)}.</p>{folded}"
