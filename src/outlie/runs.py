"""Finished runs on disk, found by path, by name or by the hash at the end of the name."""

import os
from pathlib import Path

from outlie.errors import UserError, nearest

COMMANDS = ("train", "distill")  # commands that make runs
SHOWN = 12  # in a message


def find(name: str, output_dir: str = "outputs") -> Path:
    """The folder of a run; UserError with the nearest match and the list where there is none, or several.

    The beginning of a name is looked for among trained runs first: a student's often begins as its teacher's.
    """
    if os.path.isfile(os.path.join(name, "config.yaml")):
        return Path(name)
    for command in COMMANDS:
        known = names(output_dir, (command,))
        found = [one for one in known if one == name] or [one for one in known if matches(name, one)]
        if len(found) == 1:
            return Path(output_dir, command, found[0])
        if found:
            raise UserError(f"run '{name}' is several: {listed(found)}")
    known = names(output_dir)
    if os.path.isdir(name):
        raise UserError(f"'{name}' holds no run: there is no config.yaml in it")
    guess = nearest(name, known)
    hint = f" (did you mean '{guess}'?)" if guess else ""
    raise UserError(f"unknown run '{name}'{hint}; in {output_dir}: {listed(known)}")


def listed(names: list[str]) -> str:
    """The first of them in words; after a sweep there are thousands."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "nothing") + more


def names(output_dir: str = "outputs", commands: tuple[str, ...] = COMMANDS) -> list[str]:
    """Runs of `run train` and of `run distill`: folders that hold a config.yaml, sorted."""
    folders = [folder for command in commands if os.path.isdir(folder := os.path.join(output_dir, command))]
    return sorted(
        one
        for folder in folders
        for one in os.listdir(folder)
        if os.path.isfile(os.path.join(folder, one, "config.yaml"))
    )


def matches(word: str, name: str) -> bool:
    """Whether a word is the beginning of a run's name, or of the hash at its end."""
    return bool(word) and (name.startswith(word) or name.rpartition("-")[2].startswith(word))
