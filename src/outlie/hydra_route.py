"""The composition by Hydra: groups chosen, experiments applied, interpolations resolved."""

from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from outlie import catalog
from outlie.errors import UserError
from outlie.overrides import Line
from outlie.plain_route import PRIMARY, Draft


def draft(line: Line, where: tuple[str, ...]) -> Draft:
    """The config of the chosen groups, interpolations left as they are, and the choice made in each group."""
    # The user's folders come first in Hydra's search only as its main folder, which then must hold the primary config;
    # a config in the store is found whatever the folders are.
    primary: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(catalog.primary(PRIMARY, where)))  # type: ignore
    primary["hydra"] = {"searchpath": [f"file://{root}" for root in where[1:]]}
    ConfigStore.instance().store(name="outlie_primary", node=primary)
    words = [f"{group}={choice}" for group, choice in line.groups.items()]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=where[0]):
            composed = compose("outlie_primary", overrides=words, return_hydra_config=True)
        chosen = {k: v for k, v in composed.hydra.runtime.choices.items() if not k.startswith("hydra/")}
        config: dict[str, Any] = OmegaConf.to_container(composed)  # type: ignore
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_brief(error)) from error
    config.pop("hydra")
    return Draft(config, chosen)


def resolve(config: dict[str, Any]) -> dict[str, Any]:
    """Plain values, `${...}` replaced by what they stand for."""
    try:
        return OmegaConf.to_container(OmegaConf.create(config), resolve=True)  # type: ignore
    except OmegaConfBaseException as error:
        raise UserError(_brief(error)) from error


def frozen(config: dict[str, Any]) -> DictConfig:
    """The config as the commands take it: nothing can be added."""
    full = OmegaConf.create(config)
    OmegaConf.set_struct(full, True)
    return full


def _brief(error: Exception) -> str:
    return " ".join(part.strip() for part in str(error).split("\n")[:3] if part.strip())
