"""The csv beside a benchmark, for the benchmarks of this folder."""

import csv
from pathlib import Path
from typing import Any

from outlie.results import store


def table(script: str, rows: list[dict[str, Any]]) -> None:
    """Write the rows beside `script` (its __file__), whole or not at all; columns in the order they are met."""
    with store.whole(Path(script).with_suffix(".csv")) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
