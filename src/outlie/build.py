"""From a config section to the object it describes: the only place where a name in a config becomes a call."""

from collections.abc import Iterable
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from outlie import checks
from outlie.errors import UserError


def build(section: DictConfig | dict[str, Any], allow: Iterable[str] = ()) -> Any:
    """The object of a section, nested sections included; UserError for a name not allowed or a refused value.

    Args:
        section: `_target_` and its options
        allow: prefixes of modules outside outlie that `_target_` may name
    """
    allow = tuple(allow)
    name = str(section._get_full_key(None)) if isinstance(section, DictConfig) else ""
    plain: Any = OmegaConf.to_container(section, resolve=True) if isinstance(section, DictConfig) else section
    name = name or str(plain.get("_target_", "section")).rpartition(".")[2]
    guard(plain, name, allow)
    try:
        return hydra.utils.instantiate(plain, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        if isinstance(cause, TypeError | ValueError):
            raise UserError(f"{name}: {cause}") from error
        if cause is None:
            raise UserError(f"{name}: {str(error).splitlines()[0]}") from error
        raise cause from error


def guard(node: Any, path: str, allow: tuple[str, ...]) -> None:
    """UserError unless everything that instantiating `node` would call is a class or function the user may name."""
    if isinstance(node, str) and "${" in node:
        # instantiate would resolve it, and a resolver can make a section out of text
        raise UserError(f"{path}: '{node}' is an interpolation; a built section has values only")
    if isinstance(node, list):
        for i, one in enumerate(node):
            guard(one, f"{path}[{i}]", allow)
    if not isinstance(node, dict):
        return
    for key in checks.reserved(node):
        raise UserError(f"{path}.{key} is not allowed; a section may only have _target_")
    if "_target_" in node:
        problem = checks.target_problem(node["_target_"], path, allow)
        if problem:
            raise UserError(problem)
        _guard_origin(node["_target_"], path, allow)
    for key, value in node.items():
        guard(value, f"{path}.{key}", allow)


def _guard_origin(target: str, path: str, allow: tuple[str, ...]) -> None:
    """A dotted name may pass through an allowed module into another, `mypkg.io.os.system`: look where it ends."""
    try:
        found = hydra.utils.get_object(target)
    except Exception as error:  # whatever importing a user's module raises
        raise UserError(f"{path}._target_: cannot import '{target}': {error.__cause__ or error}") from error
    origin = getattr(found, "__module__", None)
    if not callable(found) or not isinstance(origin, str) or not checks.is_allowed(origin, allow):
        raise UserError(
            f"{path}._target_='{target}' is not a class or function of outlie" + "".join(f", {a}" for a in allow)
        )
