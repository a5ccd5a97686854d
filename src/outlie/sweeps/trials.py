"""The trials of a search: asked for when a process is free, computed as cells, told when all their runs have ended."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from outlie.errors import UserError
from outlie.results import store
from outlie.results.words import last_line
from outlie.sweeps import objective, pruning, runner
from outlie.sweeps.cells import Cell, Event
from outlie.sweeps.local import Local, Queue
from outlie.sweeps.search import Plan

JOURNAL = "journal.log"
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
HOPELESS = 5  # trials that fail before one succeeds: then something is wrong that no setting mends
Said = Callable[[FrozenTrial, str, float], None]  # a trial, what happened, seconds of its last run


def opened(plan: Plan) -> optuna.Study:
    """The study in the folder's journal, new or as it was left; UserError where it cannot be read."""
    pruning.quiet()
    journal = plan.folder / JOURNAL
    mend(journal)
    rungs = pruning.Rungs(plan.search.first_epoch, max(2, plan.search.reduction))
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=rungs.first, reduction_factor=rungs.factor)
    with store.writing(journal):
        journal.parent.mkdir(parents=True, exist_ok=True)
        try:
            return optuna.create_study(
                study_name=pruning.STUDY, storage=pruning.storage(journal), load_if_exists=True,
                directions=[one.direction for one in plan.objectives], pruner=pruner,
            )  # fmt: skip
        except (ValueError, KeyError) as error:
            raise UserError(
                f"cannot read {journal} ({error}); remove it: the trials are made again, their finished runs are found"
            ) from error


def mend(journal: Path) -> None:
    """Cut off what a killed process wrote of a line: the next line would be spoilt by it."""
    with store.writing(journal), contextlib.suppress(FileNotFoundError), journal.open("rb+") as file:
        written = file.read()
        if not written.endswith(b"\n"):
            file.truncate(written.rfind(b"\n") + 1)


