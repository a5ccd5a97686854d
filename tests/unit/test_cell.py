"""A cell's stages on a small split: which rows a detector gets, that each is scored once, and what a run is told."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from outlie import cell, stages
from outlie.backbones.identity import Identity
from outlie.backbones.mlp import MLP
from outlie.backbones.pixels import Pixels
from outlie.backbones.resnet import ResNet
from outlie.build import build
from outlie.data.split import Rows, Split
from outlie.detectors.base import Detector, Spec, Views, set_up
from outlie.errors import UserError
from outlie.trainer import Options

OPTIONS = Options(accelerator="cpu", threads=1)
N, DIM, CLASSES = 40, 6, 4


def rows(n: int, first: int, label: int, y: bool = True) -> Rows:
    """Rows whose every entry is their number in the source."""
    index = torch.arange(first, first + n)
    x = index.double()[:, None].repeat(1, DIM)
    return Rows(x, index, torch.full((n,), label), index % CLASSES if y else None)


@pytest.fixture
def split() -> Split:
    tests = {"test": rows(9, 100, 0), "far": rows(5, 200, 1, y=False)}
    ones = torch.ones(DIM, dtype=torch.float64)
    protocols = {"far": "ood_far"}
    return Split("ood", rows(N, 0, 0), tests, rows(8, 50, 0), 0 * ones, ones, "hash", protocols=protocols)


@pytest.fixture
def ground(split, tmp_path):
    backbone = Identity()
    backbone.setup(split)
    return cell.Ground(split, backbone, OPTIONS, tmp_path / "run", tmp_path / "views")


@pytest.fixture
def classifier(split, tmp_path):
    backbone = MLP(hidden=[5])
    backbone.setup(split)
    return cell.Ground(split, backbone.eval(), OPTIONS, tmp_path / "run", tmp_path / "views")


class Watching(Detector):
    """Keeps what it was fitted on; a row's score is its number."""

    def __init__(self, fits_on: str = "train") -> None:
        super().__init__()
        self.fits_on = fits_on

    def setup(self, spec: Spec) -> None:
        self.spec = spec

    def fit(self, train: Views) -> None:
        self.fitted_on = train

    def score(self, views: Views) -> torch.Tensor:
        return views.features[:, 0]


class BatchByBatch(Watching):
    needs = ("x", "network")

    def update(self, views: Views) -> None:
        self.seen = [*getattr(self, "seen", []), views]

    def finish(self) -> None:
        self.finished = True

    def score(self, views: Views) -> torch.Tensor:
        return views.x[:, 0].double()


CFG = {"seed": 7, "choices": {"detector": "watching", "backbone": "mlp"}, "force": False}


def test_the_parts_of_a_split(ground, split):
    assert list(ground.parts) == ["train", "calibration", "test", "far"]
    ground.split = replace(split, calibration=None)
    assert list(ground.parts) == ["train", "test", "far"]


@pytest.mark.parametrize(("fits_on", "first", "n"), [("train", 0, N), ("calibration", 50, 8)])
def test_a_detector_is_fitted_on_the_rows_it_asks_for(ground, fits_on, first, n):
    detector = Watching(fits_on)
    spec, spent = cell.fitted(CFG, detector, ground)
    assert detector.fitted_on.features[:, 0].tolist() == list(range(first, first + n))
    assert detector.fitted_on.y.tolist() == [i % CLASSES for i in range(first, first + n)]
    assert (spent["fitted_on"], spec.seed, spec.dim) == (fits_on, 7, DIM)
    assert detector.spec is spec and "train_s" not in spent


def test_a_protocol_without_calibration_rows_says_so(ground, split):
    ground.split = replace(split, calibration=None)
    with pytest.raises(UserError, match=r"watching is fitted on calibration rows, and protocol ood keeps none; choose"):
        cell.fitted(CFG, Watching("calibration"), ground)


def test_every_row_but_those_of_training_is_scored_once(ground, split):
    detector = Watching()
    cell.fitted(CFG, detector, ground)
    scores, spent = cell.scored(detector, ground)
    assert list(scores) == ["calibration", "test", "far"]
    for name, (index, label, score) in scores.items():
        assert index.tolist() == score.tolist() == ground.parts[name].index.tolist()
        assert label.tolist() == [int(name == "far")] * len(index)
        assert score.dtype == np.float64
    assert spent["score_s"] >= 0
    split.tests["far"].label = None
    assert cell.scored(detector, ground)[0]["far"][1] is None


def test_a_score_alone_needs_no_fit(ground):
    class Alone(Detector):
        def score(self, views: Views) -> torch.Tensor:
            return views.features.sum(1)

    _, spent = cell.fitted(CFG, Alone(), ground)
    assert spent == {}


