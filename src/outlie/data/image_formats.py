"""Readers of image arrays in others' formats: idx, CIFAR's binary version, MATLAB, npz; nothing is unpickled.

Each returns (N, C, H, W) uint8 images and (N,) int64 labels, or one of them, and says in one line what is wrong.
"""

import gzip
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np

from outlie.data.arrays import npz_names, read_npz
from outlie.errors import UserError

DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, struct.error, zlib.error, tarfile.TarError)
IDX_UINT8 = 0x08
CIFAR_PIXELS = 3 * 32 * 32


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an idx file (LeCun's format), packed with gzip or not."""
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except DAMAGED as error:
        raise UserError(damaged(path, error)) from error
    if len(content) < 4 or content[:2] != b"\0\0":
        raise UserError(f"{path} is no idx file: it starts with {content[:4].hex() or 'nothing'}, not 0000; {_AGAIN}")
    kind, rank = content[2], content[3]
    if kind != IDX_UINT8:
        raise UserError(f"{path} is an idx file of type 0x{kind:02x}, allowed: 0x08 (unsigned bytes)")
    start = 4 + 4 * rank
    if len(content) < start:
        raise UserError(f"{path} is truncated: its header ends after {len(content)} of {start} bytes; {_AGAIN}")
    shape = struct.unpack(f">{rank}I", content[4:start])
    expected = start + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        raise UserError(f"{path} is truncated: {len(content)} bytes unpacked, {expected} expected; {_AGAIN}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def idx_pair(images: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    """Grey images and labels of two idx files."""
    x, y = read_idx(images), read_idx(labels)
    if x.ndim != 3 or y.ndim != 1 or len(x) != len(y):
        raise UserError(f"{images} has shape {x.shape} and {labels} {y.shape}, expected (N, H, W) and (N,): {_AGAIN}")
    return x[:, None], y.astype(np.int64)


def read_cifar(path: Path, part: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images, (fine) labels and class names of a part ('train', 'test') of CIFAR's binary tar.gz, in CIFAR's order."""
    batches: dict[str, bytes] = {}
    names: dict[str, tuple[str, ...]] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:  # one pass: seeking back would unpack again
                file = member.name.rpartition("/")[2]
                wanted = file.endswith(".bin") and file.startswith("test") == (part == "test")
                if wanted or file in ("batches.meta.txt", "fine_label_names.txt"):
                    content = archive.extractfile(member)
                    if content is None:
                        raise UserError(f"{path}: {member.name} is no file; {_AGAIN}")
                    if wanted:
                        batches[file] = content.read()
                    else:
                        names[file] = tuple(content.read().decode().split())
    except DAMAGED as error:
        raise UserError(damaged(path, error)) from error
    if not batches or not names:
        raise UserError(
            f"{path} holds no binary CIFAR (*.bin and the class names): take cifar-*-binary.tar.gz; "
            "the Python version is pickled, which could run code when read"
        )
    fine = "fine_label_names.txt" in names
    record = CIFAR_PIXELS + (2 if fine else 1)
    for file, content in batches.items():
        if len(content) % record or not content:
            raise UserError(f"{path}: {file} has {len(content)} bytes, which is no multiple of {record}; {_AGAIN}")
    table = np.frombuffer(b"".join(batches[file] for file in sorted(batches)), np.uint8).reshape(-1, record)
    y = table[:, record - CIFAR_PIXELS - 1].astype(np.int64)  # CIFAR-100: coarse, then fine
    return table[:, -CIFAR_PIXELS:].reshape(-1, 3, 32, 32), y, next(iter(names.values()))


def read_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of SVHN's MATLAB files: X (H, W, C, N), y (N, 1) with 10 for the digit 0."""
    import scipy.io  # slow to import, and only needed here

    try:
        content = scipy.io.loadmat(path, variable_names=["X", "y"])
        x, y = content["X"], content["y"].reshape(-1).astype(np.int64) % 10
    except (*DAMAGED, NotImplementedError) as error:
        raise UserError(damaged(path, error)) from error
    if x.ndim != 4 or x.dtype != np.uint8 or x.shape[3] != len(y):
        raise UserError(f"{path}: X is {x.dtype} {x.shape} with {len(y)} labels, expected uint8 (H, W, C, N)")
    return np.ascontiguousarray(x.transpose(3, 2, 0, 1)), y


def read_images_npz(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """`images` (N, H, W, C) or (N, H, W) uint8, `labels` (N,) and, where it is there, `class_names` of an npz file."""
    x, y = read_npz(path, ["images", "labels"])
    names = read_npz(path, ["class_names"])[0] if "class_names" in npz_names(path) else np.array([], str)
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4 or x.dtype != np.uint8 or x.shape[3] not in (1, 3) or not len(x):
        raise UserError(f"images of {path} are {x.dtype} {x.shape}, expected uint8 (N, H, W, 1 or 3)")
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise UserError(f"labels of {path} are {y.dtype} {y.shape}, expected {len(x)} integers")
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), y.astype(np.int64), tuple(str(name) for name in names)


_AGAIN = "delete it and fetch it again"


def damaged(path: Path, error: Exception) -> str:
    """What is said of a file that cannot be read through."""
    return f"{path} is truncated or damaged ({error}): {_AGAIN}"
