"""What exists, by listing folders: groups, their choices, one line about each. No registry, no imports."""

import os
import re
from functools import lru_cache
from typing import Any, NamedTuple

from outlie.errors import UserError, unknown

# in the order of the flow; a folder that is not named here comes after these
ORDER = (
    "dataset", "backbone", "detector", "distiller", "metrics", "trainer", "logger", "experiment",
    "table", "launcher", "search",
)  # fmt: skip
APART = ("table", "launcher", "search")  # of many runs at once: no section of a run's config
HERE = os.path.dirname(os.path.abspath(__file__))


class Key(NamedTuple):
    """A top-level key of a command's config."""

    name: str
    default: str
    doc: str


def own_root() -> str:
    """Our own configs: the checkout's for an editable install, else those in the wheel."""
    checkout = os.path.join(os.path.dirname(os.path.dirname(HERE)), "configs")
    return checkout if os.path.isfile(os.path.join(checkout, "train.yaml")) else os.path.join(HERE, "configs")


def roots(config_dirs: tuple[str, ...] | list[str] = ()) -> tuple[str, ...]:
    """Where configs are looked for: the user's own folders first; UserError for one that is no folder."""
    for folder in config_dirs:
        if not os.path.isdir(folder):
            raise UserError(f"--config-dir '{folder}' is not a folder")
    return (*(os.path.abspath(folder) for folder in config_dirs), own_root())


def groups(where: tuple[str, ...]) -> list[str]:
    """Names of the config groups, in the order of the flow."""
    found = {name for root in where for name in os.listdir(root) if os.path.isdir(os.path.join(root, name))}
    found = {name for name in found if name.isidentifier() and not name.startswith("_")}
    return [name for name in ORDER if name in found] + sorted(found - set(ORDER))


def sections(where: tuple[str, ...]) -> list[str]:
    """The groups that a run's config has a section of."""
    return [name for name in groups(where) if name not in APART]


@lru_cache
def choices(group: str, where: tuple[str, ...]) -> dict[str, str]:
    """Choice -> file, one folder deep: `thyroid` below `adbench` is `adbench/thyroid`; earlier roots win."""
    found: dict[str, str] = {}
    for root in where:
        folder = os.path.join(root, group)
        if not os.path.isdir(folder):
            continue
        for entry in os.scandir(folder):
            if entry.is_dir():
                for name in os.listdir(entry.path):
                    if name.endswith(".yaml"):
                        found.setdefault(f"{entry.name}/{name[:-5]}", os.path.join(entry.path, name))
            elif entry.name.endswith(".yaml"):
                found.setdefault(entry.name[:-5], entry.path)
    return dict(sorted(found.items()))


def presets(group: str, choice: str, where: tuple[str, ...]) -> list[str]:
    """Choices one level down: `dte_c/paper` of `dte_c`."""
    return [name for name in choices(group, where) if name.startswith(choice + "/")]


def primary(command: str, where: tuple[str, ...]) -> str:
    """The file of a command's config, `train.yaml`; the first root that has one."""
    paths = [os.path.join(root, f"{command}.yaml") for root in where]
    return next((path for path in paths if os.path.isfile(path)), paths[-1])


def description(path: str) -> str:
    """The first comment of a yaml, package directives apart."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith("#") and "@package" not in line and line.strip("# \n"):
                return line.strip("# \n")
            if line.strip() and not line.startswith("#"):
                return ""
    return ""


def target(path: str) -> str:
    """The class that a yaml names at its top level, '' if none."""
    with open(path, encoding="utf-8") as file:
        found = re.search(r"^_target_:\s*['\"]?([\w.]+)", file.read(), re.M)
    return found[1] if found else ""


def keys(path: str) -> list[Key]:
    """Top-level keys of a command's config, with the comment beside each."""
    with open(path, encoding="utf-8") as file:
        found = re.findall(r"^(\w+):[ \t]*([^#\n]*?)[ \t]*(?:#[ \t]*(.*))?$", file.read(), re.M)
    return [Key(name, default, doc) for name, default, doc in found if name != "defaults"]


def load(path: str) -> dict[str, Any]:
    """A yaml file as plain values, read without Hydra; UserError where it cannot be read."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, Loader=_loader())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{path} holds no keys; a config is KEY: VALUE lines")
    return content or {}


@lru_cache
def _loader() -> Any:
    """PyYAML's safe loader, C where it is there, with numbers as Hydra reads them: 1e-3 is a number."""
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):
        pass

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
        for first, found in Loader.yaml_implicit_resolvers.items()
    }
    return Loader


def singular(word: str, where: tuple[str, ...]) -> str:
    """The group that a user means: `detectors` is `detector`; UserError with the nearest match if there is none."""
    known = groups(where)
    for name in (word, word.removesuffix("s")):
        if name in known:
            return name
    raise UserError(unknown("group", word, known))
