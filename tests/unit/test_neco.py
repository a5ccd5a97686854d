"""NECO against the golden vectors, scikit-learn's pipeline, the theorem's ideal case and its own properties."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from outlie.build import build
from outlie.catalog import choices, load, roots
from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.neco import NECO, dimensions_for
from outlie.errors import UserError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "nc_neco_test_vectors.json").read_text())
TOY = GOLDEN["neco_toy"]["results"]


def fitted(train, classes=None, logits=None, y=None, **options) -> NECO:
    detector = set_up(NECO(**options), Spec({"features": (np.shape(train)[1],)}, classes=classes))
    detector.fit(Views(*(None if a is None else torch.as_tensor(a) for a in (None, train, logits, None, y))))
    return detector


def scores(detector: NECO, test, logits=None) -> np.ndarray:
    views = Views(features=torch.as_tensor(test), logits=None if logits is None else torch.as_tensor(logits))
    return detector.score(views).numpy()


def tables(dim: int = 12, n: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """float64 rows with a few strong directions and a mean, and test rows that follow them less and less."""
    rng = np.random.default_rng(0)
    spread = 3.0 / np.arange(1, dim + 1)
    rotate = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    train = rng.normal(size=(n, dim)) * spread @ rotate + rng.normal(size=dim)
    test = rng.normal(size=(40, dim)) * (spread + np.linspace(0, 2, 40)[:, None]) @ rotate + 0.5
    return train, test


@pytest.mark.parametrize("key", [key for key in TOY if ",d=" in key])
@pytest.mark.parametrize("variant", ["ratio", "ratio_times_maxlogit", "ratio_raw_denominator"])
def test_golden_vectors(key, variant):
    standardize, d = key.split(",d=")
    detector = fitted(
        np.array(GOLDEN["toy3"]["H"]),
        logits=np.ones((6, 3)),
        d=int(d),
        standardize=standardize == "std=True",
        denominator="raw" if variant == "ratio_raw_denominator" else "same",
        max_logit=variant == "ratio_times_maxlogit",
    )
    largest = np.array(GOLDEN["neco_toy"]["maxlogit"])
    logits = np.stack([largest - 1, largest, largest - 9], 1)
    ours = -scores(detector, np.array(GOLDEN["neco_toy"]["test"]), logits)
    np.testing.assert_allclose(ours, TOY[key][variant], atol=1.01e-6)


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("denominator", ["same", "raw"])
@pytest.mark.parametrize("d", [1, 4, 11])
def test_it_is_the_authors_pipeline(standardize, denominator, d):
    train, test = tables()
    train[:, 3] = 0.7  # a constant column
    scaler = StandardScaler(with_mean=standardize, with_std=standardize).fit(train)
    pca = PCA(svd_solver="full").fit(scaler.transform(train))
    z = scaler.transform(test)
    expected = [
        np.linalg.norm(pca.transform(row[None])[0, :d]) / np.linalg.norm(raw if denominator == "raw" else row)
        for row, raw in zip(z, test)
    ]
    detector = fitted(train, d=d, standardize=standardize, denominator=denominator)
    np.testing.assert_allclose(-scores(detector, test), expected, rtol=1e-8)


def test_float32_rows_are_computed_in_float64():
    train, test = (a.astype(np.float32) for a in tables())
    exact = scores(fitted(train.astype(np.float64), d=3), test.astype(np.float64))
    np.testing.assert_allclose(scores(fitted(train, d=3), test), exact, rtol=1e-12)


def test_the_basis_is_a_projector_on_scikit_learns_subspace():
    train, _ = tables()
    basis = fitted(train, d=4, standardize=False).basis.numpy()
    components = PCA(4, svd_solver="full").fit(train).components_
    np.testing.assert_allclose(basis @ basis.T, components.T @ components, atol=1e-10)
    # without centring: the leading right singular vectors of the rows themselves
    basis = fitted(train, d=4, standardize=False, center=False).basis.numpy()
    v = np.linalg.svd(train)[2][:4]
    np.testing.assert_allclose(basis @ basis.T, v.T @ v, atol=1e-10)


def test_property_1_standardised_with_every_dimension_the_ratio_is_1(caplog):
    caplog.set_level(logging.INFO, "outlie")
    train, test = tables()
    np.testing.assert_allclose(scores(fitted(train, d=12), test), -1, rtol=1e-12)
    assert "the ratio is 1 for every row" in caplog.text
    logits = np.random.default_rng(3).normal(size=(40, 5)) + 4
    detector = fitted(train, d=12, max_logit=True)
    np.testing.assert_allclose(scores(detector, test, logits), -logits.max(1), rtol=1e-12)  # MaxLogit


def test_property_2_unstandardised_it_may_exceed_1_and_turn_round():
    rng = np.random.default_rng(0)
    c, dim = 8, 64
    means = np.zeros((c, dim))
    means[:, :c] = 6 * np.eye(c)
    y = np.arange(800) % c
    train = means[y] + 0.3 * rng.normal(size=(800, dim)) + 2
    ood = 0.5 * rng.normal(size=(400, dim))
    test, label = np.concatenate([means[y[:400]] + 0.3 * rng.normal(size=(400, dim)) + 2, ood]), np.repeat([0, 1], 400)
    right = scores(fitted(train, d=c - 1, standardize=False, center=False), test)
    wrong = scores(fitted(train, d=dim, standardize=False), test)
    np.testing.assert_allclose(
        -wrong, np.linalg.norm(test - train.mean(0), axis=1) / np.linalg.norm(test, axis=1), rtol=1e-9
    )
    assert wrong.min() < -1
    assert roc_auc_score(label, right) > 0.99
    assert roc_auc_score(label, wrong) < 0.1
    for options in ({}, {"standardize": False, "center": False}):  # numerator and denominator centred alike
        ratio = -scores(fitted(train, d=20, **options), test)
        assert ratio.min() >= 0 and ratio.max() <= 1 + 1e-12


def test_property_3_negative_logits_are_told(caplog):
    caplog.set_level(logging.INFO, "outlie")
    train, _ = tables()
    logits = np.full((90, 3), 2.0)
    fitted(train, d=3, max_logit=True, logits=logits)
    assert "finding" not in caplog.text
    logits[:4] = [-1, -2, -3]
    logits[4] = 0
    fitted(train, d=3, logits=logits)
    assert "finding" not in caplog.text  # not used
    fitted(train, d=3, max_logit=True, logits=logits)
    assert "finding   5 of 90 training rows have no logit above 0" in caplog.text


def test_property_4_scale():
    train, test = tables()
    w = np.random.default_rng(2).normal(size=(5, 12))
    options = {"d": 3, "standardize": False, "center": False}
    ratio, larger = scores(fitted(train, **options), test), scores(fitted(7 * train, **options), 7 * test)
    np.testing.assert_allclose(larger, ratio, rtol=1e-9)
    one = scores(fitted(train, max_logit=True, **options), test, test @ w.T)
    seven = scores(fitted(7 * train, max_logit=True, **options), 7 * test, 7 * test @ w.T)
    np.testing.assert_allclose(seven, 7 * one, rtol=1e-9)


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("denominator", ["same", "raw"])
def test_property_5_a_row_of_zeros_and_one_without_a_norm_have_ratio_0(standardize, denominator):
    train, test = tables()
    detector = fitted(train, d=3, standardize=standardize, denominator=denominator, max_logit=True)
    test[1] = 0
    result = scores(detector, test, np.full((40, 2), 3.0))
    assert result[1] == 0 and np.isfinite(result).all() and (np.delete(result, 1) < 0).all()
    at_mean = scores(detector, detector.shift[None].numpy(), np.ones((1, 2)))
    assert np.isfinite(at_mean).all()


def collapsed(common: float) -> tuple[np.ndarray, np.ndarray]:
    """Class means of equal norm and equal angles with a common part, one per row; and an OOD mean orthogonal to all."""
    rotate = np.linalg.qr(np.random.default_rng(7).normal(size=(32, 32)))[0]
    means = np.zeros((6, 32))
    means[:, :6] = 4 * np.eye(6) + common
    ood = np.zeros((1, 32))
    ood[0, 6:] = np.linspace(-2, 5, 26)
    return means @ rotate, ood @ rotate


@pytest.mark.parametrize("common", [0.0, 1.0])
def test_theorem_uncentred(common):
    means, ood = collapsed(common)
    detector = fitted(np.repeat(means, 20, 0), classes=6, d="classes", standardize=False, center=False)
    np.testing.assert_allclose(scores(detector, means), -1, rtol=1e-12)
    np.testing.assert_allclose(scores(detector, ood), 0, atol=1e-7)


def test_theorem_centred():
    means, ood = collapsed(1.0)
    detector = fitted(np.repeat(means, 20, 0), classes=6, d="classes-1", standardize=False)
    expected = np.linalg.norm(means - means.mean(0), axis=1) / np.linalg.norm(means, axis=1)
    np.testing.assert_allclose(scores(detector, means), -expected, rtol=1e-9)
    assert expected.max() < 0.95
    np.testing.assert_allclose(scores(detector, ood), 0, atol=1e-7)


def test_the_dimensions_of_words(caplog):
    caplog.set_level(logging.INFO, "outlie")
    train, _ = tables()
    y = np.arange(90) % 5
    assert fitted(train, classes=7, d="classes", y=y).basis.shape == (12, 7)
    assert fitted(train, d="classes", y=y).basis.shape == (12, 5)
    assert fitted(train, d="classes-1", y=y).basis.shape == (12, 4)
    for standardize in (True, False):
        z = StandardScaler().fit_transform(train) if standardize else train
        expected = PCA(0.9, svd_solver="full").fit(z).n_components_
        assert 1 < expected < 12
        assert fitted(train, d="var90", standardize=standardize).basis.shape == (12, expected)
    assert dimensions_for(0.9, torch.tensor([0.0, 0.1, 0.2, 0.7])) == 2  # reaches it exactly
    assert "finding" not in caplog.text
    assert fitted(train, d=100).basis.shape == (12, 12)
    assert "finding   d = 100 is more than 90 rows of 12 features can tell: d = 12 is taken" in caplog.text
    assert fitted(train[:5], d=9).basis.shape == (12, 4)
    assert "d = 4 is taken" in caplog.text


def test_what_cannot_be_fitted_or_scored():
    train, test = tables()
    with pytest.raises(UserError, match=r"no classes; set detector\.d to a number or var90"):
        fitted(train, d="classes")
    with pytest.raises(UserError, match="d = classes-1 is 0 of one class"):
        fitted(train, d="classes-1", classes=1)
    with pytest.raises(UserError, match="1 training rows have no principal directions"):
        fitted(train[:1])
    with pytest.raises(UserError, match=r"set detector\.max_logit=false"):
        scores(fitted(train, d=3, max_logit=True), test)
    train[3, 3] = np.inf
    with pytest.raises(UserError, match="1 of 12 feature columns hold NaN or Inf"):
        fitted(train)


def test_alone_as_in_any_batch_saved_and_loaded():
    train, test = tables()
    detector = fitted(train, d=3, max_logit=True)
    views = Views(features=torch.as_tensor(test), logits=torch.rand(40, 3))
    together = detector.score(views)
    torch.testing.assert_close(detector.score(views[7:8]), together[7:8], rtol=1e-10, atol=1e-10)
    again = set_up(NECO(d=3, max_logit=True), Spec({"features": (12,)}))
    again.load_state_dict(detector.state_dict())
    assert torch.equal(again.score(views), together)


def test_presets_are_as_published():
    """Specification, sections 2.2 and 2.3."""
    shared = {"standardize": True, "denominator": "same", "center": True, "d": 100}
    expected = {
        "neco": shared | {"max_logit": False},
        "neco/paper_resnet": shared | {"max_logit": False},
        "neco/paper_vit": shared | {"max_logit": True},
        "neco/paper_vit_cifar": shared | {"max_logit": True, "standardize": False},
        "neco/paper_deit": shared | {"max_logit": True, "denominator": "raw"},
        "neco/paper_swin": shared | {"max_logit": True, "denominator": "raw"},
        "neco/double_descent": shared | {"max_logit": True, "d": "classes"},
    }
    found = {name: path for name, path in choices("detector", roots()).items() if name.partition("/")[0] == "neco"}
    assert set(found) == set(expected)
    for name, path in found.items():
        detector = build(load(path))
        assert {key: getattr(detector, key) for key in expected[name]} == expected[name], name
