"""`run score run=RUN input=FILE output=FILE`: new rows through a finished run, with p-values, verdicts and a report."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from omegaconf import DictConfig, OmegaConf

from outlie import log, stages
from outlie.build import build
from outlie.cell import bar_title
from outlie.commands.evaluate import finished, same_training
from outlie.commands.train import plain
from outlie.data.image_files import Transform
from outlie.errors import UserError
from outlie.results import checkpoint, store
from outlie.scoring import alerts, feedback, inputs, outputs, report, scorer
from outlie.scoring import schema as schemas
from outlie.scoring.batches import Batch, of_images, of_tables, periods, progress
from outlie.scoring.summary import Told, say

OWN = ("row", "file", "score", "p_value", "verdict", "error", "period")  # columns that are ours
Score = scorer.Score


def main(cfg: DictConfig) -> int:
    """Score the input and say what became of it; exit code."""
    now = plain(cfg)
    run = Path(now["run"])
    trained, then = finished(run)
    refuse_changes(now, then, trained)
    paths = {name: Path(now[name]).expanduser() for name in ("input", "output", "feedback") if now[name]}
    outputs.require_output(paths["output"], [path for name, path in paths.items() if name != "output"], now["force"])
    if now["dry_run"]:
        print(OmegaConf.to_yaml(cfg, resolve=True), end="")
        print(f"# plan: {paths['output']}\n#   load {run / 'model.ckpt'}\n#   score {paths['input']}, write")
        return 0
    with log.to(Path(os.devnull)):  # the lines on stderr; what is to be kept is in the summary
        compute(now, run, trained, paths)
    return 0


def refuse_changes(now: dict[str, Any], then: dict[str, Any], trained: dict[str, Any]) -> None:
    """UserError for what would need another training, and for budgets that a run without a threshold cannot keep."""
    same_training(then, now, ())  # a scoring option too: the calibration scores are those of the run
    if now["trainer"]["precision"] != then["trainer"]["precision"]:
        raise UserError(f"the calibration scores were computed with trainer.precision={then['trainer']['precision']}")
    if {**now["dataset"], "path": None} != {**then["dataset"], "path": None}:
        raise UserError("run score takes new rows by input=FILE; the dataset is the training's: leave dataset= away")
    if now["month"] and now["timestamp"]:
        raise UserError("month= and timestamp= both name the period of a row: give one of them")
    if clash := [name for name in now["keep"] if name in OWN]:
        raise UserError(f"keep={clash[0]} is a name of the output's own columns: rename it in the input")
    if trained["threshold"] is None:
        asked = [f"{name}={now[name]}" for name in ("fpr", "review", "feedback") if now[name] is not None]
        if asked:
            raise UserError(
                f"{', '.join(asked)}: the run has no threshold, because protocol {trained['protocol']} keeps no "
                "calibration rows; leave it away for scores alone, or train with dataset.protocol=split"
            )


@dataclass
class Opened:
    """The input, and how its rows become scores."""

    now: dict[str, Any]
    path: Path
    schema: schemas.Schema
    transform: Transform | None  # of images; None for tables
    keeps_gaps: bool = False

    @property
    def by(self) -> Literal["row", "file"]:
        """What names a row of the output."""
        return "file" if self.transform and self.path.is_dir() else "row"

    @property
    def skips(self) -> bool:
        """Whether a row without a score stops nothing."""
        return bool(self.transform) or self.now["bad_rows"] == "skip" or self.schema.missing == "drop_rows"

    def source(self, only: Collection[Any] | None = None) -> inputs.Source:
        """The input, looked at; UserError where it is not of the training's kind."""
        if self.transform is None:
            if self.path.is_dir():
                raise UserError(f"input={self.path} is a folder, and the run was trained on a table: give a file")
            period = self.now["month"] or self.now["timestamp"]
            used = list(dict.fromkeys([*self.now["keep"], *([period] if period else [])]))
            return inputs.table(self.path, self.schema, used, self.now["separator"])
        at_once = stages.rows_at_once((self.transform.channels, self.transform.size, self.transform.size))
        if self.path.is_dir():
            return inputs.image_folder(self.path, self.transform, at_once, only)
        if self.path.suffix.lower() not in inputs.ARRAYS:
            raise UserError(f"input={self.path}: the run was trained on images; give a folder of them, .npz or .npy")
        return inputs.image_array(self.path, self.transform, at_once)

    def batches(self, source: inputs.Source, only: Collection[Any] | None = None) -> Iterator[Batch]:
        """Encoded rows; with `only`, those rows or files alone."""
        if self.transform is not None:
            return of_images(source, self.by, only)
        now = self.now
        return of_tables(source, self.schema, self.keeps_gaps, now["keep"], now["month"], now["timestamp"], only)


