"""Class means and covariances against NumPy and scikit-learn; chunks, memory maps, two processes."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.preprocessing import StandardScaler

from outlie.detectors import moments
from outlie.errors import UserError

N, D, C = 203, 7, 4


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    """float32 features far from the origin, and classes of different size."""
    rng = np.random.default_rng(0)
    y = np.concatenate([np.arange(C), rng.choice(C, N - C, p=[0.5, 0.3, 0.15, 0.05])])
    h = rng.normal(size=(C, D))[y] * 3 + rng.normal(size=(N, D)) @ rng.normal(size=(D, D)) + 50
    return h.astype(np.float32), y


@pytest.mark.parametrize("chunk_bytes", [1, 8 * D * 10, 2**20])
def test_they_are_what_the_definitions_say(rows, chunk_bytes, monkeypatch):
    monkeypatch.setattr(moments, "CHUNK_BYTES", chunk_bytes)
    h, y = rows
    features, labels, exact = torch.as_tensor(h), torch.as_tensor(y), h.astype(np.float64)
    means, share = moments.class_means(features, labels, C)
    np.testing.assert_allclose(means, [exact[y == c].mean(0) for c in range(C)], rtol=1e-12)
    np.testing.assert_allclose(share, np.bincount(y) / N)
    mean = moments.mean(features)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-12)
    within = sum(np.outer(a - means[c].numpy(), a - means[c].numpy()) for a, c in zip(exact, y)) / N
    np.testing.assert_allclose(moments.within_class_covariance(features, labels, means), within, rtol=1e-9)
    total = moments.covariance(features, mean)
    np.testing.assert_allclose(total, EmpiricalCovariance().fit(exact).covariance_, rtol=1e-9)
    np.testing.assert_allclose(within + moments.between_class_covariance(means, share).numpy(), total, rtol=1e-9)
    origin = torch.arange(D).double()
    about = EmpiricalCovariance(assume_centered=True).fit(exact - origin.numpy()).covariance_
    np.testing.assert_allclose(moments.covariance(features, origin), about, rtol=1e-9)
    np.testing.assert_array_equal(features, rows[0])  # nothing was written to
    assert means.dtype == total.dtype == torch.float64


def test_float64_rows_are_not_written_to(rows):
    features, labels = torch.as_tensor(rows[0]).double(), torch.as_tensor(rows[1])
    before = features.clone()
    means, _ = moments.class_means(features, labels, C)
    moments.within_class_covariance(features, labels, means)
    moments.covariance(features, moments.mean(features))
    assert torch.equal(features, before)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_read_only_memory_maps_are_read_as_they_are(rows, tmp_path):
    np.save(tmp_path / "h.npy", rows[0])
    mapped = torch.from_numpy(np.load(tmp_path / "h.npy", mmap_mode="r"))
    labels = torch.as_tensor(rows[1])
    means, _ = moments.class_means(mapped, labels, C)
    again, _ = moments.class_means(torch.as_tensor(rows[0]), labels, C)
    assert torch.equal(means, again)
    assert torch.equal(
        moments.within_class_covariance(mapped, labels, means),
        moments.within_class_covariance(torch.as_tensor(rows[0]), labels, means),
    )


def test_a_small_spread_far_away_survives():
    """Two passes: one pass in float64 would leave nothing of a spread of 1e-6 at 1e4."""
    spread = np.random.default_rng(0).normal(size=(500, 3)) * 1e-6
    features = torch.as_tensor(1e4 + spread)
    exact = EmpiricalCovariance().fit(features.numpy() - 1e4).covariance_
    ours = moments.covariance(features, moments.mean(features))
    np.testing.assert_allclose(ours.diagonal(), exact.diagonal(), rtol=1e-4)
    one_pass = (features.T @ features / 500 - np.outer(features.mean(0), features.mean(0))).diagonal()
    assert (abs(one_pass / exact.diagonal() - 1) > 0.1).any()


@pytest.mark.parametrize("constant", [0.0, 7.0, 0.1, 1e6 / 3])
def test_std_is_scikit_learns_scale(rows, constant):
    h = rows[0].astype(np.float64)
    h[:, 2] = constant
    features = torch.as_tensor(h)
    mean = moments.mean(features)
    ours = moments.std(moments.covariance(features, mean), mean, N)
    np.testing.assert_allclose(ours, StandardScaler().fit(h).scale_, rtol=1e-9)
    assert ours[2] == 1


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 1, 1, 3], 4, r"1 of 4 classes have no training rows \(class 2\)"),
        ([0, 0, 0, 0], 9, r"8 of 9 classes have no training rows \(class 1, 2, 3, 4, 5, \.\.\.\)"),
        ([0, 1, 2, 4], 4, "class label 4 is out of range: labels go from 0 to 3"),
        ([0, -1, 2, 1], 3, "class label -1 is out of range"),
        ([0, -1, 2, 1], None, "class label -1 is out of range"),
        ([0, 1, 2], 3, "4 rows of features but 3 class labels"),
        (None, 3, "no class labels"),
    ],
)
def test_labels_that_cannot_be(labels, classes, message):
    y = None if labels is None else torch.tensor(labels)
    with pytest.raises(UserError, match=message):
        moments.class_means(torch.rand(4, 2), y, classes)


def test_no_rows_and_rows_that_are_not_finite():
    with pytest.raises(UserError, match="no rows to fit on"):
        moments.mean(torch.empty(0, 3))
    with pytest.raises(UserError, match="no rows to fit on"):
        moments.class_means(torch.empty(0, 3), torch.empty(0, dtype=torch.int64), 2)
    bad = torch.rand(4, 3)
    bad[1, 2], bad[3, 0] = float("nan"), float("inf")
    for call in (moments.mean, lambda h: moments.class_means(h, torch.tensor([0, 0, 1, 1]))):
        with pytest.raises(UserError, match="2 of 3 feature columns hold NaN or Inf"):
            call(bad)


FIT = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.mahalanobis import Mahalanobis, RelativeMahalanobis
from outlie.detectors.neco import NECO
from outlie.detectors.vim import Residual, ViM
from outlie.metrics.collapse import neural_collapse

def everything(n):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    h = 3 * torch.eye(12)[:3][y] + torch.randn(n, 12, generator=g)
    head = nn.Linear(12, 3)
    head.weight.data, head.bias.data = torch.randn(3, 12, generator=g), torch.randn(3, generator=g)
    views = Views(features=h, logits=head(h).detach(), y=y)
    out = []
    for one in (Mahalanobis(), RelativeMahalanobis(), ViM(d=5), Residual(d=5), NECO(d=4)):
        set_up(one, Spec({"features": (12,)}, classes=3, head=head)).fit(views)
        out.append(one.score(views))
    measures = neural_collapse(h, y, head.weight, head.bias, {"far": h[:9] + 2})
    return torch.cat([*out, torch.tensor(list(measures.values()), dtype=torch.float64)])

if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save([everything(n) for n in (101, 13)], f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
"""


def test_two_processes_fit_as_one(tmp_path):
    script = tmp_path / "fit.py"
    script.write_text(FIT)
    processes = [subprocess.Popen([sys.executable, script, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    space: dict = {"__name__": "fit"}
    exec(FIT, space)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for n, first, second in zip((101, 13), *ranks):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, space["everything"](n), rtol=1e-6, atol=1e-9)
