"""What of a dataset is not on this machine, by its config alone: neither torch nor numpy, and nothing is opened."""

from pathlib import Path
from typing import Any

from outlie.data.adbench_files import group, one_file
from outlie.data.image_sets import DERIVED, FLIPS, SETS, image_files
from outlie.data.locate import cache_dir, data_dir, find

ADBENCH = "outlie.data.adbench.ADBench"
OOD_IMAGES = "outlie.data.images.OODImages"
CAMVID = "outlie.data.dense.CamVid"


def absent(dataset: dict[str, Any]) -> list[str]:
    """Names of what is missing, as `run data fetch` takes them where it can; [] = all is here, or nothing is known.

    Args:
        dataset: the section of a composed config
    """
    target = dataset.get("_target_")
    if target == ADBENCH:
        part = dataset.get("part")
        files = group(dataset["name"]) if part is None else (one_file(dataset["name"], str(part)),)
        return [f"adbench/{file.title}" for file in files if find(file) is None]
    if target == OOD_IMAGES:
        names = [dataset["id"], *dataset["near"], *dataset["far"]]
        return [f"image/{name}" for name in names if name not in FLIPS and not _has(name)]
    if target == CAMVID and dataset.get("path") is None:
        places = [folder / name for folder in (data_dir(), cache_dir()) if folder for name in ("camvid", "CamVid")]
        return [] if any((place / "train").is_dir() for place in places) else ["camvid"]
    path = next((dataset[key] for key in ("path", "root") if isinstance(dataset.get(key), str)), None)
    return [] if path is None or path == "???" or Path(path).expanduser().exists() else [path]


def _has(name: str) -> bool:
    """Whether the source's files are here, or those of the full set that it is made from."""
    own = name in SETS and all(find(file) is not None for file in image_files()[name])
    return own or (name in DERIVED and _has(DERIVED[name]))


def fetchable(name: str) -> bool:
    """Whether `run data fetch NAME` gets it."""
    return name.startswith(("adbench/", "image/"))
