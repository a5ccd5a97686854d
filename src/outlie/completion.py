"""Completion for bash and zsh: the shells ask `run --complete WORDS`, which reads folders and sources only."""

import itertools
import os

from outlie import annotations, catalog, checks, runs, signatures
from outlie.errors import UserError, unknown
from outlie.sweeps import dataset_groups

# those of commands/table.py, whose import takes longer than a shell should wait
TABLE_KEYS = (
    "metric", "seeds", "columns", "rows", "max_rows", "format", "output", "compute", "intervals", "leak_free", "stats",
    "output_dir",
)  # fmt: skip

# The words come from the line itself: readline splits at = and :, we do not.
BASH = """_outlie_complete() {
  local line="${COMP_LINE:0:COMP_POINT}" words prefix
  read -ra words <<< "$line"
  [[ "$line" == *" " ]] && words+=("")
  local current="${words[${#words[@]}-1]}"
  local IFS=$'\\n'
  COMPREPLY=($(command "${words[0]}" --complete "${words[@]:1}" 2>/dev/null))
  if [[ "$current" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then
    prefix="${current%"${current##*=}"}"
    COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
  fi
  if [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *[=./] ]]; then
    compopt -o nospace 2>/dev/null
  fi
}
complete -F _outlie_complete run outlie"""

ZSH = """_outlie_complete() {
  local -a found open closed
  found=("${(@f)$(command ${words[1]} --complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  open=(${(M)found:#*[=./]})
  closed=(${found:#*[=./]})
  (( $#open )) && compadd -S '' -- "${open[@]}"
  (( $#closed )) && compadd -- "${closed[@]}"
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _outlie_complete run outlie"""


def script(shell: str) -> str:
    """What `run completion SHELL` prints."""
    scripts = {"bash": BASH, "zsh": ZSH}
    if shell not in scripts:
        raise UserError(unknown("shell", shell, scripts))
    return scripts[shell]


def answer(words: list[str]) -> int:
    """Print the candidates for the last word, one a line; silent about everything else, as a shell wants it."""
    try:
        found = candidates(words or [""])
    except (UserError, OSError):
        found = []
    if found:
        print("\n".join(found))
    return 0


def candidates(words: list[str]) -> list[str]:
    """What the last word could become."""
    from outlie.cli import COMMANDS, OPTIONS

    *before, current = words
    where = catalog.roots([folder for folder in _given(before, "--config-dir") if os.path.isdir(folder)])
    command = next((word for word in before if word in COMMANDS), None)
    if before and before[-1] in ("--config-dir", "--config"):
        return files("", current)
    if current.startswith("-"):
        return _starting(list(OPTIONS), current)
    match command:
        case None:
            return _starting(list(COMMANDS), current)
        case "list":
            return _starting(catalog.groups(where), current)
        case "show":
            named = next((word for word in before if word in catalog.groups(where)), None)
            groups = [named] if named else catalog.groups(where)
            return _starting(sorted({name for group in groups for name in catalog.choices(group, where)}), current)
        case "completion":
            return _starting(["bash", "zsh"], current)
        case "data":
            return _starting(["list", "fetch", "verify", "path"], current) if before[-1] == "data" else []
        case "report":
            return report(current, where)
        case "table":
            return table(before[-1] == "table", current, where)
        case _:
            return override(command, before, current, where)


def table(is_name: bool, current: str, where: tuple[str, ...]) -> list[str]:
    """Candidates for what `run table` takes: a name, then its keys."""
    if is_name:
        return _starting(list(catalog.choices("table", where)), current)
    key, equals, value = current.partition("=")
    if not equals:
        return _starting([f"{name}=" for name in (*TABLE_KEYS, "launcher", "logger")], current)
    flags = dict.fromkeys(("compute", "intervals", "leak_free", "stats"), ("true", "false"))
    known = flags | {"format": ("terminal", "markdown", "latex", "csv", "html")}
    known |= {group: tuple(catalog.choices(group, where)) for group in ("launcher", "logger")}
    named = _starting([f"{key}={one}" for one in known.get(key, ())], current)
    return named or (files(f"{key}=", value) if key in ("output", "output_dir") else [])


