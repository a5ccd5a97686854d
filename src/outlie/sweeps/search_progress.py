"""What a search says while it runs: trials, the best so far on the rows that choose, an estimate of what remains."""

from __future__ import annotations

import time

from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from rich.live import Live
from rich.text import Text

from outlie.results.words import seconds as in_words
from outlie.sweeps.progress import QUIET_SECONDS, Progress
from outlie.sweeps.search import Plan


class Shown(Progress):
    """As a sweep's progress, of trials in place of cells; no number of test rows is among it."""

    def __init__(self, plan: Plan, study: Study) -> None:
        super().__init__()
        self.plan, self.study = plan, study
        self.total, self.pruned = plan.search.trials, 0
        states = [trial.state for trial in study.get_trials(deepcopy=False)]
        self.found = states.count(TrialState.COMPLETE) + states.count(TrialState.PRUNED)  # of an earlier command
        self.spent: list[float] = []  # seconds of trials that ran

    def __enter__(self) -> Shown:
        if self.found < self.total and self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=2, get_renderable=self.render, transient=True)
            self.live.start()
        return self

    def said(self, trial: FrozenTrial, what: str, seconds: float) -> None:
        """A trial started or ended."""
        words = trial.user_attrs.get("words", [])
        searched = [word for word in words if word.partition("=")[0] in trial.params]
        name = f"trial {trial.number}: {' '.join(searched)}"
        if what == "started":
            self.running.setdefault(name, (name, time.monotonic()))
            self.most = max(self.most, len(self.running))
            return
        self.running.pop(name, None)
        self.spent += [seconds] if seconds else []
        self.pruned += what == "pruned"
        if what.startswith("failed"):
            self.failed += 1
            self.console.print(Text(f"{what.replace('failed:', 'failed   ')} ({name})", "red"))
        else:
            self.done += 1
        if not self.console.is_terminal and time.monotonic() - self._said > QUIET_SECONDS:
            self.console.print(self.line())
            self._said = time.monotonic()

    def line(self) -> str:
        """Where the search is, in a line."""
        parts = [f"{self.found + self.done} of {self.total} trials"]
        parts += [f"{self.pruned} stopped early"] if self.pruned else []
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{len(self.running)} running"] if self.running else []
        parts += [best] if (best := self.best()) else []
        parts += [f"about {in_words(left)} left"] if (left := self.remaining()) else []
        return ", ".join(parts)

    def best(self) -> str:
        """The best so far."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not complete:
            return ""
        if len(self.plan.objectives) > 1:
            return f"{len(self.study.best_trials)} on the front"
        return f"best {self.plan.objectives[0].name} {self.study.best_value:.4g}"

    def remaining(self) -> float | None:
        """Seconds, by the mean time of the runs so far."""
        if not self.spent:
            return None
        left = self.total - self.found - self.done - self.failed
        return max(0, left) * self.plan.parts * sum(self.spent) / len(self.spent) / self.most
