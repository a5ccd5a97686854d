"""ViM and Residual against the definition in loops, the principal subspace of scikit-learn, and the collapse trap."""

import logging

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score
from torch import nn

from outlie.build import build
from outlie.catalog import choices, load, roots
from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.vim import Residual, ViM, origin, principal_dimensions
from outlie.errors import UserError

D, C = 16, 4
BOTH = pytest.mark.parametrize("kind", [ViM, Residual])


def head_of(weight: np.ndarray, bias: np.ndarray | None) -> nn.Linear:
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=torch.as_tensor(weight).dtype)
    head.weight.data = torch.as_tensor(weight)
    if bias is not None:
        head.bias.data = torch.as_tensor(bias)
    return head


def task(bias: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Training rows, test rows that leave their subspace more and more, weight and bias; float64."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(C, D))
    b = rng.normal(size=C) if bias else None
    mix = rng.normal(size=(5, D))
    train = rng.normal(size=(300, 5)) @ mix * 2 + 0.3 * rng.normal(size=(300, D)) + w[np.arange(300) % C]
    test = rng.normal(size=(50, 5)) @ mix * 2 + np.linspace(0.1, 3, 50)[:, None] * rng.normal(size=(50, D))
    return train, test, w, b


def views(h: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> Views:
    logits = h @ w.T + (0 if b is None else b)
    return Views(features=torch.as_tensor(h), logits=torch.as_tensor(logits))


def fitted(kind, train, w, b, **options):
    detector = set_up(kind(**options), Spec({"features": (train.shape[1],)}, classes=len(w), head=head_of(w, b)))
    detector.fit(views(train, w, b))
    return detector


def scores(kind, train, test, w, b, **options) -> np.ndarray:
    return fitted(kind, train, w, b, **options).score(views(test, w, b)).numpy()


def by_definition(train, test, w, b, d: int, cut: float = 1e-6) -> dict[type, np.ndarray]:
    """The paper's formulas, row by row, in whatever dtype it is given."""
    u = -np.linalg.pinv(w, rcond=cut) @ b if b is not None else np.zeros_like(train[0])
    values, vectors = np.linalg.eigh((train - u).T @ (train - u) / len(train))
    null_space = vectors[:, np.argsort(-values)[d:]]
    residual = np.array([np.linalg.norm(null_space.T @ (row - u)) for row in test])
    mean = np.mean([np.linalg.norm(null_space.T @ (row - u)) for row in train])
    bias = 0 if b is None else b
    alpha = (train @ w.T + bias).max(1).mean() / mean
    return {Residual: residual, ViM: alpha * residual - logsumexp(test @ w.T + bias, axis=1)}


@BOTH
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("d", [1, 5, 15])
def test_they_are_the_definition(kind, bias, d):
    train, test, w, b = task(bias)
    expected = by_definition(train, test, w, b, d)[kind]
    np.testing.assert_allclose(scores(kind, train, test, w, b, d=d), expected, rtol=1e-9)


def test_the_null_space_is_what_scikit_learns_covariance_leaves():
    train, _, w, b = task()
    detector = fitted(Residual, train, w, b, d=5)
    about = EmpiricalCovariance(assume_centered=True).fit(train - detector.origin.numpy()).covariance_
    values, vectors = np.linalg.eigh(about)
    leading = vectors[:, np.argsort(-values)[:5]]
    projector = (detector.null_space @ detector.null_space.T).numpy()
    np.testing.assert_allclose(projector, np.eye(D) - leading @ leading.T, atol=1e-10)


def test_the_origin_is_where_all_logits_are_0():
    _, _, w, b = task()
    u = origin(torch.as_tensor(w), torch.as_tensor(b)).numpy()
    np.testing.assert_allclose(w @ u + b, 0, atol=1e-12)
    np.testing.assert_allclose(u, -np.linalg.pinv(w) @ b, rtol=1e-9)
    assert not origin(torch.as_tensor(w), None).any()


def collapsed(classes: int = 10, dim: int = 128, n: int = 2000) -> dict[str, np.ndarray]:
    """Float32 features around a simplex, a head whose rows sum to 0, a bias with a part common to all classes."""
    rng = np.random.default_rng(0)
    simplex = np.linalg.qr(rng.normal(size=(dim, classes)))[0].T
    simplex -= simplex.mean(0)
    spread = rng.normal(size=(dim, dim)) / np.arange(1, dim + 1)[:, None]  # few directions hold most of the noise
    common = 0.3 * rng.normal(size=dim)

    def near(y: np.ndarray, size: float) -> np.ndarray:
        return size * simplex[y] + 0.15 * rng.normal(size=(len(y), dim)) @ spread + common

    ood = near(rng.integers(classes, size=n), 2.8) + 0.03 * rng.normal(size=(n, dim))
    bias = 0.5 + 0.01 * rng.normal(size=classes)
    parts = {"train": near(np.arange(n) % classes, 3), "id": near(np.arange(n) % classes, 3), "ood": ood}
    return {key: a.astype(np.float32) for key, a in (parts | {"w": 5 * simplex, "b": bias}).items()}


@BOTH
@pytest.mark.parametrize("classes", [10, 40])
def test_a_head_whose_rows_sum_to_0_does_not_carry_the_origin_away(kind, classes):
    """The trap: NumPy's pinv keeps a singular value of 1e-7, and float32 features drown in an origin of 1e6."""
    data = collapsed(classes)
    train, test, w, b = data["train"], np.concatenate([data["id"], data["ood"]]), data["w"], data["b"]
    label = np.repeat([0, 1], 2000)
    ours = scores(kind, train, test, w, b, d=64)
    exact = by_definition(*(a.astype(np.float64) for a in (train, test, w, b)), d=64)[kind]
    np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5)  # the logits are float32
    u = -np.linalg.pinv(w, rcond=1e-15) @ b
    assert np.linalg.norm(u) > 1e4 * np.linalg.norm(train, axis=1).mean()
    naive = by_definition(train, test, w, b, d=64, cut=1e-15)[kind]
    assert roc_auc_score(label, ours) > 0.9
    assert roc_auc_score(label, naive) < roc_auc_score(label, ours) - 0.3


def test_the_cut_takes_away_what_softmax_ignores():
    data = collapsed()
    w, b = (torch.as_tensor(data[key]).double() for key in ("w", "b"))
    centred = -torch.as_tensor(np.linalg.pinv(w - w.mean(0), rcond=1e-9)) @ (b - b.mean())
    torch.testing.assert_close(
        origin(torch.as_tensor(data["w"]), torch.as_tensor(data["b"])), centred, rtol=1e-5, atol=1e-6
    )


@BOTH
def test_a_far_origin_is_told(kind, caplog):
    caplog.set_level(logging.INFO, "outlie")
    data = collapsed()
    train, w, b = data["train"].astype(np.float64), data["w"].astype(np.float64), data["b"].astype(np.float64)
    fitted(kind, train, w, b, d=32)
    assert "finding" not in caplog.text
    fitted(kind, train, w + 2e-5, b, d=32)  # a mean row that the cut-off keeps
    assert "times as far out as the features" in caplog.text


def test_negative_alpha_is_told(caplog):
    caplog.set_level(logging.INFO, "outlie")
    train, _, w, b = task()
    fitted(ViM, train, w, b, d=5)
    assert "finding" not in caplog.text
    detector = fitted(ViM, train, w, b - 99, d=5)
    assert detector.alpha < 0
    assert "finding   alpha = -" in caplog.text


def test_the_rule_for_d():
    rule = {4096: 1000, 2048: 1000, 2047: 512, 1024: 512, 768: 512, 513: 512, 512: 256, 64: 32, 3: 1, 2: 1}
    assert {dim: principal_dimensions("auto", dim) for dim in rule} == rule
    assert all(d < dim for dim, d in rule.items())
    assert principal_dimensions(300, 512) == 300
    train, _, w, b = task()
    assert fitted(ViM, train, w, b).null_space.shape == (D, D - 8)


@BOTH
def test_what_cannot_be_fitted(kind):
    train, _, w, b = task()
    with pytest.raises(UserError, match=r"d = 16 dimensions leave nothing of 16 features; set detector\.d to 15"):
        fitted(kind, train, w, b, d=16)
    with pytest.raises(UserError, match=r"d = 9 dimensions, but only 9 training rows; set detector\.d to 8 or less"):
        fitted(kind, train[:9], w, b, d=9)
    with pytest.raises(UserError, match="features of one column"):
        fitted(kind, train[:, :1], w[:, :1], b)
    with pytest.raises(UserError, match="no linear head"):
        set_up(kind(), Spec({"features": (D,)}, classes=C))
    train[0, 0] = np.nan
    with pytest.raises(UserError, match="1 of 16 feature columns hold NaN"):
        fitted(kind, train, w, b)


def test_rows_without_a_residual_give_no_alpha():
    rng = np.random.default_rng(0)
    train = np.zeros((50, D))
    train[:, :3] = rng.normal(size=(50, 3))
    w = np.eye(C, D)
    with pytest.raises(UserError, match=r"no training row leaves the first 5 dimensions.*set detector\.d lower"):
        fitted(ViM, train, w, None, d=5)
    assert np.isfinite(scores(Residual, train, np.ones((3, D)), w, None, d=5)).all()


@BOTH
def test_alone_as_in_any_batch_saved_and_loaded(kind):
    train, test, w, b = task()
    detector, some = fitted(kind, train, w, b, d=5), views(test, w, b)
    together = detector.score(some)
    torch.testing.assert_close(detector.score(some[7:8]), together[7:8], rtol=1e-10, atol=1e-10)
    again = set_up(kind(d=5), Spec({"features": (D,)}, classes=C, head=head_of(w, b)))
    again.load_state_dict(detector.state_dict())
    assert torch.equal(again.score(some), together)


def test_rows_of_zeros_are_finite():
    train, _, w, b = task()
    for kind in (ViM, Residual):
        assert np.isfinite(scores(kind, train, np.zeros((2, D)), w, b, d=5)).all()


def test_presets_are_as_published():
    found = {name: build(load(path)).d for name, path in choices("detector", roots()).items()
             if name.partition("/")[0] in ("vim", "residual")}  # fmt: skip
    assert found == {"vim": "auto", "residual": "auto", "vim/neco_paper": 300, "residual/neco_paper": 300}
