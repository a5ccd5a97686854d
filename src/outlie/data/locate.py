"""Where data are: under OUTLIE_DATA, else in the user's cache folder, else downloaded into it; always verified."""

import csv
import os
import sys
import zipfile
from pathlib import Path

from filelock import FileLock

from outlie.data.adbench_files import DataFile
from outlie.data.fetch import digest_of, download, kind_of
from outlie.data.image_sets import DERIVED, ImageFile
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


def find(file: DataFile | ImageFile) -> Path | None:
    """Where the file is, None if it is not on this machine; not verified."""
    paths = [f"adbench/{file.path}"] if isinstance(file, DataFile) else file.paths
    places = [folder / path for folder in (data_dir(), cache_dir()) if folder is not None for path in paths]
    try:
        return next((place for place in places if place.is_file()), None)
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}; allow it, or unset OUTLIE_DATA") from error


def expected_sum(file: DataFile | ImageFile) -> str:
    """The hex digest that is known: SHA-256 or, where only that is published, MD5; "" if none is."""
    known = file.sha256 or (file.md5 if isinstance(file, ImageFile) else "")
    return known or recorded().get(file.path, "")


def verify(file: DataFile | ImageFile, path: Path) -> bool:
    """Compare size and checksum with what is known; False if no checksum is known, UserError if they differ."""
    expected = expected_sum(file)
    fix = f"delete it and run: run data fetch {file.title}"
    try:
        size = path.stat().st_size
        if file.bytes is not None and size < file.bytes:
            raise UserError(f"{path} is truncated: {size} bytes found, {file.bytes} expected; {fix}")
        found = digest_of(path, expected) if expected else ""
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; allow it, or {fix}") from error
    if found != expected:
        differs = f"{kind_of(expected)} {found} found, {expected} expected"
        raise UserError(f"{path} is not the file it should be: {differs}; {fix}")
    return bool(expected)


def obtain(file: DataFile | ImageFile) -> Path:
    """The verified file: found, or downloaded into the cache folder."""
    path = find(file)
    if path is None:
        return fetch(file)
    verify(file, path)
    return path


def fetch(file: DataFile | ImageFile) -> Path:
    """Download into the cache folder, unless a right copy is there; a first checksum is recorded."""
    if isinstance(file, ImageFile):
        return fetch_image_file(file)
    target = cache_dir() / "adbench" / file.path
    expected = expected_sum(file)
    url = os.environ.get("OUTLIE_ADBENCH_URL", ADBENCH_URL).rstrip("/") + "/" + file.path
    found = download(url, target, expected)
    if not expected:
        if not zipfile.is_zipfile(target):  # a login page of a proxy, for one
            target.unlink()
            raise UserError(f"{url} is not an npz file: not kept. Put the right one at {target}")
        record(file.path, found)
    return target


def fetch_image_file(file: ImageFile) -> Path:
    """Download from the first mirror that has it; OUTLIE_IMAGES_URL names one that is asked instead."""
    target = cache_dir() / file.path
    given = os.environ.get("OUTLIE_IMAGES_URL")
    urls = (f"{given.rstrip('/')}/{file.path}",) if given else file.urls
    if not urls:
        full = f"; without it, it is made from {DERIVED[file.name]}" if file.name in DERIVED else ""
        raise UserError(f"{file.title} is not on the web: put {file.path} under OUTLIE_DATA or {cache_dir()}{full}")
    expected = expected_sum(file)
    *earlier, last = urls
    for url in earlier:
        try:
            return _download_image_file(file, url, target, expected, tries=2)
        except UserError:
            continue  # the last mirror's answer is what is told
    return _download_image_file(file, last, target, expected, tries=5)


def _download_image_file(file: ImageFile, url: str, target: Path, expected: str, tries: int) -> Path:
    found = download(url, target, expected, tries)
    if not expected:
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
