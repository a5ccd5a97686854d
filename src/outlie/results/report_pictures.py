"""The sections of a report that have pictures: each row's curves and scores, recall against latency, training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from outlie.errors import UserError
from outlie.results import report_plots as plots
from outlie.results import svg
from outlie.results.page import Page, details, figure, figures, text
from outlie.results.report import Row, Run, Selection, values
from outlie.results.report_tables import means, plus_minus

MOST_LINES = 8  # in one picture: the best ones
MOST_RUNS = 30  # in one picture of losses
MOST_BYTES = 2_500_000  # of pictures on the page
RECALLS = {"recall_at_fpr01": "recall @1 %", "recall_at_fpr05": "@5 %", "recall_at_fpr10": "@10 %"}
SHOWN = {"auroc": "AUROC", "average_precision": "AP", "f1_at_k": "F1@k", **RECALLS}


def datasets(page: Page, selection: Selection) -> None:
    """Add a section with a part for each row: numbers with intervals, ROC, precision-recall, scores."""
    if not selection.cells:
        return
    spent, undrawn, parts = 0, [], [page.heading(2, "Datasets")]
    parts.append('<p class="quiet">Curves and scores are of one seed, which is said; flagged = score above it.</p>')
    for row, mine in selection.cells.items():
        seed = usual_seed(mine)
        drawn = ""
        if spent < MOST_BYTES:
            drawn = pictures(selection, row, seed)
            spent += len(drawn)
        else:
            undrawn.append(row)
        words = row.label if len(selection.protocols()) == 1 else f"{row.label} ({row.protocol})"
        parts += [
            page.heading(3, words),
            f"<p>{text(counted(row, mine, seed))}</p>",
            numbers(page, row, mine, seed),
            drawn,
        ]
    if undrawn:
        example = f"run report runs='{undrawn[0].dataset.split(' ')[0].replace('/', '_')}-*'"
        words = f"{len(undrawn)} of {len(selection.cells)} datasets are without pictures, to keep the page small:"
        parts.insert(1, f"<p>{words} <code>{text(example)}</code> draws one of them.</p>")
    page.add(*parts)


def usual_seed(cell: Mapping[str, Sequence[Run]]) -> Any:
    """The seed that most detectors have; of several the smallest."""
    seeds = [run.result["seed"] for runs in cell.values() for run in runs]
    return min(dict.fromkeys(seeds), key=lambda seed: (-seeds.count(seed), str(seed).rjust(9)))


def of_seed(runs: Sequence[Run], seed: Any) -> Run | None:
    """The run of that seed."""
    return next((run for run in runs if run.result["seed"] == seed), None)


def counted(row: Row, cell: Mapping[str, Sequence[Run]], seed: Any) -> str:
    """How many test rows of which kind, in words."""
    one = next(run for runs in cell.values() for run in runs if run.result["seed"] == seed)
    counts = (one.result.get("counts") or {}).get(row.test) or {}
    train = (one.result.get("rows") or {}).get("train")
    words = [f"{train:,} training rows"] if isinstance(train, int) else []
    words += [f"{number:,} {kind}" for kind, number in counts.items()]
    return f"Protocol {row.protocol}, seed {seed}: {', '.join(words)}{' in the test' * bool(counts)}."


def numbers(page: Page, row: Row, cell: Mapping[str, Sequence[Run]], seed: Any) -> str:
    """The detectors of a row: mean over seeds, the interval of one seed, what the threshold did, what is published."""
    found = {key: means({row: cell}, key).get(row, {}) for key in SHOWN}
    shown = [key for key in SHOWN if found[key]]
    if not shown:
        return "<p>No labels: there are scores, and no metrics.</p>"
    realised = {column: _realised(of_seed(runs, seed), row) for column, runs in cell.items()}
    published = {column: _published(runs[0], row) for column, runs in cell.items()}
    order = sorted(cell, key=lambda column: -found[shown[0]].get(column, (0,))[0])
    intervals = False
    lines = []
    for column in order:
        line = [text(column)]
        for key in shown:
            one = found[key].get(column)
            ends = _interval(of_seed(cell[column], seed), row, key)
            intervals |= bool(ends)
            line.append("-" if one is None else plus_minus(one, len(cell[column])) + ends)
        line += [realised[column] or "-"] * any(realised.values())
        line += [published[column] or "-"] * any(published.values())
        lines.append(line)
    head = ["detector", *(SHOWN[key] for key in shown)]
    head += ["in use: false alarms, found"] * any(realised.values()) + ["published AUROC"] * any(published.values())
    several = "; ± over seeds" if any(len(runs) > 1 for runs in cell.values()) else ""
    within = f"; brackets: 95 % bootstrap interval of seed {seed}" if intervals else ""
    return page.table(f"{row.label}, %: recall at 1, 5, 10 % false alarms{several}{within}", head, lines)


def _interval(run: Run | None, row: Row, key: str) -> str:
    ends = (((run.result if run else {}).get("intervals") or {}).get(row.test) or {}).get(key)
    return f"<br><small>[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]</small>" if ends else ""


def _realised(run: Run | None, row: Row) -> str:
    threshold = (run.result if run else {}).get("threshold") or {}
    one = (threshold.get("realised") or {}).get(row.test) or {}
    if one.get("fpr") is None:
        return ""
    return f"{100 * one['fpr']:.2g}, {'-' if one.get('recall') is None else format(100 * one['recall'], '.1f')}"


def _published(run: Run, row: Row) -> str:
    one = ((run.result.get("published") or {}).get(row.test) or {}).get("auroc")
    return f"{100 * one['mean']:.1f} <small>± {100 * one['std']:.1f}</small>" if one else ""


def pictures(selection: Selection, row: Row, seed: Any) -> str:
    """ROC twice, precision-recall, and the scores of each detector; folded where the page has many rows."""
    cell = selection.cells[row]
    first = next(iter(means({row: cell}, "auroc").values()), {})
    order = sorted(cell, key=lambda column: -first.get(column, (0,))[0])
    scores, unread, thresholds = {}, [], {}
    for column in order:
        if (run := of_seed(cell[column], seed)) is None or len(scores) == MOST_LINES:
            continue
        try:
            scores[column] = plots.scores_of(run.folder)[row.test]
        except (UserError, KeyError):
            unread.append(column)
        thresholds[column] = (run.result.get("threshold") or {}).get("value")
    missing = [column for column in order if column not in scores and column not in unread]
    both = {column: one for column, one in scores.items() if plots.drawable(one)}
    parts = []
    styles = svg.styles(list(both), sorted(set(selection.columns.values())))
    if both:
        low = figure(plots.roc_chart(both, styles, row.label, log=True), "ROC at few false alarms; dotted: chance")
        parts += [
            low,
            figure(plots.precision_recall_chart(both, styles, row.label), "precision and recall; dotted: prevalence"),
        ]
        parts.append(figure(plots.roc_chart(both, styles, row.label, log=False), "ROC"))
    curves = figures(parts) + (svg.legend(styles) if both else "")
    drawn = [
        figure(plots.histogram(one, column, row.label, thresholds[column]), f"scores of {column}")
        for column, one in scores.items()
        if np.isfinite(one[0]).any()
    ]
    notes = [f"Not drawn: {', '.join(missing)} (not among the best {MOST_LINES}, or without seed {seed})."] * bool(
        missing
    )
    notes += [f"Without readable scores: {', '.join(unread)}."] * bool(unread)
    keys = '<ul class="legend">' + "".join(
        f'<li><span class="key {word}"></span>{said}</li>' for word, said in _score_keys(scores, thresholds)
    )
    histograms = figures(drawn) + f"{keys}</ul>" if drawn else ""
    histograms = (
        details(f"scores of {len(drawn)} detectors", histograms) if len(selection.cells) > 12 and drawn else histograms
    )
    return curves + "".join(f'<p class="quiet">{text(note)}</p>' for note in notes) + histograms


def _score_keys(scores: Mapping[str, plots.Scores], thresholds: Mapping[str, Any]) -> list[tuple[str, str]]:
    labelled = any(label is not None for _, label in scores.values())
    keys = [("normal", "normal"), ("anomaly", "anomaly")] if labelled else [("all", "rows of unknown label")]
    return keys + [("threshold", "threshold, calibrated beforehand")] * any(
        one is not None for one in thresholds.values()
    )


def latency(page: Page, selection: Selection) -> None:
    """Add recall at 1 % false alarms against latency, for rows of which two detectors have both."""
    drawn, several = [], set()
    for row, cell in selection.cells.items():
        points = {}
        for column, runs in cell.items():
            timed = [run for run in runs if (run.result.get("latency") or {}).get("latency_p50_ms")]
            recalls = values(timed, row.test, "recall_at_fpr01")
            if recalls:
                ms = float(np.median([run.result["latency"]["latency_p50_ms"] for run in timed]))
                points[column] = (ms, float(np.mean(recalls)))
                several |= {_machine(run) for run in timed}
        if len(points) > 1 and sum(map(len, drawn)) < MOST_BYTES / 5:
            points = dict(sorted(points.items(), key=lambda one: one[1]))
            names = "".join(f"<li>{text(name)}: {ms:.3g} ms, {100 * r:.1f} %</li>" for name, (ms, r) in points.items())
            caption = f"{row.label}: filled = none is as fast and as good"
            drawn.append(figure(plots.trade_off_chart(points, row.label), caption, f"<ol>{names}</ol>"))
    if drawn:
        words = "Latencies are those that each run measured when it was made"
        words += f", on {len(several)} machines or thread counts: do not compare them; " if len(several) > 1 else "; "
        words += "run bench measures runs side by side."
        page.add(page.heading(2, "Recall against latency"), f"<p>{text(words)}</p>", figures(drawn))


def _machine(run: Run) -> str:
    latency, environment = run.result["latency"], run.result.get("environment") or {}
    return f"{latency.get('device')} {latency.get('threads')} {environment.get('device')}"


def training(page: Page, selection: Selection) -> None:
    """Add the losses of each detector's runs."""
    labels = {run.folder: row.label for row, cell in selection.cells.items() for runs in cell.values() for run in runs}
    by_column: dict[str, dict[str, Any]] = {}
    for run in selection.runs:
        name = f"{labels.get(run.folder, run.result['dataset'])}, seed {run.result['seed']}"
        by_column.setdefault(selection.columns[run.folder], {})[name] = run.folder / "metrics.csv"
    drawn = []
    for column, files in sorted(by_column.items()):
        trained = {name: path for name, path in files.items() if path.is_file() and path.stat().st_size}
        shown = dict(list(trained.items())[:MOST_RUNS])
        if sum(map(len, drawn)) < MOST_BYTES / 4 and (
            picture := plots.training_chart(shown, styles := svg.styles(list(shown)), column)
        ):
            many = f", the first {len(shown)} of {len(trained)} runs" if len(trained) > len(shown) else ""
            names = svg.legend(styles) if len(shown) <= svg.COLOURS else ""
            held_out = "; dotted: on rows held out" if "held-out" in picture else ""
            drawn.append(figure(picture, f"{column}{many}{held_out}", names))
    if drawn:
        page.add(page.heading(2, "Training"), figures(drawn))
