"""`run eval run=STUDENT detectors=...`: beside the teacher's scores by the same detectors, each network scored once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from outlie import catalog, runs, signatures
from outlie.build import build
from outlie.commands import compare
from outlie.errors import UserError
from outlie.gather import rank_and_world
from outlie.metrics.evaluation import Metrics
from outlie.results import agreement, store


def beside_teacher(
    now: dict[str, Any], then: dict[str, Any], run: Path, results: dict[str, dict[str, Any]], metrics: Metrics
) -> None:
    """Score the teacher's network by the same detectors, in its own comparison; store, show and draw the agreement."""
    from outlie.commands.evaluate import finished

    try:
        teacher = Path(then["teacher"])
        teacher = teacher if teacher.is_dir() else runs.find(teacher.name, now["output_dir"])
        trained, taught = finished(teacher)
        asked = as_asked(now, taught)
        own = names_served(list(results), tuple(build(asked["backbone"], list(now["allow"])).provides))
        theirs, _ = compare.compared(asked, taught, teacher, trained, own, metrics)
    except UserError as error:  # the student's own comparison is done and shown
        print(f"no agreement with the teacher {then['teacher']}: {error}", file=sys.stderr)
        return
    if rank_and_world()[0] != 0:
        return
    mine, other = compare.folders_of(now, run, list(results)), compare.folders_of(asked, teacher, own)
    agreements = {}
    for name in own:
        if results[name]["status"] == "done" and theirs[name]["status"] == "done":
            what = {"teacher": str(teacher), "scored": theirs[name]["finished"], "bootstrap": metrics.bootstrap}
            agreements[name] = found_or_computed(mine[name], other[name], what, then["seed"])
    folder = store.comparison_folder(now, run)
    agreement.write(folder / "agreement.csv", agreements)
    agreement.draw(agreements, folder / "agreement.png")
    agreement.render(agreements, teacher, [name for name in results if name not in agreements])


def found_or_computed(mine: Path, other: Path, what: dict[str, Any], seed: int) -> agreement.Agreement:
    """The agreement of a detector's scores in two folders, kept in the student's result.json beside `what` it is of."""
    result = store.read_result(mine) or {}
    known = result.get("agreement") or {}
    if {key: known.get(key) for key in what} != what:
        student, teacher = store.read_scores(mine), store.read_scores(other)
        known = what | {"sets": agreement.agreement(student, teacher, what["bootstrap"], seed)}
        store.write_json(mine / "result.json", result | {"agreement": known})
    return known["sets"]


def as_asked(now: dict[str, Any], taught: dict[str, Any]) -> dict[str, Any]:
    """The config that `run eval run=TEACHER detectors=...` would have with the same test sets.

    Raises:
        UserError: the teacher was trained on other data.
    """
    own = ("backbone", "detector", "seed", "teacher", "distiller")  # the last two where the teacher is a student itself
    asked = {name: value for name, value in now.items() if name not in own}
    asked |= {name: taught[name] for name in own if name in taught}
    numbers = {name: taught["trainer"][name] for name in store.TRAINER_NUMBERS if name in taught["trainer"]}
    chosen = {name: taught["choices"][name] for name in own if name in taught["choices"]}
    asked |= {"trainer": now["trainer"] | numbers, "choices": now["choices"] | chosen, "force": False}
    if store.training_identity(asked)["dataset"] != store.training_identity(taught)["dataset"]:
        raise UserError("it was trained on other data than the student")
    return asked


def names_served(names: list[str], provides: tuple[str, ...]) -> list[str]:
    """Those of the detectors that a backbone with these views can serve."""
    known = catalog.choices("detector", catalog.roots())
    signature = {name: signatures.read(catalog.target(known[name])) for name in names}
    return [name for name in names if (found := signature[name]) and set(found.needs) <= {*provides}]
