"""Images as arrays: one shape for all, channel statistics, class-balanced draws; pure functions."""

import numpy as np
import torch
import torch.nn.functional as F

CHUNK = 1024
LUMA = (19595, 38470, 7471)  # ITU-R 601-2 in 1/65536, as Pillow's convert("L")


def to_shape(x: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """(N, C, H, W) uint8 images in another (C, H, W): grey repeated or colours averaged (luma), resized bilinearly."""
    channels, height, width = shape
    if x.shape[1] == 3 and channels == 1:
        x = to_grey(x)
    if x.shape[2:] != (height, width):
        x = resize(x, height, width)
    if x.shape[1] == 1 and channels == 3:
        x = np.repeat(x, 3, axis=1)
    return x


def to_grey(x: np.ndarray) -> np.ndarray:
    """(N, 3, H, W) -> (N, 1, H, W): L = 0.299 R + 0.587 G + 0.114 B."""
    parts = [
        sum(chunk[:, c].astype(np.uint32) * w for c, w in enumerate(LUMA)) + 0x8000
        for chunk in np.split(x, range(CHUNK, len(x), CHUNK))
    ]
    return (np.concatenate(parts)[:, None] >> 16).astype(np.uint8)


def resize(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """(N, C, H, W) -> (N, C, height, width): bilinear, antialiased, rounded to the nearest pixel value."""
    out = np.empty((*x.shape[:2], height, width), np.uint8)
    for i in range(0, len(x), CHUNK):
        chunk = torch.from_numpy(x[i : i + CHUNK].astype(np.float32))
        small = F.interpolate(chunk, (height, width), mode="bilinear", antialias=True, align_corners=False)
        out[i : i + CHUNK] = small.round().clamp(0, 255).to(torch.uint8).numpy()
    return out


def channel_statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of (N, C, H, W) uint8, (C, 1, 1) float64, exact; 1 if constant."""
    return from_sums(*channel_sums(x), x.size // x.shape[1])


def channel_sums(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C,) int64 sums of the pixels and of their squares."""
    total = square = np.zeros(x.shape[1], np.int64)
    for i in range(0, len(x), CHUNK):
        chunk = x[i : i + CHUNK].astype(np.uint32)
        total = total + chunk.sum((0, 2, 3), dtype=np.int64)
        square = square + (chunk * chunk).sum((0, 2, 3), dtype=np.int64)
    return total, square


def from_sums(total: np.ndarray, square: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale (C, 1, 1) from sums of pixels and of their squares; integers, so that nothing cancels."""
    variance = [int(s) * count - int(t) ** 2 for t, s in zip(total, square, strict=True)]
    scale = np.array([v**0.5 / count if v else 1.0 for v in variance])
    return (total / count).reshape(-1, 1, 1), scale.reshape(-1, 1, 1)


def balanced(y: np.ndarray, n: int, rng: np.random.RandomState) -> np.ndarray:
    """n of the rows, sorted, each class in proportion to its size (rounded so that they add up to n)."""
    classes, counts = np.unique(y, return_counts=True)
    exact = n * counts / len(y)
    take = np.floor(exact).astype(int)
    take[np.argsort(take - exact, kind="stable")[: n - take.sum()]] += 1  # largest remainders
    drawn = [rng.permutation(np.flatnonzero(y == c))[:k] for c, k in zip(classes, take, strict=True)]
    return np.sort(np.concatenate(drawn))