def recover(study: optuna.Study) -> None:
    """Trials that a killed search left running have failed, and are tried again; only while no other search runs."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)


def missing(plan: Plan, study: optuna.Study) -> int:
    """Trials still to be made: failed ones do not count."""
    return max(0, plan.search.trials - len(study.get_trials(deepcopy=False, states=ENDED)))


def run(plan: Plan, study: optuna.Study, launcher: Any) -> int:
    """Make the missing trials; how many were made."""
    from outlie.sweeps.search_progress import Shown

    asked = Asked(plan, study, missing(plan, study))
    wanted = asked.budget
    with Shown(plan, study) as shown:
        asked.said = shown.said
        if asked and isinstance(launcher, Local):
            launcher.run(asked, asked.tell)
        while asked:
            launcher.run(asked.take(plan.search.at_once), asked.tell)
            asked.lost()
        asked.lost()
    return wanted - asked.budget


class Asked(Queue):
    """Cells of trials that are asked for as late as possible: the sampler should know all that has ended.

    Args:
        budget: trials that may still be asked for.
    """

    def __init__(self, plan: Plan, study: optuna.Study, budget: int) -> None:
        super().__init__([])
        self.plan, self.study, self.budget = plan, study, budget
        self.said: Said = lambda trial, what, seconds: None
        self.trials: dict[int, Trial] = {}
        self.running: dict[int, dict[Path, Event | None]] = {}  # trial -> what became of its cells
        self.cells: dict[Path, Cell] = {}  # given out, or to be given out

    def __bool__(self) -> bool:
        return super().__bool__() or self.budget > 0

    def __len__(self) -> int:
        return sum(map(len, self.left.values())) + self.budget * self.plan.parts

    def next(self, ground: str) -> Cell | None:
        """The next cell of a trial, or the first one of a new trial."""
        while not self.left and not self.waiting and self.budget:
            self.ask()
        return super().next(ground)

    def take(self, trials: int) -> list[Cell]:
        """The cells of so many new trials."""
        for _ in range(min(trials, self.budget)):
            if self.budget:
                self.ask()
        several = [cell for some in self.left.values() for cell in reversed(some)]
        self.left.clear()
        return several

    def ask(self) -> None:
        """One more trial; cells that are done, or under way for another trial, are not computed again."""
        self.budget -= 1
        number = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = sampler(self.plan, number)
        space = self.plan.space
        trial = self.study.ask({one.key: one.distribution() for one in space.dimensions.values()})
        words = space.at(trial.params)
        self.trials[trial.number] = trial
        trial.set_user_attr("words", words)
        try:
            cells = self.plan.cells(words)
        except UserError as error:
            self.fail(trial.number, str(error))
            return
        trial.set_user_attr("runs", [str(cell.folder) for cell in cells])
        ended: dict[Path, Event | None] = {}
        for cell in cells:
            ended[cell.folder] = None
            if cell.folder in self.cells:
                continue
            ended[cell.folder] = runner.found(cell)
            if ended[cell.folder] is None:
                self.put(self.watched(cell, trial))
        self.running[trial.number] = ended
        self.finish(trial.number)

    def put(self, cell: Cell) -> None:
        """A cell to be computed."""
        self.cells[cell.folder] = cell
        self.left.setdefault(self.ground(cell), []).insert(0, cell)

    def watched(self, cell: Cell, trial: Trial) -> Cell:
        """The cell, with what its worker needs to know where it reports to the search."""
        search = self.plan.search
        if search.pruner == "none":
            return cell
        rungs = pruning.Rungs(search.first_epoch, search.reduction)
        maximise = self.plan.objectives[0].direction == "maximize"
        asked = pruning.hook(self.plan.folder / JOURNAL, trial.number, rungs, maximise)
        return cell._replace(config=cell.config | {pruning.KEY: asked})

    def tell(self, event: Event) -> None:
        """Something happened to a cell."""
        for number, ended in list(self.running.items()):
            if event.cell.folder not in ended:
                continue
            if event.what == "started":
                self.said(self.frozen(number), "started", 0.0)
            else:
                ended[event.cell.folder] = event
                self.finish(number, event.seconds)
        if event.what != "started":
            self.cells.pop(event.cell.folder, None)

    def lost(self) -> None:
        """Cells of which a launcher said nothing have failed."""
        for number, ended in list(self.running.items()):
            for folder, event in ended.items():
                if event is None and folder in self.cells:
                    ended[folder] = Event(self.cells[folder], "failed", error="nobody computed it")
            self.finish(number)
        self.cells.clear()

    def finish(self, number: int, seconds: float = 0.0) -> None:
        """Tell the study, if every cell of the trial has ended."""
        ended = [event for event in self.running[number].values() if event is not None]
        if len(ended) < len(self.running[number]):
            return
        folders = list(self.running.pop(number))
        trial = self.frozen(number)
        failed = [event for event in ended if event.what == "failed"]
        if pruning.PRUNED_AT in trial.user_attrs or any(pruning.STOPPED in event.error for event in failed):
            self.said(self.study.tell(number, state=TrialState.PRUNED), "pruned", seconds)
        elif failed:
            self.fail(number, failed[0].error)
        else:
            try:
                values = [objective.value(one, folders) for one in self.plan.objectives]
            except UserError as error:
                self.fail(number, str(error))
                return
            what = "found" if all(event.what == "found" for event in ended) else "done"
            self.said(self.study.tell(number, values), what, seconds)

    def fail(self, number: int, error: str) -> None:
        """The trial has no number; where none has one, ask for no more."""
        self.trials[number].set_user_attr("error", error)
        ended = self.study.tell(number, state=TrialState.FAIL)
        self.said(ended, f"failed: {last_line(error) or 'no reason was given'}", 0.0)
        states = [trial.state for trial in self.study.get_trials(deepcopy=False)]
        if states.count(TrialState.FAIL) >= HOPELESS and not any(state in ENDED for state in states):
            self.budget = 0

    def frozen(self, number: int) -> FrozenTrial:
        """The trial as it is now."""
        return self.study.get_trials(deepcopy=False)[number]


def sampler(plan: Plan, number: int) -> optuna.samplers.BaseSampler:
    """What proposes trial `number`: seeded for it, so that a search that goes on does not repeat its beginning."""
    seed = int(store.digest([plan.search.seed, number]), 16) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if plan.search.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=plan.search.startup)
