"""A composed config against the signatures of the classes it names: defaults filled in, every mistake in a list."""

import os
from collections.abc import Iterable
from typing import Any

from outlie import annotations, catalog, signatures
from outlie.errors import nearest, unknown
from outlie.overrides import Override

ROOT = {
    "seed": "NonNegativeInt", "output_dir": "str", "force": "bool", "dry_run": "bool", "debug": "bool",
    "allow": "list[str]", "run": "str", "teacher": "str", "explain": "bool",
    "detectors": "str | list[str] | None",
    "blocks": "list[str]", "log_snr": "list[float]", "augment": "Literal['none', 'crop_flip']", "draws": "PositiveInt",
    "rows": "PositiveInt | None", "test_rows": "PositiveInt | None", "held_out": "Fraction", "epochs": "PositiveInt",
    "min_steps": "NonNegativeInt", "lr": "PositiveFloat | None",
    "noisy": "bool", "n": "PositiveInt", "steps": "PositiveInt | None", "inception": "str | None",
    "input": "Path", "output": "str", "fpr": "Fraction | None", "review": "Fraction | None", "feedback": "Path | None",
    "recalibrate": "Literal['extend', 'replace']", "month": "str | None", "timestamp": "str | None",
    "keep": "list[str]",
    "file": "str | None", "opset": "PositiveInt | None", "runs": "str | list[str]", "batch_sizes": "list[PositiveInt]",
    "rounds": "PositiveInt", "seconds": "PositiveFloat", "threads": "PositiveInt | None",
    "bad_rows": "Literal['refuse', 'skip']", "separator": "str | None", "model": "Path | None",
}  # fmt: skip
MISSING = "???"


def is_allowed(target: str, allow: Iterable[str]) -> bool:
    """Whether `_target_` is of outlie, or of a module that the user allowed."""
    return any(target == prefix or target.startswith(prefix + ".") for prefix in ("outlie", *allow))


def place(config: dict[str, Any], override: Override) -> str | None:
    """Set (or delete) one key in the config; the problem where there is no such key."""
    parts = override.key.split(".")
    node, free = config, False
    for i, part in enumerate(parts):
        signature = _signature(node)
        parameter = signature.parameter(part) if signature else None
        allowed = set(node) | ({p.name for p in signature.parameters} if signature else set())
        free = (free and signature is None) or (signature is not None and not signature.closed)
        if not free and part not in allowed:
            prefix = "".join(f"{p}." for p in parts[:i])
            kind = f"key of {'.'.join(parts[:i])}" if i else "group or key"
            guess = nearest(part, allowed)
            text = unknown(kind, part, allowed - {"_target_"})
            return text.replace(f"'{guess}'", f"'{prefix}{guess}'", 1) if guess else text
        if i == len(parts) - 1:
            return _set(node, part, override)
        child = node.get(part)
        opened = annotations.is_open(parameter.annotation) if parameter else free
        if child is None and opened:
            default = parameter.default if parameter and part not in node else None
            child = node[part] = dict(default) if isinstance(default, dict) else {}
        if not isinstance(child, dict):
            return f"unknown key '{override.key}': {'.'.join(parts[: i + 1])} is a single value"
        node, free = child, opened
    return None


def _set(node: dict[str, Any], key: str, override: Override) -> str | None:
    if override.delete:
        node.pop(key, None)
    elif isinstance(override.value, dict) and isinstance(node.get(key), dict):
        node[key] = merge(node[key], override.value)
    else:
        node[key] = override.value
    return None


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two mappings as one; where both have a key, `above` wins, mappings within are merged."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def expand(node: Any) -> Any:
    """A section with the defaults of its signature filled in, in its order, numbers in their declared type."""
    if isinstance(node, list):
        return [expand(one) for one in node]
    if not isinstance(node, dict):
        return node
    signature = _signature(node)
    if signature is None:
        return {key: expand(value) for key, value in node.items()}
    full: dict[str, Any] = {"_target_": node["_target_"]}
    for p in signature.parameters:
        if p.name in node or p.default is not signatures.UNREADABLE:
            full[p.name] = expand(annotations.coerce(p.annotation, node.get(p.name, p.default)))
    return full | {key: expand(value) for key, value in node.items() if key not in full}


def _signature(node: Any) -> signatures.Signature | None:
    target = node.get("_target_") if isinstance(node, dict) else None
    return signatures.read(target) if isinstance(target, str) else None


def root_problems(config: dict[str, Any], known: Iterable[str]) -> list[str]:
    """Top-level keys: unknown, missing, of a wrong type; an output_dir that cannot be written."""
    known = list(known)
    found = [unknown("group or key", key, known) for key in config if key not in known]
    for key, annotation in ROOT.items():
        if key not in config:
            continue
        value = config[key]
        if value == MISSING:
            found.append(f"{key} is missing: give {key}=...")
        elif not _is_open_text(value) and not annotations.accepts(annotation, value):
            found.append(_wrong(key, value, annotation))
    output_dir = config.get("output_dir")
    if isinstance(output_dir, str) and not _is_open_text(output_dir) and (problem := unwritable(output_dir)):
        found.append(f"output_dir='{output_dir}' {problem}")
    return found


