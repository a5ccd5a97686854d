"""The end of a report: cost, configs (what is common first), environment, and the command of each run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from outlie.results import rerun
from outlie.results.page import Page, details, text
from outlie.results.report import Run, Selection, flat, said
from outlie.results.report_tables import cpu_seconds, cpu_time
from outlie.results.words import large

QUIET = ("output_dir", "force", "dry_run", "debug", "choices")  # of a command line
MOST_CONFIGS = 40  # in full; the others are what is common and their differences


def runs(page: Page, selection: Selection, config_dirs: tuple[str, ...] = ()) -> None:
    """Add the section."""
    if not selection.runs:
        return
    page.add(
        page.heading(2, "Runs, configs, cost"),
        page.heading(3, "Cost"),
        cost(page, selection),
        page.heading(3, "Configs"),
        *configs(page, selection),
        page.heading(3, "Environment"),
        environments(page, selection.runs),
        page.heading(3, "Every run, and its command"),
        every(page, selection, config_dirs),
    )


def by_column(selection: Selection) -> dict[str, list[Run]]:
    """Detector -> its runs."""
    found: dict[str, list[Run]] = {}
    for run in selection.runs:
        found.setdefault(selection.columns[run.folder], []).append(run)
    return dict(sorted(found.items()))


def cost(page: Page, selection: Selection) -> str:
    """A line for each detector: CPU time in all and the median of a run, and its size."""
    lines = []
    for column, some in by_column(selection).items():
        spent = [cpu_seconds([run]) for run in some]
        line = [text(column), f"{len(some):,}", cpu_time(cpu_seconds(some)), cpu_time(median(spent))]
        for key in ("parameters", "buffers", "flops_per_row", "peak_memory_mb"):
            found = [value for run in some if isinstance(value := (run.result.get("cost") or {}).get(key), int | float)]
            line.append(large(median(found)).strip() if any(found) else "-")
        timed = [ms for run in some if (ms := (run.result.get("latency") or {}).get("latency_p50_ms"))]
        line.append(f"{median(timed):.3g}" if timed else "-")
        lines.append(line)
    head = ["detector", "runs", "CPU time", "a run", "parameters", "fitted numbers", "FLOP a row", "MiB", "ms a row"]
    words = "CPU time of training, fitting and scoring as stored; weights that runs share count once; medians of runs"
    return page.table(words, head, lines)


def configs(page: Page, selection: Selection) -> list[str]:
    """What is the same in most runs, each detector's own options, then some configs in full."""
    every_one = [flat({k: v for k, v in run.config.items() if k not in QUIET}) for run in selection.runs]
    shared = usual([{k: v for k, v in one.items() if not _own(k)} for one in every_one])
    lines = [(f"<code>{text(key)}</code>", *_usual(counts)) for key, counts in shared.items()]
    caption = "options beside the detector's: the most common value, and others with the number of runs"
    parts = [details(caption, page.table(caption, ["option", "most common", "others"], lines, "words"))]
    for column, some in by_column(selection).items():
        own = usual([{k: v for k, v in flat(run.config).items() if _own(k)} for run in some])
        lines = [(f"<code>{text(key)}</code>", *_usual(counts)) for key, counts in own.items()]
        words = f"{column}: {len(some)} run{'s' if len(some) > 1 else ''}"
        parts.append(details(words, page.table(f"options of {column}", ["option", "value", "others"], lines, "words")))
    full = []
    for run in selection.runs[:MOST_CONFIGS]:
        path = run.folder / "config.yaml"
        full.append(details(run.folder.name, f"<pre>{text(path.read_text(encoding='utf-8'))}</pre>"))
    more = len(selection.runs) - len(full)
    note = f"<p>{more} more are not repeated here: each is in its run's folder.</p>" if more else ""
    return [*parts, details(f"resolved configs in full ({len(full)} of {len(selection.runs)})", "".join(full) + note)]


def _own(key: str) -> bool:
    return key.partition(".")[0] in ("detector", "backbone", "distiller", "teacher")


def usual(options: Sequence[dict[str, Any]]) -> dict[str, Counter[str]]:
    """Option -> how many runs have which value."""
    found: dict[str, Counter[str]] = {}
    for one in options:
        for key, value in one.items():
            found.setdefault(key, Counter())[said(value)] += 1
    return found


def _usual(counts: Counter[str]) -> tuple[str, str]:
    (first, _), *others = counts.most_common()
    rest = ", ".join(f"{value} ({count})" for value, count in others[:8])
    return text(first), text(rest + (f" and {len(others) - 8} more" if len(others) > 8 else ""))


def environments(page: Page, some: Sequence[Run]) -> str:
    """Versions and hardware: what all share once, what differs with the number of runs."""
    own = [flat({"code": run.result.get("code_version"), **(run.result.get("environment") or {})}) for run in some]
    lines = [(text(key), *_usual(counts)) for key, counts in usual(own).items()]
    words = "what the runs were computed with: the most common, and others with the number of runs"
    return page.table(words, ["", "most common", "others"], lines, "words")


def every(page: Page, selection: Selection, config_dirs: tuple[str, ...]) -> str:
    """One line a run: where it is, when it was made, what it took, how to compute it again."""
    options = [flat({k: v for k, v in run.config.items() if k not in QUIET}) for run in selection.runs]
    shared = {key: counts.most_common(1)[0][0] for key, counts in usual(options).items()}
    lines = []
    for run, mine in zip(selection.runs, options):
        differs = [
            f"{key}={said(value)}"
            for key, value in mine.items()
            if not _own(key) and key not in ("seed", "dataset.name") and said(value) != shared[key]
        ]
        lines.append((
            text(run.folder.name), f"<code>{text(rerun.command(run.folder, run.config, config_dirs))}</code>",
            text(", ".join(differs) or "-"), text(run.result.get("finished") or "-"), cpu_time(cpu_seconds([run])),
        ))  # fmt: skip
    head = ["run", "command", "differs from most runs in", "finished", "CPU"]
    table = page.table(f"{len(lines)} runs", head, lines, "words")
    return table if len(lines) <= 12 else details(f"{len(lines)} runs", table)
