"""From a command line to a complete config, or to one UserError that lists everything wrong with it.

Two routes give a config, and the same steps finish both. The first reads the yamls by itself and only looks for
mistakes: the whole command takes 0.09 CPU seconds, against 0.3 with Hydra. Where it meets syntax that it does not know
it steps aside. The second is Hydra's, and its config is what a run gets.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlie import catalog, checks, overrides, plain_route, runs
from outlie.errors import UserError, unknown
from outlie.overrides import Line, Override, TooRichError
from outlie.plain_route import PRIMARY, Draft

if TYPE_CHECKING:
    from omegaconf import DictConfig

ON_A_RUN = (
    "eval",
    "probe",
    "sample",
    "score",
    "export",
    "distill",
)  # commands that are given a run, whose config is the base
GIVEN_AS = {"distill": "teacher"}  # the key that names it, where that is not `run`
OWN = ("output_dir", "force", "dry_run", "debug", "allow", "choices")  # of this command line, not of a stored config


def compose(
    command: str, words: list[str], config_dirs: tuple[str, ...] = (), config_file: Path | None = None
) -> DictConfig:
    """The complete, resolved and checked config of `run COMMAND WORDS`; UserError lists every mistake.

    Args:
        command: one of the commands that have a config of their own, configs/<command>.yaml
        words: Hydra's overrides
        config_dirs: a user's own configs, searched first
        config_file: a stored run's config.yaml; its values are the base
    """
    where = catalog.roots(config_dirs)
    with contextlib.suppress(TooRichError):
        _plain(command, words, where, config_file)
    from outlie import hydra_route

    return hydra_route.frozen(_by_hydra(command, words, where, config_file))


def composed(
    command: str, words: list[str], config_dirs: tuple[str, ...] = (), config_file: Path | None = None
) -> dict[str, Any]:
    """The config of `compose` as plain containers; without Hydra where it is not needed, which takes a hundredth."""
    where = catalog.roots(config_dirs)
    try:
        config = _plain(command, words, where, config_file)
    except TooRichError:
        return _by_hydra(command, words, where, config_file)
    return config if "${" not in str(config) else _by_hydra(command, words, where, config_file)


def _plain(command: str, words: list[str], where: tuple[str, ...], config_file: Path | None) -> dict[str, Any]:
    line = overrides.sort(words, where, overrides.read)
    config, problems = finish(command, line, where, config_file, plain_route.draft, dict)
    report(problems)
    return config


def _by_hydra(command: str, words: list[str], where: tuple[str, ...], config_file: Path | None) -> dict[str, Any]:
    from outlie import hydra_route

    line = overrides.sort(words, where, overrides.read_rich)
    config, problems = finish(command, line, where, config_file, hydra_route.draft, hydra_route.resolve)
    report(problems)
    return config


def report(problems: list[str]) -> None:
    """Raise one UserError for all problems, if there are any."""
    problems = list(dict.fromkeys(problems))
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError(f"{len(problems)} problems:\n" + "\n".join(f"  - {text}" for text in problems))


def problems_of(error: UserError) -> list[str]:
    """What `report` was given, to be told together with other problems."""
    first, *several = str(error).split("\n  - ")
    return several or [first]


def finish(
    command: str,
    line: Line,
    where: tuple[str, ...],
    config_file: Path | None,
    draft: Callable[[Line, tuple[str, ...]], Draft],
    resolve: Callable[[dict[str, Any]], dict[str, Any]],
) -> tuple[dict[str, Any], list[str]]:
    """Set the values of the line in a drafted config, fill in defaults, check; (config, problems)."""
    problems, spoilt = list(line.problems), set(line.spoilt)
    own = catalog.load(catalog.primary(command, where))
    defaults, key = own.pop("defaults", None) or (), GIVEN_AS.get(command, "run")
    if command == "distill":
        for entry in defaults:
            for group, choice in entry.items():
                line.groups.setdefault(group, choice)
        if line.groups["distiller"].split("/")[0] == "scores":  # taught to one detector only
            line.groups.setdefault("detector", "score_student")
    elif "distiller" in line.groups or any(one.key == "teacher" for one in line.values):
        problems.append("distiller= and teacher= are for a student's training: run distill teacher=RUN distiller=...")
    if command in ON_A_RUN:
        own[key] = str(_run(key, line, own, config_file))
    if command in ON_A_RUN or config_file is not None:
        base = config_file or Path(own[key], "config.yaml")
        if line.groups.get("experiment"):
            problems.append("experiment= cannot be put on top of a stored config; set its groups and values")
        config, choices = _on_stored(base, line, where, draft)
        config = own | config | ({key: own[key]} if key in own else {})
    else:
        config, choices = draft(line, where)
    if command == "bench":  # the runs bring all but the machine
        config, choices = own | {"trainer": config["trainer"]}, {"trainer": choices["trainer"]}
        problems += [
            f"{name}= is a run's own: run bench measures finished runs" for name in {*line.groups} - {"trainer"}
        ]
    names = catalog.sections(where)
    root = [key.name for key in catalog.keys(catalog.primary(PRIMARY, where))]
    known = list(dict.fromkeys([*own, *root, *names, *(["teacher"] if "teacher" in config else [])]))
    config = {key: config[key] for key in (*own, *(key for key in config if key not in own)) if key in config}
    for override in sorted(line.values, key=lambda one: "_target_" not in one.key):  # a class before its options
        problems += _place(config, override, known, spoilt)
    config = resolve(config)
    config = {key: checks.expand(value) for key, value in config.items()}
    allow = config.get("allow")
    allow = [name for name in allow if isinstance(name, str)] if isinstance(allow, list) else []
    problems += checks.root_problems(config, known)
    unread = {"dataset"} if command == "score" else set()  # the training's files may be gone
    for section in (name for name in names if name not in unread):
        if section not in spoilt and section in config:
            problems += checks.section_problems(config[section], section, allow)
    if not spoilt & {"detector", "backbone"} and (problem := checks.needs_problem(config, choices, where)):
        problems.append(problem)
    return config | {"choices": {name: choices[name] for name in names if choices.get(name)}}, problems


def _place(config: dict[str, Any], override: Override, known: list[str], spoilt: set[str]) -> list[str]:
    section, _, rest = override.key.partition(".")
    if section in spoilt or (section in ("run", "teacher") and section in known):  # it has been followed already
        return []
    if section in catalog.APART:
        return [f"{section}= is for many runs at once: run {PRIMARY} -m ... {section}=..."]
    if section not in config:
        return [unknown("group or key", section, known)]
    if override.delete and not rest:
        return [f"{section} cannot be left out"]
    problem = checks.place(config, override)
    return [problem] if problem else []


def _run(key: str, line: Line, own: dict[str, Any], config_file: Path | None) -> Path:
    """The folder of the run that `run=` (or `teacher=`) names, or a stored config; UserError where there is none."""
    stored = catalog.load(str(config_file)) if config_file else {}
    given = stored | {one.key: one.value for one in line.values if not one.delete}
    output_dir = str(given.get("output_dir", own["output_dir"]))
    try:
        if not isinstance(given.get(key), str | int) or given[key] == checks.MISSING:
            known = runs.listed(runs.names(output_dir))
            raise UserError(f"{key} is missing: give {key}=...; in {output_dir}: {known}")
        name = str(given[key])
        if name.endswith(".onnx") and "model" in own:  # `run score run=model.onnx`: the export, and the run it is of
            own["model"], name = name, _exported_from(name)
        return runs.find(name, output_dir)
    except UserError as error:
        report([*line.problems, str(error)])
        raise


def _exported_from(path: str) -> str:
    """The run that a graph is an export of, as the json beside it says; UserError where there is none."""
    beside = Path(path).with_name("export.json"), Path(path).with_suffix(".json")
    for one in beside:
        try:
            return str(json.loads(one.read_text())["run"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    raise UserError(f"run={path}: no export.json beside it says which run it is of; give run=RUN model={path}")


def _on_stored(
    path: Path, line: Line, where: tuple[str, ...], draft: Callable[[Line, tuple[str, ...]], Draft]
) -> Draft:
    """A stored config, with the sections that the line chooses anew, or that it lacks, composed."""
    stored = catalog.load(str(path))
    if "${" in str(stored):
        raise UserError(f"{path} holds '${{...}}'; a stored config has values only")
    kept = {key: value for key, value in stored.items() if key not in OWN}
    choices = dict(stored.get("choices") or {})
    chosen = {group: choice for group, choice in line.groups.items() if group != "experiment"}
    wanted = [group for group in catalog.sections(where) if group in chosen or group not in kept]
    if set(wanted) - {"experiment", "distiller"} or chosen:
        fresh = draft(line._replace(groups=chosen), where)
        wanted = [group for group in wanted if group in fresh.config]
        kept |= {group: fresh.config[group] for group in wanted}
        choices |= {group: fresh.choices[group] for group in wanted}
    return Draft(kept, choices)
