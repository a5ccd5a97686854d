"""Every detector of configs/detector, as a run uses it: composed, built, trained, fitted, scored, saved, loaded.

Each on what it is for: tables on well separated blobs; presets for images on digits; scores of a classifier
(`posthoc`) on features that collapse onto three class means, with a head that scikit-learn fitted; those that need the
network on a small trained ResNet; those that stand on a diffusion model on a small trained U-Net.
"""

import copy
import functools
import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import nn

from outlie import catalog, signatures, stages
from outlie.backbones.identity import Identity
from outlie.backbones.pixels import Pixels
from outlie.backbones.resnet import ResNet
from outlie.backbones.unet import UNet
from outlie.build import build
from outlie.compose import compose
from outlie.data.split import Rows, Split
from outlie.detectors.base import Detector, Views, set_up
from outlie.errors import UserError
from outlie.results import checkpoint
from outlie.trainer import Options

WHERE = catalog.roots()
SLOW = {"cblof", "deep_svdd", "dif", "feature_bagging", "mcd"}  # through PyOD; tests/unit/test_pyod.py has them
# student-teacher detectors on a trained network; their presets differ in what is made small here
STUDENTS = {"stfpm": 0.4, "reverse_distillation": 5e-3, "efficient_ad": 2e-3, "uninformed_students": 5e-3}  # lr
SLOW |= {f"{name}/{preset}" for name in STUDENTS for preset in ("paper", "cpu")}
SLOW |= {"score_student"}  # learns from another detector; tests/unit/test_score_student.py has it
PYOD = {"hbos", "iforest", "loda", "lof", "ocsvm", "pca"}
NAMES = sorted(set(catalog.choices("detector", WHERE)) - SLOW - (set() if importlib.util.find_spec("pyod") else PYOD))
SIGNATURES = {name: signatures.read(catalog.target(catalog.choices("detector", WHERE)[name])) for name in NAMES}
DENOISER = [name for name in NAMES if "denoiser" in SIGNATURES[name].needs]
POSTHOC = [name for name in NAMES if SIGNATURES[name].posthoc and name not in DENOISER]
NETWORK = [name for name in POSTHOC if "network" in SIGNATURES[name].needs]
PASSES = {"lmd": 3, "lmd/ddae": 3, "lmd/paper": 3, "ddpm_ood": 20, "ddpm_ood/ddae": 20, "ddpm_ood/grey": 8}  # steps
LABELLED = {"mahalanobis", "openmax", "openmax/pytorch_ood", "relative_mahalanobis", "she", "temperature_scaling"}
MEAN_OF_EACH_CLASS = {"mahalanobis", "relative_mahalanobis", "she"}  # cannot do without one
OPTIONS = Options(accelerator="cpu", threads=1)
CPU = torch.device("cpu")
# as many steps as the data need, where training is part of the method; the levels of DDPM cost a forward pass each
QUICK = {"batch_size": 64, "lr": 1e-3, "T": 100, "rec_start": 25, "min_steps": 0, "draws": 16, "alone": 0.0}
QUICK |= {"maps": 32, "passes": 5}
LARGER = {"drocc": 1e-2}  # lr of those that eight epochs of such steps leave untrained
# networks for images: small ones, but more and larger steps than tables need
QUICK_PIXELS = {
    "base": 8, "width": 8, "depth": 10, "stem": "cifar", "steps": 3, "T": 1000, "rec_start": 250, "lr": 3e-3,
    "batch_size": 16,
}  # fmt: skip
PIXELS = {"vae/paper", "vae/paper_2l", "iwae/paper", "iwae/paper_2l"}  # presets for images
PIXELS |= {"pixel_ddpm", "pixel_ddpm/paper", "pixel_dte_c", "pixel_dte_c/paper"}
QUICK_STUDENTS = {
    "batch_size": 4, "width": 4, "channels": 8, "code": 4, "teacher_steps": 10, "patches": [17], "students": 2,
    "min_steps": 0, "split": "train",
}  # fmt: skip
DIM = 320  # of features: more than the 300 dimensions of NECO's authors' presets of ViM and Residual
ID, OOD = 61, 40  # test rows