def section_problems(node: Any, path: str, allow: Iterable[str]) -> list[str]:
    """Everything wrong at and below `path`, against the signatures of the classes named there."""
    if isinstance(node, list):
        return [text for i, one in enumerate(node) for text in section_problems(one, f"{path}[{i}]", allow)]
    if node == MISSING:
        return [f"{path} is missing: give {path}=..."]
    if not isinstance(node, dict):
        return []
    found = [f"{path}.{key} is not allowed; a section may only have _target_" for key in reserved(node)]
    signature = None
    if "_target_" in node:
        problem = target_problem(node["_target_"], path, allow)
        if problem:
            return [*found, problem]
        signature = signatures.read(node["_target_"])
    for p in signature.parameters if signature else ():
        value = node.get(p.name, MISSING if p.required else None)
        where = f"{path}.{p.name}"
        if isinstance(value, str) and value == MISSING:
            found.append(f"{where} is missing: give {where}=..." + (f" ({p.doc.rstrip('.')})" if p.doc else ""))
            continue
        if p.name in node and not _is_open_text(value) and not annotations.accepts(p.annotation, value):
            found.append(_wrong(where, value, p.annotation))
        found += section_problems(value, where, allow)
    names = [p.name for p in signature.parameters] if signature else []
    for key, value in node.items():
        if key in names or key == "_target_" or key in reserved(node):
            continue
        if signature and signature.closed:
            found.append(unknown(f"key of {path}", str(key), names))
        else:
            found += section_problems(value, f"{path}.{key}", allow)
    return found


def reserved(node: dict[str, Any]) -> list[str]:
    """Keys that Hydra's instantiate gives a meaning that we do not: _args_, _partial_, _convert_, _recursive_, ..."""
    names = [key for key in node if isinstance(key, str) and key.startswith("_") and key.endswith("_")]
    return [key for key in names if key != "_target_"]


def target_problem(target: Any, path: str, allow: Iterable[str]) -> str | None:
    """Why `_target_` may not be built, or None."""
    if not isinstance(target, str):
        return f"{path}._target_={target!r}: expected the dotted name of a class"
    if not is_allowed(target, allow):
        top = target.partition(".")[0]
        return f"{path}._target_='{target}' is outside outlie; if you trust that module, add allow=[{top}]"
    module, _, name = target.rpartition(".")
    # of outlie classes only: `outlie.cli.main` as a target would be another command line, with its own `allow`
    if target.partition(".")[0] == "outlie" and name not in signatures.classes(module):
        return f"{path}._target_: " + unknown(f"class of {module}", name, signatures.classes(module))
    return None


def needs_problem(config: dict[str, Any], choices: dict[str, Any], where: tuple[str, ...]) -> str | None:
    """What the detector needs and the backbone does not provide, with the backbones that would do."""
    detector, backbone = _signature(config.get("detector")), _signature(config.get("backbone"))
    if detector is None or backbone is None:
        return None
    lacking = [view for view in detector.needs if view not in backbone.provides]
    if not lacking:
        return None
    would_do = [f"backbone={name}" for name in providers(detector.needs, where)]
    return (
        f"detector '{choices.get('detector')}' needs {', '.join(lacking)}, which backbone "
        f"'{choices.get('backbone')}' does not provide (it has {', '.join(backbone.provides) or 'nothing'}); "
        + (f"would do: {', '.join(would_do)}" if would_do else "no backbone here provides that")
    )


def providers(needs: Iterable[str], where: tuple[str, ...]) -> list[str]:
    """Backbones that provide all these views, the plainest first."""
    found = {}
    for name, path in catalog.choices("backbone", where).items():
        signature = signatures.read(catalog.target(path))
        if signature and set(needs) <= set(signature.provides):
            found[name] = ("network" in signature.provides, "denoiser" in signature.provides)
    return sorted(found, key=lambda name: found[name])


def unwritable(folder: str) -> str | None:
    """Why nothing can be written into a folder (that may not exist yet), or None."""
    path = os.path.abspath(folder)
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        return f"cannot be made: {path} is not a folder"
    return None if os.access(path, os.W_OK | os.X_OK) else f"cannot be written: no permission in {path}"


def _is_open_text(value: Any) -> bool:
    return isinstance(value, str) and "${" in value  # an interpolation that is not resolved yet


def _wrong(where: str, value: Any, annotation: str | None) -> str:
    if isinstance(value, dict) and annotations.takes_path_below(annotation):  # dataset.ood: name -> file
        bad = next((name for name, path in value.items() if not annotations.accepts("Path", path)), None)
        if bad is not None:
            return _wrong(f"{where}.{bad}", value[bad], "Path")
    text = f"{where}={_show(value)}: expected {annotations.describe(annotation)}"
    if isinstance(value, str):
        literals = annotations.literals(annotation)
        guess = nearest(value, [one for one in literals if isinstance(one, str)])
        if guess is None and annotations.takes_path(annotation):
            folder, name = os.path.split(value)
            there = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
            near = nearest(name, there)
            guess = os.path.join(folder, near) if near else None
        return f"{text} (did you mean '{guess}'?)" if guess else text
    if annotations.accepts(annotation, str(value)) and value is not None:
        return f"""{text}; quote it twice to make it one: '{where}="{value}"'"""
    return text


def _show(value: Any) -> str:
    plain = {True: "true", False: "false", None: "null"}
    return plain[value] if value is None or isinstance(value, bool) else repr(value)
