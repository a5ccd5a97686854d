"""What a pass over new rows adds up to, and what is said of it at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from outlie.log import log
from outlie.metrics.conformal import Threshold
from outlie.scoring.alerts import VERDICTS, Budgets, expected_false_alarms
from outlie.scoring.schema import NAMED


@dataclass
class Told:
    """Counts over all batches."""

    rows: int = 0
    scored: int = 0
    verdicts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VERDICTS, 0))
    reviewed: int = 0  # labels of the feedback that were found in the input
    resized: int = 0
    undated: int = 0
    unseen: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)  # the first few

    def findings(self) -> list[str]:
        """What was odd about the rows, one sentence each."""
        found = []
        if self.resized:
            found.append(f"{self.resized:,} images had another size and were resized as in training")
        if self.unseen:
            cells = ", ".join(f"{name} ({count:,})" for name, count in list(self.unseen.items())[:NAMED])
            found.append(f"rows with a level that training never had, encoded as none of the known: {cells}")
        if lost := self.rows - self.scored:
            found.append(f"{lost:,} of {self.rows:,} have no score, see column error ({self.errors[0]})")
        return found


def say(told: Told, budget: Budgets | None, notes: list[str], spent: float, output: Path, protocol: str) -> None:
    """Rows, verdicts and expected false alarms on stdout, what was odd on stderr."""
    print(f"{told.scored:,} rows scored in {spent:.1f} s ({told.scored / spent:,.0f} rows/s)")
    if budget is None:
        print(
            f"No verdicts: the run has no threshold, because protocol {protocol} keeps no calibration rows; "
            "p_value and verdict are empty"
        )
    else:
        ask = "" if budget.ask is None else f", {told.verdicts['ask']:,} to ask about ({_percent(budget.ask)})"
        print(f"{told.verdicts['flag']:,} flagged ({_percent(budget.flag)}){ask}, {told.verdicts['pass']:,} pass")
        mean, low, high = expected_false_alarms(budget.flag, told.scored)
        print(
            f"If all rows were normal, {mean:,.{0 if mean >= 10 else 1}f} flagged ones would be expected, 95 % between "
            f"{low:,} and {high:,} ({budget.flag.n_calibration} calibration rows)"
        )
    for note in notes:
        log.info("finding   %s", note)
    print(output)


def _percent(fixed: Threshold) -> str:
    return f"{100 * fixed.false_alarms:g} % of normal rows"