@dataclass(frozen=True)
class Ground:
    """What some detectors stand on: a backbone, training rows, 61 normal test rows and then 40 anomalies."""

    backbone: nn.Module
    fresh: Callable[[], nn.Module]  # the same backbone before anything is loaded into it
    train: Rows
    test: Rows
    network: bool = False
    needs: tuple[str, ...] = ()

    @torch.no_grad()
    def of(self, rows: Rows) -> Views | stages.Passes:
        if self.network:
            return stages.Passes(self.backbone, rows, CPU, self.needs)
        views = self.backbone(rows.x)
        views.y = rows.y
        return views


def rows_of(x: torch.Tensor, y: torch.Tensor | None = None) -> Rows:
    return Rows(x, torch.arange(len(x)), None, y)


def with_anomalies(y: torch.Tensor) -> torch.Tensor:
    """Class labels of test rows; anomalies have none, and no score may look at it."""
    return torch.cat([y, torch.full((OOD,), -1)])


@functools.cache
def blobs() -> Ground:
    """Integers from 0 to 255 as float64, the last column constant; the anomalies are another blob."""
    generator = torch.Generator().manual_seed(0)
    normal = 90 + 12 * torch.randn(256 + ID, 8, generator=generator, dtype=torch.float64)
    far = 140 + 12 * torch.randn(OOD, 8, generator=generator, dtype=torch.float64)
    x = torch.cat([normal, far]).round().clamp(0, 255)
    x[:, -1] = 7
    train, test = x[:256], x[256:]
    scale = torch.full((8,), 60.0, dtype=torch.float64)  # the anomalies are as far as the noise that DTE learns
    backbone = Identity()
    backbone.setup(Split("test", rows_of(train), {}, None, train.mean(0), scale, ""))
    return Ground(backbone, Identity, rows_of(train), rows_of(test))


class Head(nn.Module):
    """A classifier whose features are its rows."""

    def build(self, shape: tuple[int, ...], classes: int) -> None:
        self.head = nn.Linear(shape[0], classes)

    def forward(self, x: torch.Tensor) -> Views:
        return Views(features=x, logits=self.head(x))


