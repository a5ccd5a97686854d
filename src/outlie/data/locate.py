"""Where data are: under OUTLIE_DATA, else in the user's cache folder, else downloaded into it; always verified."""

import csv
import os
import sys
import zipfile
from pathlib import Path

from filelock import FileLock

from outlie.data.adbench_files import DataFile
from outlie.data.fetch import download, sha256_of
from outlie.errors import UserError

ADBENCH_COMMIT = "3dac8221081e190f157d78e93bfa8867f90d0965"
ADBENCH_URL = f"https://raw.githubusercontent.com/Minqi824/ADBench/{ADBENCH_COMMIT}/adbench/datasets/"


def cache_dir() -> Path:
    """The user's cache folder for outlie; it need not exist."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "outlie"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "outlie" / "Cache"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "outlie"


def data_dir() -> Path | None:
    """The folder that OUTLIE_DATA names, None if unset; UserError if it is not there or not readable."""
    given = os.environ.get("OUTLIE_DATA")
    if not given:
        return None
    folder = Path(given).expanduser()
    problem = None
    try:
        if not folder.is_dir():
            problem = "is not a folder" if folder.exists() else "does not exist"
        else:
            os.scandir(folder).close()
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    if problem:
        raise UserError(f"OUTLIE_DATA={given} {problem}: correct it, or unset it to use {cache_dir()}")
    return folder


def find(file: DataFile) -> Path | None:
    """Where the file is, None if it is not on this machine; not verified."""
    root = data_dir()
    places = [folder / "adbench" / file.path for folder in (root, cache_dir()) if folder is not None]
    try:
        return next((place for place in places if place.is_file()), None)
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}; allow it, or unset OUTLIE_DATA") from error


def verify(file: DataFile, path: Path) -> bool:
    """Compare size and SHA-256 with what is known; False if no checksum is known, UserError if they differ."""
    expected = file.sha256 or recorded().get(file.path, "")
    fix = f"delete it and run: run data fetch {file.title}"
    try:
        size = path.stat().st_size
        if file.bytes is not None and size < file.bytes:
            raise UserError(f"{path} is truncated: {size} bytes found, {file.bytes} expected; {fix}")
        found = sha256_of(path) if expected else ""
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; allow it, or {fix}") from error
    if found != expected:
        raise UserError(f"{path} is not the file it should be: SHA-256 {found} found, {expected} expected; {fix}")
    return bool(expected)


def obtain(file: DataFile) -> Path:
    """The verified file: found, or downloaded into the cache folder."""
    path = find(file)
    if path is None:
        return fetch(file)
    verify(file, path)
    return path


def fetch(file: DataFile) -> Path:
    """Download into the cache folder, unless a right copy is there; a first checksum is recorded."""
    target = cache_dir() / "adbench" / file.path
    expected = file.sha256 or recorded().get(file.path, "")
    url = os.environ.get("OUTLIE_ADBENCH_URL", ADBENCH_URL).rstrip("/") + "/" + file.path
    found = download(url, target, expected)
    if not expected:
        if not zipfile.is_zipfile(target):  # a login page of a proxy, for one
            target.unlink()
            raise UserError(f"{url} is not an npz file: not kept. Put the right one at {target}")
        record(file.path, found)
    return target


def recorded() -> dict[str, str]:
    """Checksums noted at first downloads: path -> SHA-256."""
    book = cache_dir() / "checksums.csv"
    if not book.is_file():
        return {}
    with book.open(newline="", encoding="utf-8") as lines:
        return {row["file"]: row["sha256"] for row in csv.DictReader(lines)}


def record(path: str, sha256: str) -> None:
    """Note a checksum for ever after; the first one stays."""
    book = cache_dir() / "checksums.csv"
    with FileLock(book.with_suffix(".lock")):
        known = {path: sha256} | recorded()
        new = book.with_suffix(".new")
        with new.open("w", newline="", encoding="utf-8") as lines:
            csv.writer(lines, lineterminator="\n").writerows([("file", "sha256"), *sorted(known.items())])
        new.replace(book)
