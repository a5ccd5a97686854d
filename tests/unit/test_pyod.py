"""PyOD's models through the adapter, and our ECOD and COPOD against PyOD's."""

import functools
import importlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor

from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.pyod import PyOD
from outlie.errors import UserError

pytest.importorskip("pyod")
CONFIGS = Path(__file__).parents[2] / "configs" / "detector"
PYOD = ["iforest", "ocsvm", "hbos", "lof", "loda", "mcd", "pca", "cblof", "feature_bagging", "deep_svdd", "dif"]
NAMES = ["ecod", "copod", *PYOD]
QUICK = {"deep_svdd": {"epochs": 10}, "dif": {"n_ensemble": 4}}
DIM = 20


def build(name: str) -> Detector:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    module, cls = config.pop("_target_").rsplit(".", 1)
    if "options" in config:
        config["options"] |= QUICK.get(name, {})
    return getattr(importlib.import_module(module), cls)(**config)


def blobs(constant: bool = False) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """2,000 training rows; 200 normal and 200 anomalous test rows of 2.2 times the scale."""
    g = torch.Generator().manual_seed(0)
    train, test = torch.randn(2000, DIM, generator=g), torch.randn(400, DIM, generator=g)
    test[200:] *= 2.2
    if constant:
        train[:, 3] = test[:, 3] = 1.5
    return train, test, np.repeat([0, 1], 200)


@functools.cache
def fitted(name: str, constant: bool = False) -> Detector:
    detector = build(name)
    detector.setup(Spec({"features": (DIM,)}, seed=1))
    detector.fit(Views(features=blobs(constant)[0]))
    return detector


