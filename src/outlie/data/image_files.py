"""Images that stay files: listed at once, decoded in a few threads when a batch is asked for."""

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from outlie.data.image_arrays import CHUNK, channel_sums, from_sums
from outlie.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
THREADS = min(8, os.cpu_count() or 1)
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)  # SyntaxError: a broken PNG


@dataclass(frozen=True)
class Transform:
    """What every image goes through; bilinear and antialiased.

    Args:
        size: Side of the result.
        channels: 1 = grey (luma), 3 = colour.
        resize: The shorter side becomes so long, then the centre is cut out (OpenOOD, ImageNet); None = both sides
            are squeezed to `size`, and nothing is cut off.
        square: Cut the centre square out first and shrink it by Lanczos' filter (how dtd_part was made).
    """

    size: int
    channels: int = 3
    resize: int | None = None
    square: bool = False

    def __call__(self, image: Image.Image) -> np.ndarray:
        """(C, size, size) uint8."""
        image = image.convert("RGB" if self.channels == 3 else "L")
        if self.square:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
            image = image.resize((self.size, self.size), Image.Resampling.LANCZOS)
        elif self.resize is None:
            image = _scaled(image, self.size, self.size)
        else:
            width, height = image.size
            short = min(width, height)
            image = _scaled(image, int(self.resize * width / short), int(self.resize * height / short))
            left, top = (round((side - self.size) / 2) for side in image.size)
            image = image.crop((left, top, left + self.size, top + self.size))
        pixels = np.asarray(image).reshape(self.size, self.size, self.channels)
        return pixels.transpose(2, 0, 1)


def _scaled(image: Image.Image, width: int, height: int) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def decode(content: Path | bytes, transform: Transform, name: str = "") -> np.ndarray:
    """One image, (C, H, W) uint8; UserError names the file that is no image, is cut off or has over 8 bits."""
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would cut values off at 255
                raise UserError(f"{name or content} has more than 8 bits a pixel: convert it to 8 bits")
            return transform(image)
    except DAMAGED as error:
        raise UserError(f"{name or content} is damaged or no image ({error}): make or fetch it again") from error


def decode_all(contents: Sequence[Path | bytes], transform: Transform, names: Sequence[str] = ()) -> np.ndarray:
    """(B, C, H, W) uint8, in order, decoded in a few threads (Pillow lets go of the lock)."""
    names = names or [""] * len(contents)
    out = np.empty((len(contents), transform.channels, transform.size, transform.size), np.uint8)
    if len(contents) < 2 * THREADS:
        for i, (content, name) in enumerate(zip(contents, names, strict=True)):
            out[i] = decode(content, transform, name)
        return out
    with ThreadPoolExecutor(THREADS) as pool:
        for i, image in enumerate(pool.map(lambda pair: decode(pair[0], transform, pair[1]), zip(contents, names))):
            out[i] = image
    return out


