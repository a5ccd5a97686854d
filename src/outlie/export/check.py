"""An exported run against the original: |a - b| <= 1e-4 |b| + 1e-4 std(b) of every score, and every verdict."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from outlie.errors import UserError

RELATIVE = 1e-4
FLOOR = 1e-6
ROUNDING = 1e-5  # of the threshold, and of the scores' standard deviation: float32 networks in another order
BATCHES = (1, 7, None)  # None = all rows at once, in the chunks of Exported
CALLS = 64  # at most, at the small batches


class Judges(Protocol):
    """What is checked."""

    def judge(self, x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_] | None]: ...


def compare(exported: Judges, x: NDArray[Any], score: NDArray[np.float64], threshold: float | None) -> dict[str, Any]:
    """What was measured, at batches of 1, 7 and all rows.

    Args:
        x: (n, ...) raw rows.
        score: (n,) the original's scores of them.
        threshold: the original's; None = no verdicts.

    Raises:
        UserError: a score or a verdict differs.
    """
    spread = float(score.std()) if len(score) > 1 else 0.0
    allowed = RELATIVE * np.abs(score) + max(FLOOR, RELATIVE * spread)  # a score may cross 0
    near = None if threshold is None else np.abs(score - threshold) <= ROUNDING * (abs(threshold) + spread)
    found: list[dict[str, Any]] = []
    for batch in BATCHES:
        rows = len(x) if batch is None else min(len(x), CALLS * batch)
        parts = [exported.judge(x[i : i + (batch or rows)][: rows - i]) for i in range(0, rows, batch or max(rows, 1))]
        ours = np.concatenate([part[0] for part in parts])
        differs = np.abs(ours - score[:rows])
        worst = float((differs / allowed[:rows]).max())
        said: dict[str, Any] = {
            "batch": batch or rows,
            "rows": rows,
            "largest_difference": float(differs.max()),
            "of_what_is_allowed": worst,
        }
        if not worst <= 1:  # NaN, too
            row = int(np.nan_to_num(differs / allowed[:rows], nan=np.inf).argmax())
            raise UserError(
                f"the exported graph differs from the original: row {row} scores {ours[row]:.6g} and not "
                f"{score[row]:.6g} at batch {batch or rows}"
            )
        if threshold is not None and near is not None:
            flips = np.concatenate([part[1] for part in parts]) != (score[:rows] > threshold)  # pyright: ignore
            wrong = flips & ~near[:rows]
            if wrong.any():
                row = int(np.flatnonzero(wrong)[0])
                raise UserError(
                    f"the exported graph judges row {row} otherwise at batch {batch or rows}: score {score[row]:.9g}, "
                    f"threshold {threshold:.9g}"
                )
            said |= {"verdicts_that_differ": int(flips.sum()), "near_the_threshold": int(near[:rows].sum())}
        found.append(said)
    return {"rows": len(x), "tolerance": RELATIVE, "rounding": ROUNDING, "batches": found}
