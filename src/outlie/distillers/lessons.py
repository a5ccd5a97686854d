"""Rows that a finished run has scored, for a student of its scores; made once and found again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from outlie import stages
from outlie.build import build
from outlie.data.image_arrays import to_shape
from outlie.data.image_sources import read_source
from outlie.data.split import Rows
from outlie.detectors.base import Views
from outlie.distillers import image_corruptions, row_corruptions
from outlie.distillers.scores import Scores
from outlie.errors import UserError
from outlie.gather import gather_shares, rank_and_world, share
from outlie.log import log
from outlie.results import checkpoint, store

SAY_SECONDS = 15.0


@dataclass
class Lessons:
    """What the teacher said of M rows, and of H rows of corruptions that no student learns from."""

    x: Tensor  # (M, D) float32 standardised rows, or (M, C, H, W) uint8
    score: Tensor  # (M,) float64
    rebuilt: Tensor | None  # (M, ...) the teacher's reconstruction of x as its detector sees it, where it makes one
    held_out_x: Tensor
    held_out_score: Tensor
    rho: float  # Spearman between two of the teacher's own scorings; its root is the ceiling of any student
    tau: float  # standard deviation of a row's score over repeats, in standard deviations of the scores


def of_scores(cfg: dict[str, Any]) -> bool:
    """Whether the config's distiller teaches scores."""
    return cfg["distiller"]["_target_"] == f"{Scores.__module__}.{Scores.__name__}"


def learnt(cfg: dict[str, Any], rows: Rows, backbone: Any, device: torch.device) -> Views:
    """Views for `ScoreStudent.loss`: x, y = the teacher's scores, maps = its reconstructions where it makes any.

    Raises:
        UserError: a student on a trained network, a teacher of other rows, an auxiliary set that is tested on.
    """
    lessons = found(cfg, rows, backbone, device)
    return Views(x=lessons.x, y=lessons.score, maps=lessons.rebuilt)


def folder_of(cfg: dict[str, Any]) -> Path:
    """Where the lessons lie: shared by all students of a teacher."""
    depends = store.training_identity(cfg)
    depends = {name: depends[name] for name in ("teacher", "distiller", "dataset", "seed")}
    return Path(cfg["output_dir"]) / "stages" / f"lessons-{store.digest(depends)}"


def found(cfg: dict[str, Any], rows: Rows, backbone: Any, device: torch.device) -> Lessons:
    """The lessons, from their file, or scored now."""
    if "network" in backbone.provides:
        raise UserError(
            f"a student of scores sees rows as they are, and backbone={cfg['choices']['backbone']} is a network: it "
            "would cost as much as before; set backbone=pixels for images, backbone=identity for rows"
        )
    path = folder_of(cfg) / "lessons.pt"
    if cfg["force"] or not path.is_file():
        made = make(cfg, rows, backbone, device)
        if rank_and_world()[0] == 0:
            with store.whole(path) as temporary:
                torch.save(vars(made), temporary)
        return made
    return Lessons(**checkpoint.load_state(path))


def make(cfg: dict[str, Any], rows: Rows, backbone: Any, device: torch.device) -> Lessons:
    """Spoil rows, let the teacher score them."""
    scores: Scores = build(cfg["distiller"], list(cfg["allow"]))
    generator = torch.Generator().manual_seed(cfg["seed"])
    drawn = torch.randperm(len(rows), generator=generator)[: scores.normal or len(rows)].sort().values
    images = rows.x.ndim == 4
    if images:
        own = rows.x[drawn]
        foreign = auxiliary(scores, cfg, own) if scores.auxiliary else own
        module: Any = image_corruptions

        def spoil(kinds: list[str], n: int) -> Tensor:
            return image_corruptions.spoilt(own, foreign, kinds, n, generator)
    else:
        if scores.auxiliary:
            raise UserError("distiller.auxiliary names an image set, and these are rows of a table: set it to null")
        own, foreign = standardised(backbone, rows.x[drawn], device), None
        module = row_corruptions

        def spoil(kinds: list[str], n: int) -> Tensor:
            return row_corruptions.spoilt(own, kinds, n, generator)

    held_out = scores.held_out or module.HELD_OUT
    if wrong := [name for name in held_out if name not in module.KINDS]:
        raise UserError(
            f"distiller.held_out={wrong[0]} is for {'tables' if images else 'images'}; here: {', '.join(module.KINDS)}"
        )
    parts = [own, spoil([name for name in module.KINDS if name not in held_out], scores.corrupted)]
    if foreign is not None and scores.auxiliary:
        parts.append(foreign[torch.randperm(len(foreign), generator=generator)[: scores.corrupted]])
    x, away = torch.cat(parts), spoil(list(held_out), scores.held_out_rows)
    teacher = Teacher(Path(cfg["teacher"]), backbone, rows, device, list(cfg["allow"]))
    score, rebuilt = teacher.says(x, f"{len(own)} training rows, {len(x) - len(own)} others")
    away_score, _ = teacher.says(away, f"{len(away)} of corruptions held out: {', '.join(held_out)}")
    few = x[torch.randperm(len(x), generator=generator)[: scores.repeat_rows]]
    rho, tau = teacher.agrees(few, scores.repeats) if scores.repeat_rows else (1.0, 0.0)
    return Lessons(x, score, rebuilt, away, away_score, rho, tau)