@functools.cache
def classifier() -> Ground:
    """ReLU features near three class means, with ten shared factors, the last one dead; anomalies are isotropic."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(480 + ID) % 3
    own = (torch.arange(DIM) // 100 == torch.arange(3)[:, None]).float()
    factors = 0.3 * torch.randn(len(y), 10, generator=generator) @ torch.randn(10, DIM, generator=generator)
    noise = torch.randn(len(y) + OOD, DIM, generator=generator)
    x = torch.cat([1 + 3 * own[y] + factors + 0.05 * noise[: len(y)], 0.6 * noise[len(y) :]]).relu()
    x[:, -1] = 0
    fitted = LogisticRegression(C=0.01, max_iter=500).fit(x[:480].numpy(), y[:480].numpy())
    backbone = Head()
    backbone.build((DIM,), 3)
    with torch.no_grad():
        backbone.head.weight.copy_(torch.from_numpy(fitted.coef_))
        backbone.head.bias.copy_(torch.from_numpy(fitted.intercept_))
    return Ground(backbone, Head, rows_of(x[:480], y[:480]), rows_of(x[480:], with_anomalies(y[480:])))


@functools.cache
def network() -> Ground:
    """A ResNet that tells three digits apart, 16 pixels a side, of which the first is 0; anomalies are grey."""
    x, y = load_digits(n_class=3, return_X_y=True)
    digits = torch.from_numpy(15 * x).to(torch.uint8).view(-1, 1, 8, 8)[: 300 + ID]
    digits = digits.repeat_interleave(2, 2).repeat_interleave(2, 3)
    grey = 128 + 5 * torch.randn(OOD, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    train = rows_of(digits[:300], torch.from_numpy(y[:300]))
    mean, scale = (torch.full((1, 1, 1), float(f(train.x.double()))) for f in (torch.mean, torch.std))
    backbone = small_resnet()
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        backbone.setup(Split("test", train, {}, None, mean, scale, ""))
        stages.train(backbone, Views(x=train.x, y=train.y), 0, OPTIONS, Path(folder))
    test = rows_of(torch.cat([digits[300:], grey.to(torch.uint8)]), with_anomalies(torch.from_numpy(y[300 : 300 + ID])))
    return Ground(backbone.eval(), small_resnet, train, test, network=True)


@functools.cache
def pixels() -> Ground:
    """Grey digits, 8 pixels a side, of which the first is 0; an anomaly is a digit whose pixels changed places."""
    images = (torch.from_numpy(load_digits().images) * 15).to(torch.uint8)[:, None]
    noise = torch.rand(OOD, 64, generator=torch.Generator().manual_seed(0)).argsort(1)
    mixed = images[-OOD:].flatten(1).gather(1, noise).view(OOD, 1, 8, 8)
    return Ground(Pixels(), Pixels, rows_of(images[:200]), rows_of(torch.cat([images[200 : 200 + ID], mixed])))


@functools.cache
def denoiser() -> Ground:
    """A U-Net that removes noise from digits; anomalies as in `pixels`."""
    on, backbone = pixels(), small_unet()
    y = torch.from_numpy(load_digits().target[:200])
    train, folder = replace(on.train, y=y), tempfile.TemporaryDirectory()
    with torch.random.fork_rng(), folder:
        torch.manual_seed(0)
        backbone.setup(Split("test", train, {}, None, torch.zeros(1, 1, 1), torch.ones(1, 1, 1), ""))
        stages.train(backbone, Views(x=train.x, y=y), 0, OPTIONS, Path(folder.name))
    return Ground(backbone.eval(), small_unet, train, on.test)


@functools.cache
def tiles() -> Ground:
    """The digits of `network` at 44 pixels a side, for detectors that localise; anomalies are chequered."""
    on = network()

    def large(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(x.float(), 44).to(torch.uint8)

    chequers = torch.randint(2, (OOD, 1, 11, 11), generator=torch.Generator().manual_seed(0))
    test = torch.cat([large(on.test.x[:ID]), large(255 * chequers)])
    train = rows_of(large(on.train.x[:40]))
    return replace(on, train=train, test=rows_of(test), needs=("x", "network"))


def small_unet() -> UNet:
    return UNet(
        base=16, multipliers=[1, 2], depth=1, attention=[1], dropout=0.0, flip=False, images=8_000, batch_size=25,
        lr=2e-3, warmup_images=500, ema=0.99,
    )  # fmt: skip


def small_resnet() -> ResNet:
    return ResNet(depth=10, width=8, epochs=5, batch_size=50, lr=0.05, augment="none")


def ground(name: str) -> Ground:
    if name in PIXELS:
        return pixels()
    if name in DENOISER:
        needs = SIGNATURES[name].needs
        return replace(denoiser(), network="network" in needs, needs=needs)
    if name in STUDENTS:
        return tiles()
    return network() if name in NETWORK else classifier() if name in POSTHOC else blobs()


@functools.cache
def section(name: str) -> dict:
    backbone = "resnet10" if name in POSTHOC else "pixels" if name in PIXELS else "identity"
    backbone = "unet/small" if name in DENOISER else backbone
    backbone = "resnet10" if name in STUDENTS else backbone
    return OmegaConf.to_container(compose("train", [f"detector={name}", f"backbone={backbone}"]).detector)


def new(name: str, epochs: int) -> Detector:
    """The detector of a yaml as `run train detector=NAME` builds it, but for fewer epochs and levels."""
    trained = {} if name in POSTHOC + DENOISER else QUICK | {"epochs": epochs}
    trained |= {"lr": LARGER[name]} if name in LARGER else {}
    trained |= QUICK_PIXELS if name.startswith("pixel_") else {}
    trained |= QUICK_STUDENTS | {"lr": STUDENTS[name]} if name in STUDENTS else {}
    trained |= {"steps": PASSES[name]} if name in PASSES else {}
    return build(section(name) | {option: value for option, value in trained.items() if option in section(name)})


def made(name: str, epochs: int = 1, on: Ground | None = None) -> Detector:
    on = on or ground(name)
    detector, train = new(name, epochs), on.of(on.train)
    set_up(detector, spec_on(on))
    if hasattr(detector, "loss"):
        with tempfile.TemporaryDirectory() as folder:
            own = Views(x=on.train.x) if detector.raw else train
            stages.train(detector, own, 1, OPTIONS, Path(folder))
    if hasattr(detector, "fit"):
        stages.fit(detector, train, CPU)
    return detector.eval()


def spec_on(on: Ground):
    return stages.spec_of(on.of(on.train)[torch.arange(1)], 1, on.backbone)


@functools.cache
def learnt(name: str) -> Detector:
    """Trained for long enough to tell the blobs apart; shared by the tests, which do not change it."""
    return made(name, epochs=8)


def auroc(name: str, result: torch.Tensor) -> float:
    value = float(roc_auc_score(np.repeat([0, 1], [ID, OOD]), result))
    # DTE-IG as released scores the signed output, whose sign is that of the initialisation (specification, section 6)
    return max(value, 1 - value) if name == "dte_ig/released" else value


def scores(detector: Detector, on: Ground, rows: Rows | None = None) -> torch.Tensor:
    return stages.score(detector, on.of(rows or on.test), CPU)


every = pytest.mark.parametrize("name", NAMES)
# passes of a denoiser take their time: their presets, which change a number or a distance, are scored and no more
plain = pytest.mark.parametrize("name", [name for name in NAMES if name not in DENOISER or "/" not in name])
posthoc = pytest.mark.parametrize("name", POSTHOC)


def test_nothing_is_left_out():
    assert set(catalog.choices("detector", WHERE)) - set(NAMES) <= SLOW | PYOD
    assert {"diffusion", "dte_c", "dte_ig", "dte_gaussian", "dte_np", "knn", "ecod"} <= set(NAMES) - set(POSTHOC)
    assert {"neco", "vim", "msp", "deep_knn"} <= set(POSTHOC) - set(NETWORK)
    assert {"gram", "odin", "rankfeat"} <= set(NETWORK)
    assert set(POSTHOC) >= LABELLED


@pytest.mark.parametrize("on", [classifier, network])
def test_the_classifiers_know_their_classes(on):
    known = on().of(on().test)[torch.arange(ID)]
    assert (known.logits.argmax(1) == known.y).all()


@every
def test_anomalies_score_higher(name):
    result = scores(learnt(name), ground(name))
    assert result.shape == (ID + OOD,) and torch.isfinite(result).all()
    assert auroc(name, result) > 0.9


@every
def test_a_row_alone_scores_as_in_any_batch(name):
    detector, on = learnt(name), ground(name)
    test, together = on.of(on.test), scores(detector, on)
    # z-scores and log densities cross 0, where rounding over many passes is no small part of them
    tolerance = {"rtol": 1e-4, "atol": 1e-4 * float(together.std()) if name in DENOISER else 1e-7}
    with torch.no_grad():
        alone = detector.score(test[3:4])
    assert alone.shape == (1,)
    torch.testing.assert_close(alone.double(), together[3:4], **tolerance)
    for rows_at_once in (1, 25, 100):  # 101 rows: a remainder of one row, too
        torch.testing.assert_close(stages.score(detector, test, CPU, rows_at_once), together, **tolerance)
    backwards = torch.arange(len(test) - 1, -1, -1)
    last_first = scores(detector, on, rows_of(on.test.x[backwards]))
    torch.testing.assert_close(last_first[backwards], together, **tolerance)


@plain
def test_saved_and_loaded_it_scores_the_same(name, tmp_path):
    detector, on = learnt(name), ground(name)
    shape = tuple(on.train.x.shape[1:])
    checkpoint.save_model(tmp_path / "model.ckpt", on.backbone, detector, spec_on(on), (), shape)
    again, same = on.fresh(), new(name, epochs=1)
    checkpoint.load_model(tmp_path / "model.ckpt", again, same)
    assert torch.equal(scores(same, replace(on, backbone=again)), scores(detector, on))


@plain
def test_same_seed_same_scores_and_global_random_numbers_untouched(name):
    on, results = ground(name), []
    for i in range(2):
        torch.manual_seed(i)  # what ran before must not matter
        np.random.seed(i)
        detector = made(name)
        results.append(scores(detector, on))
    assert torch.equal(*results)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    if hasattr(detector, "fit"):
        stages.fit(detector, on.of(on.train), CPU)
    assert torch.equal(scores(detector, on), results[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before


@plain
def test_a_column_that_was_constant_in_training_may_move(name):
    on = ground(name)
    moved = on.test.x[:2].clone()
    column = (slice(None), 0, 0, 0) if on.train.x.ndim > 2 else (slice(None), -1)
    assert (on.train.x[column] == on.train.x[column][0]).all()
    moved[column] = 100
    assert torch.isfinite(scores(learnt(name), on, rows_of(moved))).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in [*POSTHOC, *DENOISER, *STUDENTS]])
def test_float32_views_are_welcome(name):
    on = ground(name)
    train, test = (on.of(rows).map(lambda t: t.float()) for rows in (on.train, on.test))
    detector = learnt(name)
    if hasattr(detector, "fit"):
        untrained = set_up(new(name, epochs=1), stages.spec_of(train, 1, on.backbone)).eval()
        detector = copy.deepcopy(detector) if hasattr(detector, "loss") else untrained
        detector.fit(train)
    assert auroc(name, stages.score(detector, test, CPU)) > 0.9


@plain
def test_scoring_leaves_rows_network_and_state_alone(name):
    detector, on = learnt(name), ground(name)
    test = on.of(on.test)[torch.arange(ID + OOD)]
    watched = [on.test.x, *on.backbone.state_dict().values(), *detector.state_dict().values()]
    before, views = [t.clone() for t in watched], test.map(torch.clone)
    with torch.no_grad():
        detector.score(test)
    assert all(map(torch.equal, watched, before))
    for view in ("x", "features", "logits"):
        if getattr(test, view) is not None:
            assert torch.equal(getattr(test, view), getattr(views, view))


# --- scores of a classifier


def mapped(t: torch.Tensor, path: Path) -> torch.Tensor:
    """As the cache of views hands them on: mapped copy-on-write, so that a write would be seen here only."""
    np.asarray(t).tofile(path)
    return torch.from_numpy(np.memmap(path, np.asarray(t).dtype, "c", shape=tuple(t.shape)))


@pytest.mark.parametrize("name", [name for name in POSTHOC if name not in NETWORK])
def test_memory_mapped_views_are_read_only(name, tmp_path):
    on = classifier()
    train = on.of(on.train)
    names = ("features", "logits", "y")
    views = Views(**{view: mapped(getattr(train, view), tmp_path / view) for view in names})
    detector = set_up(new(name, epochs=1), spec_on(on)).eval()
    if hasattr(detector, "fit"):
        stages.fit(detector, views, CPU)
    assert torch.equal(scores(detector, on), scores(learnt(name), on))
    stages.score(detector, views, CPU)
    assert all(torch.equal(getattr(views, view), getattr(train, view)) for view in names)


@posthoc
def test_rows_of_zeros_have_finite_scores(name):
    on = ground(name)
    assert torch.isfinite(scores(learnt(name), on, rows_of(torch.zeros_like(on.test.x[:3])))).all()


@posthoc
def test_logits_that_are_all_negative(name):
    on = ground(name)
    lowered = copy.deepcopy(on.backbone)
    lowered.head.bias.data -= 1000
    on = replace(on, backbone=lowered)
    assert (on.of(on.test)[torch.arange(ID + OOD)].logits < 0).all()
    assert torch.isfinite(scores(made(name, on=on), on)).all()


@posthoc
@pytest.mark.parametrize("rows", [9, 60])
def test_fewer_training_rows_than_dimensions(name, rows):
    on = ground(name)
    few = replace(on, train=rows_of(on.train.x[:rows], on.train.y[:rows]))
    try:
        detector, complaint = made(name, on=few), ""
    except UserError as error:
        detector, complaint = None, str(error)
    if detector is None:
        assert any(word in complaint for word in ("; set ", "; give ", "; train ", "needs more "))
    else:
        assert torch.isfinite(scores(detector, on)).all()


@posthoc
def test_a_class_without_training_rows(name):
    on = ground(name)
    kept = on.train.y < 2
    two = replace(on, train=rows_of(on.train.x[kept], on.train.y[kept]))
    if name in MEAN_OF_EACH_CLASS:
        with pytest.raises(UserError, match="class 2"):
            made(name, on=two)
    else:
        assert torch.isfinite(scores(made(name, on=two), on)).all()


@posthoc
def test_labels_that_are_wrong_or_missing(name):
    on = ground(name)
    bad = []
    for wrong in (-1, 3):
        y = on.train.y.clone()
        y[5] = wrong
        bad.append((rows_of(on.train.x, y), f"label.* {wrong}"))
    for rows, says in [*bad, (rows_of(on.train.x), "class labels")]:
        if name in LABELLED:
            with pytest.raises(UserError, match=says):
                made(name, on=replace(on, train=rows))
        else:
            assert torch.equal(scores(made(name, on=replace(on, train=rows)), on), scores(learnt(name), on))
