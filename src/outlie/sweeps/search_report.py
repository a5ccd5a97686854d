"""What a search found: the chosen setting and its test numbers, once; trials.csv; history.png; or the Pareto front."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from outlie.results import store
from outlie.sweeps import objective, pruning
from outlie.sweeps.search import Plan
from outlie.sweeps.summary import in_words

SHOWN = "shown"  # a study's attribute: after how many trials test numbers were shown, of which trial
METRICS = ("auroc", "average_precision", "recall_at_fpr01")
ENOUGH = 10  # trials before an importance says something


def show(plan: Plan, study: optuna.Study, ran: int, console: Console | None = None) -> int:
    """Print what was chosen, write trials.csv and history.png; exit code 1 where every trial failed."""
    console = console or Console(highlight=False)
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    write_csv(plan, study, plan.folder / "trials.csv")
    states = [trial.state for trial in trials]
    names = {"complete": TrialState.COMPLETE, "stopped early": TrialState.PRUNED, "failed": TrialState.FAIL}
    count = {what: states.count(state) for what, state in names.items()}
    said = ", ".join(f"{number} {what}" for what, number in count.items() if number)
    console.print(f"\n{ran} trials now, {len(trials)} in all: {said}")
    if not complete:
        reasons = [trial.user_attrs["error"] for trial in trials if "error" in trial.user_attrs]
        console.print(Text(f"no trial succeeded: {(reasons or ['stopped'])[-1]}", style="bold red"))
        return 1
    if len(plan.objectives) > 1:
        show_front(plan, study, console)
    else:
        show_chosen(plan, study, count["complete"] + count["stopped early"], console)
    draw(plan, study, plan.folder / "history.png")
    for name in ("trials.csv", "history.png"):
        console.print(Text(str(plan.folder / name), style="bold"), soft_wrap=True)
    return 0


def show_chosen(plan: Plan, study: optuna.Study, tried: int, console: Console) -> None:
    """The best setting: its number that chose it, and its test numbers."""
    best, goal = study.best_trial, plan.objectives[0]
    on = "rows held out of training" if goal.name == objective.LOSS else "validation rows"
    console.print(f"best: trial {best.number}, {goal.name} {best.value:.4g}", style="bold")
    for word in searched(best):
        console.print(f"  {word}")
    console.print(_tests([Path(folder) for folder in best.user_attrs["runs"]]))
    console.print(Text("per cent; over several runs mean ± standard deviation", style="dim"))
    for finding in [f"chosen on {on}, {tried} trials: the test numbers are the ones to report", *looked(study, tried)]:
        console.print(Text(f"finding   {finding}", style="yellow"), soft_wrap=True)
    if weights := importance(study):
        console.print("importance: " + ", ".join(f"{key} {100 * share:.0f} %" for key, share in weights.items()))
    console.print(Text(command(plan, best), style="bold"), soft_wrap=True)


def looked(study: optuna.Study, tried: int) -> list[str]:
    """What is to be said where test numbers of an earlier choice were shown already; and note that they are now."""
    before: list[list[int]] = study.user_attrs.get(SHOWN, [])
    now = [tried, study.best_trial.number]
    if now not in before:
        study.set_user_attr(SHOWN, [*before, now])
    other = [one for one in before if one != now]
    if not other:
        return []
    after = ", ".join(str(number) for number, _ in other)
    return [f"test numbers were shown after {after} trials already: say so where you decided to go on because of them"]


def _tests(folders: list[Path]) -> Table:
    results = [store.read_result(folder) or {} for folder in folders]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in ("rows", "runs", "AUROC", "AP", "recall at 1 % FPR"):
        table.add_column(title, justify="left" if title == "rows" else "right")
    sets = list(dict.fromkeys(name for result in results for name in result.get("metrics") or {}))
    for name in sorted(sets, key=lambda name: name != objective.ROWS):
        per_run = [(result.get("metrics") or {}).get(name) or {} for result in results]
        known = [[value for one in per_run if (value := one.get(metric)) is not None] for metric in METRICS]
        chose = " (chose it)" if name == objective.ROWS else ""
        table.add_row(name + chose, str(len(per_run)), *(in_words(values) for values in known))
    return table


def show_front(plan: Plan, study: optuna.Study, console: Console) -> None:
    """The settings that no other one beats in every objective, with a command for each; no test numbers."""
    best = sorted(study.best_trials, key=lambda trial: trial.values[0])
    console.print(f"{len(best)} settings that no other one beats:", style="bold")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("trial", justify="right")
    for goal in plan.objectives:
        table.add_column(goal.name, justify="right")
    for one in plan.space.dimensions.values():
        table.add_column(one.key, overflow="fold")
    for trial in best:
        words = [word.partition("=")[2] for word in searched(trial)]
        table.add_row(str(trial.number), *(f"{value:.4g}" for value in trial.values), *words)
    console.print(table)
    for trial in best:
        console.print(Text(f"{trial.number}: {command(plan, trial)}"), soft_wrap=True)
    tried = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    finding = f"finding   the front of {tried} trials on validation rows; choose one, then look at its test numbers"
    console.print(Text(finding, style="yellow"), soft_wrap=True)


def searched(trial: FrozenTrial) -> list[str]:
    """The words of a trial that were searched."""
    return [word for word in trial.user_attrs.get("words", []) if word.partition("=")[0] in trial.params]


def command(plan: Plan, trial: FrozenTrial) -> str:
    """What to type for the runs of a trial: they are found, and shown."""
    words = [*trial.user_attrs["words"], *plan.seed_words()]
    dirs = [word for folder in plan.config_dirs for word in ("--config-dir", folder)]
    config = ["--config", str(plan.config_file)] if plan.config_file else []
    many = ["-m"] if plan.search.seeds > 1 else []
    return shlex.join(["run", plan.command, *many, *words, *dirs, *config])


def importance(study: optuna.Study) -> dict[str, float]:
    """Share of each searched key in what was reached (PED-ANOVA); {} for one key, or too few trials."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values = {trial.value for trial in complete}
    if len(complete) < ENOUGH or len(values) < 2 or len(complete[0].params) < 2:
        return {}
    try:
        return optuna.importance.get_param_importances(study)
    except (RuntimeError, ValueError):  # all good trials alike, say
        return {}


