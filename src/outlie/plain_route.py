"""The composition without Hydra: enough of its language to find a user's mistakes in milliseconds."""

from typing import Any, NamedTuple

from outlie import catalog, checks
from outlie.errors import UserError, unknown
from outlie.overrides import Line, TooRichError

PRIMARY = "train"  # the config whose defaults list names the groups


class Draft(NamedTuple):
    """A config before its values are set."""

    config: dict[str, Any]
    choices: dict[str, Any]


def draft(line: Line, where: tuple[str, ...]) -> Draft:
    """The config that Hydra would compose, from the plain parts of its language; TooRichError beyond them."""
    config = catalog.load(catalog.primary(PRIMARY, where))
    choices, own = _defaults(config), dict(config)
    experiment = line.groups.get("experiment", choices.get("experiment"))
    body: dict[str, Any] = {}
    if experiment and "experiment" not in line.spoilt:
        body = _read(catalog.choices("experiment", where)[experiment], "# @package _global_")
        choices |= {**_defaults(body), "experiment": experiment}
    choices |= line.groups
    for group, choice in choices.items():
        if group == "experiment" or group in line.spoilt or choice is None:
            continue
        found = catalog.choices(group, where)
        if choice not in found:
            raise UserError(f"{unknown(group, str(choice), found)}. run list {group}")
        own[group] = _read(found[choice], "")
        if "defaults" in own[group]:
            raise TooRichError(found[choice])
    return Draft(checks.merge(own, body), choices)


def _defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Group -> choice of a defaults list, which is taken out of the config."""
    found: dict[str, Any] = {}
    for entry in config.pop("defaults", None) or ():
        if entry == "_self_":
            continue
        if not isinstance(entry, dict):
            raise TooRichError(str(entry))
        for key, choice in entry.items():
            group = key.removeprefix("optional ").removeprefix("override ").lstrip("/")
            if not group.isidentifier():
                raise TooRichError(key)
            found[group] = choice
    return found


def _read(path: str, package: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        found = [line.strip() for line in file if line.startswith("# @package")]
    if found != ([package] if package else []):
        raise TooRichError(path)
    return catalog.load(path)
