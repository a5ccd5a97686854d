"""`run distill teacher=RUN`: `run train` of a student, whose training stage listens to a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from outlie.commands import train
from outlie.commands.evaluate import finished
from outlie.distillers import lessons
from outlie.errors import UserError
from outlie.results import store


def main(cfg: DictConfig) -> int:
    """Check the teacher, then train, evaluate and store the student; exit code."""
    check(train.plain(cfg))
    return train.main(cfg)


def check(now: dict[str, Any]) -> None:
    """UserError unless the teacher is finished, whole and another network, and the student fits the distiller."""
    teacher = Path(now["teacher"])
    finished(teacher)
    if not (teacher / "model.ckpt").is_file():
        raise UserError(f"teacher {teacher} has no model.ckpt; run train with force=true makes it again")
    then = train.plain(OmegaConf.load(teacher / "config.yaml"))  # type: ignore[arg-type]
    sections = [
        {name: store.identity(one).get(name) for name in ("dataset", "backbone", "detector", "seed")}
        for one in (now, then)
    ]
    if sections[0] == sections[1]:
        raise UserError(
            "the student is the teacher: choose a smaller network, backbone=..., or another seed; "
            "distiller=scores distils the detector"
        )
    student = now["detector"]["_target_"].endswith(".ScoreStudent")
    if lessons.of_scores(now) != student:
        raise UserError("distiller=scores teaches detector=score_student, and nothing else does: leave detector= away")
