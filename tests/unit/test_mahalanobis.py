"""Mahalanobis scores against scikit-learn's covariances, SciPy's distances and the closed form."""

import logging

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import EmpiricalCovariance

from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.mahalanobis import Mahalanobis, RelativeMahalanobis, whitener
from outlie.errors import UserError

D, C = 6, 3
BOTH = pytest.mark.parametrize("kind", [Mahalanobis, RelativeMahalanobis])


def tables(rank: int = D) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training rows with labels and test rows; rank < D: training rows lie in the first coordinates' subspace."""
    rng = np.random.default_rng(0)
    y = np.arange(150) % C
    mix = rng.normal(size=(rank, rank))
    train = np.zeros((150, D))
    train[:, :rank] = 4 * rng.normal(size=(C, rank))[y] + rng.normal(size=(150, rank)) @ mix
    return train, y, rng.normal(size=(40, D)) * np.linspace(0.1, 8, 40)[:, None]


def fitted(kind, train, y, classes: int | None = C, **options):
    detector = set_up(kind(**options), Spec({"features": (train.shape[1],)}, classes=classes))
    detector.fit(Views(features=torch.as_tensor(train), y=torch.as_tensor(y)))
    return detector


def scores(kind, train, y, test, **options) -> np.ndarray:
    return fitted(kind, train, y, **options).score(Views(features=torch.as_tensor(test))).numpy()


def by_loops(train, y, test, ridge: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """min_c d_c and d_0, one row and one class at a time, with scikit-learn's precisions (pseudo-inverses)."""
    means = [train[y == c].mean(0) for c in range(C)]
    within = EmpiricalCovariance(assume_centered=True).fit(train - np.array(means)[y])
    total = EmpiricalCovariance().fit(train)
    inverses = [np.linalg.inv(e.covariance_ + ridge * np.eye(D)) if ridge else e.precision_ for e in (within, total)]
    nearest = [min(mahalanobis(row, mean, inverses[0]) ** 2 for mean in means) for row in test]
    return np.array(nearest), np.array([mahalanobis(row, train.mean(0), inverses[1]) ** 2 for row in test])


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_they_are_scikit_learns_and_scipys(ridge):
    train, y, test = tables()
    nearest, background = by_loops(train, y, test, ridge)
    np.testing.assert_allclose(scores(Mahalanobis, train, y, test, ridge=ridge), nearest, rtol=1e-8)
    ours = scores(RelativeMahalanobis, train, y, test, ridge=ridge)
    np.testing.assert_allclose(ours, nearest - background, rtol=1e-8, atol=1e-9)


def test_the_background_covariance_is_divided_by_n():
    """pytorch-ood's is not, which makes d_0 vanish and RMDS the plain distance."""
    train, y, test = tables()
    plain, relative = scores(Mahalanobis, train, y, test), scores(RelativeMahalanobis, train, y, test)
    assert np.median((plain - relative) / plain) > 0.1


def test_rows_in_a_subspace_pseudo_inverse_and_ridge_rank_differently(caplog):
    train, y, test = tables(rank=4)
    caplog.set_level(logging.INFO, "outlie")
    nearest, background = by_loops(train, y, test)
    plain = scores(Mahalanobis, train, y, test)
    np.testing.assert_allclose(plain, nearest, rtol=1e-8)
    np.testing.assert_allclose(scores(RelativeMahalanobis, train, y, test), nearest - background, atol=1e-7)
    assert "rank 4 of 6" in caplog.text
    moved = test + np.array([0, 0, 0, 0, 9, 9.0])  # where no training row has any variance
    np.testing.assert_allclose(scores(Mahalanobis, train, y, moved), plain, rtol=1e-8)
    assert (scores(Mahalanobis, train, y, moved, ridge=0.1) > plain + 100).all()


def test_whitening_cuts_at_d_eps_and_squares_to_the_pseudo_inverse():
    q = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0]
    for smallest, rank in ((2e-15, 5), (5e-16, 4)):  # 5 eps = 1.1e-15
        covariance = q @ np.diag([1, 0.5, 0.1, 1e-3, smallest]) @ q.T
        whiten = whitener(torch.as_tensor(np.diag([1, 0.5, 0.1, 1e-3, smallest])))
        assert whiten.shape == (5, rank)
    np.testing.assert_allclose(
        whitener(torch.as_tensor(covariance)) @ whitener(torch.as_tensor(covariance)).T,
        np.linalg.pinv(covariance, rcond=1e-10, hermitian=True),
        rtol=1e-6,
        atol=1e-6,
    )


@BOTH
def test_float32_rows_are_computed_in_float64(kind):
    train, y, test = tables()
    train32, test32 = ((1e3 + a).astype(np.float32) for a in (train, test))
    exact = scores(kind, train32.astype(np.float64), y, test32.astype(np.float64))
    np.testing.assert_allclose(scores(kind, train32, y, test32), exact, rtol=1e-12)


@BOTH
def test_a_linear_map_changes_nothing(kind):
    train, y, test = tables()
    a = np.random.default_rng(5).normal(size=(D, D))
    np.testing.assert_allclose(scores(kind, train @ a + 3, y, test @ a + 3), scores(kind, train, y, test), rtol=1e-6)


@BOTH
def test_alone_as_in_any_batch_saved_and_loaded(kind):
    train, y, test = tables()
    detector = fitted(kind, train, y)
    views = Views(features=torch.as_tensor(test))
    together = detector.score(views)
    torch.testing.assert_close(detector.score(views[7:8]), together[7:8], rtol=1e-10, atol=1e-10)
    again = set_up(kind(), Spec({"features": (D,)}, classes=C))
    again.load_state_dict(detector.state_dict())
    assert torch.equal(again.score(views), together)


@BOTH
def test_the_number_of_classes_may_be_read_off_the_labels(kind):
    train, y, test = tables()
    told = fitted(kind, train, y).score(Views(features=torch.as_tensor(test)))
    assert torch.equal(fitted(kind, train, y, classes=None).score(Views(features=torch.as_tensor(test))), told)


@BOTH
def test_what_cannot_be_fitted(kind):
    train, y, _ = tables()
    with pytest.raises(UserError, match="no class labels"):
        kind().fit(Views(features=torch.as_tensor(train)))
    with pytest.raises(UserError, match="1 of 4 classes have no training rows"):
        fitted(kind, train, y, classes=4)
    with pytest.raises(UserError, match=r"set detector\.ridge above 0"):
        fitted(kind, train[:C], y[:C])
    assert np.isfinite(scores(kind, train[:C], y[:C], train, ridge=1.0)).all()
