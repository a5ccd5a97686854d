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
    # each row once: an evaluation puts those of `test` beside each other set
    assert {name: len(rows) for name, rows in split.tests.items()} == {"test": 20, "svhn": 7, "noise": 9}
    for name, rows in split.tests.items():
        assert rows.label is not None
        assert rows.label.tolist() == [int(name != "test")] * len(rows)
        np.testing.assert_array_equal(rows.x.numpy(), np.load(files / f"{name}.npy"))
        assert rows.index.tolist() == list(range(len(rows)))
    assert split.calibration is not None
    assert [len(split.train), len(split.calibration)] == [45, 5]
    assert sorted([*split.train.index.tolist(), *split.calibration.index.tolist()]) == list(range(50))
    assert split.train.y is not None
    assert split.train.y.tolist() == (split.train.index % 5).tolist()
    np.testing.assert_allclose(split.mean.numpy(), split.train.x.numpy().mean(0))


def test_sets_that_are_measured_beside_the_normal_rows_are_no_finding(files):
    assert Embeddings(files / "train.npz", files / "test.npy", {"svhn": files / "svhn.npy"}).load(0).findings == []


def test_the_seed_moves_calibration_rows_only(files):
    first, second = (Embeddings(files / "train.npz", files / "test.npy").load(seed) for seed in (0, 1))
    assert first.calibration is not None
    assert second.calibration is not None
    assert first.calibration.index.tolist() != second.calibration.index.tolist()
    assert first.tests["test"].x.tolist() == second.tests["test"].x.tolist()
    assert first.data_sha256 == second.data_sha256


def test_other_test_files_leave_the_training_rows_alone(files):
    assert set(Embeddings.scoring) == {"test", "ood"}
    one = Embeddings(files / "train.npz", files / "test.npy").load(0)
    other = Embeddings(files / "train.npz", files / "noise.npy", {"svhn": files / "svhn.npy"}).load(0)
    assert one.calibration is not None and other.calibration is not None
    assert one.train.x.tolist() == other.train.x.tolist()
    assert one.calibration.index.tolist() == other.calibration.index.tolist()
    assert one.mean.tolist() == other.mean.tolist() and one.scale.tolist() == other.scale.tolist()


def test_labels_of_the_test_file(files):
    assert Embeddings(files / "train.npz", files / "test.npy").load(0).tests["test"].label is None
    np.savez(files / "labelled.npz", X=RNG.randn(6, 8), label=[0, 1, 0, 1, 0, 0])
    split = Embeddings(files / "train.npz", files / "labelled.npz").load(0)
    assert split.tests["test"].label is not None
    assert split.tests["test"].label.tolist() == [0, 1, 0, 1, 0, 0]


def test_classes_of_the_test_file_beside_ood_files(files):
    np.savez(files / "classes.npz", X=RNG.randn(6, 8), y=[4, 3, 2, 1, 0, 0])
    tests = Embeddings(files / "train.npz", files / "classes.npz", {"svhn": files / "svhn.npy"}).load(0).tests
    assert tests["test"].y is not None
    assert tests["test"].y.tolist() == [4, 3, 2, 1, 0, 0]
    assert tests["svhn"].y is None


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
