"""`run data`: list, fetch and verify datasets. Imports neither torch nor NumPy."""

import sys
from collections.abc import Sequence
from pathlib import Path

from outlie.data.adbench_files import DataFile, datasets, select
from outlie.data.image_sets import DERIVED, FLIPS, SETS, ImageFile, ImageSet, image_files, select_images
from outlie.data.locate import cache_dir, data_dir, fetch, find, verify
from outlie.errors import UserError, unknown

HELP = """usage: run data COMMAND

  list              every dataset: size, share of anomalies, terms, where it is
  fetch NAME...     bring datasets here (all = every one); verified, resumed if cut off
  verify [NAME...]  compare files with their checksums (without names: all that are here)
  path              where data are looked for, in order

examples:
  run data list
  run data fetch thyroid mvtec_ad
  run data fetch mvtec_ad/bottle
  run data fetch image/mnist image/cifar10
  run data verify

ADBench files come from github.com/Minqi824/ADBench; its repository is BSD-2-Clause, the data keep their own terms.
Image sets come from their authors; image/ may be left out where ADBench has no dataset of that name.
vflip and hflip (dataset.near, dataset.far) are the test images of dataset.id, flipped: nothing to fetch.
OUTLIE_DATA names a folder to look in first, OUTLIE_ADBENCH_URL and OUTLIE_IMAGES_URL mirrors."""

# Inside scikit-learn: dataset, rows, features, anomalies under the default `anomaly` class.
EMBEDDED = (("breast_cancer", 569, 30, 212), ("digits", 1797, 64, 174), ("wine", 178, 13, 48))


def main(argv: list[str]) -> int:
    """Run one subcommand; 0 = done, 1 = a file is wrong or missing. Raises UserError for a mistake in the words."""
    if not argv or argv[0] in ("-h", "--help") or argv[-1] in ("-h", "--help"):
        print(HELP)
        return 0
    command, *names = argv
    commands = {"list": _list, "fetch": _fetch, "verify": _verify, "path": _path}
    if command not in commands:
        raise UserError(unknown("data command", command, commands) + "; see: run data --help")
    if names and command in ("list", "path"):
        raise UserError(f"run data {command} takes no names: leave {' '.join(names)} out")
    return commands[command](names)


def _list(_: list[str]) -> int:
    rows = [("dataset", "files", "rows", "features", "anomalies", "terms", "where")]
    for name, n, features, anomalies in EMBEDDED:
        rows.append((name, "0", str(n), str(features), _percent(anomalies, n), "BSD-3-Clause", "inside scikit-learn"))
    for name, files in datasets().items():
        rows.append((f"adbench/{name}", str(len(files)), *_size(files), files[0].terms, _where(files)))
    for name, info in SETS.items():
        images = image_files()[name]
        terms, where = (images[0].terms, _where(images)) if images else ("BSD-3-Clause", "inside scikit-learn")
        if where == "not here" and name in DERIVED:
            where = f"made from {DERIVED[name]}"
        rows.append((f"image/{name}", str(len(images)), str(sum(info.rows.values())), _shape(info), "-", terms, where))
    widths = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(w) if 1 <= j <= 4 else cell.ljust(w) for j, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    return 0


def _size(files: tuple[DataFile, ...]) -> tuple[str, str, str]:
    """Rows (a range over a group's files), features, anomalies in percent; of the files whose size is known."""
    known = [(file.rows, file.anomalies) for file in files if file.rows is not None and file.anomalies is not None]
    low, high = min(n for n, _ in known), max(n for n, _ in known)
    return (
        str(low) if low == high else f"{low}-{high}",
        str(files[0].features),
        _percent(sum(a for _, a in known), sum(n for n, _ in known)),
    )


def _shape(info: ImageSet) -> str:
    return "x".join("?" if side is None else str(side) for side in info.shape)


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole
    return f"{share:.1f} %" if share >= 0.95 else f"{share:.2f} %"


def _where(files: Sequence[DataFile | ImageFile]) -> str:
    found = [path for file in files if (path := find(file)) is not None]
    if not found:
        return "not here"
    share = "" if len(found) == len(files) else f" ({len(found)} of {len(files)} files)"
    return f"{found[0].parent}{share}"


def _select(words: list[str]) -> list[DataFile | ImageFile]:
    """Files for what a user typed: names of ADBench's datasets, of image sets, `all`."""
    chosen: dict[str, DataFile | ImageFile] = {}
    for word in words:
        name = word.partition("/")[0]
        if word == "all":
            found = [*select(["all"]), *(file for files in image_files().values() for file in files)]
        elif name == "image":
            found = select_images(word.removeprefix("image/"))
        elif name in (*SETS, *FLIPS) and name not in datasets():
            found = select_images(word)
        elif name not in ("adbench", *datasets()):
            raise UserError(unknown("dataset", word, {*datasets(), *SETS}) + "; see: run data list")
        else:
            found = select([word])
        chosen |= {file.title: file for file in found}
    return list(chosen.values())


def _fetch(names: list[str]) -> int:
    if not names:
        raise UserError("which datasets? run data fetch NAME..., or run data fetch all; names: run data list")
    chosen = _select(names)
    if names == ["all"]:  # what is not on the web is made from what is
        chosen = [file for file in chosen if not isinstance(file, ImageFile) or file.urls]
    for number, file in enumerate(chosen, 1):
        path = find(file)
        if path is None or not _is_right(file, path):
            path = fetch(file)
        print(f"[{number}/{len(chosen)}] {file.title}: {path} ({file.terms})")
    return 0


def _is_right(file: DataFile | ImageFile, path: Path) -> bool:
    root = data_dir()
    try:
        verify(file, path)
    except UserError:
        if root is not None and path.is_relative_to(root):
            raise  # a file of the user's own folder is never replaced
        return False
    return True


def _verify(names: list[str]) -> int:
    chosen = _select(names or ["all"])
    right = unknown_sum = 0
    problems = []
    for file in chosen:
        path = find(file)
        if path is None:
            if names:
                problems.append(f"{file.title} is not here: run data fetch {file.title}")
            continue
        try:
            if verify(file, path):
                right += 1
            else:
                unknown_sum += 1
        except UserError as error:
            problems.append(str(error))
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{right} files are right, {unknown_sum} have no known checksum, {len(problems)} problems")
    return 1 if problems else 0


def _path(_: list[str]) -> int:
    root = data_dir()
    print(f"1. OUTLIE_DATA: {root if root else 'not set'}")
    print(f"2. cache: {cache_dir()}")
    return 0
