"""Anomalies by kind, and pixels: what is stored of the rows beside their scores, and what the summary says of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outlie.results.store import ABOUT
from outlie.results.words import bracket, percent


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Test set -> kind and group of its rows, of a run's scores.parquet; {} where nothing is known."""
    import polars as pl

    frame = pl.read_parquet(folder / "scores.parquet")
    return {
        str(name): {column: part[column].to_numpy() for column in known}
        for (name,), part in frame.group_by("split", maintain_order=True)
        if (known := [column for column in ABOUT if column in part.columns and not part[column].null_count()])
    }


def in_words(result: Mapping[str, Any], name: str) -> list[str | None]:
    """AUROC of each kind of anomaly, how many of it the threshold finds, and the metrics of pixels."""
    kinds, pixels = ((result.get(section) or {}).get(name) or {} for section in ("by_kind", "pixels"))
    said: list[str | None] = []
    if kinds:
        mean = sum(one["auroc"] for one in kinds.values()) / len(kinds)
        said.append(f"By kind of anomaly, each beside all normal rows: mean AUROC {_percent(mean)}.")
    for kind, one in kinds.items():
        found = one.get("recall")
        caught = "" if found is None else f", {_percent(found, one['recall_interval'])} found"
        said.append(f"  {kind} ({one['anomalies']}): AUROC {_percent(one['auroc'], one['interval'])}{caught}")
    if pixels and pixels["pixel_auroc"] is not None:
        said.append(
            f"Pixels: AUROC {_percent(pixels['pixel_auroc'])}, PRO {_percent(pixels['pro_030'])} up to 30 % false "
            f"positives ({pixels['defects']:,} defects, {_percent(pixels['anomalous'])} of all pixels)."
        )
    return said


def _percent(share: float, interval: list[float] | None = None) -> str:
    return percent(share) + bracket(interval)
