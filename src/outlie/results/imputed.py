"""imputed.parquet: test rows with gaps, filled by the run's density model, in the units of the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outlie.cell import Ground
from outlie.density.missing import impute, per_observed
from outlie.detectors.base import Detector
from outlie.detectors.vae import VAE, batches
from outlie.log import log
from outlie.results import store

SAMPLES = 1000  # of z for each row


def write(path: Path, detector: Detector, ground: Ground, scores: dict[str, tuple[Any, Any, Any]]) -> None:
    """Fill and store the test rows that have gaps, where the detector is a density model that takes them.

    split, index, score_per_value, and a column a feature: what was there as it was, a gap as its expected value, of a
    one-hot block as the levels' probabilities; empty in columns without a value in training, which nothing is known of.

    Args:
        path: of the file; not written where no test row has a gap.
        scores: name -> (index, label, score), as the run stores them; `score_per_value` is score / values in the row.
    """
    import polars as pl

    if not (isinstance(detector, VAE) and detector.gaps and ground.gaps):
        return
    columns = ground.split.columns
    first = [f"_{name}" if name in columns else name for name in ("split", "index", "score_per_value")]
    frames, values = [], 0
    for test, rows in ground.split.tests.items():
        some = rows.x.isnan().any(1).nonzero()[:, 0]
        x_BD, (index, _, score) = rows.x[some], scores[test]
        per_value = per_observed(torch.from_numpy(score)[some], x_BD, detector.block_of)
        own = dict(zip(first, ([test] * len(some), index[some], per_value.numpy())))
        filled_BD = filled(detector, ground, test, some)
        schema = dict(zip(first, (pl.String, pl.Int64, pl.Float64)))
        table = pl.DataFrame(filled_BD.numpy(), schema=dict.fromkeys(columns, pl.Float64))
        frames.append(pl.DataFrame(own, schema=schema).hstack(table))
        values += int(x_BD.isnan().sum() - filled_BD.isnan().sum())
    table = pl.concat(frames).with_columns(pl.col(pl.Float64).fill_nan(None))
    if not len(table):
        return
    with store.whole(path) as temporary:
        table.write_parquet(temporary)
    log.info("imputed   %d cells of %d test rows; in %s", values, len(table), path)


def filled(detector: VAE, ground: Ground, test: str, some: Tensor) -> Tensor:
    """(B, D) float64 rows of a test set without gaps, in the table's units; NaN in columns that training never saw."""
    backbone, x_BD = ground.backbone, ground.split.tests[test].x[some]
    views = ground.views(test, with_input=True)[some].map(lambda t: t.to(ground.device))
    parts = [impute(detector.model, part.x, SAMPLES, detector.seed) for part in batches(views)]
    z_BD = torch.cat(parts) if parts else views.x
    guessed_BD = (z_BD * backbone.scale + backbone.mean).to(x_BD)
    guessed_BD[:, ground.split.train.x.isnan().all(0)] = torch.nan
    return torch.where(x_BD.isnan(), guessed_BD, x_BD)
