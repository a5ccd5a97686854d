"""New rows, batch by batch: CSV and Parquet streamed, npy mapped, npz unpacked as it is read, images decoded."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from outlie.data.arrays import npz_names
from outlie.data.frames import EMPTY_WORDS, SUFFIXES
from outlie.data.image_arrays import to_shape
from outlie.data.image_files import THREADS, Transform, decode, list_images
from outlie.errors import UserError
from outlie.scoring.schema import NAMED, Schema, check, retyped

CELLS = 2**20  # numbers of a batch: 8 MB in float64
ARRAYS = (".npy", ".npz")


@dataclass
class Source:
    """An input that has been looked at: how many rows it has, where that is quick to know, and its batches."""

    name: str
    total: Callable[[], int | None]
    batches: Callable[[], Iterator[Any]]
    notes: list[str]


def table(path: Path, schema: Schema, used: Sequence[str], separator: str | None) -> Source:
    """Frames of the columns of `schema` and of `used`, in the file's order.

    Raises:
        UserError: a file that cannot be read, is empty, or whose columns are not those of the training.
    """
    suffix = path.suffix.lower()
    if suffix in ARRAYS:
        return _array_table(path, schema, used)
    if SUFFIXES.get(suffix) not in ("csv", "parquet"):
        raise UserError(
            f"input={path}: cannot tell what it is; allowed: .csv, .tsv, .txt, .parquet, .npz, .npy, a folder"
        )
    with _reading(path):
        plain = {name: pl.Float64() for name in schema.numbers if name not in schema.booleans}
        lazy = pl.scan_parquet(path, glob=False) if suffix == ".parquet" else _csv(path, schema, separator, plain)
        kinds = dict(lazy.collect_schema())
    notes = check(schema, list(kinds), used, str(path))
    for name in schema.columns if suffix == ".parquet" else ():
        _refuse_retyped(name, kinds[name], name in schema.levels)
    wanted = list(dict.fromkeys([*schema.columns, *used]))
    at_once = max(1024, CELLS // max(1, len(wanted)))

    def frames() -> Iterator[pl.DataFrame]:
        with _reading(path, lambda: _not_a_number(path, schema, separator)):
            yield from lazy.select(wanted).collect_batches(chunk_size=at_once)  # pyright: ignore[reportReturnType]

    def total() -> int:
        with _reading(path):
            counted = lazy.select(pl.len()).collect()
        assert isinstance(counted, pl.DataFrame)
        return int(counted.item())

    return Source(str(path), total, frames, notes)


def _csv(path: Path, schema: Schema, separator: str | None, types: Mapping[str, pl.DataType]) -> pl.LazyFrame:
    """Columns of these types, and text where none is said: what somebody keeps is not to be changed."""
    return pl.scan_csv(
        path, infer_schema=False, schema_overrides=types, null_values=EMPTY_WORDS, glob=False,
        separator=separator or schema.separator,
    )  # fmt: skip


class _reading:  # noqa: N801 (read as a word: with _reading(path))
    """What polars says about a file, in one line; `explain` may know better."""

    def __init__(self, path: Path, explain: Callable[[], str | None] = lambda: None) -> None:
        self.path, self.explain = path, explain

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, pl.exceptions.NoDataError):
            raise UserError(f"{self.path} is empty: give a table with a header and rows") from error
        if isinstance(error, pl.exceptions.PolarsError | OSError):
            said = self.explain() if isinstance(error, pl.exceptions.ComputeError) else None
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(said or f"cannot read {self.path}: {reason}; it may be truncated") from error


def _refuse_retyped(name: str, dtype: pl.DataType, text: bool) -> None:
    if dtype == pl.Null or (text and dtype in (pl.String, pl.Categorical, pl.Enum)):
        return
    if text or not (dtype.is_numeric() or dtype == pl.Boolean):
        raise UserError(retyped(name, "text" if text else "a number", str(dtype)))


def _not_a_number(path: Path, schema: Schema, separator: str | None) -> str | None:
    """Which cell of a CSV stopped the reading: found by a second look at it, as text."""
    names = [name for name in schema.numbers if name not in schema.booleans]
    texts = _csv(path, schema, separator, {}).with_row_index("_row")
    wrong = {name: pl.col(name).is_not_null() & pl.col(name).cast(pl.Float64, strict=False).is_null() for name in names}
    try:
        found = texts.filter(pl.any_horizontal(*wrong.values())).head(1).collect()
        assert isinstance(found, pl.DataFrame)
        for name in names if len(found) else ():
            if found.select(wrong[name]).item():
                return retyped(name, "a number", f"'{found[name].item()}' in row {found['_row'].item()}")
    except pl.exceptions.PolarsError:
        pass
    return None


def _array_table(path: Path, schema: Schema, used: Sequence[str]) -> Source:
    if used:
        raise UserError(
            f"{path} has no names of columns, which keep=, month= and timestamp= need: give a CSV or Parquet"
        )
    if schema.levels:
        raise UserError(
            f"{path} has no names, and the run was trained on text columns ({', '.join(list(schema.levels)[:NAMED])}): "
            "give a CSV or Parquet"
        )
    shape, dtype, parts = array_file(path, "X")
    if len(shape) != 2 or dtype.kind not in "biuf":
        raise UserError(f"X of {path} is {dtype} {shape}, expected numbers (rows, {len(schema.numbers)})")
    if shape[1] != len(schema.numbers):
        raise UserError(f"{path} has {shape[1]} columns, the run was trained on {len(schema.numbers)}: they must agree")
    names = list(schema.numbers)

    def frames() -> Iterator[pl.DataFrame]:
        for x in parts(max(1024, CELLS // shape[1])):
            yield pl.from_numpy(np.ascontiguousarray(x, dtype=np.float64), schema=names, orient="row")

    return Source(str(path), lambda: shape[0], frames, [f"the columns of {path} are taken in the order of training"])


def array_file(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any], Callable[[int], Iterator[np.ndarray]]]:
    """Shape, dtype and parts (of so many rows) of an npy file, which is mapped, or of array `name` of an npz file.

    An npz is unpacked as it is read: no more than a part of it is in memory. Object arrays are refused.
    """
    damaged = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)
    try:
        if path.suffix.lower() == ".npy":
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            return mapped.shape, mapped.dtype, lambda n: (mapped[i : i + n] for i in range(0, len(mapped), n))
        if name not in (names := npz_names(path)):
            raise UserError(f"{path} has no array '{name}' (it has {', '.join(names) or 'nothing'}): name yours so")
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            shape, by_column, dtype = _header(file)
    except damaged as error:
        raise UserError(f"{path} is truncated or not a NumPy file ({error}): make or fetch it again") from error
    if dtype.hasobject:
        raise UserError(f"{path} holds an object array, which could run code when read: save plain numbers")
    if by_column:
        raise UserError(f"{name} of {path} is stored by columns: save np.ascontiguousarray({name})")

    def parts(n: int) -> Iterator[np.ndarray]:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
                _header(file)
                for start in range(0, shape[0], n):
                    rows = min(n, shape[0] - start)
                    size = rows * int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
                    content = file.read(size)
                    if len(content) < size:
                        raise UserError(f"{path} is truncated after row {start}: make or fetch it again")
                    yield np.frombuffer(content, dtype).reshape(rows, *shape[1:])
        except damaged as error:
            raise UserError(f"{path} is truncated or damaged ({error}): make or fetch it again") from error

    return shape, dtype, parts


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


@dataclass
class Images:
    """A batch of images: those that could be read, and why the others could not."""

    names: list[str]  # of all of them
    x: np.ndarray  # (B', C, H, W) uint8 of the readable ones
    errors: np.ndarray  # (B,) why an image cannot be scored, None where it can
    resized: int  # how many had another size


def image_folder(folder: Path, transform: Transform, at_once: int, only: Container[str] | None = None) -> Source:
    """Images in a folder and below it, through training's transform; one that cannot be read stops nothing."""
    names = [name for name in list_images(folder, "input") if only is None or name in only]

    def batches() -> Iterator[Images]:
        with ThreadPoolExecutor(THREADS) as pool:
            for i in range(0, len(names), at_once):
                some = names[i : i + at_once]
                yield _collected(some, list(pool.map(lambda name: _decoded(folder / name, transform), some)), transform)

    return Source(str(folder), lambda: len(names), batches, [])


