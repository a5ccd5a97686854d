"""Names for several datasets at once, for sweeps: dataset=adbench/small."""

from functools import cache

from outlie.data.adbench_files import datasets

SMALL = 10_000  # rows


@cache
def groups() -> dict[str, tuple[str, ...]]:
    """Name -> the datasets it stands for, as `dataset=` takes them; sizes are those of the published tables."""
    folder = {name: files[0].path.partition("/")[0] for name, files in datasets().items()}
    rows = {name: max(file.rows or 0 for file in files) for name, files in datasets().items()}
    classical = [name for name in datasets() if folder[name] == "Classical"]
    chosen = {
        "adbench/all": list(datasets()),
        "adbench/classical": classical,
        "adbench/small": [name for name in classical if rows[name] <= SMALL],
        "adbench/large": [name for name in classical if rows[name] > SMALL],
        "adbench/cv": [name for name in datasets() if folder[name].startswith("CV")],
        "adbench/nlp": [name for name in datasets() if folder[name].startswith("NLP")],
    }
    return {group: tuple(f"adbench/{name}" for name in names) for group, names in chosen.items()}


def description(group: str) -> str:
    """One line about a group."""
    said = {
        "adbench/all": "every dataset of ADBench",
        "adbench/classical": "its tables",
        "adbench/small": f"its tables of at most {SMALL:,} rows",
        "adbench/large": f"its tables of more than {SMALL:,} rows",
        "adbench/cv": "its features of images",
        "adbench/nlp": "its features of texts",
    }
    return f"{len(groups()[group])} datasets, for sweeps: {said[group]}"
