"""From a matrix and a Partition to a Split: standardisation, NaN repair, findings."""

from collections.abc import Sequence

import numpy as np
import torch

from outlie.data.lints import lint
from outlie.data.protocols import Partition, repair_nan, standardisation
from outlie.data.split import Rows, Split


def assemble(
    protocol: str,
    x: np.ndarray,
    y: np.ndarray | None,
    parts: Partition,
    data_sha256: str,
    columns: Sequence[str] = (),
    index: np.ndarray | None = None,
    findings: Sequence[str] = (),
    keep_gaps: bool = False,
) -> Split:
    """The Split of (n, D) raw float64 rows; mean and scale are those of `parts.scaled_on`.

    NaN become the mean of their column within the training or the test rows (the DTE protocol's repair); every loader
    but ADBench's has refused or imputed them before.

    Args:
        y: (n,) 1 = anomaly, None = unknown.
        index: (n,) row numbers in the source; None = 0 to n - 1.
        findings: What the loader found; the lints' findings follow.
        keep_gaps: NaN stay, mean and scale are those of the values that are there.
    """
    mean, scale = standardisation(x[parts.scaled_on])
    index = np.arange(len(x)) if index is None else index
    findings = list(findings)
    if missing := 0 if keep_gaps else int(np.isnan(x).sum()):
        findings.append(f"{missing} missing values became column means, as the DTE protocol does")

    def rows(where: np.ndarray) -> Rows:
        values = x[where]
        if missing:
            values = repair_nan(values)
            values = np.where(np.isnan(values), mean, values)  # all NaN: 0 after standardisation
        label = None if y is None else torch.from_numpy(y[where])
        return Rows(torch.from_numpy(values), torch.from_numpy(index[where]), label)

    split = Split(
        protocol=protocol,
        train=rows(parts.train),
        tests={"test": rows(parts.test)} | ({} if parts.validation is None else {"validation": rows(parts.validation)}),
        calibration=None if parts.calibration is None else rows(parts.calibration),
        mean=torch.from_numpy(mean),
        scale=torch.from_numpy(scale),
        data_sha256=data_sha256,
        columns=tuple(columns),
        findings=findings,
    )
    split.findings += lint(split)
    return split


def cap_finding(parts: Partition, n: int) -> list[str]:
    """Say that not all rows are used."""
    everything = [parts.train, parts.test] + ([] if parts.calibration is None else [parts.calibration])
    everything += [] if parts.validation is None else [parts.validation]
    used = len(np.unique(np.concatenate(everything)))
    return [f"{used} of {n} rows are used"] if used < n else []
