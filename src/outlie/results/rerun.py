"""The command that computes a stored run again: its choices, and the values that differ from them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from outlie import catalog, compose
from outlie.errors import UserError
from outlie.results.store import TRAINER_NUMBERS, digest

ELSEWHERE = ("output_dir", "force", "dry_run", "debug", "choices", "logger")  # where and how loud it was computed
_known: dict[str, list[str] | None] = {}  # config without its seed -> words; many runs differ in the seed only


def command(folder: Path, config: dict[str, Any], config_dirs: tuple[str, ...] = ()) -> str:
    """`run train dataset=... detector=... seed=...`, or with `--config` where words cannot say it."""
    if "teacher" in config:
        return shlex.join(["run", "distill", "--config", str(folder / "config.yaml")])
    found = words(config, config_dirs)
    if found is None:
        return shlex.join(["run", "train", "--config", str(folder / "config.yaml")])
    return shlex.join(["run", "train", *found])


def words(config: dict[str, Any], config_dirs: tuple[str, ...] = ()) -> list[str] | None:
    """Overrides that compose to this config, checked by composing them; None where there are no such words."""
    without, choices = _numbers(config), dict(config.get("choices") or {})
    choices = {group: choice for group, choice in choices.items() if group not in ("trainer", "logger")}
    key = digest([without, choices, config_dirs])
    if key not in _known:
        try:
            _known[key] = _words(without, choices, config_dirs)
        except (UserError, KeyError, TypeError):  # options of another version, files that are gone
            _known[key] = None
    found = _known[key]
    return found if found is None or not config.get("seed") else [*found, f"seed={config['seed']}"]


def _words(config: dict[str, Any], choices: dict[str, Any], config_dirs: tuple[str, ...]) -> list[str] | None:
    usual = catalog.load(catalog.primary("train", catalog.roots(config_dirs))).get("defaults", ())
    usual = {group: choice for entry in usual if isinstance(entry, dict) for group, choice in entry.items()}
    chosen = [f"{group}={choice}" for group, choice in choices.items() if usual.get(group) != choice]
    allowed = [f"allow={_typed(config['allow'])}"] if config.get("allow") else []
    base = compose.composed("train", [*chosen, *allowed, *_required(config, choices, config_dirs)], config_dirs)
    changed = [
        f"{section}.{name}={_typed(value)}"
        for section, options in config.items()
        if isinstance(options, dict)
        for name, value in options.items()
        if value != base.get(section, {}).get(name, ...)
    ]
    required = [word for word in _required(config, choices, config_dirs) if word not in changed]
    found = [*chosen, *allowed, *required, *changed]
    return found if _numbers(compose.composed("train", found, config_dirs)) == config else None


def _numbers(config: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in config.items() if name not in ("seed", *ELSEWHERE)}
    trainer = config.get("trainer") or {}
    return kept | {"trainer": {name: value for name, value in trainer.items() if name in TRAINER_NUMBERS}}


def _required(config: dict[str, Any], choices: dict[str, Any], config_dirs: tuple[str, ...]) -> list[str]:
    """Options that a choice leaves to the user: without them nothing composes."""
    from outlie import checks, signatures

    where, found = catalog.roots(config_dirs), []
    for group, choice in choices.items():
        path = catalog.choices(group, where).get(choice)
        given = catalog.load(path) if path else {}
        signature = signatures.read(str(given.get("_target_", "")))
        for p in signature.parameters if signature else ():
            missing = given.get(p.name, checks.MISSING if p.required else None) == checks.MISSING
            if missing and p.name in config.get(group, {}):
                found.append(f"{group}.{p.name}={_typed(config[group][p.name])}")
    return found


def _typed(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, str):
        plain = value and all(one.isalnum() or one in "_/.-@" for one in value)
        return value if plain and value not in ("true", "false", "null") else "'" + value.replace("'", "\\'") + "'"
    if isinstance(value, list):
        return f"[{','.join(_typed(one) for one in value)}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_typed(one)}" for key, one in value.items()) + "}"
    return json.dumps(value)