def standardised(backbone: Any, x: Tensor, device: torch.device) -> Tensor:
    """Raw rows as the detector sees them; (N, D) float32 on the CPU."""
    parts = [backbone.to(device)(some.to(device)).x.float().cpu() for some in x.split(stages.ROWS_AT_ONCE)]
    return torch.cat(parts)


def auxiliary(scores: Scores, cfg: dict[str, Any], own: Tensor) -> Tensor:
    """Images of another set, in the shape of ours; UserError where it is one of those that are tested on."""
    name = str(scores.auxiliary)
    dataset = cfg["dataset"]
    if name in [dataset.get("id"), *(dataset.get("near") or ()), *(dataset.get("far") or ())]:
        raise UserError(f"distiller.auxiliary={name} is tested on: what a student learns from must be another set")
    c, h, w = own.shape[1:]
    return torch.from_numpy(to_shape(read_source(name, "test", h).x, (c, h, w)))


class Teacher:
    """A finished run's detector, asked for scores of rows as the student will see them.

    Args:
        run: its folder.
        backbone: the student's, which standardises; a table's rows are brought back to raw ones for the teacher's.
        rows: training rows, from which the teacher's input is checked.
        allow: modules outside outlie that the command line allows.
    """

    def __init__(self, run: Path, backbone: Any, rows: Rows, device: torch.device, allow: list[str]) -> None:
        network, self.detector, saved = checkpoint.open_model(run, allow)
        shape = tuple(saved["input_shape"])
        if shape != tuple(rows.x.shape[1:]):
            raise UserError(
                f"teacher {run.name} takes rows of shape {shape}, these data have {tuple(rows.x.shape[1:])}: keep "
                "its dataset"
            )
        self.front: Callable[[Tensor], Views] = stages.front(network.to(device), self.detector.needs)
        self.detector.to(device)
        self.backbone, self.device, self.name = backbone, device, run.name

    def raw(self, x: Tensor) -> Tensor:
        """What the teacher's backbone takes: images as they are, rows with their own scale and mean."""
        if x.ndim == 4:
            return x
        return x.double() * self.backbone.scale.cpu().double() + self.backbone.mean.cpu().double()

    @torch.no_grad()
    def says(self, x: Tensor, what: str) -> tuple[Tensor, Tensor | None]:
        """(n,) scores, and reconstructions where the score is their mean squared error; a share of the rows a rank."""
        log.info("teach     %s scores %s", self.name, what)
        at_once = stages.rows_at_once(tuple(x.shape[1:]))
        scores, rebuilt = [], []
        rebuilds = self.rebuilds(x[:8])
        started = said = time.monotonic()
        done = 0
        mine = x[share(len(x))]
        for some in mine.split(at_once):
            views = self.front(self.raw(some).to(self.device))
            if rebuilds:
                end, score = self.rebuild(views.x)
                rebuilt.append(end.float().cpu())
            else:
                score = self.detector.score(views)
            scores.append(score.double().cpu())
            done, now = done + len(some), time.monotonic()
            if now - said > SAY_SECONDS and done < len(mine):
                said, left = now, (now - started) * (len(mine) - done) / done
                log.info("          %d of %d rows, about %.0f s left", done, len(mine), left)
        score = gather_shares(torch.cat(scores), len(x))
        return score, gather_shares(torch.cat(rebuilt), len(x)) if rebuilds else None

    def rebuilds(self, x: Tensor) -> bool:
        """Whether the score is the mean squared error of a reconstruction that the detector hands out."""
        if not hasattr(self.detector, "denoise"):
            return False
        views = self.front(self.raw(x).to(self.device))
        _, error = self.rebuild(views.x)
        return torch.allclose(error.double(), self.detector.score(views).double(), rtol=1e-3)

    def rebuild(self, x: Any) -> tuple[Tensor, Tensor]:
        """The detector's reconstruction of what it sees, and its mean squared error in the detector's units; (B,)."""
        end = self.detector.denoise(x)
        return end, ((x.to(end) - end).flatten(1) / getattr(self.detector, "divide", 1.0)).square().mean(1)

    @torch.no_grad()
    def agrees(self, x: Tensor, repeats: int) -> tuple[float, float]:
        """rho, mean Spearman between scorings with other draws, and tau, the spread of a row's score over them."""
        own = getattr(self.detector, "seed", None)
        if own is None or repeats < 2:
            return 1.0, 0.0
        found = []
        for repeat in range(repeats):
            self.detector.seed = own + 1 + repeat
            views = self.front(self.raw(x).to(self.device))
            found.append(self.detector.score(views).double().cpu())
        self.detector.seed = own
        said = torch.stack(found)
        if torch.equal(said[0], said[1]):  # a score without draws
            return 1.0, 0.0
        pairs = [spearmanr(said[i], said[j])[0] for i in range(repeats) for j in range(i)]
        spread = said.std(0).mean() / said.mean(0).std().clamp(min=1e-12)
        return float(np.array(pairs, float).mean()), float(spread)