class ImageFiles:
    """Stands where a (N, C, H, W) uint8 tensor would: has a length and a shape, and indexing decodes.

    Raises:
        UserError: a file is missing (at once), or damaged (when it is decoded).
    """

    dtype = torch.uint8
    device = torch.device("cpu")

    def __init__(self, root: Path, names: Iterable[str], transform: Transform):
        self.root = Path(root)
        self.names = np.array(list(names), dtype=object)  # relative to root
        self.transform = transform
        self.sizes, self.mtimes = self._stat()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self), self.transform.channels, self.transform.size, self.transform.size))

    @property
    def ndim(self) -> int:
        """4, as of a tensor."""
        return 4

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """Decoded images (B, C, H, W) uint8 for a slice, an array, a mask; one (C, H, W) for a number."""
        if isinstance(index, int | np.integer) or (isinstance(index, Tensor) and index.ndim == 0):
            return self._decode([str(self.names[int(index)])])[0]
        return self._decode([str(name) for name in self.names[_rows(index)]])

    def subset(self, index: slice | Sequence[int] | np.ndarray | Tensor) -> "ImageFiles":
        """Some of the files, nothing decoded."""
        rows = _rows(index)
        part = object.__new__(ImageFiles)
        part.root, part.transform = self.root, self.transform
        part.names, part.sizes, part.mtimes = self.names[rows], self.sizes[rows], self.mtimes[rows]
        return part

    def split(self, n: int) -> "list[ImageFiles]":
        """Consecutive parts of n files, nothing decoded."""
        return [self.subset(slice(i, i + n)) for i in range(0, len(self), n)]

    def to(self, *_: object, **__: object) -> "ImageFiles":
        """Itself: files stay where they are, batches are moved."""
        return self

    def fingerprint(self, mtimes: bool = True) -> str:
        """SHA-256 of names, sizes, times of change and the transform; without times the same on every machine."""
        digest = hashlib.sha256(repr(astuple(self.transform)).encode())
        digest.update("\n".join(self.names).encode())
        digest.update(self.sizes.astype("<i8").tobytes())
        if mtimes:
            digest.update(self.mtimes.astype("<i8").tobytes())
        return digest.hexdigest()

    @staticmethod
    def joint_fingerprint(parts: "Sequence[ImageFiles]") -> str:
        """SHA-256 of several parts, the same on every machine."""
        return hashlib.sha256("".join(part.fingerprint(mtimes=False) for part in parts).encode()).hexdigest()

    def _decode(self, names: list[str]) -> Tensor:
        return torch.from_numpy(decode_all([self.root / name for name in names], self.transform))

    def _stat(self) -> tuple[np.ndarray, np.ndarray]:
        found, missing = np.zeros((len(self.names), 2), np.int64), []
        for i, name in enumerate(self.names):
            try:
                status = os.stat(os.path.join(self.root, name))
                found[i] = status.st_size, status.st_mtime_ns
            except OSError:
                missing.append(name)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(f"{self.root / missing[0]}{more} of {len(self)} images are not there: correct the list")
        return found[:, 0], found[:, 1]


def _rows(index: slice | Sequence[int] | np.ndarray | Tensor) -> slice | np.ndarray:
    return index if isinstance(index, slice) else np.asarray(index.cpu() if isinstance(index, Tensor) else index)


def list_images(folder: Path, option: str) -> list[str]:
    """Image files under a folder, in it and below, relative and sorted; UserError if there are none."""
    if not folder.is_dir():
        raise UserError(f"{option}={folder} is {'not a folder' if folder.exists() else 'not there'}: name a folder")
    found = sorted(
        os.path.relpath(os.path.join(where, name), folder).replace(os.sep, "/")
        for where, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    )
    if not found:
        raise UserError(f"{option}={folder} holds no images; read are: {', '.join(SUFFIXES)}")
    return found


def file_statistics(files: ImageFiles, at_most: int = 10_000) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, (C, 1, 1) float64, of evenly spaced files."""
    some = files.subset(np.unique(np.linspace(0, len(files) - 1, min(at_most, len(files))).round().astype(int)))
    total = square = np.zeros(files.shape[1], np.int64)
    for part in some.split(CHUNK):
        sums = channel_sums(part[:].numpy())
        total, square = total + sums[0], square + sums[1]
    return from_sums(total, square, len(some) * files.transform.size**2)


def kinds(files: ImageFiles, at_most: int = 2_000) -> tuple[int, int]:
    """How many files are of the other kind (grey among colour, or colour for grey), of how many looked at (headers)."""
    rows = np.unique(np.linspace(0, len(files) - 1, min(at_most, len(files))).round().astype(int))
    grey = 0
    for name in files.names[rows]:
        try:
            with Image.open(files.root / name) as image:
                grey += image.mode in ("1", "L", "LA")
        except DAMAGED as error:
            raise UserError(f"{files.root / name} is damaged or no image ({error}): make or fetch it again") from error
    return (grey if files.transform.channels == 3 else len(rows) - grey), len(rows)
