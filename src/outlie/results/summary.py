"""The closing summary of a run: metrics, the operating point in words, latency, cost, warnings, where the files are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from outlie.errors import UserError
from outlie.results import kinds, ood_table, teacher_student
from outlie.results.segmentation_words import segmentation_in_words
from outlie.results.words import bracket, large, last_line, ms, percent, seconds

# What a metric says, beside its key.
MEANING = {
    "auroc": "50 = chance",
    "average_precision": "prevalence = chance",
    "average_precision_id_positive": "normals as positives",
    "aupr_trapezoid_ood_positive": "parity with OpenOOD",
    "aupr_trapezoid_id_positive": "parity with OpenOOD",
    "f1_at_k": "k = number of anomalies",
    "fpr95_ood_positive": "95 % of anomalies found",
    "fpr95_id_positive": "95 % of normals accepted",
    "recall_at_fpr01": "at 1 % false alarms",
    "recall_at_fpr05": "at 5 % false alarms",
    "recall_at_fpr10": "at 10 % false alarms",
    "detection_error": "best mean of both errors",
}

COLLAPSE = {"NC1": "nc1", "NC2": "nc2_equiangularity", "NC3": "nc3", "NC4": "nc4"}
GROUP = ("auroc", "average_precision", "f1_at_k", "recall_at_fpr01")  # what fits beside a name in 80 columns


def show(run_dir: Path, console: Console | None = None) -> None:
    """Print the summary of a stored run; raises UserError if there is no readable result."""
    path = run_dir / "result.json"
    try:
        result = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{run_dir} has no result.json: the run is not finished; the same `run train` resumes it"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not readable ({error}); run again with force=true") from None
    render(result, run_dir, console)


def render(result: Mapping[str, Any], run_dir: Path, console: Console | None = None) -> None:
    """Print the summary of `result`: styled on a terminal, plain text elsewhere."""
    console = console or Console(highlight=False)
    console.print()
    console.print(_title(result))
    if result.get("status") == "failed":
        reason = last_line(result.get("error")) or "no reason was recorded"
        console.print(Text(f"failed: {reason}", style="bold red"))
    several = len(result.get("protocols") or {}) > 1
    if several:
        console.print(ood_table.table(result))
        _say(console, [realised_in_words(result, name, name) for name in result["protocols"]])
    for name, metrics in () if several else (result.get("metrics") or {}).items():
        console.print(Padding(_heading(result, name), (1, 0, 0, 0)))
        if metrics:
            console.print(_table(result, name, metrics))
        _say(console, [recall_in_words(result, name), realised_in_words(result, name)])
        _say(console, kinds.in_words(result, name))
    if result.get("metrics") and not result.get("threshold"):
        _say(console, ["No threshold: this protocol keeps no calibration rows, the recall is read off the test set."])
    costs = [latency_in_words(result.get("latency")), cost_in_words(result.get("cost"))]
    said = [classifier_in_words(result.get("classifier")), *density_in_words(result.get("density"))]
    _say(console, [*said, *segmentation_in_words(result.get("segmentation")), *costs], above=1)
    if result.get("distillation"):
        console.print(f"\n[bold]Student and teacher[/] ({result['distillation']['teacher_run']})")
        console.print(teacher_student.table(result["distillation"]))
    warnings = dict.fromkeys([(result.get("threshold") or {}).get("warning"), *(result.get("findings") or [])])
    _say(console, [f"! {warning}" for warning in warnings if warning], style="yellow", above=1)
    files = sorted(path.name for path in run_dir.glob("[!.]*") if path.is_file())
    console.print()
    console.print(Text(str(run_dir), style="bold"), soft_wrap=True)
    _say(console, [", ".join(files)])
    console.print()


def render_group(results: list[Mapping[str, Any]], console: Console | None = None) -> None:
    """Print the parts of one dataset under each other, with their unweighted mean."""
    console = console or Console(highlight=False)
    rows = [
        (result["dataset"] + (f" {name}" if len(result["metrics"]) > 1 else ""), metrics)
        for result in results
        for name, metrics in result["metrics"].items()
        if metrics
    ]
    shown = [key for key in GROUP if any(key in metrics for _, metrics in rows)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("%", overflow="fold")
    for key in shown:
        table.add_column(key, justify="right", no_wrap=True)
    for name, metrics in rows:
        table.add_row(Text(name), *("-" if metrics.get(key) is None else f"{100 * metrics[key]:.2f}" for key in shown))
    table.add_section()
    means = []
    for key in shown:
        values = [metrics[key] for _, metrics in rows if metrics.get(key) is not None]
        means.append(f"{100 * sum(values) / len(values):.2f}" if values else "-")
    table.add_row(f"mean of {len(rows)}, unweighted", *means, style="bold")
    console.print(table)


def classifier_in_words(classifier: Mapping[str, Any] | None) -> str | None:
    """How accurate the classifier is, and how far its features have collapsed onto their class means."""
    if not classifier:
        return None
    accuracy = classifier.get("accuracy")
    sentences = [] if accuracy is None else [f"The classifier gets {percent(accuracy)} of the test rows right"]
    if sentences and classifier.get("train_accuracy") is not None:
        sentences[0] += f", {percent(classifier['train_accuracy'])} of the training rows"
    collapse = {key: classifier.get(name) for key, name in COLLAPSE.items() if classifier.get(name) is not None}
    if collapse:
        sentences.append("Neural collapse (0 = complete): " + ", ".join(f"{k} {v:.3g}" for k, v in collapse.items()))
    return ". ".join(sentences) + "." if sentences else None


def density_in_words(density: Mapping[str, Any] | None) -> list[str | None]:
    """What the density model gives rows it did not train on, what its encoder loses, where not to trust its weights."""
    if not density:
        return []
    name, sets = density["reference"], density["sets"]
    known = sets[name]
    bound, gap, own = known["bounds"]["5000"], known["inference_gap"]["mean"], known["amortisation_gap"]["mean"]
    error = f" (SE {bound['se']:.2g})" if bound["se"] is not None else ""
    lost = "" if gap is None else f", inference gap {gap:.2g} nats"
    lost += f" ({own:.2g} of it amortisation)" if lost and own is not None else ""
    layers = zip(density["active_units"], density["latent_units"], strict=True)
    units = " and ".join(f"{active} of {all_units}" for active, all_units in layers)
    level = "-inf" if bound["mean"] is None else f"{bound['mean']:.4g}"
    rows = f"{known['rows']:,} {'held-out' if name == 'held_out' else name} rows"
    worst = sorted(sets, key=lambda one: (one != name, -sets[one]["pareto_k_above"]))[:4]
    shares = ", ".join(f"{percent(sets[one]['pareto_k_above'])} of {one} rows" for one in worst)
    return [
        f"Density: L_5000 = {level} nats on {rows}{error}{lost}, {units} latent units active.",
        f"Pareto k above 0.7 (weights not to be trusted): {shares}.",
    ]


def recall_in_words(result: Mapping[str, Any], name: str) -> str | None:
    """'At 1 % false alarms it finds 83 % of the anomalies [76-89].'"""
    recall = result["metrics"][name].get("recall_at_fpr01")
    if recall is None:
        return None
    interval = bracket(_get(result, "intervals", name, "recall_at_fpr01"))
    hindsight = " This is read off the test set, in hindsight." if result.get("threshold") else ""
    return f"At 1 % false alarms it finds {percent(recall)} of the anomalies{interval}.{hindsight}"


def realised_in_words(result: Mapping[str, Any], name: str, title: str = "") -> str | None:
    """What the calibrated threshold did on this test set, with exact intervals."""
    threshold, realised = result.get("threshold"), _get(result, "threshold", "realised", name)
    if not threshold or not realised:
        return None
    parts = []
    if realised.get("fpr") is not None:
        normal = _get(result, "counts", name, "normal")
        on = f" on {normal:,} test normals" if normal is not None else ""
        parts.append(
            f"{percent(realised['fpr'])} false alarms were realised{on}{bracket(realised.get('fpr_interval'))}"
        )
    if realised.get("recall") is not None:
        found = bracket(realised.get("recall_interval"))
        parts.append(f"{percent(realised['recall'])} of the anomalies were found{found}")
    if not parts:
        return None
    if title:
        return f"{title}: in use, {' and '.join(parts)}."
    return (
        f"In use, at the threshold calibrated beforehand (score > {threshold['value']:.4g}, for "
        f"{percent(threshold['false_alarms'])} false alarms, from {threshold['n_calibration']:,} normal rows) "
        f"{' and '.join(parts)}."
    )


def latency_in_words(latency: Mapping[str, Any] | None) -> str | None:
    """Milliseconds for one row and rows a second for many."""
    if not latency:
        return None
    threads = latency.get("threads")
    where = str(latency.get("device", ""))
    where += f", {threads} thread{'s' if threads != 1 else ''}" if threads and where == "cpu" else ""
    return (
        f"One row takes {ms(latency['latency_p50_ms'])} (p50), {ms(latency['latency_p99_ms'])} (p99): backbone "
        f"{ms(latency['backbone_p50_ms'])}, detector {ms(latency['detector_p50_ms'])}. "
        f"{latency['throughput_per_s']:,.0f} rows per second in batches of {latency['batch_size']:,} ({where})."
    )


def cost_in_words(cost: Mapping[str, Any] | None) -> str | None:
    """Seconds, numbers to store, operations and memory; what was not measured is left out."""
    if not cost:
        return None
    cpu = f" ({seconds(cost['train_cpu_s'])} of CPU)" if cost.get("train_cpu_s") is not None else ""
    spent = [
        f"{verb} in {seconds(cost[key])}{cpu if key == 'train_s' else ''}"
        for verb, key in (("trained", "train_s"), ("fitted", "fit_s"), ("scored", "score_s"))
        if cost.get(key)
    ]
    memory = f" ({cost['peak_memory_of']})" if cost.get("peak_memory_of") else ""
    has = [
        text
        for key, text in (
            ("parameters", f"{cost.get('parameters') or 0:,} parameters"),
            ("buffers", f"{cost.get('buffers') or 0:,} fitted numbers"),
            ("nfe", f"{cost.get('nfe') or 0:,} network evaluations a row"),
            ("flops_per_row", f"{large(cost.get('flops_per_row') or 0)}FLOP a row"),
            ("peak_memory_mb", f"{cost.get('peak_memory_mb') or 0:,.0f} MiB at peak{memory}"),
        )
        if cost.get(key)
    ]
    sentences = [", ".join(words) for words in (spent, has) if words]
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences) or None


def _title(result: Mapping[str, Any]) -> Text:
    title = Text(f"{result.get('detector') or 'run'} on {result.get('dataset') or 'unknown data'}", style="bold")
    about = [f"{key} {result[key]}" for key in ("protocol", "backbone", "seed") if result.get(key) is not None]
    return title.append(f"  ({', '.join(about)})", style="not bold") if about else title


def _heading(result: Mapping[str, Any], name: str) -> Text:
    counts = _get(result, "counts", name)
    size = ": " + ", ".join(f"{number:,} {kind}" for kind, number in counts.items()) if counts else ""
    return Text(name, style="bold").append(size, style="not bold")


def _table(result: Mapping[str, Any], name: str, metrics: Mapping[str, float | None]) -> Table:
    published = _get(result, "published", name) or {}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("metric", no_wrap=True)
    table.add_column("%", justify="right", style="bold", no_wrap=True)
    intervals = _get(result, "intervals", name) or {}
    if intervals:
        table.add_column("95 % interval", justify="right", no_wrap=True)
    if published:
        table.add_column("published (std)", justify="right", no_wrap=True)
    else:  # both do not fit into 80 columns
        table.add_column("", style="dim")
    for key, value in metrics.items():
        row = [key, "-" if value is None else f"{100 * value:.2f}"]
        if intervals:
            ends = intervals.get(key)
            row.append(f"{100 * ends[0]:.1f} - {100 * ends[1]:.1f}" if ends else "")
        if published:
            theirs = published.get(key)
            row.append(f"{100 * theirs['mean']:.2f} ({100 * theirs['std']:.2f})" if theirs else "")
        else:
            row.append(MEANING.get(key, ""))
        table.add_row(*row)
    return table


def _say(console: Console, sentences: list[str | None], style: str = "", above: int = 0) -> None:
    said = [sentence for sentence in sentences if sentence]
    if said and above:
        console.print()
    for sentence in said:
        console.print(Text(sentence, style=style))


def _get(result: Mapping[str, Any], *keys: str) -> Any:
    found: Any = result
    for key in keys:
        found = (found or {}).get(key)
    return found
