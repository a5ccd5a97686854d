"""What a run says about its classifier: accuracy, neural collapse at the end and along training, pictures."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

from outlie import features
from outlie.cell import Ground
from outlie.detectors.base import Views
from outlie.log import log
from outlie.metrics.collapse import neural_collapse
from outlie.results import store
from outlie.results.checkpoint import load_state


def report(ground: Ground) -> dict[str, float]:
    """`accuracy` on the in-distribution test rows, and the neural-collapse measures of the training rows."""
    if ground.split.train.y is None:
        return {}
    measures = collapse(ground, ground.backbone, {name: ground.views(name) for name in parts(ground)})
    test = ground.views("test") if "test" in ground.parts else None
    if test is None or test.y is None:
        return measures
    accuracy = float((test.logits.argmax(1) == test.y).double().mean())
    log.info("classify  %.2f %% of the test rows right, %.2f %% of the training rows", 100 * accuracy,
             100 * measures["train_accuracy"])  # fmt: skip
    return {"accuracy": accuracy, **measures}


def parts(ground: Ground) -> list[str]:
    """The parts that neural collapse is measured on: training rows, and each out-of-distribution set."""
    return ["train", *(name for name in ground.split.tests if name != "test")]


def collapse(ground: Ground, backbone: Any, views: dict[str, Views]) -> dict[str, float]:
    """NC1 to NC5 of a backbone whose views these are."""
    head, train = backbone.head, views["train"]
    bias = None if head.bias is None else head.bias.detach().cpu()
    ood = {name: one.features for name, one in views.items() if name != "train"}
    return neural_collapse(train.features, train.y, head.weight.detach().cpu(), bias, ood)


def along_training(ground: Ground, cfg: dict[str, Any]) -> list[dict[str, float]]:
    """The measures of every snapshot that the backbone's training kept, by epoch; [] where there are none."""
    rows: list[dict[str, float]] = []
    if ground.split.train.y is None:
        return rows
    snapshots = sorted((store.backbone_folder(cfg) / "snapshots").glob("*.ckpt"))
    backbone = copy.deepcopy(ground.backbone) if snapshots else None
    for path in snapshots:
        backbone.load_state_dict(load_state(path))
        views = {
            name: features.views(backbone, ground.parts[name], ground.options, ground.cache, ground.folder)
            for name in parts(ground)
        }
        rows.append({"epoch": int(path.stem), **collapse(ground, backbone, views)})
        shown = [rows[-1][key] for key in ("epoch", "nc1", "nc2_equiangularity", "nc3")]
        log.info("collapse  epoch %d: NC1 %.4g, NC2 %.4g, NC3 %.4g", *shown)
    return rows


def pictures(ground: Ground, curve: list[dict[str, float]], chosen: int | None, folder: Path) -> list[Path]:
    """Draw the neural-collapse curves, the principal scatter and NECO's AUROC against d; the files."""
    from outlie.metrics.dimensions import auroc_by_dimension
    from outlie.results import collapse_plots

    drawn = []
    if curve:
        with store.whole(folder / "collapse.csv") as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, list(curve[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(curve)
        collapse_plots.curves(curve, folder / "collapse.png")
        drawn.append(folder / "collapse.png")
    if ground.split.train.y is None or not parts(ground)[1:]:
        return drawn
    train, test = ground.views("train"), ground.views("test")
    ood = {name: ground.views(name).features for name in parts(ground)[1:]}
    collapse_plots.scatter(train.features, train.y, test.features, ood, folder / "principal.png")
    classes = train.logits.shape[1]
    curves = auroc_by_dimension(train.features, test.features, ood, classes=classes)
    collapse_plots.dimensions(curves, folder / "dimensions.png", chosen, classes)
    return [*drawn, folder / "principal.png", folder / "dimensions.png"]
