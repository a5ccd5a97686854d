"""Which value of a label column means anomaly: said by the user, or plain from the words."""

import numpy as np
import polars as pl

from outlie.errors import UserError, unknown

ANOMALY = frozenset({"1", "true", "yes", "anomaly", "anomalous", "abnormal", "outlier"})
NORMAL = frozenset({"0", "false", "no", "normal", "nominal", "inlier"})
COLUMN_NAMES = frozenset({"label", "labels", "y", "class", "target", "anomaly", "is_anomaly", "outlier"})
SHOWN = 8


def anomaly_labels(values: pl.Series, positive: object = None) -> np.ndarray:
    """(n,) int64, 1 = anomaly.

    Args:
        positive: The value that means anomaly, every other value is normal; None = plain words such as 1, true, anomaly
            against 0, false, normal. Anything else, -1 and 1 too, is ambiguous.

    Raises:
        UserError: missing labels, an unknown `positive`, or ambiguous values.
    """
    if empty := int((values.is_null() | (values.is_nan() if values.dtype.is_float() else False)).sum()):
        raise UserError(f"label column '{values.name}' is empty in {empty} rows: label them, or remove these rows")
    words = _words(values)
    found = words.unique().sort().to_list()
    if positive is not None:
        wanted = str(positive).strip().lower()
        if wanted not in found:
            raise UserError(unknown(f"value of label column '{values.name}'", wanted, found[:SHOWN]))
        return (words == wanted).to_numpy().astype(np.int64)
    if not set(found) <= ANOMALY | NORMAL:
        some = ", ".join(found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
        raise UserError(
            f"label column '{values.name}' has the values {some}: which one is the anomaly? "
            f"dataset.positive={next(word for word in found if word not in NORMAL)}, for example"
        )
    return words.is_in(list(ANOMALY)).to_numpy().astype(np.int64)


def _words(values: pl.Series) -> pl.Series:
    """Lower-case text: 1.0 and 1 are both '1', True is 'true'."""
    if values.dtype.is_float() and bool((values == values.round()).all()):
        values = values.cast(pl.Int64)
    return values.cast(pl.String).str.strip_chars().str.to_lowercase()
