"""Readers of others' formats against arrays written by hand, by SciPy and Pillow; damaged files by one message."""

import gzip
import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from outlie.data.image_archives import read_dtd, read_tiny_imagenet
from outlie.data.image_files import Transform
from outlie.data.image_formats import idx_pair, read_cifar, read_idx, read_images_npz, read_mat
from outlie.data.image_sources import PER_CLASS, interleaved, read_source
from outlie.errors import UserError

RNG = np.random.RandomState(0)


def idx(x: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{x.ndim}I", 0, 0, 8, x.ndim, *x.shape) + x.tobytes()


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def png(x: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(x).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(7,), (3, 4, 5)])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx(tmp_path, shape, pack):
    x = RNG.randint(0, 256, shape, np.uint8)
    assert np.array_equal(read_idx(written(tmp_path / "x", pack(idx(x)))), x)


def test_idx_pair_gives_one_channel(tmp_path):
    x, y = RNG.randint(0, 256, (6, 4, 5), np.uint8), RNG.randint(0, 10, 6).astype(np.uint8)
    images, labels = idx_pair(written(tmp_path / "x", idx(x)), written(tmp_path / "y", idx(y)))
    assert images.shape == (6, 1, 4, 5) and labels.dtype == np.int64
    assert np.array_equal(images[:, 0], x) and np.array_equal(labels, y)
    with pytest.raises(UserError, match=r"\(6, 4, 5\).*\(5,\).*expected \(N, H, W\) and \(N,\)"):
        idx_pair(tmp_path / "x", written(tmp_path / "y", idx(y[:5])))