def _decoded(path: Path, transform: Transform) -> tuple[np.ndarray, bool] | str:
    sizes = []

    def seen(image: Any) -> np.ndarray:
        sizes.append(image.size)
        return transform(image)

    try:
        pixels = decode(path, seen)  # type: ignore[arg-type]
    except UserError as error:
        return str(error)
    return pixels, sizes[0] != (transform.size, transform.size)


def _collected(names: list[str], found: list[tuple[np.ndarray, bool] | str], transform: Transform) -> Images:
    good = [one for one in found if not isinstance(one, str)]
    shape = (transform.channels, transform.size, transform.size)
    x = np.stack([pixels for pixels, _ in good]) if good else np.empty((0, *shape), np.uint8)
    errors = np.array([one if isinstance(one, str) else None for one in found], dtype=object)
    return Images(names, x, errors, sum(other for _, other in good))


def image_array(path: Path, transform: Transform, at_once: int) -> Source:
    """`images` of an npz, or an npy: (N, H, W), (N, H, W, C) or (N, C, H, W) uint8; batches as the run takes them."""
    shape, dtype, parts = array_file(path, "images")
    last = len(shape) == 4 and shape[3] in (1, 3)
    first = len(shape) == 4 and not last and shape[1] in (1, 3)
    if dtype != np.uint8 or not (last or first or len(shape) == 3):
        raise UserError(f"images of {path} are {dtype} {shape}, expected uint8 (N, H, W), (N, H, W, C) or (N, C, H, W)")
    if transform.resize is not None:
        raise UserError(
            f"the run cuts its images out of larger files (dataset.resize={transform.resize}): give a folder"
        )

    def batches() -> Iterator[Images]:
        start = 0
        for part in parts(at_once):
            x = part.transpose(0, 3, 1, 2) if last else part if first else part[:, None]
            other = x.shape[2:] != (transform.size, transform.size)
            x = to_shape(np.ascontiguousarray(x), (transform.channels, transform.size, transform.size))
            yield Images([str(start + i) for i in range(len(x))], x, np.full(len(x), None), len(x) if other else 0)
            start += len(x)

    return Source(str(path), lambda: shape[0], batches, [])
