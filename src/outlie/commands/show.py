"""`run show`: one choice with all its options, read from its source; or the summary of a finished run."""

import os
import textwrap
from typing import Any

from outlie import annotations, catalog, checks, runs, signatures
from outlie.errors import UserError, unknown

WIDTH = 110


def main(words: list[str], config_dirs: tuple[str, ...] = ()) -> int:
    """Print what NAME, GROUP NAME or RUN_FOLDER is."""
    where = catalog.roots(config_dirs)
    if not 1 <= len(words) <= 2:
        raise UserError("give one name: run show NAME, run show GROUP NAME, run show RUN_FOLDER")
    if len(words) == 2 or "=" in words[0]:  # detector knn, detector=knn
        group, name = words if len(words) == 2 else words[0].split("=", 1)
        group = catalog.singular(group, where)
        if name not in catalog.choices(group, where):
            raise UserError(f"{unknown(group, name, catalog.choices(group, where))}. run list {group}")
        print(text(group, name, where))
        return 0
    found = [group for group in catalog.groups(where) if words[0] in catalog.choices(group, where)]
    if found:
        print("\n\n".join(text(group, words[0], where) for group in found))
        return 0
    return _run(words[0], where)


def _run(word: str, where: tuple[str, ...]) -> int:
    try:
        folder = runs.find(word)
    except UserError as error:
        if os.path.isdir(word) or any(runs.matches(word, name) for name in runs.names()):
            raise
        every = {name for group in catalog.groups(where) for name in catalog.choices(group, where)}
        if word in catalog.groups(where) or word.removesuffix("s") in catalog.groups(where):
            raise UserError(f"'{word}' is a group: run list {word}") from error
        raise UserError(f"{unknown('name', word, every)}. run list") from error
    from outlie.results import summary

    summary.show(folder)
    return 0


def text(group: str, name: str, where: tuple[str, ...]) -> str:
    """Everything about one choice."""
    path = catalog.choices(group, where)[name]
    section = catalog.load(path)
    target = catalog.target(path)
    signature = signatures.read(target) if target else None
    lines = [f"{group} {name}", *_indent(catalog.description(path))]
    if signature:
        if signature.doc:
            lines += _indent(signature.doc)
        if signature.paper:
            lines += _indent(f"paper: {signature.paper}")
        lines += ["", f"  class     {signature.target}"]
        if signature.needs:
            providers = ", ".join(checks.providers(signature.needs, where)) or "no backbone here"
            lines.append(f"  needs     {', '.join(signature.needs)} (from backbone {providers})")
        if signature.provides:
            lines.append(f"  provides  {', '.join(signature.provides)}")
        if signature.scoring:
            lines.append(f"  scoring   {', '.join(signature.scoring)}: a new value trains nothing again")
    if below := catalog.presets(group, name, where):
        lines.append("  presets")
        found = catalog.choices(group, where)
        lines += [f"    {group}={preset}  {catalog.description(found[preset])}" for preset in below]
    lines += ["", "options (* = set by this yaml)", *_options(group, section, signature)]
    if group == "experiment":
        with open(path, encoding="utf-8") as file:
            lines += ["", f"  {path}", *(f"  | {line.rstrip()}" for line in file)]
    words = _example(group, name, section, signature)
    command = {"table": f"table {name}", "launcher": f"train -m {words}", "search": f"train -m {words}"}
    example = command.get(group, f"train {words}")
    return "\n".join([*lines, "", "example", f"  run {example}"])


def _options(group: str, section: dict[str, Any], signature: signatures.Signature | None) -> list[str]:
    if signature is None:
        return [
            f"* {group}.{key} = {plain(value)}" for key, value in section.items() if key not in ("_target_", "defaults")
        ]
    lines = []
    for p in signature.parameters:
        mark = "*" if p.name in section and section[p.name] != checks.MISSING else " "
        value = section.get(p.name, p.default)
        missing = value == checks.MISSING or (p.required and p.name not in section)
        shown = "(must be given)" if missing else plain(value)
        default = p.name in section and not p.required and plain(p.default) != shown
        lines.append(f"{mark} {group}.{p.name} = {shown}" + (f"  (default {plain(p.default)})" if default else ""))
        lines += textwrap.wrap(
            annotations.describe(p.annotation) + (f"; {p.doc}" if p.doc else ""),
            WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6,
        )  # fmt: skip
    return lines or ["  none"]


def _example(group: str, name: str, section: dict[str, Any], signature: signatures.Signature | None) -> str:
    words = [f"{group}={name}"]
    missing = [p.name for p in (signature.parameters if signature else ()) if p.required and p.name not in section]
    missing += [key for key, value in section.items() if value == checks.MISSING]
    words += [f"{group}.{key}=..." for key in missing]
    numbers = [
        f"{group}.{p.name}={value * 2}"
        for p in (signature.parameters if signature else ())
        if type(value := section.get(p.name, p.default)) is int and value > 0 and "seed" not in p.name
    ]
    return " ".join(words + (numbers[:1] if group == "detector" and not missing else []))


def _indent(paragraph: str) -> list[str]:
    return textwrap.wrap(paragraph, WIDTH, initial_indent="  ", subsequent_indent="  ")


def plain(value: Any) -> str:
    """A value as a user would type it."""
    if value is signatures.UNREADABLE:
        return "(set in code)"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(plain(one) for one in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}: {plain(v)}' for k, v in value.items())}}}"
    return str(value)
