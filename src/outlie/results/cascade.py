"""A cascade: the student decides, and the teacher is asked only about rows whose score lies near the threshold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of normal rows that the teacher is asked about


def cascade(
    student: NDArray[np.float64],
    teacher: NDArray[np.float64],
    label: NDArray[np.int64],
    false_alarms: float = 0.01,
    ms: tuple[float, float] | None = None,
) -> list[dict[str, float]]:
    """What recall, false alarms and milliseconds become as the band grows, a row each.

    Both thresholds are the (1 - false_alarms) quantile of the normal scores, and the band is that share of the normal
    rows whose scores lie nearest to the student's. Inside it the teacher's verdict counts, outside the student's.

    Args:
        student: (n,) scores.
        teacher: (n,) scores of the same rows.
        label: (n,) 1 = anomaly.
        ms: milliseconds a row of student and teacher.
    """
    normal = label == 0
    if not normal.any() or normal.all():
        return []
    limits = [np.quantile(scores[normal], 1 - false_alarms) for scores in (student, teacher)]
    flags = [scores > limit for scores, limit in zip((student, teacher), limits)]
    away = np.abs(student - limits[0])
    rows = []
    for share in SHARES:
        asked = away <= np.quantile(away[normal], share) if share else np.zeros(len(label), bool)
        flag = np.where(asked, flags[1], flags[0])
        row = {
            "band": share,
            "asked": float(asked.mean()),
            "recall": float(flag[~normal].mean()),
            "fpr": float(flag[normal].mean()),
        }
        if ms is not None:
            row["ms_per_row"] = ms[0] + row["asked"] * ms[1]
        rows.append(row)
    return rows
