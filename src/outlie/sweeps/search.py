"""`run train -m search=tpe ...`: Optuna chooses settings, each an ordinary run, by rows that are no test rows.

A trial is a setting; its runs (one a seed) are cells of a sweep, so what is done is found. The journal of a search is
in outputs/search/NAME: the same command goes on, with more trials it adds the difference.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from outlie import compose
from outlie.commands import sweep
from outlie.errors import UserError
from outlie.options import NonNegativeInt, PositiveInt
from outlie.results import store
from outlie.sweeps import cells as sweep_cells
from outlie.sweeps import objective, space
from outlie.sweeps.objective import Objective
from outlie.sweeps.space import Space


@dataclass
class Search:
    """How settings are chosen.

    Args:
        objective: what is optimised: validation/METRIC, validation_loss; in a list also latency_p50_ms, flops_per_row,
            parameters: then the settings that no other one beats are kept. Never a number of test rows.
        trials: settings tried in all; a higher number goes on with the same search
        sampler: tpe = by what earlier trials said, random = without looking at them
        pruner: asha = a training whose validation loss lags behind those of other trials is stopped
        seeds: runs a setting, of different seeds; their mean counts
        startup: random trials before TPE
        first_epoch: asha: no training is stopped before
        reduction: asha: one of so many goes on, and is trained so many times longer
        at_once: trials given out together by a launcher that takes jobs in one go (slurm, ray)
        seed: of the sampler
    """

    objective: str | list[str] = "validation/auroc"
    trials: PositiveInt = 50
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["none", "asha"] = "none"
    seeds: PositiveInt = 1
    startup: PositiveInt = 10
    first_epoch: PositiveInt = 10
    reduction: PositiveInt = 3
    at_once: PositiveInt = 8
    seed: NonNegativeInt = 0


@dataclass
class Plan:
    """A search that was found to be possible and honest."""

    search: Search
    space: Space
    objectives: list[Objective]
    folder: Path  # of the journal and the report
    command: str
    config_dirs: tuple[str, ...]
    config_file: Path | None
    first: sweep_cells.Cell  # of some setting
    parts: int  # cells of a setting

    def cells(self, words: list[str]) -> list[sweep_cells.Cell]:
        """The runs of a setting."""
        return sweep_cells.expand(words + self.seed_words(), self.config_dirs, self.command, self.config_file)

    def seed_words(self) -> list[str]:
        """seed=0,1,2 for three seeds; nothing for one."""
        seed = self.first.config["seed"]
        several = ",".join(str(seed + number) for number in range(self.search.seeds))
        return [f"seed={several}"] if self.search.seeds > 1 else []


def main(
    apart: list[str], words: list[str], config_dirs: tuple[str, ...], command: str, config_file: Path | None
) -> int:
    """Try settings until there are as many trials as wanted, and report; exit code 1 where none succeeded."""
    if not any(word.startswith("search=") for word in apart):
        apart = ["search=tpe", *apart]
    options: Search = sweep.build(sweep.section("search", apart, config_dirs))
    launcher = sweep.section("launcher", apart, config_dirs)
    plan = planned(options, words, config_dirs, command, config_file)
    if any(one.timed for one in plan.objectives) and launcher.get("jobs", 0) is None:
        launcher["jobs"] = 1  # runs beside each other would slow each other down
    if plan.first.config["dry_run"]:
        return tell_plan(plan)
    if importlib.util.find_spec("optuna") is None:
        raise UserError("search= needs Optuna: pip install 'outlie[search]'")
    from outlie.sweeps import search_report, trials

    with store.lock(plan.folder):
        study = trials.opened(plan)
        trials.recover(study)
        ran = trials.run(plan, study, sweep.build(launcher))
        return search_report.show(plan, study, ran)


def planned(
    options: Search, words: list[str], config_dirs: tuple[str, ...], command: str, config_file: Path | None
) -> Plan:
    """The search of these words; UserError with every mistake in them, at the ends of the space, too."""
    objectives = objective.read(options.objective)
    found = space.read(words, config_dirs)
    problems: list[str] = []
    ends: list[list[sweep_cells.Cell]] = []
    for corner in found.corners():
        try:
            ends.append(sweep_cells.expand(corner, config_dirs, command, config_file))
        except UserError as error:
            problems += compose.problems_of(error)
    pruned = options.pruner == "asha"
    problems += [text for some in ends for text in objective.check(objectives, some[0].config, pruned)]
    if pruned:
        problems += refuse_pruning(options, objectives, [cell for some in ends for cell in some], len(ends))
    compose.report(problems)
    first = ends[0][0]
    known = {key: value for key, value in asdict(options).items() if key not in ("trials", "at_once")}
    content = [known, [one.name for one in objectives], [*map(list, found.dimensions.values())], words_apart(found)]
    digest = store.digest([*content, store.identity(first.config)])
    names = [first.config["choices"][group].replace("/", "_") for group in ("dataset", "detector")]
    folder = Path(first.config["output_dir"]) / "search" / f"{'-'.join(names)}-{digest}"
    return Plan(
        options, found, objectives, folder, command, config_dirs, config_file, first, len(ends[0]) * options.seeds
    )


def words_apart(found: Space) -> list[str]:
    """The keys in the order typed: a later word may undo an earlier one."""
    return [word.partition("=")[0] for word in found.words]


def refuse_pruning(
    options: Search, objectives: list[Objective], ends: list[sweep_cells.Cell], settings: int
) -> list[str]:
    """Why trainings cannot be stopped early here."""
    found = []
    if len(objectives) > 1:
        found.append("search=asha has one objective: with several, a lagging loss does not make a setting worse")
    if options.seeds > 1 or len(ends) > settings:
        found.append("search=asha stops one training a setting: search.seeds=1, and a dataset of one file")
    if options.reduction < 2:
        found.append("search.reduction=1 would stop nothing; at least 2")
    if ends and ends[0].config["trainer"]["devices"] not in (1, "auto"):
        found.append("search=asha stops trainings of one process: trainer.devices=1")
    return found


def tell_plan(plan: Plan) -> int:
    """What would be done, and stop."""
    goals = ", ".join(f"{one.direction} {one.name}" for one in plan.objectives)
    print(f"# {plan.search.trials} trials by {plan.search.sampler}: {goals}")
    for one in plan.space.dimensions.values():
        values = ", ".join(one.choices) or f"{one.word(one.low)} to {one.word(one.high)}"
        print(f"#   {one.key}: {values}" + (", logarithmic" if one.log else ""))
    print(f"#   into {plan.folder}")
    return 0