def opened(now: dict[str, Any], run: Path, trained: dict[str, Any], path: Path) -> Opened:
    """What the run was trained on decides how the input is read."""
    saved = checkpoint.load_state(run / "model.ckpt")
    shape = saved.get("input_shape", ())  # older checkpoints have none
    if len(shape) != 3:
        return Opened(now, path, schemas.of_run(saved, now, trained), None)
    if now["keep"] or now["month"] or now["timestamp"]:
        raise UserError("keep=, month= and timestamp= name columns, and images have none: leave them away")
    channels, height, width = shape
    if height != width:
        raise UserError(f"the run was trained on images of {height} x {width} pixels; run score takes square ones only")
    return Opened(now, path, schemas.Schema(()), Transform(height, channels, now["dataset"].get("resize")))


def compute(now: dict[str, Any], run: Path, trained: dict[str, Any], paths: dict[str, Path]) -> None:
    """Open everything, score in batches, write the output and what belongs beside it."""
    options = build(now["trainer"], now["allow"])
    if options.threads:
        torch.set_num_threads(options.threads)
    started, clock = store.now(), time.perf_counter()
    rows = opened(now, run, trained, paths["input"])
    period = now["month"] or now["timestamp"]
    given = feedback.read(paths["feedback"], rows.by, period) if "feedback" in paths else None
    source = rows.source()
    for note in source.notes:
        log.log.info("finding   %s", note)
    backbone, detector, score = scorer.of_run(run, now, options)
    rows.keeps_gaps = detector.gaps and "network" not in backbone.provides
    if now["model"]:
        score = scorer.of_export(Path(now["model"]).expanduser(), run)
    old, budget, notes = thresholds(now, run, trained, given, rows, score)
    monthly = report.Report(old.calibration) if old and (given or period) else None
    if monthly and old and given and given.has_scores:
        monthly.add("feedback", of_feedback(given, now, old))
    told, bar = Told(), bar_title(options, "score")
    with outputs.sink(paths["output"]) as write, progress(bar, source.total if bar else lambda: None) as advance:
        for batch in rows.batches(source):
            frame = scored(batch, score, budget, rows.skips, told)
            write(frame.drop("period"))
            advance(len(frame))
            if monthly:
                monthly.add("input", labelled(frame.filter(pl.col("score").is_not_null()), given, rows.by, told))
        refuse_nothing(told, source.name, given, rows.by)
    spent = time.perf_counter() - clock
    if now["timestamp"] and told.undated:
        notes.append(f"{told.undated:,} rows have no date in {period}: period '{report.UNKNOWN}'")
    notes += told.findings()
    say(told, budget, notes, spent, paths["output"], trained["protocol"])
    summary = {
        "schema": store.SCHEMA, "run": str(run), "data_sha256": trained["data_sha256"], "input": str(paths["input"]),
        "model": now["model"], "rows": told.rows, "scored": told.scored, "verdicts": told.verdicts if budget else None,
        "threshold": budget and vars(budget.flag), "review_threshold": budget and budget.ask and vars(budget.ask),
        "feedback": now["feedback"], "findings": [*source.notes, *notes], "seconds": spent, "started": started,
        "finished": store.now(), "code_version": store.code_version(), "environment": store.environment("cpu"),
    }  # fmt: skip
    store.write_json(beside(paths["output"], "summary.json"), summary)
    if monthly and budget:
        table, picture = (beside(paths["output"], what) for what in ("report.csv", "alerts.png"))
        report.write(monthly.rows(), table)
        report.draw(monthly.rows(), budget.flag.false_alarms, picture)
        report.show(monthly.rows())
        print(f"{table}, {picture}")


def thresholds(
    now: dict[str, Any], run: Path, trained: dict[str, Any], given: feedback.Feedback | None, rows: Opened, score: Score
) -> tuple[alerts.Budgets | None, alerts.Budgets | None, list[str]]:
    """The run's budgets, those after the feedback, and what is to be said; None for a run without calibration rows."""
    if trained["threshold"] is None:
        return None, None, []
    fpr = now["fpr"] or trained["threshold"]["false_alarms"]
    calibration = store.read_scores(run)["calibration"][2]
    old = budget = alerts.budgets(calibration, fpr, now["review"])
    notes: list[str] = []
    if given is not None:
        audited = audited_scores(given, rows, score)
        fresh = feedback.recalibrate(calibration, audited, given.reviewed, now["recalibrate"])
        budget, notes = alerts.budgets(fresh.calibration, fpr, now["review"]), fresh.notes
    notes += [one.warning for one in (budget.flag, budget.ask) if one and one.warning]
    return old, budget, notes


