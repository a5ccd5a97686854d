"""ADBench (Han et al., NeurIPS 2022): 57 datasets by name."""

from outlie.data.adbench_files import group, one_file
from outlie.data.arrays import as_matrix, binary_labels, column_names, hash_arrays, read_npz, refuse_infinite
from outlie.data.assemble import assemble, cap_finding
from outlie.data.locate import obtain
from outlie.data.protocols import Protocol, partition
from outlie.data.split import Split
from outlie.options import Fraction, PositiveInt


class ADBench:
    """One dataset of ADBench under a protocol; the file is looked up, downloaded if need be, and verified.

    Args:
        name: As in `run data list`.
        protocol: How rows are split; dte_* are those of Livernoche et al. (ICLR 2024), split keeps calibration rows,
            split_validation also labelled rows for a search (half of those that test under split).
        part: Which file of a dataset of several (mvtec_ad: bottle, cable, ...).
        duplicate_small: dte_semi, dte_unsup: bootstrap fewer than 1,000 rows to 1,000, as ADBench does; this leaks.
        max_rows: Larger datasets are sampled down to so many rows.
        calibration: Protocol split: fraction of the normal rows that fix the threshold.
        test: Protocol split: fraction of the normal rows that test, with all anomalies.
    """

    def __init__(
        self,
        name: str,
        protocol: Protocol = "dte_semi",
        part: str | int | None = None,
        duplicate_small: bool = True,
        max_rows: PositiveInt = 50_000,
        calibration: Fraction = 0.3,
        test: Fraction = 0.3,
    ):
        group(name)  # an unknown name is said before anything is loaded
        self.name = name
        self.protocol: Protocol = protocol
        self.part = None if part is None else str(part)
        self.duplicate_small = duplicate_small
        self.max_rows = max_rows
        self.calibration = calibration
        self.test = test

    def parts(self) -> list[str]:
        """The files of a dataset of several, each a run of its own; [] for a dataset of one file."""
        return [file.part for file in group(self.name) if file.part]

    def load(self, seed: int) -> Split:
        """The split of this seed; UserError for a missing part, a wrong or unobtainable file."""
        file = one_file(self.name, self.part)
        path = obtain(file)
        x_raw, y_raw = read_npz(path, ["X", "y"])
        x = as_matrix(x_raw, f"X of {path}")
        y = binary_labels(y_raw, len(x), f"y of {path}")
        columns = column_names(x.shape[1])
        refuse_infinite(x, columns, str(path))
        split_options = {"calibration": self.calibration, "test": self.test}
        parts = partition(self.protocol, y, len(x), seed, self.max_rows, self.duplicate_small, **split_options)
        data_sha256 = hash_arrays(x_raw, y_raw)
        return assemble(self.protocol, x, y, parts, data_sha256, columns, findings=cap_finding(parts, len(x)))
