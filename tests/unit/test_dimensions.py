"""NECO's AUROC for every d against scikit-learn's pipeline, one d at a time."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from outlie.detectors.base import Views
from outlie.detectors.neco import NECO
from outlie.errors import UserError
from outlie.metrics import dimensions
from outlie.metrics.dimensions import auroc_by_dimension, explained_variance, grid

C, D = 4, 12
DS = [1, 2, 3, 4, 7, 11, 12]


def tables(seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """ID rows around C means with a common part, OOD rows of smaller and of other means; unequal feature scales."""
    rng = np.random.default_rng(seed)
    means = 2 * rng.normal(size=(C, D)) + 1
    widths = rng.uniform(0.3, 3, D)
    rows = lambda n, centre: widths * (centre[rng.integers(len(centre), size=n)] + rng.normal(size=(n, D)))  # noqa: E731
    ood = {"near": rows(150, 0.6 * means), "far": rows(90, 2 * rng.normal(size=(3, D)))}
    return rows(400, means), rows(200, means), ood


def by_scikit_learn(train, test, other, d, standardize, logits=None) -> float:
    """Steps 1 to 5 of the authors' definition, with the same denominator."""
    scaler = StandardScaler(with_mean=standardize, with_std=standardize).fit(train)
    pca = PCA(svd_solver="full").fit(scaler.transform(train))
    rows = scaler.transform(np.concatenate([test, other]))
    score = np.linalg.norm(pca.transform(rows)[:, :d], axis=1) / np.linalg.norm(rows, axis=1)
    if logits is not None:
        score = score * np.concatenate(logits)
    return float(roc_auc_score(np.repeat([1, 0], [len(test), len(other)]), score))  # ID = positive, high = ID


@pytest.mark.parametrize("max_logit", [False, True])
@pytest.mark.parametrize("standardize", [False, True])
def test_every_d_is_scikit_learns_pipeline(standardize, max_logit):
    train, test, ood = tables()
    rng = np.random.default_rng(1)
    test_logit = rng.normal(4, 1, len(test)) if max_logit else None
    ood_logit = {name: rng.normal(3, 1, len(rows)) for name, rows in ood.items()} if max_logit else None
    curves = auroc_by_dimension(train, test, ood, test_logit, ood_logit, standardize, ds=DS)
    assert list(curves) == ["near", "far"]
    for name, other in ood.items():
        assert [d for d, _ in curves[name]] == DS
        for d, value in curves[name]:
            if d == D and standardize and not max_logit:
                continue  # scikit-learn's ratio there is 1 plus rounding: the next test
            expected = by_scikit_learn(
                train, test, other, d, standardize, (test_logit, ood_logit[name]) if max_logit else None
            )
            assert value == pytest.approx(expected, abs=1e-12)
    assert len({round(value, 3) for _, value in curves["near"]}) > 3  # the curve is not flat


def test_all_directions_of_standardised_features_say_nothing():
    train, test, ood = tables()
    for curve in auroc_by_dimension(train, test, ood, ds=[D]).values():
        assert curve == [(D, 0.5)]


def test_all_directions_and_max_logit_are_max_logit():
    train, test, ood = tables()
    rng = np.random.default_rng(1)
    inside, outside = rng.normal(4, 1, len(test)), rng.normal(3, 1, len(ood["far"]))
    curves = auroc_by_dimension(train, test, {"far": ood["far"]}, inside, {"far": outside}, ds=[D])
    expected = roc_auc_score(np.repeat([1, 0], [200, 90]), np.concatenate([inside, outside]))
    assert curves["far"][0][1] == pytest.approx(expected, abs=1e-12)


def test_uncentred_is_the_projection_on_the_right_singular_vectors():
    train, test, ood = tables()
    directions = np.linalg.svd(train, full_matrices=False)[2]
    curves = auroc_by_dimension(train, test, ood, standardize=False, center=False, ds=[1, 3, 7])
    for name, other in ood.items():
        rows = np.concatenate([test, other])
        for d, value in curves[name]:
            score = [np.linalg.norm(directions[:d] @ row) / np.linalg.norm(row) for row in rows]
            expected = roc_auc_score(np.repeat([1, 0], [len(test), len(other)]), score)
            assert value == pytest.approx(expected, abs=1e-12)
    assert curves != auroc_by_dimension(train, test, ood, standardize=False, ds=[1, 3, 7])
    centred = auroc_by_dimension(train, test, ood, ds=[1, 3, 7])  # standardised rows are centred already
    assert centred == auroc_by_dimension(train, test, ood, center=False, ds=[1, 3, 7])


def test_a_direction_of_no_variance_and_a_constant_feature():
    train, test, ood = tables()
    train, test, other = (np.insert(rows, 3, 0.1, axis=1) for rows in (train, test, ood["far"]))
    other[:, 3] = 0.3
    curve = auroc_by_dimension(train, test, {"far": other}, ds=DS)["far"]
    for d, value in curve:
        assert value == pytest.approx(by_scikit_learn(train, test, other, d, True), abs=1e-12)


@pytest.mark.parametrize("standardize", [False, True])
def test_explained_variance_is_scikit_learns(standardize):
    train, _, _ = tables()
    rows = StandardScaler().fit_transform(train) if standardize else train
    expected = PCA(svd_solver="full").fit(rows).explained_variance_ratio_
    np.testing.assert_allclose(explained_variance(train, standardize), expected, rtol=1e-9)
    few = explained_variance(train[:5], standardize)
    assert few.shape == (D,)
    np.testing.assert_allclose(few[4:], 0, atol=1e-12)
    assert few.sum() == pytest.approx(1)


