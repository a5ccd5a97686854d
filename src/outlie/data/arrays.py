"""Read arrays from files that others made (nothing is unpickled), check them, hash them."""

import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from outlie.errors import UserError, nearest, unknown

_DAMAGED = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)


def require_file(path: Path | str, option: str = "dataset.path") -> Path:
    """The path if a readable file is there; else UserError with the nearest name in that folder."""
    path = Path(path).expanduser()
    try:
        if path.is_file():
            return path
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError as error:
        raise UserError(f"{option}={path} cannot be read: {error.strerror}") from error
    guess = nearest(path.name, beside)
    hint = f" (did you mean '{path.parent / guess}'?)" if guess else ""
    raise UserError(f"{option}={path} is not a file{hint}; give the path of one")


def read_npz(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """The named arrays of an npz file; object arrays are refused, never unpickled."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise UserError(f"{path} holds one array, not an npz: save it with np.savez(path, X=..., y=...)")
            for name in names:
                if name not in file.files:
                    raise UserError(f"{path}: " + unknown("array", name, file.files) + "; name yours so")
            return [file[name] for name in names]
    except _DAMAGED as error:
        raise UserError(_damage(path, error)) from error


def npz_names(path: Path) -> list[str]:
    """Names of the arrays in an npz file."""
    try:
        with zipfile.ZipFile(path) as file:
            return [name.removesuffix(".npy") for name in file.namelist()]
    except _DAMAGED as error:
        raise UserError(_damage(path, error)) from error


def read_npy(path: Path) -> np.ndarray:
    """The one array of an npy file; an object array is refused, never unpickled."""
    try:
        return np.load(path, allow_pickle=False)
    except _DAMAGED as error:
        raise UserError(_damage(path, error)) from error


def _damage(path: Path, error: Exception) -> str:
    if "allow_pickle" in str(error):
        return (
            f"{path} holds an object array or a pickle, which could run code when read, so it is refused: "
            "save plain numbers, np.savez(path, X=X.astype(float), y=y.astype(int))"
        )
    return f"{path} is truncated or not a NumPy file ({error}): make or fetch it again"


def as_matrix(x: np.ndarray, what: str) -> np.ndarray:
    """(n, D) float64 from any real dtype (uint8, int16, ...), else UserError."""
    if x.dtype.kind not in "biuf":
        raise UserError(f"{what} has dtype {x.dtype}, allowed: integers, floats, bool; convert it to numbers first")
    if x.ndim != 2 or 0 in x.shape:
        raise UserError(f"{what} has shape {x.shape}, expected (rows, features), both at least 1; reshape it")
    return np.ascontiguousarray(x, dtype=np.float64)


def as_vector(y: np.ndarray, n: int, what: str) -> np.ndarray:
    """(n,) labels, else UserError."""
    y = y.squeeze(1) if y.ndim == 2 and y.shape[1] == 1 else y
    if y.shape != (n,):
        raise UserError(f"{what} has shape {y.shape}, expected ({n},): one label for each row")
    return y


def binary_labels(y: np.ndarray, n: int, what: str) -> np.ndarray:
    """(n,) int64 labels of 0 and 1, else UserError."""
    y = as_vector(y, n, what)
    values = np.unique(y)
    if not np.isin(values, (0, 1)).all():
        raise UserError(f"{what} has the values {values[:8].tolist()}, allowed: 0 = normal, 1 = anomaly")
    return y.astype(np.int64)


def column_names(d: int) -> tuple[str, ...]:
    """x0, x1, ...: names where the file has none."""
    return tuple(f"x{j}" for j in range(d))


def count_by_column(bad_ND: np.ndarray, columns: Sequence[str]) -> str:
    """`age (3), income (1)`: the columns where something is, with counts; at most eight are named."""
    counts = bad_ND.sum(0)
    where = np.flatnonzero(counts)
    named = ", ".join(f"{columns[j]} ({counts[j]})" for j in where[:8])
    return named + (f" and {len(where) - 8} more columns" if len(where) > 8 else "")


def refuse_infinite(x: np.ndarray, columns: Sequence[str], what: str) -> None:
    """UserError that names the columns with +Inf or -Inf and how many there are."""
    if (bad := np.isinf(x)).any():
        raise UserError(
            f"{what} has infinite values in {count_by_column(bad, columns)}: correct the file, or leave the columns out"
        )


def refuse_nan(x: np.ndarray, columns: Sequence[str], what: str, fix: str) -> None:
    """UserError that names the columns with NaN and how many there are."""
    if (bad := np.isnan(x)).any():
        raise UserError(f"{what} has missing values (NaN) in {count_by_column(bad, columns)}: {fix}")


def hash_arrays(*arrays: np.ndarray | None) -> str:
    """SHA-256 over dtype, shape and bytes of the arrays, the same on every machine."""
    digest = hashlib.sha256()
    for array in arrays:
        if array is None:
            digest.update(b"none;")
            continue
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{little.dtype.str}{little.shape};".encode())
        digest.update(little.data.cast("B") if little.size else b"")
    return digest.hexdigest()
