"""All heads at once against nn.Linear and Adam one by one; held-out rows counted; standardisation against NumPy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from outlie.errors import UserError
from outlie.probe.grid import shuffled
from outlie.probe.heads import Heads, cosine, standardisation, stratified, train

WIDTHS, CLASSES, N = [3, 5, 2], 4, 30


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def data():
    """Padded features (3, 30, 5) and labels."""
    features = torch.randn(len(WIDTHS), N, max(WIDTHS), generator=seeded(1))
    for one, width in zip(features, WIDTHS):
        one[:, width:] = 0
    return features, torch.randint(CLASSES, (N,), generator=seeded(2))


def batches(features, y):
    def epoch_of(epoch):
        for rows in torch.randperm(N, generator=seeded(epoch)).split(8):  # the last has 6 rows
            yield features[:, rows], y[rows]

    return epoch_of


def alone(head: int, heads: Heads, features, y, epochs: int, lr: float) -> torch.nn.Linear:
    """One head trained as anybody would."""
    width = WIDTHS[head]
    linear = torch.nn.Linear(width, CLASSES)
    with torch.no_grad():
        linear.weight.copy_(heads.weight[head, :width].T)
        linear.bias.copy_(heads.bias[head, 0])
    optimizer = torch.optim.Adam(linear.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        for features_GBC, y_B in batches(features, y)(epoch):
            optimizer.zero_grad()
            F.cross_entropy(linear(features_GBC[head, :, :width]), y_B).backward()
            optimizer.step()
        schedule.step()
    return linear


def test_heads_move_as_if_each_were_trained_alone(data):
    heads = Heads(WIDTHS, CLASSES, seeded())
    before = heads.weight.detach().clone()
    lonely = [alone(head, heads, *data, epochs=6, lr=0.05) for head in range(len(WIDTHS))]
    losses = train(heads, batches(*data), 6, 0.05)
    for head, (linear, width) in enumerate(zip(lonely, WIDTHS)):
        torch.testing.assert_close(heads.weight[head, :width].T, linear.weight, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(heads.bias[head, 0], linear.bias, atol=1e-5, rtol=1e-5)
        assert torch.equal(heads.weight[head, width:], before[head, width:])  # padding never moves
        right = (linear(data[0][head, :, :width]).argmax(1) == data[1]).double().mean()
        assert heads.accuracy(*data)[head] == right
    assert len(losses) == 6
    assert losses[-1] < losses[0]


def test_the_loss_is_a_sum_and_is_told_as_a_mean(data):
    features, y = data
    heads = Heads(WIDTHS, CLASSES, seeded())
    each = [F.cross_entropy(heads(features)[g], y).item() for g in range(len(WIDTHS))]
    assert heads.loss(features, y).item() == pytest.approx(sum(each), rel=1e-5)
    assert train(heads, lambda epoch: [(features, y)], 1, 0.1) == [pytest.approx(np.mean(each), rel=1e-5)]


def test_accuracy_of_more_rows_than_are_held_at_once(data, monkeypatch):
    heads = Heads(WIDTHS, CLASSES, seeded())
    whole = heads.accuracy(*data)
    monkeypatch.setattr("outlie.probe.heads.ROWS", 7)
    assert torch.equal(heads.accuracy(*data), whole)


def test_weights_start_as_those_of_a_linear_layer():
    heads = Heads([4, 400], 50, seeded())
    for g, width in enumerate((4, 400)):
        assert 0.9 / math.sqrt(width) < heads.weight[g, :width].abs().max() <= 1 / math.sqrt(width)
        assert heads.bias[g].abs().max() <= 1 / math.sqrt(width)
    assert not torch.equal(heads.weight, Heads([4, 400], 50, seeded(1)).weight)


def test_the_cosine_begins_at_lr_and_ends_above_zero():
    assert cosine(0.1, 0, 4) == 0.1
    assert cosine(0.1, 2, 4) == pytest.approx(0.05)
    assert 0 < cosine(0.1, 3, 4) < 0.02


def test_a_loss_that_is_not_finite_ends_the_training(data):
    features, y = data
    with pytest.raises(UserError, match="became nan in epoch 0; lower lr"):
        train(Heads(WIDTHS, CLASSES, seeded()), batches(features * torch.inf, y), 3, 0.1)


def test_kept_features_come_once_an_epoch_and_in_another_order(data):
    features, y = data
    both = [list(shuffled(features, y, 0)(epoch)) for epoch in (0, 1)]
    seen = [torch.cat([part for part, _ in batches], 1) for batches in both]
    labels = [torch.cat([part for _, part in batches]) for batches in both]
    assert not torch.equal(seen[0], seen[1])
    for rows, told in zip(seen, labels):
        order = rows[0, :, 0].argsort()
        expected = features[0, :, 0].argsort()
        assert torch.equal(rows[:, order], features[:, expected])
        assert torch.equal(told[order], y[expected])


def test_standardisation_is_numpys():
    features = torch.randn(2, 50, 3, generator=seeded()) * 4 + 7
    features[1, :, 2] = 0.3  # constant
    mean, scale = standardisation(features)
    np.testing.assert_allclose(mean[:, 0], features.numpy().mean(1), rtol=1e-5)
    np.testing.assert_allclose(scale[0, 0], features[0].numpy().std(0), rtol=1e-4)
    assert scale[1, 0, 2] == 1


def test_a_share_of_each_class_is_held_out():
    y = torch.tensor([0] * 40 + [2] * 10 + [1] * 3 + [4] * 2)[torch.randperm(55, generator=seeded())]
    kept, held = stratified(y, 0.2, seeded())
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(55))
    assert torch.bincount(y[held]).tolist() == [8, 1, 2, 0, 1]  # at least one of each class
    assert not torch.equal(held, stratified(y, 0.2, seeded(1))[1])
    assert torch.equal(held, stratified(y, 0.2, seeded())[1])
    assert torch.bincount(y[stratified(y, 0.99, seeded())[0]]).tolist() == [1, 1, 1, 0, 1]  # and one that trains


def test_a_class_with_one_image_is_refused():
    with pytest.raises(UserError, match="class 1 has one image"):
        stratified(torch.tensor([0, 0, 1, 2, 2]), 0.5, seeded())