def test_the_spec_of_a_classifier(classifier):
    spec = classifier.spec(("features", "head"), seed=3)
    assert spec.shapes == {"features": (5,), "logits": (CLASSES,)}  # the input itself is not cached
    assert (spec.classes, spec.seed, spec.dim) == (CLASSES, 3, 5)
    assert spec.head is classifier.backbone.head and spec.network is classifier.backbone
    assert classifier.spec(("x", "network"), 0).shapes["x"] == (DIM,)


def test_views_are_computed_once_and_are_the_networks(classifier, split, monkeypatch):
    views = classifier.views("test")
    with torch.no_grad():
        direct = classifier.backbone(split.tests["test"].x)
    torch.testing.assert_close(views.features, direct.features)
    torch.testing.assert_close(views.logits, direct.logits)
    assert views.x is None and views.y.tolist() == [i % CLASSES for i in range(100, 109)]
    assert classifier.views("far").y is None
    monkeypatch.setattr(MLP, "forward", lambda *_: pytest.fail("another pass"))
    assert classifier.views("test") is views
    again = cell.Ground(*[getattr(classifier, n) for n in ("split", "backbone", "options", "folder", "cache")])
    assert torch.equal(again.views("test").features, views.features)  # from the files of another run


def test_a_detector_that_needs_the_network_gets_its_rows_batch_by_batch(classifier, monkeypatch):
    monkeypatch.setattr(stages, "ROWS_AT_ONCE", 16)
    detector = BatchByBatch()
    cell.fitted(CFG, detector, classifier)
    assert detector.finished and not hasattr(detector, "fitted_on")
    assert [len(views) for views in detector.seen] == [16, 16, 8]
    together = Views.cat(detector.seen)
    assert together.x[:, 0].tolist() == list(range(N)) and together.y.tolist() == [i % CLASSES for i in range(N)]
    assert together.logits.shape == (N, CLASSES)
    scores, _ = cell.scored(detector, classifier)
    assert scores["far"][2].tolist() == [200, 201, 202, 203, 204]


def test_a_detector_on_rows_is_refused_on_images(classifier, split, monkeypatch):
    class OnRows(Watching):
        needs = ("x",)

    cell.fitted(CFG, OnRows(), classifier)  # a table's input is a row
    split.train.x = split.train.x[:, :, None, None]
    monkeypatch.setattr(MLP, "standardise", lambda self, x: x.float())
    classifier._views.clear()
    with pytest.raises(UserError, match=r"watching works on rows, and the input of backbone mlp is 6 x 1 x 1; back"):
        cell.fitted(CFG, OnRows(), classifier)


class OnImages(Watching):
    needs = ("x",)
    images = True

    def score(self, views: Views) -> torch.Tensor:
        return views.x.flatten(1).mean(1)


def test_a_detector_of_images_gets_them_as_they_are(tmp_path):
    generator = torch.Generator().manual_seed(0)

    def images(n: int) -> Rows:
        return Rows(torch.randint(0, 256, (n, 3, 4, 5), dtype=torch.uint8, generator=generator), torch.arange(n))

    split = Split("ood", images(8), {"test": images(4)}, None, torch.zeros(3, 1, 1), torch.ones(3, 1, 1), "hash")
    ground = cell.Ground(split, Pixels(), OPTIONS, tmp_path / "run", tmp_path / "views")
    detector = OnImages()
    spec, _ = cell.fitted(CFG, detector, ground)
    assert spec.shapes == {"x": (3, 4, 5)} and spec.blocks == ()
    np.testing.assert_array_equal(detector.fitted_on.x, (split.train.x / 255).numpy())
    expected = split.tests["test"].x.numpy().mean((1, 2, 3)) / 255
    np.testing.assert_allclose(cell.scored(detector, ground)[0]["test"][2], expected, rtol=1e-5)
    detector.images = False
    with pytest.raises(UserError, match=r"watching works on rows, and the input of backbone mlp is 3 x 4 x 5"):
        cell.fitted(CFG, detector, ground)


def test_gaps_are_for_detectors_that_take_them(ground, split):
    split.tests["far"].x[1, 2:4] = split.train.x[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"^watching takes no gaps, and 3 values .*=mean or =median .* detector=miwae"):
        cell.fitted(CFG, Watching(), ground)
    detector = Watching()
    detector.gaps = True  # of this one: as an option may say
    assert not Watching.gaps
    cell.fitted(CFG, detector, ground)
    assert int(detector.fitted_on.features.isnan().sum()) == 1


def test_a_network_takes_no_gaps(classifier, split):
    split.tests["far"].x[1, 2] = float("nan")
    detector = Watching()
    detector.gaps = True
    with pytest.raises(UserError, match=r"^backbone mlp takes no gaps, and 1 values .*=median .*backbone=identity det"):
        cell.fitted(CFG, detector, classifier)


