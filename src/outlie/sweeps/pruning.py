"""What a worker knows of the search that its cell belongs to: it reports losses, and stops a training that lags.

Asynchronous successive halving (Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020): at epoch
r * s^k a training goes on if its validation loss is among the best 1/s of those that came as far.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from outlie.errors import UserError

if TYPE_CHECKING:
    from optuna import Study

KEY = "search"  # of a cell's config, on its way to a worker; no part of what a run is
STUDY = "search"  # the only one in a journal
PRUNED_AT = "pruned_at"  # a trial's attribute: the epoch
STOPPED = "stopped by the search"
GRACE_S = 10  # after which the lock of a killed process is broken; held for milliseconds


class PrunedError(UserError):
    """A search stopped this training; what it had is kept, so that another command can go on."""


class Rungs(NamedTuple):
    """When a training is compared with the others, and which share of them goes on."""

    first: int  # epochs
    factor: int


def hook(journal: Path, number: int, rungs: Rungs, maximise: bool) -> dict[str, Any]:
    """What to put into a cell's config under KEY."""
    return {"journal": str(journal.resolve()), "number": number, "rungs": list(rungs), "maximise": maximise}


def watch(asked: dict[str, Any] | None) -> Any:
    """An `on_epoch` of the training (lightning.Told) that reports to the search and raises PrunedError."""
    if asked is None:
        return lambda losses, validation: None
    from optuna.trial import Trial

    rungs = Rungs(*asked["rungs"])
    study, journal = opened(asked["journal"], rungs)
    identifier = journal.get_trial_id_from_study_id_trial_number(journal.get_study_id_from_name(STUDY), asked["number"])
    trial = Trial(study, identifier)
    sign = -1.0 if asked["maximise"] else 1.0  # a pruner takes what it is told for the objective itself
    rung = rungs.first

    def told(losses: list[float], validation: list[float]) -> None:
        nonlocal rung
        while rung <= len(validation):  # several at once where a killed training goes on
            trial.report(sign * min(validation[:rung]), rung)
            if trial.should_prune():
                trial.set_user_attr(PRUNED_AT, rung)
                raise PrunedError(f"{STOPPED} at epoch {rung}: its validation loss lags behind others'")
            rung *= rungs.factor

    return told


@cache
def opened(journal: str, rungs: Rungs) -> tuple[Study, Any]:
    """The study in a journal, as a worker needs it, and its storage."""
    import optuna

    quiet()
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=rungs.first, reduction_factor=rungs.factor)
    stored = storage(Path(journal))
    return optuna.load_study(study_name=STUDY, storage=stored, pruner=pruner), stored


def storage(journal: Path) -> Any:
    """A journal on a disk that processes share; a killed one leaves it readable."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    return JournalStorage(JournalFileBackend(str(journal), JournalFileOpenLock(str(journal), GRACE_S)))


def quiet() -> None:
    """Optuna reports each trial to stderr, and warns of every part that is younger than a year."""
    import warnings

    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module=r"optuna\..*")
