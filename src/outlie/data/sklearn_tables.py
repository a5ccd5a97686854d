"""Real tables that come inside scikit-learn: nothing to download."""

from typing import Literal

import numpy as np

from outlie.data.arrays import hash_arrays
from outlie.data.assemble import assemble
from outlie.data.protocols import Protocol, partition
from outlie.data.split import Split
from outlie.errors import UserError
from outlie.options import Fraction, NonNegativeInt


class SklearnTable:
    """A classification table of scikit-learn with one class held out as the anomalies.

    Args:
        name: breast_cancer (Wisconsin diagnostic, 569 x 30), digits (UCI, 1797 x 64) or wine (UCI, 178 x 13).
        anomaly: The class that is anomalous; breast_cancer: 0 = malignant, 1 = benign.
        protocol: How rows are split; split keeps calibration rows, split_validation also labelled rows for a search
            (half of those that test under split); dte_* are those of Livernoche et al. (ICLR 2024).
        duplicate_small: dte_semi, dte_unsup: bootstrap fewer than 1,000 rows to 1,000; this leaks.
        calibration: Protocol split: fraction of the normal rows that fix the threshold.
        test: Protocol split: fraction of the normal rows that test, with all anomalies.
    """

    def __init__(
        self,
        name: Literal["breast_cancer", "digits", "wine"],
        anomaly: NonNegativeInt = 0,
        protocol: Protocol = "split",
        duplicate_small: bool = True,
        calibration: Fraction = 0.3,
        test: Fraction = 0.3,
    ):
        self.name = name
        self.anomaly = anomaly
        self.protocol: Protocol = protocol
        self.duplicate_small = duplicate_small
        self.calibration = calibration
        self.test = test

    def load(self, seed: int) -> Split:
        """The split of this seed; UserError for a class that does not exist."""
        import sklearn.datasets  # slow to import, and only needed here

        table = getattr(sklearn.datasets, f"load_{self.name}")()
        classes = np.unique(table.target)
        if self.anomaly not in classes:
            allowed = ", ".join(f"{c} ({name})" for c, name in zip(classes, table.target_names, strict=True))
            raise UserError(f"dataset.anomaly={self.anomaly} is no class of {self.name}; allowed: {allowed}")
        x = np.ascontiguousarray(table.data, dtype=np.float64)
        y = (table.target == self.anomaly).astype(np.int64)
        split_options = {"calibration": self.calibration, "test": self.test}
        parts = partition(self.protocol, y, len(x), seed, None, self.duplicate_small, **split_options)
        columns = [str(name).replace(" ", "_") for name in table.feature_names]
        return assemble(self.protocol, x, y, parts, hash_arrays(x, y), columns)