GOOD = idx(RNG.randint(0, 256, (3, 4, 4), np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD[:-5], r"truncated: 59 bytes unpacked, 64 expected"),
        (gzip.compress(GOOD, mtime=0)[:-12], r"truncated or damaged"),
        (GOOD[:9], r"header ends after 9 of 16"),
        (b"<html>", r"no idx file: it starts with 3c68746d"),
        (b"", r"no idx file: it starts with nothing"),
        (GOOD[:2] + b"\x0d" + GOOD[3:], r"type 0x0d, allowed: 0x08"),
    ],
)
def test_a_damaged_idx(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as error:
        read_idx(written(tmp_path / "x", content))
    assert str(tmp_path / "x") in str(error.value)


def cifar(path: Path, n: int = 20, fine: bool = False, cut: int = 0, names: bool = True) -> tuple[np.ndarray, ...]:
    """A small archive as Toronto makes them; returns train x, y and test x, y."""
    x = RNG.randint(0, 256, (n + 5, 3, 32, 32), np.uint8)
    y = np.arange(n + 5) % 10
    label = y[:, None].astype(np.uint8)
    table = np.hstack([label // 5, label, x.reshape(n + 5, -1)] if fine else [label, x.reshape(n + 5, -1)])
    meta = "\n".join(f"class{i}" for i in range(10)).encode() + b"\n"
    if fine:
        files = {"train.bin": table[:n], "test.bin": table[n:]}
        metas = {"c/coarse_label_names.txt": b"a\nb\n", "c/fine_label_names.txt": meta}
    else:  # in another order than they are read
        files = {
            "data_batch_2.bin": table[n // 2 : n],
            "test_batch.bin": table[n:],
            "data_batch_1.bin": table[: n // 2],
        }
        metas = {"c/batches.meta.txt": meta}
    contents = {f"c/{name}": part.tobytes()[: part.size - cut] for name, part in files.items()}
    tar_of(path, contents | (metas if names else {}))
    return x[:n], y[:n], x[n:], y[n:]


@pytest.mark.parametrize("fine", [False, True])
def test_cifar_binary(tmp_path, fine):
    x, y, x_test, y_test = cifar(tmp_path / "c.tar.gz", fine=fine)
    for part, images, labels in (("train", x, y), ("test", x_test, y_test)):
        found_x, found_y, names = read_cifar(tmp_path / "c.tar.gz", part)
        assert np.array_equal(found_x, images) and np.array_equal(found_y, labels)
        assert names == tuple(f"class{i}" for i in range(10))


def test_a_pickled_cifar_is_refused(tmp_path):
    tar_of(tmp_path / "c.tar.gz", {"cifar-10-batches-py/data_batch_1": b"\x80\x02}q\x00."})
    with pytest.raises(UserError, match=r"no binary CIFAR.*pickled, which could run code"):
        read_cifar(tmp_path / "c.tar.gz", "train")


def test_a_damaged_cifar(tmp_path):
    path = tmp_path / "c.tar.gz"
    cifar(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"c.tar.gz is truncated or damaged"):
        read_cifar(path, "train")
    cifar(path, cut=3)
    with pytest.raises(UserError, match=r"no multiple of 3073"):
        read_cifar(path, "test")


def test_svhn_mat_with_its_label_10(tmp_path):
    x, y = RNG.randint(0, 256, (32, 32, 3, 12), np.uint8), np.arange(1, 13).reshape(-1, 1) % 10 + 1
    scipy.io.savemat(tmp_path / "s.mat", {"X": x, "y": y.astype(np.uint8)})
    found_x, found_y = read_mat(tmp_path / "s.mat")
    assert found_x.shape == (12, 3, 32, 32)
    assert np.array_equal(found_x[5, 2, 7, 9], x[7, 9, 2, 5])
    assert np.array_equal(found_y, y[:, 0] % 10) and found_y.min() == 0 and found_y.max() == 9
    whole = (tmp_path / "s.mat").read_bytes()
    with pytest.raises(UserError, match=r"truncated or damaged"):
        read_mat(written(tmp_path / "s.mat", whole[: len(whole) // 2]))
    scipy.io.savemat(tmp_path / "s.mat", {"X": x.astype(float), "y": y})
    with pytest.raises(UserError, match=r"X is float64"):
        read_mat(tmp_path / "s.mat")


def test_npz(tmp_path):
    x, y = RNG.randint(0, 256, (5, 4, 6, 3), np.uint8), np.arange(5)
    np.savez(tmp_path / "a.npz", images=x, labels=y, class_names=np.array(list("abcde")))
    images, labels, names = read_images_npz(tmp_path / "a.npz")
    assert np.array_equal(images, np.moveaxis(x, 3, 1)) and np.array_equal(labels, y) and names == tuple("abcde")
    np.savez(tmp_path / "grey.npz", images=x[..., 0], labels=y)
    assert read_images_npz(tmp_path / "grey.npz")[0].shape == (5, 1, 4, 6)
    for bad, message in (
        ({"images": x / 255.0, "labels": y}, r"images of .* are float64"),
        ({"images": x, "labels": y[:4]}, r"labels of .*expected 5 integers"),
        ({"images": x, "y": y}, r"unknown array 'labels'"),
        ({"images": np.array([{}], object), "labels": y[:1]}, r"object array or a pickle"),
    ):
        np.savez(tmp_path / "bad.npz", **bad)
        with pytest.raises(UserError, match=message):
            read_images_npz(tmp_path / "bad.npz")
    whole = (tmp_path / "a.npz").read_bytes()
    with pytest.raises(UserError, match=r"truncated"):
        read_images_npz(written(tmp_path / "a.npz", whole[: len(whole) // 2]))


def test_dtd_from_its_tar(tmp_path):
    flat = {f"dtd/images/{c}/{c}_{i}.jpg": png(np.full((40 + i, 60, 3), 10 * k + i, np.uint8))
            for k, c in enumerate(["zigzag", "banded", "dotted"]) for i in (2, 1)}  # fmt: skip
    path = tar_of(tmp_path / "dtd.tar.gz", flat | {"dtd/labels/test1.txt": b"x"})
    x, y, names = read_dtd(path, Transform(8, resize=8))
    assert names == ["banded", "dotted", "zigzag"] and y.tolist() == [0, 0, 1, 1, 2, 2]
    assert x[:, 0, 0, 0].tolist() == [11, 12, 21, 22, 1, 2]  # sorted by class, then by name
    x, y, names = read_dtd(path, Transform(8, square=True), classes=1)
    assert names == ["banded"] and x.shape == (2, 3, 8, 8)
    with pytest.raises(UserError, match=r"is not DTD"):
        read_dtd(tar_of(tmp_path / "other.tar.gz", {"a": b""}), Transform(8))
    with pytest.raises(UserError, match=r"other.tar.gz: dtd/images/a/1.jpg is damaged or no image"):
        read_dtd(tar_of(tmp_path / "other.tar.gz", {"dtd/images/a/1.jpg": b"no"}), Transform(8))


def test_tiny_imagenet_from_its_zip(tmp_path):
    path = tmp_path / "tiny.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny-imagenet-200/wnids.txt", "n2\nn1\n")
        archive.writestr("tiny-imagenet-200/val/val_annotations.txt", "val_1.JPEG\tn1\t0\t0\nval_0.JPEG\tn2\t0\t0\n")
        for i in (0, 1):
            archive.writestr(f"tiny-imagenet-200/val/images/val_{i}.JPEG", png(np.full((64, 64, 3), i + 1, np.uint8)))
            name = f"tiny-imagenet-200/train/n{i + 1}/images/n{i + 1}_0.JPEG"
            archive.writestr(name, png(np.full((64, 64), i + 5, np.uint8)))  # grey, as some are
    for part, pixels, labels in (("test", [1, 2], [0, 1]), ("train", [5, 6], [1, 0])):
        x, y, names = read_tiny_imagenet(path, part, Transform(64))
        assert x.shape == (2, 3, 64, 64) and x[:, 2, 9, 9].tolist() == pixels
        assert y.tolist() == labels and names == ["n2", "n1"]
    with pytest.raises(UserError, match=r"truncated or damaged"):
        read_tiny_imagenet(written(path, path.read_bytes()[:300]), "test", Transform(64))


def test_the_part_is_made_from_the_full_set_where_it_is_missing(tmp_path, empty_cache, monkeypatch):
    x, y, _, _ = cifar(tmp_path / "c.tar.gz", n=60)
    monkeypatch.setattr("outlie.data.image_sources.obtain", lambda file: tmp_path / "c.tar.gz")
    monkeypatch.setitem(PER_CLASS, "train", 3)
    part = read_source("cifar10_part", "train")
    assert part.y.tolist() == list(range(10)) * 3
    by_hand = [np.flatnonzero(y == c)[k] for k in range(3) for c in range(10)]
    assert np.array_equal(part.x, x[by_hand])
    with pytest.raises(UserError, match=r"class of 6 images, 7 are needed"):
        interleaved(y, 7)


def test_the_part_is_such_a_choice_from_the_real_files():
    folder = Path(os.environ.get("OUTLIE_DATA", "")) / "cifar10"
    if not folder.is_dir() or not os.environ.get("OUTLIE_DATA"):
        pytest.skip("needs OUTLIE_DATA with cifar10/")
    for part, per_class in PER_CLASS.items():
        images = read_source("cifar10_part", part)
        assert np.array_equal(interleaved(images.y, per_class), np.arange(len(images.y)))


def test_labels_out_of_range(tmp_path, monkeypatch):
    x, y = np.zeros((3, 2, 2), np.uint8), np.array([0, 1, 11], np.uint8)
    paths = {"train_images": written(tmp_path / "x", idx(x)), "train_labels": written(tmp_path / "y", idx(y))}
    monkeypatch.setattr("outlie.data.image_sources.obtain", lambda file: paths[file.part])
    with pytest.raises(UserError, match=r"kmnist has the label 11, allowed: 0 to 9"):
        read_source("kmnist", "train")


def test_digits_are_sklearns():
    import sklearn.datasets

    table = sklearn.datasets.load_digits()
    train, test = read_source("digits", "train"), read_source("digits", "test")
    x = np.concatenate([train.x, test.x])[:, 0]
    assert len(train.x) == 1000 and np.array_equal(np.concatenate([train.y, test.y]), table.target)
    np.testing.assert_allclose(x, table.images * 255 / 16, atol=0.5)
    with pytest.raises(UserError, match=r"unknown image set 'digts' \(did you mean 'digits'\?\)"):
        read_source("digts", "test")
    with pytest.raises(UserError, match=r"dtd_part has no train part"):
        read_source("dtd_part", "train")
