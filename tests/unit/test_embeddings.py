import numpy as np
import pytest

from outlie.data.embeddings import Embeddings
from outlie.errors import UserError

RNG = np.random.RandomState(0)


@pytest.fixture
def files(tmp_path):
    np.savez(tmp_path / "train.npz", X=RNG.randn(50, 8).astype(np.float32), y=np.arange(50) % 5)
    np.save(tmp_path / "test.npy", RNG.randn(20, 8))
    np.save(tmp_path / "svhn.npy", RNG.randn(7, 8))
    np.save(tmp_path / "noise.npy", RNG.randn(9, 8))
    return tmp_path


def test_each_ood_file_is_a_test_set(files):
    ood = {"svhn": files / "svhn.npy", "noise": str(files / "noise.npy")}
    split = Embeddings(files / "train.npz", files / "test.npy", ood).load(0)
    assert split.protocol == "given"
    assert {name: len(rows) for name, rows in split.tests.items()} == {"svhn": 27, "noise": 29}
    for rows, far in ((split.tests["svhn"], 7), (split.tests["noise"], 9)):
        assert rows.label is not None
        assert rows.label.tolist() == [0] * 20 + [1] * far
    assert split.calibration is not None
    assert [len(split.train), len(split.calibration)] == [45, 5]
    assert sorted([*split.train.index.tolist(), *split.calibration.index.tolist()]) == list(range(50))
    assert split.train.y is not None
    assert split.train.y.tolist() == (split.train.index % 5).tolist()
    np.testing.assert_allclose(split.mean.numpy(), split.train.x.numpy().mean(0))
    assert split.findings == []


def test_the_seed_moves_calibration_rows_only(files):
    first, second = (Embeddings(files / "train.npz", files / "test.npy").load(seed) for seed in (0, 1))
    assert first.calibration is not None
    assert second.calibration is not None
    assert first.calibration.index.tolist() != second.calibration.index.tolist()
    assert first.tests["test"].x.tolist() == second.tests["test"].x.tolist()
    assert first.data_sha256 == second.data_sha256


def test_labels_of_the_test_file(files):
    assert Embeddings(files / "train.npz", files / "test.npy").load(0).tests["test"].label is None
    np.savez(files / "labelled.npz", X=RNG.randn(6, 8), label=[0, 1, 0, 1, 0, 0])
    split = Embeddings(files / "train.npz", files / "labelled.npz").load(0)
    assert split.tests["test"].label is not None
    assert split.tests["test"].label.tolist() == [0, 1, 0, 1, 0, 0]


def test_what_is_refused(files):
    np.save(files / "narrow.npy", RNG.randn(9, 3))
    with pytest.raises(UserError, match=r"dataset.ood.narrow=.* has 3 features, dataset.train has 8"):
        Embeddings(files / "train.npz", files / "test.npy", {"narrow": files / "narrow.npy"}).load(0)
    with pytest.raises(UserError, match=r"dataset.test=.*did you mean"):
        Embeddings(files / "train.npz", files / "tset.npy").load(0)
    bad = RNG.randn(9, 8)
    bad[2, 1] = np.nan
    np.save(files / "bad.npy", bad)
    with pytest.raises(UserError, match=r"NaN\) in x1 \(1\)"):
        Embeddings(files / "bad.npy", files / "test.npy").load(0)
    np.save(files / "object.npy", np.array([{}], object))
    with pytest.raises(UserError, match=r"refused"):
        Embeddings(files / "object.npy", files / "test.npy").load(0)
    np.save(files / "short.npy", RNG.randn(2, 8))
    with pytest.raises(UserError, match=r"at least 3"):
        Embeddings(files / "short.npy", files / "test.npy").load(0)
    np.savez(files / "odd.npz", X=RNG.randn(6, 8), label=[0, 0, 0, 0, 0, 1])
    with pytest.raises(UserError, match=r"give normal rows only"):
        Embeddings(files / "odd.npz", files / "test.npy").load(0)