def write_csv(plan: Plan, study: optuna.Study, path: Path) -> None:
    """trials.csv: a line a trial with its setting, its objectives and its runs; nothing of test rows."""
    keys, goals = [one.key for one in plan.space.dimensions.values()], [one.name for one in plan.objectives]
    lines: list[dict[str, Any]] = []
    for trial in study.get_trials(deepcopy=False):
        given = {key: value for key, _, value in (word.partition("=") for word in searched(trial))}
        took = trial.duration.total_seconds() if trial.duration else None
        complete = trial.state == TrialState.COMPLETE
        lines.append(
            {"trial": trial.number, "state": trial.state.name.lower(), **given}
            | (dict(zip(goals, trial.values)) if complete else {})
            | {pruning.PRUNED_AT: trial.user_attrs.get(pruning.PRUNED_AT), "seconds": took}
            | {"error": trial.user_attrs.get("error"), "runs": " ".join(trial.user_attrs.get("runs", []))}
        )
    columns = ["trial", "state", *keys, *goals, pruning.PRUNED_AT, "seconds", "error", "runs"]
    with store.whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(lines)


def draw(plan: Plan, study: optuna.Study, path: Path) -> None:
    """history.png: each trial and the best so far; of several objectives, the first two and the front."""
    from matplotlib.figure import Figure

    from outlie.results.plots import GREY, LINES

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    figure = Figure(figsize=(8, 4.6), dpi=110, layout="constrained")
    axes: Any = figure.subplots()
    if len(plan.objectives) > 1:
        x, y = plan.objectives[1], plan.objectives[0]
        best = {trial.number for trial in study.best_trials}
        for front in (False, True):
            some = [trial for trial in complete if (trial.number in best) == front]
            label = "front" if front else "beaten"
            axes.plot(*_pairs(some), "o", color=LINES[0] if front else GREY, label=label)
        axes.set(xlabel=x.name, ylabel=y.name)
    else:
        goal = plan.objectives[0]
        pick = max if goal.direction == "maximize" else min
        values = [trial.value for trial in complete]
        numbers = [trial.number for trial in complete]
        axes.plot(numbers, values, "o", color=LINES[1], label="a trial")
        so_far = [pick(values[: i + 1]) for i in range(len(values))]
        last = max(numbers[-1], len(study.get_trials(deepcopy=False)) - 1)
        axes.step([*numbers, last], [*so_far, so_far[-1]], where="post", color=LINES[0], label="best so far")
        pruned = [trial.number for trial in study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))]
        if pruned:
            at_the_edge = axes.get_xaxis_transform()  # they have no value
            axes.plot(pruned, [0.02] * len(pruned), "x", color=GREY, label="stopped early", transform=at_the_edge)
        axes.set(xlabel="trial", ylabel=goal.name)
    axes.set_title(plan.folder.name, fontsize=10)
    axes.legend()
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    with store.whole(path) as temporary:
        figure.savefig(temporary, format="png")


def _pairs(trials: list[FrozenTrial]) -> tuple[list[float], list[float]]:
    return [trial.values[1] for trial in trials], [trial.values[0] for trial in trials]
