"""`run train -m` and `run sweep`: every cell of a product of settings; what is done is found, not done again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from outlie import catalog, checks, compose
from outlie.errors import UserError, unknown
from outlie.results import store
from outlie.sweeps import cells as sweep_cells
from outlie.sweeps.cells import Cell

DEFAULTS = {"launcher": "local"}


def main(
    words: list[str], config_dirs: tuple[str, ...] = (), command: str = "train", config_file: Path | None = None
) -> int:
    """Compute the cells that the words stand for; exit code 1 where one failed."""
    apart, of_cells = split(words)
    if any(word.startswith("search") for word in apart):
        from outlie.sweeps import search

        return search.main(apart, of_cells, config_dirs, command, config_file)
    launcher = section("launcher", apart, config_dirs)
    cells = sweep_cells.expand(of_cells, config_dirs, command, config_file)
    folder = sweep_folder(cells)
    if cells[0].config["dry_run"]:
        return plan(cells, launcher)
    from outlie.sweeps import progress, runner, summary

    cells = [grouped(cell, folder.name) for cell in cells]
    ended = runner.compute(cells, build(launcher), progress.Progress())
    summary.show(ended, folder)
    return int(any(event.what == "failed" for event in ended.values()))


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """Words about the sweep itself (launcher, search), and words about its cells."""
    apart = [word for word in words if word.lstrip("+~").partition("=")[0].partition(".")[0] in catalog.APART]
    return apart, [word for word in words if word not in apart]


def section(group: str, words: list[str], config_dirs: tuple[str, ...]) -> dict[str, Any]:
    """The complete section of `launcher=` or `search=`; UserError with every mistake in it."""
    from outlie import overrides

    where = catalog.roots(config_dirs)
    known = catalog.choices(group, where)
    given = [overrides.read_rich(word) for word in words if word.lstrip("+~").startswith(group)]
    choice = next((str(one.value) for one in reversed(given) if one.key == group), DEFAULTS.get(group, ""))
    if choice not in known:
        raise UserError(f"{unknown(group, choice, known)}. run list {group}")
    config = {group: catalog.load(known[choice])}
    problems = [text for one in given if one.key != group and (text := checks.place(config, one))]
    full = checks.expand(config[group])
    compose.report(problems + checks.section_problems(full, group, []))
    return full


def build(launcher: dict[str, Any]) -> Any:
    """The launcher of a section that `section` checked; nothing but its own module is imported."""
    import importlib

    module, _, name = launcher["_target_"].rpartition(".")
    options = {key: value for key, value in launcher.items() if key != "_target_"}
    return getattr(importlib.import_module(module), name)(**options)


def sweep_folder(cells: list[Cell]) -> Path:
    """outputs/sweep/<command>-<hash of its cells>."""
    first = cells[0]
    name = f"{first.command}-{store.digest(sorted(cell.folder.name for cell in cells))}"
    return Path(first.config["output_dir"]) / "sweep" / name


def grouped(cell: Cell, name: str) -> Cell:
    """The cell, whose W&B run belongs to the group of this sweep unless the user named one."""
    logger = cell.config["logger"]
    if not logger["_target_"].endswith(".WandB") or logger.get("group"):
        return cell
    return cell._replace(config=cell.config | {"logger": logger | {"group": name}})


def plan(cells: list[Cell], launcher: dict[str, Any]) -> int:
    """What would be done, and stop."""
    from outlie.sweeps import runner

    missing = [cell for cell in cells if runner.found(cell) is None]
    name = launcher["_target_"].rpartition(".")[2].lower()
    print(f"# {len(cells)} cells, {len(cells) - len(missing)} done already; launcher={name}")
    for cell in missing:
        print(f"#   {cell.name}: {cell.folder}")
    return 0
