"""What a cell computes, stage by stage: data and backbone, their views, a detector fitted on them, its scores."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outlie import distributed, features, stages
from outlie.backbones.segmenter import Segmenter
from outlie.build import build
from outlie.data.split import Rows, Split
from outlie.detectors.base import Detector, Spec, Views, set_up
from outlie.distillers import lessons, student
from outlie.errors import UserError
from outlie.gather import rank_and_world
from outlie.lightning import Told
from outlie.log import log
from outlie.metrics import cost
from outlie.results import store
from outlie.trainer import Options

Load = Callable[[dict[str, Any], str, int, list[str]], Split]  # of `load`; a sweep has one that keeps what it loaded


@dataclass
class Ground:
    """A split and a backbone that is ready: what the detectors of one run, or of a comparison, stand on."""

    split: Split
    backbone: Any
    options: Options
    folder: Path  # of the run
    cache: Path  # of views, shared by all runs
    _views: dict[Any, Views] = field(default_factory=dict)  # of a part, with or without its input and maps

    @property
    def parts(self) -> dict[str, Rows]:
        """Rows by name: train, calibration where there are any, the test sets."""
        held_out = {} if self.split.calibration is None else {"calibration": self.split.calibration}
        return {"train": self.split.train, **held_out, **self.split.tests}

    @property
    def device(self) -> torch.device:
        return distributed.device(self.options)

    @cached_property
    def gaps(self) -> int:
        """How many cells of the table, over all parts, are NaN: values that are missing and were kept so."""
        tables = [rows.x for rows in self.parts.values() if rows.x.dtype.is_floating_point]
        return sum(int(part.isnan().sum()) for x in tables for part in x.split(2**14))  # in parts: a mask is large

    def views(self, part: str, with_input: bool = False, with_maps: bool = False) -> Views:
        """The views of a part, from the cache where a network made them; the input itself is never cached."""
        stored = "network" in self.backbone.provides and not with_input
        wanted = ("features", "logits", "maps") if with_maps else ("features", "logits")
        key = (part, "x" if not stored else wanted)
        if key not in self._views:
            rows = self.parts[part]
            self._views[key] = (
                features.views(self.backbone, rows, self.options, self.cache, self.folder, wanted)
                if stored
                else stages.extract(self.backbone, rows, self.options, self.folder)
            )
        return self._views[key]

    def source(self, part: str, needs: tuple[str, ...]) -> Views | stages.Passes:
        """What a detector is fitted on or scores: views, or a pass a batch where it needs the network."""
        full_size = isinstance(self.backbone, Segmenter)  # its maps are: those of a set are too large to hold
        if "network" in needs or {"x", "maps"} <= set(needs) or (full_size and "maps" in needs):
            return stages.Passes(self.backbone, self.parts[part], self.device, needs)
        return self.views(part, with_input="x" in needs, with_maps="maps" in needs)

    def spec(self, needs: tuple[str, ...], seed: int) -> Spec:
        """Sizes for `Detector.setup`."""
        views = self.source("train", needs)
        some = views if isinstance(views, Views) else views[torch.arange(1)]
        blocks = () if "network" in self.backbone.provides else self.split.blocks  # a network makes other columns
        return stages.spec_of(some, seed, self.backbone, blocks)


def load(section: dict[str, Any], name: str, seed: int, allow: list[str]) -> Split:
    """The data of a config's section, described and with its findings said."""
    split = build(section, allow).load(seed)
    log.info("data      %s, protocol %s: %s", name, split.protocol, stages.describe(split))
    for finding in split.findings:
        log.info("finding   %s", finding)
    return split