@pytest.mark.parametrize("constant", [False, True], ids=["", "constant column"])
@pytest.mark.parametrize("name", NAMES)
def test_finds_the_anomalies(name, constant):
    _, test, label = blobs(constant)
    scores = fitted(name, constant).score(Views(features=test))
    assert scores.shape == (400,)
    assert torch.isfinite(scores).all()
    assert roc_auc_score(label, scores) > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_a_row_alone_scores_as_in_a_batch(name):
    test = blobs()[1]
    together = fitted(name).score(Views(features=test))
    rows = [0, 7, 399]
    alone = torch.cat([fitted(name).score(Views(features=test[[i]])) for i in rows])
    torch.testing.assert_close(alone, together[rows], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(fitted(name).score(Views(features=test.flip(0))).flip(0), together, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_scores_and_global_generators_untouched(name):
    train, test, _ = blobs()
    np.random.seed(5)
    torch.manual_seed(5)
    expected = np.random.rand(), torch.rand(1).item()
    np.random.seed(5)
    torch.manual_seed(5)
    again = build(name)
    again.setup(Spec({"features": (DIM,)}, seed=1))
    again.fit(Views(features=train))
    scores = again.score(Views(features=test))
    assert (np.random.rand(), torch.rand(1).item()) == expected
    assert torch.equal(scores, fitted(name).score(Views(features=test)))


@pytest.mark.parametrize("name", NAMES)
def test_checkpoint_gives_the_same_scores_under_inference_mode(name):
    file = io.BytesIO()
    torch.save(fitted(name).state_dict(), file)
    file.seek(0)
    loaded = build(name)
    loaded.setup(Spec({"features": (DIM,)}, seed=1))
    loaded.load_state_dict(torch.load(file, weights_only=True))
    test = Views(features=blobs()[1])
    with torch.inference_mode():
        assert torch.equal(loaded.score(test), fitted(name).score(test))


def test_isolation_forest_and_lof_are_scikit_learns():
    train, test, _ = (np.asarray(a, dtype=np.float64) for a in blobs())
    views = Views(features=torch.as_tensor(test))
    forest = IsolationForest(n_estimators=100, random_state=1).fit(train)
    shift = fitted("iforest").score(views).numpy() + forest.decision_function(test)  # PyOD's contamination, a constant
    np.testing.assert_allclose(shift, shift[0], atol=1e-12)
    lof = LocalOutlierFactor(n_neighbors=20, novelty=True).fit(train)
    np.testing.assert_allclose(fitted("lof").score(views), -lof.score_samples(test), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:Precision loss")
@pytest.mark.parametrize("name", ["ecod", "copod"])
def test_ecod_and_copod_equal_pyod_row_by_row(name):
    rng = np.random.default_rng(0)
    train = np.c_[rng.normal(size=(100, 3)), rng.exponential(size=(100, 2)), np.full(100, 0.5), rng.integers(0, 4, 100)]
    rows = np.c_[2 * rng.normal(size=(60, 5)), np.repeat([0.5, 0.0], 30), rng.integers(-1, 5, 60)]
    reference = getattr(importlib.import_module(f"pyod.models.{name}"), name.upper())().fit(train)
    expected = [reference.decision_function(row[None])[0] for row in rows]
    ours = build(name)
    ours.fit(Views(features=torch.as_tensor(train)))
    np.testing.assert_allclose(ours.score(Views(features=torch.as_tensor(rows))), expected, rtol=1e-12)


def test_dif_equals_pyod_on_its_training_rows():
    # there, standardising the batch by itself is standardising by the training rows
    detector = fitted("dif")
    scores = detector.score(Views(features=detector.train_features))
    np.testing.assert_allclose(scores, detector.fitted.decision_scores_, rtol=1e-4)


def test_cblof_tries_other_numbers_of_clusters(monkeypatch):
    from pyod.models.cblof import CBLOF

    tried = []

    def fit(self, rows):
        tried.append(self.n_clusters)
        raise ValueError("Could not form valid cluster separation. Please change n_clusters")

    monkeypatch.setattr(CBLOF, "fit", fit)
    with pytest.raises(UserError, match="valid cluster separation"):
        build("cblof").fit(Views(features=blobs()[0]))
    assert tried == [8, 4, 12, 20]


def test_cblof_takes_the_best_of_ten_starts():
    from pyod.models.cblof import CBLOF
    from sklearn.cluster import KMeans

    g = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(12, DIM, generator=g)
    train, test = (centres.repeat_interleave(torch.arange(12) * n, 0) for n in (8, 2))
    train, test = (x + torch.randn(x.shape, generator=g) for x in (train, test))
    detector = build("cblof")
    detector.setup(Spec({"features": (DIM,)}, seed=1))
    detector.fit(Views(features=train))
    scores = {}
    for starts in (1, 10):
        clusters = KMeans(8, n_init=starts, random_state=1)
        theirs = CBLOF(clustering_estimator=clusters, random_state=1).fit(train.double().numpy())
        scores[starts] = theirs.decision_function(test.double().numpy())
    np.testing.assert_allclose(detector.score(Views(features=test)), scores[10], rtol=1e-6)
    assert not np.allclose(scores[1], scores[10], rtol=1e-6)
    with pytest.raises(UserError, match="unknown option of HBOS 'n_init'"):
        PyOD("pyod.models.hbos.HBOS", {"n_init": 3}).setup(Spec({"features": (DIM,)}, seed=1))


class BatchMean:
    """Subtracts the mean of the scored batch."""

    def fit(self, rows):
        return self

    def decision_function(self, rows):
        return rows.sum(1) - rows.mean()


class Broken(BatchMean):
    def decision_function(self, rows):
        return np.full(len(rows), np.nan)


def test_a_model_that_looks_at_the_batch_is_refused(monkeypatch):
    monkeypatch.setattr(PyOD, "_construct", lambda self, dim, **changes: BatchMean())
    with pytest.raises(UserError, match="alone and in a batch"):
        PyOD("pyod.models.knn.KNN").fit(Views(features=blobs()[0]))


def test_nan_scores_are_counted(monkeypatch):
    monkeypatch.setattr(PyOD, "_construct", lambda self, dim, **changes: Broken())
    detector = PyOD("pyod.models.knn.KNN")
    detector.fit(Views(features=blobs()[0]))
    with pytest.raises(UserError, match="400 of 400 scores are NaN"):
        detector.score(Views(features=blobs()[1]))


def test_loda_on_integers_where_rows_lie_on_bin_edges():
    rows = torch.randint(0, 10, (300, 9), generator=torch.Generator().manual_seed(0)).double()
    rows = (rows - rows.mean(0)) / rows.std(0)
    detector = build("loda")
    detector.setup(Spec({"features": (9,)}, seed=0))
    detector.fit(Views(features=rows))
    alone = torch.cat([detector.score(Views(features=row[None])) for row in rows])
    torch.testing.assert_close(alone, detector.score(Views(features=rows)), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "os.system"}, "not a class under pyod.models"),
        ({"model": "pyod.models.ecod.ECOD"}, "detector=ecod"),
        ({"model": "pyod.models.nothing.Here"}, "no module 'nothing'"),
        ({"model": "pyod.models.knn.KMN"}, "did you mean 'KNN'"),
        ({"model": "pyod.models.knn.KNN", "options": {"n_neighbor": 3}}, "did you mean 'n_neighbors'"),
    ],
)
def test_wrong_model_or_option(arguments, message):
    with pytest.raises(UserError, match=message):
        PyOD(**arguments).setup(Spec({"features": (DIM,)}))


def test_without_pyod_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'outlie\[baselines\]'"):
        PyOD("pyod.models.knn.KNN")


def test_too_few_rows_or_columns_say_so():
    detector = build("feature_bagging")
    with pytest.raises(UserError, match=r"cannot be fitted to 2000 rows of 1 feature"):
        detector.fit(Views(features=blobs()[0][:, :1]))
    with pytest.raises(UserError, match="not been fitted"):
        build("lof").score(Views(features=blobs()[1]))
