"""The identity backbone standardises with the protocol's mean and scale, as scikit-learn does."""

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler

from outlie.backbones.identity import Identity
from outlie.data.split import Rows, Split


def split_of(train: np.ndarray) -> Split:
    scaler = StandardScaler().fit(train)
    x = torch.as_tensor(train, dtype=torch.float64)
    mean, scale = torch.as_tensor(scaler.mean_), torch.as_tensor(scaler.scale_)
    return Split("test", Rows(x, torch.arange(len(x))), {}, None, mean, scale, "")


def test_views_are_scikit_learns_standardisation():
    rng = np.random.default_rng(0)
    train = np.c_[rng.normal(5, 3, (50, 2)), np.full(50, 7.0)]  # with a constant column
    test = rng.normal(size=(4, 3))
    backbone = Identity()
    backbone.setup(split_of(train))
    views = backbone(torch.as_tensor(test))
    np.testing.assert_allclose(views.x, StandardScaler().fit(train).transform(test), rtol=1e-12)
    assert torch.equal(views.features, views.x)
    assert views.x.dtype == torch.float64
    assert views.logits is None and views.y is None
    np.testing.assert_allclose(backbone(torch.as_tensor(train)).x.std(0, correction=0), [1, 1, 0], atol=1e-12)


def test_gaps_are_passed_on():
    train = np.random.default_rng(0).normal(5, 3, (50, 3))
    backbone = Identity()
    backbone.setup(split_of(train))
    test = train[:4].copy()
    test[[0, 2], [1, 2]] = np.nan
    expected = StandardScaler().fit(train).transform(test)
    np.testing.assert_allclose(backbone(torch.as_tensor(test)).x, expected, rtol=1e-12, equal_nan=True)
    assert int(backbone(torch.as_tensor(test)).x.isnan().sum()) == 2


def test_small_integers_do_not_overflow():
    train = np.array([[0, 255], [200, 10], [100, 100]], dtype=np.uint8)
    backbone = Identity()
    backbone.setup(split_of(train))
    expected = StandardScaler().fit_transform(train.astype(float))
    np.testing.assert_allclose(backbone(torch.as_tensor(train)).x, expected, rtol=1e-12)


def test_an_image_is_one_long_row():
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 5)).astype(np.uint8)
    mean, scale = images.mean((0, 2, 3)), images.std((0, 2, 3))
    mean, scale = (torch.as_tensor(one)[:, None, None] for one in (mean, scale))
    backbone = Identity()
    x = torch.as_tensor(images)
    backbone.setup(Split("test", Rows(x, torch.arange(20)), {}, None, mean, scale, ""))
    features = backbone(x).features
    assert features.shape == (20, 60) and features.dtype == torch.float64
    by_hand = (images - mean.numpy()) / scale.numpy()
    np.testing.assert_allclose(features.numpy(), by_hand.reshape(20, 60), rtol=1e-12)


def test_a_fresh_backbone_takes_its_sizes_from_the_checkpoint():
    first, second = Identity(), Identity()
    first.setup(split_of(np.random.default_rng(0).normal(5, 3, (50, 4))))
    second.load_state_dict(first.state_dict())
    x = torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(first(x).x, second(x).x)
    assert set(Identity.provides) == {"x", "features"}
