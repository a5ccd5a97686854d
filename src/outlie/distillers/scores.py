"""What a student of a detector's scores learns from: rows that the teacher has scored, normal and spoilt on purpose."""

from collections.abc import Sequence
from typing import ClassVar

from outlie.distillers import image_corruptions, row_corruptions
from outlie.errors import UserError, unknown
from outlie.options import NonNegativeInt, PositiveInt


class Scores:
    """Lessons for detector=score_student: no labels, only the teacher's scores of training rows and of spoilt ones.

    On normal rows alone the score hardly varies, and the student would learn nothing about anomalies.

    Args:
        corrupted: spoilt rows that the teacher scores, in equal parts of each corruption in five strengths.
        normal: training rows at most, drawn by the seed; null = all.
        auxiliary: an image set whose images are scored, too (run data list), as many as `corrupted`; never one that is
            tested on. Null = none.
        held_out: corruptions that the student does not learn from: how well it follows the teacher there is reported.
        held_out_rows: rows of these.
        repeats: times that the teacher scores `repeat_rows` rows with other draws: what it does not agree with itself
            about, no student can learn.
        repeat_rows: rows of these; 0 = the teacher is taken as exact.
    """

    paper: ClassVar[str] = "score distillation (SUOD's pseudo-supervised approximation; KBS 295, 2024, 111842)"

    def __init__(
        self,
        corrupted: PositiveInt = 20_000,
        normal: PositiveInt | None = 20_000,
        auxiliary: str | None = None,
        held_out: Sequence[str] = (),
        held_out_rows: PositiveInt = 1000,
        repeats: PositiveInt = 4,
        repeat_rows: NonNegativeInt = 200,
    ) -> None:
        known = {**row_corruptions.KINDS, **image_corruptions.KINDS}
        if wrong := [name for name in held_out if name not in known]:
            raise UserError(unknown("corruption in distiller.held_out", wrong[0], known))
        self.corrupted, self.normal, self.auxiliary = corrupted, normal, auxiliary
        self.held_out, self.held_out_rows = tuple(held_out), held_out_rows
        self.repeats, self.repeat_rows = repeats, repeat_rows
