"""Every detector of configs/detector, as a run uses it: composed, built, trained, fitted, scored, saved, loaded."""

import functools
import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.metrics import roc_auc_score

from outlie import catalog, stages
from outlie.backbones.identity import Identity
from outlie.build import build
from outlie.compose import compose
from outlie.data.split import Rows, Split
from outlie.detectors.base import Detector, Views, set_up
from outlie.results import checkpoint
from outlie.trainer import Options

WHERE = catalog.roots()
SLOW = {"cblof", "deep_svdd", "dif", "feature_bagging", "mcd"}  # through PyOD; tests/unit/test_pyod.py has them
PYOD = {"hbos", "iforest", "loda", "lof", "ocsvm", "pca"}
NAMES = sorted(set(catalog.choices("detector", WHERE)) - SLOW - (set() if importlib.util.find_spec("pyod") else PYOD))
OPTIONS = Options(accelerator="cpu", threads=1)
CPU = torch.device("cpu")
# as many steps as the data need, where training is part of the method; the levels of DDPM cost a forward pass each
QUICK = {"batch_size": 64, "lr": 1e-3, "T": 100, "rec_start": 25, "min_steps": 0}
DIM = 8


def rows_of(x: torch.Tensor) -> Rows:
    return Rows(x, torch.arange(len(x)))


@functools.cache
def blobs() -> tuple[Split, np.ndarray]:
    """Integers from 0 to 255 as float64, the last column constant; 101 test rows, 40 of them another blob."""
    generator = torch.Generator().manual_seed(0)
    normal = 90 + 12 * torch.randn(256 + 61, DIM, generator=generator, dtype=torch.float64)
    far = 140 + 12 * torch.randn(40, DIM, generator=generator, dtype=torch.float64)
    x = torch.cat([normal, far]).round().clamp(0, 255)
    x[:, -1] = 7
    train, test = x[:256], x[256:]
    scale = torch.full((DIM,), 60.0, dtype=torch.float64)  # the anomalies are as far as the noise that DTE learns
    split = Split("test", rows_of(train), {"test": rows_of(test)}, None, train.mean(0), scale, "")
    return split, np.repeat([0, 1], [61, 40])


@functools.cache
def backbone() -> Identity:
    one = Identity()
    one.setup(blobs()[0])
    return one


@functools.cache
def views(part: str) -> Views:
    split = blobs()[0]
    return backbone()((split.train if part == "train" else split.tests["test"]).x)


@functools.cache
def section(name: str) -> dict:
    return OmegaConf.to_container(compose("train", [f"detector={name}"]).detector)


def new(name: str, epochs: int) -> Detector:
    """The detector of a yaml as `run train detector=NAME` builds it, but for fewer epochs and levels."""
    quick = {option: value for option, value in (QUICK | {"epochs": epochs}).items() if option in section(name)}
    return build(section(name) | quick)


def made(name: str, epochs: int, seed: int = 1) -> Detector:
    detector, train = new(name, epochs), views("train")
    set_up(detector, stages.spec_of(train, seed, backbone()))
    if hasattr(detector, "loss"):
        with tempfile.TemporaryDirectory() as folder:
            stages.train(detector, train, seed, OPTIONS, Path(folder))
    if hasattr(detector, "fit"):
        detector.fit(train)
    return detector.eval()


@functools.cache
def learnt(name: str) -> Detector:
    """Trained for long enough to tell the blobs apart; shared by the tests, which do not change it."""
    return made(name, epochs=8)


def auroc(name: str, result: torch.Tensor) -> float:
    value = float(roc_auc_score(blobs()[1], result))
    # DTE-IG as released scores the signed output, whose sign is that of the initialisation (specification, section 6)
    return max(value, 1 - value) if name == "dte_ig/paper" else value


def scores(detector: Detector, batch: Views) -> torch.Tensor:
    return stages.score(detector, batch, CPU)


every = pytest.mark.parametrize("name", NAMES)


def test_nothing_is_left_out():
    assert set(catalog.choices("detector", WHERE)) - set(NAMES) <= SLOW | PYOD
    assert {"diffusion", "dte_c", "dte_ig", "dte_gaussian", "dte_np", "knn", "ecod"} <= set(NAMES)


@every
def test_anomalies_score_higher(name):
    result = scores(learnt(name), views("test"))
    assert result.shape == (101,) and torch.isfinite(result).all()
    assert auroc(name, result) > 0.9


@every
def test_a_row_alone_scores_as_in_any_batch(name):
    detector, test = learnt(name), views("test")
    together = scores(detector, test)
    tolerance = {"rtol": 1e-4, "atol": 1e-7}
    with torch.no_grad():
        alone = detector.score(test[3:4])
    assert alone.shape == (1,)
    torch.testing.assert_close(alone.double(), together[3:4], **tolerance)
    for rows_at_once in (1, 25, 100):  # 101 rows: a remainder of one row, too
        torch.testing.assert_close(stages.score(detector, test, CPU, rows_at_once), together, **tolerance)
    backwards = torch.arange(100, -1, -1)
    torch.testing.assert_close(scores(detector, test[backwards])[backwards], together, **tolerance)


@every
def test_saved_and_loaded_it_scores_the_same(name, tmp_path):
    detector = learnt(name)
    spec = stages.spec_of(views("train"), 1, backbone())
    checkpoint.save_model(tmp_path / "model.ckpt", backbone(), detector, spec, ())
    again, same = Identity(), new(name, epochs=1)
    checkpoint.load_model(tmp_path / "model.ckpt", again, same)
    loaded = scores(same, again(blobs()[0].tests["test"].x))
    assert torch.equal(loaded, scores(detector, views("test")))


@every
def test_same_seed_same_scores_and_global_random_numbers_untouched(name):
    results = []
    for i in range(2):
        torch.manual_seed(i)  # what ran before must not matter
        np.random.seed(i)
        detector = made(name, epochs=1)
        results.append(scores(detector, views("test")))
    assert torch.equal(*results)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    if hasattr(detector, "fit"):
        detector.fit(views("train"))
    assert torch.equal(scores(detector, views("test")), results[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before


@every
def test_a_column_that_was_constant_in_training_may_move(name):
    row = views("test").x[:1].repeat(2, 1)
    row[1, -1] = 3.0
    assert torch.isfinite(scores(learnt(name), Views(x=row, features=row))).all()


@every
def test_float32_views_are_welcome(name):
    train, test = (views(part).map(lambda t: t.float()) for part in ("train", "test"))
    detector = learnt(name)
    if hasattr(detector, "fit"):
        detector = set_up(new(name, epochs=1), stages.spec_of(train, 1, backbone())).eval()
        detector.fit(train)
    assert auroc(name, scores(detector, test)) > 0.9


@every
def test_scoring_leaves_the_rows_alone(name):
    test = views("test").map(torch.clone)
    scores(learnt(name), test)
    assert torch.equal(test.x, views("test").x)
