"""What is suspicious about images that stay files: copies between parts, grey among colour, unequal classes."""

import hashlib
import itertools
from pathlib import Path

import numpy as np

from outlie.data.image_files import ImageFiles, kinds
from outlie.data.image_lints import imbalance

MOST_READ = 20_000  # files of equal size that are read to look for copies; above, it is said


def lint_files(parts: dict[str, ImageFiles], y: np.ndarray, classes: tuple[str, ...]) -> list[str]:
    """Findings about the parts of a split, 'training' first; images are not decoded, only their headers are read."""
    findings, unseen = [], []
    for earlier, later in itertools.combinations(parts, 2):
        count = copies(parts[later], parts[earlier])
        if count is None:
            unseen.append(f"{later} in {earlier}")
        elif count:
            share = f"{count} of {len(parts[later])} {later} images ({100 * count / len(parts[later]):.1f} %)"
            findings.append(f"{share} are exact copies of {earlier} images")
    if unseen:
        findings.append(f"copies were not looked for, too many files are alike in size: {', '.join(unseen)}")
    for name, files in parts.items():
        other, seen = kinds(files)
        if other:
            change = "grey, made colour by repeating" if files.shape[1] == 3 else "in colour, made grey (luma)"
            findings.append(f"{other} of {seen} {name} images{_sampled(seen, len(files))} are {change}")
    return findings + (imbalance(y, classes) if len(classes) > 1 else [])


def copies(files: ImageFiles, others: ImageFiles) -> int | None:
    """How many files are byte for byte one of the others; None where too many would have to be read."""
    mine, theirs = (np.flatnonzero(np.isin(a.sizes, b.sizes)) for a, b in ((files, others), (others, files)))
    if len(mine) + len(theirs) > MOST_READ:
        return None
    known = {_digest(others.root / others.names[i]) for i in theirs}
    return sum(_digest(files.root / files.names[i]) in known for i in mine)


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def _sampled(seen: int, n: int) -> str:
    return "" if seen == n else f" looked at (of {n})"