def ready_backbone(cfg: dict[str, Any], split: Split, options: Options, on_epoch: Told) -> tuple[Any, dict[str, Any]]:
    """The backbone set up for the data, and trained by its objective or found trained; and what that cost."""
    backbone = build(cfg["backbone"], list(cfg["allow"]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg["seed"])  # the same seed gives the same initial weights, whatever ran before
        backbone.setup(split)
    networks = "teacher" in cfg and not lessons.of_scores(cfg)  # a distiller of networks, not of a detector's scores
    if not getattr(backbone, "trained", False) and not networks:
        return backbone.eval(), {}
    name = cfg["choices"]["backbone"]
    rows = Views(x=split.train.x, y=split.train.y)
    folder, title = store.backbone_folder(cfg), bar_title(options, f"train {name}")
    if networks:
        spent = student.distilled(cfg, backbone, split, rows, options, title, on_epoch)
    else:
        spent = stages.trained(backbone, rows, cfg["seed"], options, folder, title, on_epoch, cfg["force"])
    log.info(
        "backbone  %s: %d epochs, %.1f s (CPU %.1f s), loss %.4g; weights in %s",
        name, len(spent["losses"]), spent["train_s"], spent["train_cpu_s"], spent["losses"][-1], folder,
    )  # fmt: skip
    return backbone, spent


def fitted(
    cfg: dict[str, Any], detector: Any, ground: Ground, on_epoch: Told = lambda losses, validation: None
) -> tuple[Spec, dict[str, Any]]:
    """Set the detector up, train its loss and fit it, where it has these; the spec, and what it cost."""
    refuse_gaps(cfg["choices"], detector, ground)
    spec = ground.spec(detector.needs, cfg["seed"])
    on_rows = "x" in detector.needs and "network" not in detector.needs and not detector.images
    if on_rows and len(spec.shapes["x"]) > 1:
        size = " x ".join(map(str, spec.shapes["x"]))
        raise UserError(
            f"{cfg['choices']['detector']} works on rows, and the input of backbone {cfg['choices']['backbone']} is "
            f"{size}; backbone=identity makes a row of it"
        )
    set_up(detector, spec)
    spent: dict[str, Any] = {}
    if hasattr(detector, "loss"):
        title = bar_title(ground.options, f"train {cfg['choices']['detector']}")
        stage = store.stage_folder(cfg, detector.scoring)
        own = ground.split.train
        raw = detector.raw  # standardised as floats, the images of a training set may not fit into memory
        train = Views(x=own.x, y=own.y) if raw else ground.views("train", with_input="x" in detector.needs)
        if "teacher" in cfg and lessons.of_scores(cfg):
            train = lessons.learnt(cfg, own, ground.backbone, ground.device)
        spent = stages.trained(detector, train, cfg["seed"], ground.options, stage, title, on_epoch, cfg["force"])
        log.info(
            "train     %d epochs, %.1f s (CPU %.1f s), loss %.4g",
            len(spent["losses"]), spent["train_s"], spent["train_cpu_s"], spent["losses"][-1],
        )  # fmt: skip
    if hasattr(detector, "fit"):
        if detector.fits_on not in ground.parts:
            raise UserError(
                f"{cfg['choices']['detector']} is fitted on {detector.fits_on} rows, and protocol "
                f"{ground.split.protocol} keeps none; choose another detector, or detector.split=train if it has that"
            )
        views = ground.source(detector.fits_on, detector.needs)
        with cost.seconds() as fitting:
            stages.fit(detector, views, ground.device)
        rows = min(len(views), getattr(detector, "fit_rows", None) or len(views))
        spent |= {"fit_s": fitting.wall, "fit_cpu_s": fitting.cpu, "fitted_on": detector.fits_on, "fit_rows": rows}
        log.info("fit       %d %s rows, %.2f s", rows, detector.fits_on, fitting.wall)
    return spec, spent


def refuse_gaps(choices: dict[str, str], detector: Detector, ground: Ground) -> None:
    """UserError where values are missing in the data, and the detector or the backbone needs every one."""
    network = "network" in ground.backbone.provides
    if (detector.gaps and not network) or not ground.gaps:
        return
    who = f"backbone {choices['backbone']}" if network else choices["detector"]
    takes_them = "backbone=identity detector=miwae" if network else "detector=miwae"
    raise UserError(
        f"{who} takes no gaps, and {ground.gaps} values of the rows are missing (NaN): dataset.missing=mean or =median "
        f"fills them from training rows, {takes_them} takes them as they are"
    )


def scored(
    detector: Detector, ground: Ground, maps: dict[str, Tensor] | None = None
) -> tuple[dict[str, tuple[Any, Any, Any]], dict[str, Any]]:
    """name -> (index, label or None, score) of calibration rows and test sets, each row once; and what it cost.

    Args:
        maps: takes name -> (n, H, W) maps of the test sets with masks, where the detector localises; of the same pass.
    """
    scores = {}
    parts = {name: rows for name, rows in ground.parts.items() if name != "train"}
    views = {name: ground.source(name, detector.needs) for name in parts}
    with cost.seconds() as scoring:
        for name, rows in parts.items():
            label = None if rows.label is None else rows.label.numpy()
            if maps is not None and rows.mask is not None and hasattr(detector, "score_map"):
                score, maps[name] = stages.score_with_maps(detector, views[name], ground.device)
            else:
                score = stages.score(detector, views[name], ground.device)
            scores[name] = (rows.index.numpy(), label, score.numpy())
    log.info("score     %d rows, %.2f s", sum(map(len, parts.values())), scoring.wall)
    spent: dict[str, Any] = {"score_s": scoring.wall, "score_cpu_s": scoring.cpu}
    if "denoiser" in ground.backbone.provides:
        row = next(iter(ground.split.tests.values())).x[:1].to(ground.device)
        front = stages.front(ground.backbone.to(ground.device), detector.needs)
        spent["nfe"] = cost.nfe(ground.backbone, detector, front, row)
    return scores, spent


def about(split: Split) -> dict[str, dict[str, Any]]:
    """Test set -> kind of anomaly and group of its rows, where these are known."""
    known: dict[str, dict[str, Any]] = {}
    one_class = split.train.y is None and bool(split.classes)  # then `y` of a test is no class to be predicted
    for name, rows in split.tests.items():
        if one_class and rows.row_y is not None:
            known.setdefault(name, {})["kind"] = [split.classes[y] for y in rows.row_y.tolist()]
        if rows.group is not None:
            known.setdefault(name, {})["group"] = rows.group.numpy()
    return known


def findings(detector: Detector, ground: Ground) -> list[str]:
    """What is suspicious about the split, and about the detector on it."""
    some = ground.source(next(iter(ground.split.tests)), detector.needs)
    found = [*ground.split.findings, *stages.batch_lint(detector, some, ground.device)]
    if hasattr(detector, "fit") and detector.fits_on == "calibration":
        found.append("the detector was fitted on the calibration rows that also fix the threshold")
    return found


def bar_title(options: Options, title: str) -> str:
    """The title of a progress bar; empty = no bar here."""
    wanted = options.progress == "on" or (options.progress == "auto" and sys.stderr.isatty())
    return title if wanted and rank_and_world()[0] == 0 else ""