def test_the_kinds_of_columns_are_told_where_the_columns_are_the_tables(ground, classifier, split):
    split.blocks = (("number", 4), ("levels", 2))
    assert ground.spec(("features",), 0).blocks == split.blocks
    assert classifier.spec(("features",), 0).blocks == classifier.spec(("x", "network"), 0).blocks == ()


def test_a_pass_is_what_the_views_of_all_rows_are(classifier, split):
    passes = classifier.source("test", ("network",))
    assert isinstance(passes, stages.Passes) and len(passes) == 9
    with torch.no_grad():
        torch.testing.assert_close(passes[torch.tensor([4, 2])].logits, classifier.views("test").logits[[4, 2]])


def test_what_is_suspicious_about_a_detector(ground, split):
    class Relative(Watching):
        def score(self, views: Views) -> torch.Tensor:
            return views.features[:, 0] / views.features[:, 0].max()

    split.findings.append("a finding about the data")
    detector = Watching("calibration")
    cell.fitted(CFG, detector, ground)
    assert cell.findings(detector, ground) == [
        "a finding about the data",
        "the detector was fitted on the calibration rows that also fix the threshold",
    ]
    detector = Relative()
    cell.fitted(CFG, detector, ground)
    (_, found) = cell.findings(detector, ground)
    assert "differently alone and in a batch" in found


def test_a_backbone_that_is_not_trained_is_ready_at_once(split):
    cfg = CFG | {"backbone": {"_target_": "outlie.backbones.identity.Identity"}, "allow": []}
    backbone, spent = cell.ready_backbone(cfg, split, OPTIONS, lambda losses, validation: None)
    assert spent == {} and not backbone.training


def test_a_network_is_trained_once_for_all_detectors(split, tmp_path):
    section = {"_target_": "outlie.backbones.mlp.MLP", "hidden": [4], "epochs": 2, "batch_size": 8}
    dataset = {"_target_": "outlie.data.sklearn_tables.SklearnTable", "name": "wine"}
    cfg = CFG | {"backbone": section, "dataset": dataset, "allow": [], "output_dir": str(tmp_path)}
    told: list[int] = []
    torch.manual_seed(1)
    first, spent = cell.ready_backbone(cfg, split, OPTIONS, lambda losses, validation: told.append(len(losses)))
    torch.manual_seed(2)  # what ran before does not matter
    elsewhere = cfg | {"detector": {"_target_": "x"}}
    again, same = cell.ready_backbone(elsewhere, split, OPTIONS, lambda losses, validation: None)
    assert told == [1, 2] and same == spent and not again.training
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    other, _ = cell.ready_backbone(cfg | {"seed": 8}, split, OPTIONS, lambda losses, validation: None)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_a_bar_only_where_it_is_wanted():
    assert cell.bar_title(Options(progress="on"), "train x") == "train x"
    assert cell.bar_title(Options(progress="off"), "train x") == ""


def test_the_defaults_of_a_real_detector_go_through(classifier):
    detector = build({"_target_": "outlie.detectors.softmax.TemperatureScaling"})
    assert isinstance(set_up(detector, classifier.spec(detector.needs, 0)), nn.Module)
    _, spent = cell.fitted(CFG, detector, classifier)
    assert spent["fitted_on"] == "calibration"
    assert np.isfinite(cell.scored(detector, classifier)[0]["far"][2]).all()


class MeanOfMaps(Detector):
    needs = ("maps",)

    def score(self, views: Views) -> torch.Tensor:
        return views.maps.mean((1, 2, 3))


def test_a_detector_of_maps_is_served_from_the_cache(tmp_path):
    generator = torch.Generator().manual_seed(0)

    def images(n: int, label: int) -> Rows:
        x = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=generator)
        return Rows(x, torch.arange(n), torch.full((n,), label), torch.arange(n) % 2)

    split = Split("ood", images(8, 0), {"test": images(4, 0), "far": images(3, 1)}, None,
                  torch.full((1, 1, 1), 128.0), torch.full((1, 1, 1), 64.0), "hash")  # fmt: skip
    backbone = ResNet(depth=10, width=4)
    backbone.setup(split)
    ground = cell.Ground(split, backbone.eval(), OPTIONS, tmp_path / "run", tmp_path / "views")
    detector = MeanOfMaps()
    cell.fitted(CFG, detector, ground)
    scores, _ = cell.scored(detector, ground)
    with torch.no_grad():  # maps are pooled by their mean
        features = backbone(split.tests["far"].x).features
    np.testing.assert_allclose(scores["far"][2], features.mean(1).double().numpy(), rtol=1e-5)
    assert ground.views("far").maps is None  # nobody else holds them
    assert len(list((tmp_path / "views").glob("*/maps.bin"))) == 3
