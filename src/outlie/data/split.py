"""What a dataset hands on: rows for training, calibration and test, with the protocol's name and the data's hash."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Rows:
    """n samples; `x` is (n, D) float64 for tables, without Inf, and (n, C, H, W) uint8 for images.

    A table has NaN only where the user kept its gaps (dataset.missing=keep).
    Nothing is standardised yet. Large image sets have `outlie.data.image_files.ImageFiles` in place of a tensor: it has
    a shape and a length, and decodes the files that it is indexed with.
    """

    x: Tensor
    index: Tensor  # (n,) int64, row number in the source
    label: Tensor | None = None  # (n,) int64: 1 = anomaly, 0 = normal, None = unknown
    y: Tensor | None = None  # (n,) int64 class label, for classifiers; (n, H, W) uint8 of each pixel, 255 = none
    mask: Tensor | None = None  # (n, H, W) bool: pixels that are anomalous, at the size of x
    group: Tensor | None = None  # (n,) int64: rows of one group are no independent samples, as photos of one part

    @property
    def row_y(self) -> Tensor | None:
        """(n,) class labels of the samples; None where each pixel has its own."""
        return self.y if self.y is None or self.y.ndim == 1 else None

    def __len__(self) -> int:
        return len(self.x)


@dataclass
class Split:
    """One dataset under one named protocol."""

    protocol: str
    train: Rows
    tests: dict[str, Rows]  # 'test', or an OOD set's name
    calibration: Rows | None  # held-out normal rows that fix the threshold; None where the protocol has none
    mean: Tensor  # (D,) float64, images (C, 1, 1) in 0..255: the standardisation that the protocol fixes ...
    scale: Tensor  # (D,) or (C, 1, 1) ... 1 for a constant column
    data_sha256: str
    columns: tuple[str, ...] = ()
    findings: list[str] = field(default_factory=list)  # lints, one sentence each
    classes: tuple[str, ...] = ()  # name of each class label
    protocols: dict[str, str] = field(default_factory=dict)  # test set -> its own protocol: ood_near, ood_far
    # kinds of a table's columns, in runs that cover D: ('number', 3), ('boolean', 1), ('levels', 4); () = not known
    blocks: tuple[tuple[str, int], ...] = ()
    schema: dict[str, Any] | None = None  # how a table's file was read and encoded (encode.schema); None = as it is
    colours: tuple[tuple[int, int, int], ...] = ()  # of each class in a picture of label maps; () = any
    subsets: dict[str, Tensor] = field(default_factory=dict)  # name -> rows of `test` that are reported apart as well