def report(current: str, where: tuple[str, ...]) -> list[str]:
    """Candidates for what `run report` takes."""
    key, equals, value = current.partition("=")
    if not equals:
        return _starting([f"{name}=" for name in ("runs", "table", "output", "title", "output_dir")], current)
    named = {"runs": runs.names(), "table": list(catalog.choices("table", where))}.get(key, [])
    return _starting([f"{key}={name}" for name in named], current) + ([] if key == "title" else files(f"{key}=", value))


def override(command: str, before: list[str], current: str, where: tuple[str, ...]) -> list[str]:
    """Candidates for KEY=VALUE: groups and keys, a group's choices, a choice's keys, values of a key, files."""
    swept = command == "sweep" or "-m" in before or "--multirun" in before
    groups = catalog.groups(where) if swept else catalog.sections(where)
    command = "train" if command == "sweep" else command
    key, equals, value = current.partition("=")
    if equals and key in groups:
        many = list(dataset_groups.groups()) if swept and key == "dataset" else []
        head, comma, _ = value.rpartition(",")  # of several, the last is completed
        return _starting([f"{key}={head}{comma}{choice}" for choice in (*catalog.choices(key, where), *many)], current)
    if equals and key in ("run", "teacher"):
        named = [f"{key}={name}" for name in runs.names()]
        return _starting(named, current) + files(f"{key}=", value)
    group, dot, _ = key.partition(".")
    if dot and group in groups:
        signature = _signature(command, group, before, where)
        parameters = signature.parameters if signature else ()
        if not equals:
            return _starting([f"{group}.{p.name}=" for p in parameters], current)
        annotation = next((p.annotation for p in parameters if f"{group}.{p.name}" == key), None)
        return _values(key, value, annotation)
    own = {one.name: one.default for one in catalog.keys(catalog.primary(command, where))}
    if equals:
        if own.get(key) in ("true", "false"):
            return _values(key, value, "bool")
        if key in own and annotations.literals(checks.ROOT.get(key)):
            return _values(key, value, checks.ROOT[key])
        is_path = key in ("output_dir", "output") or annotations.takes_path(checks.ROOT.get(key))
        return files(f"{key}=", value) if is_path else []
    return _starting([f"{name}=" for name in (*groups, *own)] + [f"{name}." for name in groups], current)


def _signature(command: str, group: str, before: list[str], where: tuple[str, ...]) -> signatures.Signature | None:
    chosen = _given(before, group)
    choice = chosen[-1] if chosen else _default(group, where)
    path = catalog.choices(group, where).get(choice)
    return signatures.read(catalog.target(path)) if path else None


def _default(group: str, where: tuple[str, ...]) -> str:
    for entry in catalog.load(catalog.primary("train", where)).get("defaults", ()):
        if isinstance(entry, dict) and group in entry:
            return str(entry[group])
    return ""


def _values(key: str, value: str, annotation: str | None) -> list[str]:
    known = [str(one) for one in annotations.literals(annotation)]
    known += ["true", "false"] if annotation and "bool" in annotation else []
    found = _starting([f"{key}={one}" for one in known], f"{key}={value}")
    return found or (files(f"{key}=", value) if not known else [])


def files(prefix: str, start: str) -> list[str]:
    """Files and folders that start like this, `prefix` before each."""
    folder, name = os.path.split(start)
    there = os.path.expanduser(folder) if folder else "."
    if not os.path.isdir(there):
        return []
    found = [one for one in sorted(os.listdir(there)) if one.startswith(name) and (name or not one.startswith("."))]
    paths = [os.path.join(folder, one) + ("/" if os.path.isdir(os.path.join(there, one)) else "") for one in found]
    return [prefix + path for path in paths]


def _given(words: list[str], name: str) -> list[str]:
    """Values of `name=VALUE` and `name VALUE`."""
    pairs = [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
    return pairs + [after for word, after in itertools.pairwise(words) if word == name and name.startswith("-")]


def _starting(names: list[str], current: str) -> list[str]:
    return [name for name in names if name.startswith(current)]
