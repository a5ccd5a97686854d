"""DROCC against loops written from its definition and the released schedule."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from outlie import stages
from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.drocc import DROCC, into_annulus
from outlie.errors import UserError
from outlie.trainer import Options

OPTIONS = Options(accelerator="cpu", threads=1)


def made(dim: int = 4, **options) -> DROCC:
    return set_up(DROCC(**options), Spec({"x": (dim,)}))


def rows(n: int = 30, dim: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distances(a: torch.Tensor, b: torch.Tensor) -> list[float]:
    return [math.dist(p, q) for p, q in zip(a.tolist(), b.tolist())]


def test_points_are_moved_to_the_nearest_of_the_shell():
    centre, away = rows(30).double(), F.normalize(rows(30, seed=1).double(), dim=1)
    lengths = torch.linspace(0.1, 9, 30, dtype=torch.float64)[:, None]
    found = into_annulus(centre + lengths * away, centre, 2.0, 5.0)
    expected = [min(max(float(length), 2), 5) for length in lengths]
    np.testing.assert_allclose(distances(found, centre), expected, rtol=1e-9)
    torch.testing.assert_close(F.normalize(found - centre, dim=1), away)
    assert torch.isfinite(into_annulus(centre, centre, 2.0, 5.0)).all()


@pytest.mark.parametrize("steps", [7, 20, 25])
def test_adversaries_follow_the_released_ascent(steps):
    detector, x = made(ascent_steps=steps, ascent_rate=0.05, radius=0.5, gamma=1.5), rows()
    ours = detector.adversaries(x, seeded())
    noise = torch.randn(x.shape, generator=seeded())
    for row, start, own in zip(x, noise, ours):  # one row at a time, by the cross-entropy with label 0
        point = row + start
        for step in range(1, steps + 1):
            point = point.detach().requires_grad_()
            logit = detector.last(torch.relu(detector.first(point)))
            gradient = torch.autograd.grad(F.binary_cross_entropy_with_logits(logit, torch.zeros(1)), point)[0]
            point = point.detach() + 0.05 * gradient / gradient.norm()
            if step % 10 == 0 or step == steps:
                length = float((point - row).norm())
                point = row + (point - row) * min(max(length, 0.5), 0.75) / length
        torch.testing.assert_close(own, point, rtol=1e-4, atol=1e-5)
    assert not ours.requires_grad


def test_adversaries_lie_in_the_shell_where_the_logit_is_larger():
    x, start = rows(50), into_annulus(rows(50) + torch.randn(50, 4, generator=seeded()), rows(50), 3, 6)
    detector = made(ascent_rate=0.1)
    found = detector.adversaries(x, seeded())
    assert min(distances(found, x)) > 2.999 and max(distances(found, x)) < 6.001
    assert (detector.logit(found) > detector.logit(start)).all()


def test_the_loss_is_two_cross_entropies():
    detector, x = made(lamda=0.4), rows()
    logits = torch.cat([detector.logit(x), detector.logit(detector.adversaries(x, seeded()))])
    labels = torch.cat([torch.ones(30), torch.zeros(30)])
    each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    expected = each[:30].mean() + 0.4 * each[30:].mean()
    loss = detector.loss(Views(x=x), seeded())
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(one, list(detector.parameters())) for one in (loss, expected)]
    torch.testing.assert_close(*gradients)


def test_the_first_epochs_are_without_adversaries():
    detector, x = made(epochs=8, batch_size=10), rows(35)
    detector.prepare(Views(x=x))  # three batches an epoch, two of eight epochs
    alone = float(F.softplus(-detector.logit(x)).mean().detach())
    for left in range(6, 0, -1):
        assert int(detector.waiting) == left
        assert float(detector.loss(Views(x=x), seeded()).detach()) == pytest.approx(alone)
    assert float(detector.loss(Views(x=x), seeded()).detach()) > alone + 0.1
    assert int(detector.waiting) == 0 and int(detector.state_dict()["waiting"]) == 0


def test_training_counts_its_own_batches(tmp_path):
    detector = made(epochs=4, batch_size=16, alone=0.5)
    losses = stages.train(detector, Views(x=rows(40)), 0, OPTIONS, tmp_path)["losses"]
    assert int(detector.waiting) == 0
    assert losses[2] > losses[1] + 0.1  # the third epoch has both terms


def test_learning_rates_are_the_released_ones():
    recipe = DROCC(lr=1.0).recipe
    for epoch in range(200):  # adjust_learning_rate(epoch, 200, 50, 1, ...), its order of conditions turned round
        after = epoch - 50
        expected = 1.0 if after <= 45 else 0.1 if after <= 90 else 0.01 if after <= 135 else 0.001
        for within in (0, 0.5, 0.99):
            assert recipe.lr_at((epoch + within) / 200) == pytest.approx(expected), epoch


def test_points_of_the_shell_score_higher(tmp_path):
    detector = made(2, epochs=40, batch_size=64, lr=1e-2, ascent_steps=10)
    train, test = 0.3 * rows(256, 2), 0.3 * rows(100, 2, seed=1)
    stages.train(detector, Views(x=train), 0, OPTIONS, tmp_path)
    away = F.normalize(rows(100, 2, seed=2), dim=1)
    test = torch.cat([test, 4.5 * away, 1e6 * away])
    score = stages.score(detector, Views(x=test), torch.device("cpu"))
    assert torch.isfinite(score).all()
    assert roc_auc_score(np.repeat([0, 1], 100), score[:200]) > 0.99
    assert roc_auc_score(np.repeat([0, 1], 100), torch.cat([score[:100], score[200:]])) > 0.99
    torch.testing.assert_close(score, -detector.logit(test.double()).detach())


def test_a_network_without_gradient_has_finite_adversaries():
    detector = made()
    with torch.no_grad():
        detector.first.bias.fill_(-1e6)
    assert torch.isfinite(detector.adversaries(rows(), seeded())).all()


@pytest.mark.parametrize("x", [rows(1), rows(30, 1), rows(30, 2), torch.zeros(9, 3)], ids=["one", "1", "2", "zeros"])
def test_odd_data_has_finite_losses_gradients_and_scores(x):
    detector = made(x.shape[1])
    detector.loss(Views(x=x), seeded()).backward()
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters())
    assert torch.isfinite(detector.score(Views(x=torch.cat([x, x + 1e6])))).all()


@pytest.mark.parametrize(
    ("options", "says"), [({"gamma": 0.5}, r"set detector\.gamma to 1"), ({"alone": 1.5}, r"set detector\.alone")]
)
def test_impossible_options_are_a_mistake(options, says):
    with pytest.raises(UserError, match=says):
        DROCC(**options)