def test_chunks_do_not_change_a_value(monkeypatch):
    train, test, ood = tables()
    whole = auroc_by_dimension(train, test, ood, ds=DS)
    monkeypatch.setattr(dimensions, "ROWS", 37)
    parts = auroc_by_dimension(train, test, ood, ds=DS)
    for name in ood:
        np.testing.assert_allclose(parts[name], whole[name], atol=1e-4)


@pytest.mark.parametrize("standardize", [False, True])
def test_the_coordinates_are_scikit_learns_up_to_sign(standardize):
    train, test, _ = tables()
    scaler = StandardScaler(with_mean=standardize, with_std=standardize).fit(train)
    expected = PCA(n_components=2).fit(scaler.transform(train)).transform(scaler.transform(test))
    ours = dimensions.coordinates(dimensions.principal(train, standardize, center=True), test, 2)
    np.testing.assert_allclose(abs(ours), abs(expected), rtol=1e-7, atol=1e-9)


def test_read_only_float32_tensors_are_not_written(tmp_path):
    train, test, ood = tables()
    expected = auroc_by_dimension(train.astype(np.float32), test, ood, ds=DS)
    np.save(tmp_path / "train.npy", train.astype(np.float32))
    mapped = np.load(tmp_path / "train.npy", mmap_mode="r")
    tensors = {name: torch.as_tensor(rows) for name, rows in ood.items()}
    assert auroc_by_dimension(mapped, torch.as_tensor(test), tensors, ds=DS) == expected


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("standardize", [False, True])
def test_a_row_of_zeros_is_the_most_anomalous(standardize, center):
    train, test, _ = tables()
    curve = auroc_by_dimension(train, test, {"zero": np.zeros((5, D))}, None, None, standardize, center, ds=[3, D])
    assert curve["zero"] == [(3, 1.0), (D, 1.0)]


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("max_logit", [False, True])
def test_the_curve_runs_through_the_detector(standardize, center, max_logit):
    train, test, ood = tables()
    other, logits = ood["near"], np.random.default_rng(1).normal(size=(350, C)) + 3
    logits[:, 0] += np.arange(350) < 200
    inside, outside = logits.max(1)[:200], {"near": logits.max(1)[200:]}
    given = (inside, outside) if max_logit else (None, None)
    curve = auroc_by_dimension(train, test, {"near": other}, *given, standardize, center, ds=[1, 3, 7])["near"]
    for d, value in curve:
        detector = NECO(d=d, standardize=standardize, center=center, max_logit=max_logit)
        detector.fit(Views(features=torch.as_tensor(train), logits=torch.ones(len(train), C)))
        rows = Views(features=torch.as_tensor(np.concatenate([test, other])), logits=torch.as_tensor(logits))
        label = np.repeat([0, 1], [len(test), len(other)])
        assert value == pytest.approx(roc_auc_score(label, detector.score(rows).numpy()), abs=1e-12)


def test_the_grid_holds_the_classes_and_the_end():
    assert grid(512, 10) == [1, 2, 3, 4, 6, 8, 9, 10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert grid(7) == [1, 2, 3, 4, 6, 7]
    assert grid(5, 1000) == [1, 2, 3, 4, 5]
    assert 20 <= len(grid(768, 100)) <= 26
    train, test, ood = tables()
    assert [d for d, _ in auroc_by_dimension(train, test, ood, classes=6)["far"]] == [1, 2, 3, 4, 5, 6, 8, 12]
    assert [d for d, _ in auroc_by_dimension(train[:6], test, ood)["far"]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ds": [0, 3]}, r"d = \[0, 3\] .* between 1 and 12"),
        ({"ds": [13]}, r"between 1 and 12"),
        ({"ds": []}, r"between 1 and 12"),
        ({"test_features": np.ones((3, 5))}, "test has 5 features, but the training rows have 12"),
        ({"ood": {"far": np.ones((3, 5))}}, "far has 5 features"),
        ({"ood": {"far": np.ones((0, 12))}}, r"shape \(0, 12\)"),
        ({"test_max_logit": np.ones(200)}, "give both, or neither"),
        ({"test_max_logit": np.ones(200), "ood_max_logit": {"far": np.ones(90)}}, "OOD set 'near'; there are: far"),
        ({"test_max_logit": np.ones(7), "ood_max_logit": {"near": 1, "far": 1}}, "one for each of 200 rows"),
        ({"train_features": np.full((9, 12), np.nan)}, "not finite"),
        ({"train_features": np.ones((1, 12)), "ds": None}, "between 1 and 0"),
    ],
)
def test_bad_input(change, message):
    train, test, ood = tables()
    given = {"train_features": train, "test_features": test, "ood": ood, "ds": [3]} | change
    with pytest.raises(UserError, match=message):
        auroc_by_dimension(**given)


def test_constant_features_explain_nothing():
    with pytest.raises(UserError, match="constant"):
        explained_variance(np.ones((5, 3)))
    with pytest.raises(UserError, match="at least 2 training rows, not 1"):
        explained_variance(np.ones((1, 3)))
