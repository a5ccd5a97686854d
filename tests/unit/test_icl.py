"""ICL against the definition written with loops, and against PyTorch's own batch normalisation."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax
from torch import nn

from outlie.detectors import icl
from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.icl import ICL, contrast, published_window
from outlie.errors import UserError


def ready(dim: int = 7, **options) -> ICL:
    detector = ICL(**({"hidden": 12} | options))
    set_up(detector, Spec({"x": (dim,)}))
    return detector


def rows(n: int, dim: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def moved(detector: ICL) -> ICL:
    """Norms whose windows differ."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        norms: Any = detector.encoders.norms
        for norm in norms:
            for t in (norm.weight, norm.bias, norm.running_mean):
                t.copy_(torch.randn(t.shape, generator=generator))
            norm.running_var.copy_(0.5 + torch.rand(norm.running_var.shape, generator=generator))
    return detector


def by_hand(detector: ICL, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """F and G of every window, one window at a time, its columns taken with a list, its norm a module of its own."""
    k, dim, both = detector.k, x.shape[1], ([], [])
    leaky, encoders = nn.LeakyReLU(0.2), detector.encoders
    for start in range(dim - k + 1):
        inside = list(range(start, start + k))
        rest = [column for column in range(dim) if column not in inside]
        norms = []
        for norm in encoders.norms:
            own = nn.BatchNorm1d(1).train(detector.training)
            state = {name: t[start : start + 1] if t.ndim else t for name, t in norm.state_dict().items()}
            own.load_state_dict(state)
            norms.append(lambda h, own=own: own(h[:, None])[:, 0])  # over rows and hidden units
        first, second, third = encoders.f
        v = third(norms[1](leaky(second(norms[0](torch.tanh(first(x[:, rest])))))))
        first, second, third = encoders.g
        w = third(leaky(second(norms[2](leaky(first(x[:, inside]))))))
        both[0].append(leaky(v))
        both[1].append(leaky(w))
    return torch.stack(both[0], 1), torch.stack(both[1], 1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("dim", "window"), [(7, None), (7, 1), (7, 6), (3, None)])
def test_representations_are_the_definition(training, dim, window):
    detector, x = moved(ready(dim, window=window)).train(training), rows(9, dim)
    with torch.no_grad():
        for ours, expected in zip(detector.represent(x), by_hand(detector, x)):
            assert ours.shape == (9, dim - detector.k + 1, 12)
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_contrast_is_the_definition():
    v, w = rows(4, 5 * 6).view(4, 5, 6).double(), rows(4, 5 * 6, seed=1).view(4, 5, 6).double()
    expected = np.zeros((4, 5))
    for b in range(4):
        units = []
        for h in (v[b].numpy(), w[b].numpy()):
            h = h / np.linalg.norm(h, axis=0)  # over the windows first, as released
            units.append(h / np.linalg.norm(h, axis=1, keepdims=True))
        for i in range(5):
            expected[b, i] = -log_softmax([units[0][i] @ units[1][j] / 0.1 for j in range(5)])[i]
    np.testing.assert_allclose(contrast(v, w, 0.1), expected, rtol=1e-9)


def test_loss_and_score_are_means_over_the_windows():
    detector, x = moved(ready(temperature=0.3)).eval(), rows(600)
    with torch.no_grad():
        expected = contrast(*by_hand(detector, x), 0.3)
        torch.testing.assert_close(detector.score(Views(x=x)), expected.mean(1).double(), rtol=1e-4, atol=1e-6)
        loss = detector.loss(Views(x=x), torch.Generator())
    assert loss.item() == pytest.approx(expected.mean().item(), rel=1e-4)


@pytest.mark.parametrize(("dim", "k"), [(3, 2), (40, 2), (41, 10), (160, 10), (161, 11), (512, 362), (1555, 1405)])
def test_windows_are_as_wide_as_published(dim, k):
    assert published_window(dim) == k
    assert dim - k + 1 <= 151


def test_windows_computed_a_few_at_a_time_train_alike(monkeypatch):
    """The same gradient, and running statistics that saw every batch once."""
    states = []
    for pairs in (2**15, 20, 1):  # all seven windows, two, one at a time
        monkeypatch.setattr(icl, "PAIRS_AT_ONCE", pairs)
        detector = ready(dim=8).train()
        optimizer = torch.optim.SGD(detector.parameters(), lr=0.5)
        for seed in (0, 1, 2):
            optimizer.zero_grad()
            detector.loss(Views(x=1 + rows(10, 8, seed)), torch.Generator()).backward()
            optimizer.step()
        states.append(detector.state_dict())
    assert states[0]["encoders.norms.0.running_mean"].abs().max() > 0
    for other in states[1:]:
        for name, t in states[0].items():
            torch.testing.assert_close(other[name], t, rtol=1e-3, atol=1e-5, msg=name)


def test_running_statistics_are_pytorchs():
    detector, x = ready().train(), rows(20)
    norm = nn.BatchNorm1d(6)
    detector.loss(Views(x=x), torch.Generator()).backward()
    complements = torch.stack([torch.cat([x[:, :i], x[:, i + 2 :]], 1) for i in range(6)], 1)
    norm(torch.tanh(detector.encoders.f[0](complements)))
    torch.testing.assert_close(detector.encoders.norms[0].running_mean, norm.running_mean)
    torch.testing.assert_close(detector.encoders.norms[0].running_var, norm.running_var)


def test_learns_which_columns_go_together():
    """Columns are copies of one factor in training; a row whose columns do not agree is an anomaly."""
    factor = rows(256, 1)
    train = factor + 0.1 * rows(256, 8, seed=1)
    detector, losses = ready(dim=8, hidden=32).train(), []
    optimizer = detector.recipe.optimizer(detector)
    for _ in range(60):
        loss = detector.loss(Views(x=train), torch.Generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    normal, mixed = rows(100, 1, seed=3) + 0.1 * rows(100, 8, seed=4), rows(100, 8, seed=5)
    with torch.no_grad():
        normal, mixed = (detector.eval().score(Views(x=x)) for x in (normal, mixed))
    assert (mixed[:, None] > normal).double().mean() > 0.9


@pytest.mark.parametrize(("dim", "enough", "below"), [(40, None, 1e-3), (41, None, 1e-2), (7, 0.5, 0.5), (7, 0, 0)])
def test_training_ends_where_the_loss_is_small(dim, enough, below):
    detector = ready(dim, enough=enough)
    assert not detector.stop([1.0, below])
    assert detector.stop([1.0, 0.99 * below]) is bool(below)


def test_few_rows_and_constant_columns():
    detector, x = ready(dim=3), rows(3, 3)
    x[:, 1] = 0
    assert detector.train().loss(Views(x=x[:1]), torch.Generator()).isfinite()
    with torch.no_grad():
        assert detector.eval().score(Views(x=torch.cat([x, 0 * x, 1e6 * x]))).isfinite().all()


def test_a_wide_row_has_at_most_151_windows_and_every_column_once():
    detector = ready(dim=1555)
    assert detector.columns.shape == (151, 1555)
    assert (detector.columns.sort(1).values == torch.arange(1555)).all()
    assert (detector.columns[:, : detector.k].diff(dim=1) == 1).all()
    assert F.one_hot(detector.columns[:, 0], 1555).sum(0).max() == 1


@pytest.mark.parametrize("dim", [1, 2])
def test_too_few_columns_are_a_mistake(dim):
    with pytest.raises(UserError, match=f"at least 3 columns, the data have {dim}"):
        ready(dim)


def test_a_window_without_complement_is_a_mistake():
    with pytest.raises(UserError, match=r"window = 7 of 7 columns .* set detector.window to 1\.\.6"):
        ready(7, window=7)
