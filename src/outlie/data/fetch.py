"""Download one file: with progress, resume, retries and a checksum; whole or not at all."""

import contextlib
import errno
import hashlib
import http.client
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from outlie.errors import UserError

CHUNK = 1 << 18
TIMEOUT_S = 30
HINT = "or point OUTLIE_DATA at a folder that has it"


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kind_of(digest: str) -> str:
    """Which function a hex digest is of: MD5 has 32 digits."""
    return "MD5" if len(digest) == 32 else "SHA-256"


def digest_of(path: Path, like: str) -> str:
    """Hex digest of a file by the function that `like` is of."""
    if kind_of(like) != "MD5":
        return sha256_of(path)
    with path.open("rb") as file:  # against damage, not against an attacker: the publishers give no other sum
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def download(url: str, target: Path, expected: str = "", tries: int = 5, pause_s: float = 0.5) -> str:
    """Bring `url` to `target` and return its digest; a partial file is kept as `target.part` and resumed.

    Several processes may ask for the same target at once: one downloads, the others wait for it.

    Args:
        expected: SHA-256, or MD5 (32 digits) where that is all there is; empty = unknown, any content is taken.
        tries: Attempts after connection errors, with pauses of `pause_s`, twice that, and so on.

    Raises:
        UserError: offline, refused by the server, not writable, or another content than expected.
    """
    part = target.with_name(target.name + ".part")
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):  # released by the system if the process dies
            if target.exists() and (not expected or digest_of(target, expected) == expected):
                return digest_of(target, expected)
            resumed = part.exists()
            found = _whole(url, part, target, expected, tries, pause_s)
            if expected and found != expected and resumed:  # the kept part may be of another version
                part.unlink()
                found = _whole(url, part, target, expected, tries, pause_s)
            if expected and found != expected:
                part.unlink()
                raise UserError(
                    f"{url} has {kind_of(expected)} {found}, expected {expected}: not kept. The server or a proxy "
                    f"sent something else; try again, or put the right file at {target}, {HINT}"
                )
            part.replace(target)
    return found


def _whole(url: str, part: Path, target: Path, expected: str, tries: int, pause_s: float) -> str:
    problem: Exception | None = None
    for attempt in range(tries):
        if attempt:
            time.sleep(pause_s * 2 ** (attempt - 1))
        try:
            _attempt(url, part)
            return digest_of(part, expected)
        except urllib.error.HTTPError as error:
            problem = error
            error.close()
            if error.code < 500 and error.code not in (408, 416, 429):
                break
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
                raise
            problem = error
    kept = f" ({part.stat().st_size} bytes are kept and will be resumed)" if part.exists() else ""
    reason = getattr(problem, "reason", None) or problem
    code = f"HTTP {problem.code} " if isinstance(problem, urllib.error.HTTPError) else ""
    raise UserError(f"cannot download {url}: {code}{reason}{kept}. Put the file at {target}, {HINT}")


def _attempt(url: str, part: Path) -> None:
    """One request, going on from what `part` has; ConnectionError if it ends early."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "outlie"}
    request = urllib.request.Request(url, headers=headers | ({"Range": f"bytes={have}-"} if have else {}))
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing after `have`: complete, or not a part of this file
            if error.headers.get("Content-Range", "").strip() == f"bytes */{have}":
                error.close()
                return
            part.unlink()
        raise
    with response:
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if response.status == 206 and not goes_on:
            part.unlink(missing_ok=True)
            raise ConnectionError("the server sent another range than asked for")
        have = have if goes_on else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if goes_on else "wb") as file, _progress(part.stem, have, total) as advance:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                advance(len(chunk))
    size = part.stat().st_size
    if total is not None and size != total:
        raise ConnectionError(f"the connection ended after {size} of {total} bytes")


@contextlib.contextmanager
def _progress(name: str, have: int, total: int | None) -> Iterator[Any]:
    """A bar on stderr; nothing where that is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=total, completed=have)
        yield lambda n: bar.advance(task, n)


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Say which folder cannot be written, and what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror or error}. Free or allow it, set XDG_CACHE_HOME to another "
            f"folder, {HINT}"
        ) from error
