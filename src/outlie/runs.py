"""Finished runs on disk, found by path, by name or by the hash at the end of the name."""

import os
from pathlib import Path

from outlie.errors import UserError, nearest


def find(name: str, output_dir: str = "outputs", command: str = "train") -> Path:
    """The folder of a run; UserError with the nearest match and the list where there is none, or several."""
    if os.path.isfile(os.path.join(name, "config.yaml")):
        return Path(name)
    folder = os.path.join(output_dir, command)
    known = names(output_dir, command)
    found = [one for one in known if one == name] or [one for one in known if matches(name, one)]
    if len(found) == 1:
        return Path(folder, found[0])
    if found:
        raise UserError(f"run '{name}' is several: {', '.join(found)}")
    if os.path.isdir(name):
        raise UserError(f"'{name}' holds no run: there is no config.yaml in it")
    guess = nearest(name, known)
    hint = f" (did you mean '{guess}'?)" if guess else ""
    raise UserError(f"unknown run '{name}'{hint}; in {folder}: {', '.join(known) or 'nothing'}")


def names(output_dir: str = "outputs", command: str = "train") -> list[str]:
    """Folders that hold a config.yaml, sorted."""
    folder = os.path.join(output_dir, command)
    if not os.path.isdir(folder):
        return []
    return sorted(one for one in os.listdir(folder) if os.path.isfile(os.path.join(folder, one, "config.yaml")))


def matches(word: str, name: str) -> bool:
    """Whether a word is the beginning of a run's name, or of the hash at its end."""
    return bool(word) and (name.startswith(word) or name.rpartition("-")[2].startswith(word))
