"""`run list`: what exists, from the folders of configs, with one line and the source paper of each."""

import shutil
import sys

from outlie import catalog, signatures
from outlie.errors import UserError
from outlie.sweeps import dataset_groups


def main(words: list[str], config_dirs: tuple[str, ...] = (), as_json: bool = False) -> int:
    """Print every group, or the ones named."""
    where = catalog.roots(config_dirs)
    if any("=" in word for word in words):
        raise UserError(f"run list takes groups only: {', '.join(catalog.groups(where))}")
    groups = [catalog.singular(word, where) for word in words] or catalog.groups(where)
    found = {group: entries(group, where) for group in groups}
    if as_json:
        import json

        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    width = max(shutil.get_terminal_size().columns, 60) if sys.stdout.isatty() else sys.maxsize
    print("\n\n".join(_table(group, rows, width) for group, rows in found.items() if rows))
    print("\nrun show NAME lists a choice's options")
    return 0


def entries(group: str, where: tuple[str, ...]) -> list[dict[str, str]]:
    """name, description and paper of every choice of a group."""
    rows = []
    for name, path in catalog.choices(group, where).items():
        target = catalog.target(path)
        signature = signatures.read(target) if target else None
        description = catalog.description(path) or (signature.doc if signature else "")
        rows.append({"name": name, "description": description, "paper": signature.paper if signature else ""})
    if group == "dataset":
        several = dataset_groups.groups()
        rows += [{"name": name, "description": dataset_groups.description(name), "paper": ""} for name in several]
    return rows


def _table(group: str, rows: list[dict[str, str]], width: int) -> str:
    """One line each; the paper where it is not said in the description already, cut where a terminal ends."""
    left = max(len(row["name"]) for row in rows)
    lines = [f"{group} ({len(rows)})"]
    for row in rows:
        paper = f"  [{row['paper']}]" if row["paper"] else ""
        line = f"  {row['name']:<{left}}  {row['description']}{paper}"
        lines.append(line if len(line) <= width else line[: width - 3] + "...")
    return "\n".join(lines)