def audited_scores(given: feedback.Feedback, rows: Opened, score: Score) -> np.ndarray:
    """(m,) scores of the rows that were drawn at random and found normal: from the file, or by a look at the input."""
    chosen = given.frame.filter(pl.col("audit") & (pl.col("label") == 0))
    if given.has_scores:
        return chosen["score"].to_numpy()
    only = set(chosen[given.by].to_list())
    parts = [score(batch.x) for batch in rows.batches(rows.source(only), only) if len(batch.x)] if only else []
    return np.concatenate(parts) if parts else np.empty(0)


def of_feedback(given: feedback.Feedback, now: dict[str, Any], old: alerts.Budgets) -> pl.DataFrame:
    """A reviewed output as the report counts it, with the verdicts that people were given."""
    frame = given.frame
    verdict = frame["verdict"] if "verdict" in frame.columns else old.verdicts(frame["score"].to_numpy())
    return frame.select("score", "label", periods(frame, now["month"], now["timestamp"]), verdict.alias("verdict"))


def scored(batch: Batch, score: Score, budget: alerts.Budgets | None, skips: bool, told: Told) -> pl.DataFrame:
    """The output's rows of a batch, and `period`; UserError naming the rows that have no score, unless they may."""
    errors, good, start = batch.errors, batch.good, told.rows
    value = np.full(len(errors), np.nan)
    if good.any():
        value[good] = score(batch.x)
        errors = np.where(good & ~np.isfinite(value), "the score is not finite", errors)
        good = good & np.isfinite(value)
    if not good.all():
        where = np.flatnonzero(~good)
        if not skips:
            named = ", ".join(f"row {start + i}: {errors[i]}" for i in where[:3])
            raise UserError(
                f"{len(where)} of rows {start} to {start + len(good) - 1} cannot be scored ({named}): correct them, or "
                "bad_rows=skip leaves their score empty and says why"
            )
        told.errors += [str(errors[i]) for i in where[: max(0, 3 - len(told.errors))]]
    p_value = verdict = pl.Series([None]).new_from_index(0, len(value))
    if budget is not None:
        p_value = pl.Series(np.where(good, budget.p_values(value), np.nan)).fill_nan(None)
        verdict = budget.verdicts(value).set(pl.Series(~good), None)
        for name, count in verdict.drop_nulls().value_counts().iter_rows():
            told.verdicts[name] += count
    told.rows, told.scored = told.rows + len(good), told.scored + int(good.sum())
    told.resized += batch.resized
    told.undated += int((batch.frame["period"] == report.UNKNOWN).sum())
    for name, count in batch.unseen.items():
        told.unseen[name] = told.unseen.get(name, 0) + count
    frame = batch.frame.with_columns(
        pl.Series("score", value).fill_nan(None), p_value.cast(pl.Float64).alias("p_value"),
        verdict.cast(pl.String).alias("verdict"),
    )  # fmt: skip
    return frame.with_columns(pl.Series("error", errors.tolist(), dtype=pl.String)) if skips else frame


def labelled(frame: pl.DataFrame, given: feedback.Feedback | None, by: str, told: Told) -> pl.DataFrame:
    """The label of each row that the feedback names; null for the others."""
    if given is None or given.has_scores:
        return frame.with_columns(pl.lit(None, dtype=pl.Int8).alias("label"))
    joined = frame.drop("label", strict=False).join(given.frame.select(by, "label"), on=by, how="left")
    told.reviewed += int(joined["label"].is_not_null().sum())
    return joined


def refuse_nothing(told: Told, name: str, given: feedback.Feedback | None, by: str) -> None:
    """UserError where there was nothing to score, or the feedback is about other rows."""
    if not told.rows:
        raise UserError(f"{name} has no rows: give at least one")
    if not told.scored:
        raise UserError(f"none of the {told.rows} rows of {name} can be scored: {told.errors[0]}")
    if given is not None and not given.has_scores and not told.reviewed:
        raise UserError(f"no {by} of the feedback is in {name}: is it about another input? Then it needs column score")


def beside(output: Path, what: str) -> Path:
    """NAME.report.csv beside NAME.csv."""
    return output.with_name(f"{output.stem}.{what}")
