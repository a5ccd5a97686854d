"""Uninformed students: dense evaluation against patch by patch, score and normalisation written out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from outlie.detectors.base import Views, set_up
from outlie.detectors.patch_networks import PatchNet, off_diagonal, patches_of
from outlie.detectors.uninformed_students import UninformedStudents
from outlie.errors import UserError

from .test_stfpm import raw, spec_of, teacher

SMALL = {"patches": [17], "width": 4, "teacher_steps": 3}


def made(network, **options) -> UninformedStudents:
    return set_up(UninformedStudents(**SMALL | options), spec_of(network)).eval()


@pytest.fixture(scope="module")
def network():
    return teacher()


@pytest.mark.parametrize("patch", [17, 33, 65])
def test_dense_evaluation_is_that_of_every_patch(patch):
    torch.manual_seed(0)
    net, x = PatchNet(2, patch, 3).double(), torch.randn(2, 2, 20, 23, dtype=torch.float64)
    with torch.no_grad():
        dense = net.dense(x)
        assert dense.shape == (2, 3, 20, 23)
        reach = patch // 2
        padded = F.pad(x, (reach,) * 4, mode="replicate")
        for i, j in ((0, 0), (7, 11), (19, 22), (3, 20)):
            alone = net(padded[:, :, i : i + patch, j : j + patch])
            torch.testing.assert_close(dense[:, :, i, j], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("patch", "layers"), [(17, 4), (33, 4), (65, 5)])
def test_networks_are_the_published_ones(patch, layers):
    net = PatchNet(3, patch, 128)
    assert len(net.convs) == layers and net.convs[-1].out_channels == 128
    assert net.convs[0].weight.shape == (128, 3, 6 if patch == 17 else 5, 6 if patch == 17 else 5)
    assert max(conv.out_channels for conv in net.convs) == 256
    with torch.no_grad():
        assert net(torch.zeros(2, 3, patch, patch)).shape == (2, 128)


def test_patches_are_cut_out_of_the_images():
    x = torch.arange(3 * 2 * 9 * 11).view(3, 2, 9, 11).float()
    found = patches_of(x, 4, 50, torch.Generator().manual_seed(0))
    assert found.shape == (50, 2, 4, 4)
    every = {
        tuple(x[n, :, i : i + 4, j : j + 4].flatten().tolist()) for n in range(3) for i in range(6) for j in range(8)
    }
    drawn = {tuple(one.flatten().tolist()) for one in found}
    assert drawn <= every and len(drawn) > 20


def test_compactness_is_the_sum_of_squared_correlations():
    descriptor = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    correlation = np.corrcoef(descriptor.numpy().T)
    expected = (correlation**2).sum() - (np.diag(correlation) ** 2).sum()
    assert float(off_diagonal(descriptor)) == pytest.approx(expected, rel=1e-9)


def test_score_and_normalisation_written_out(network):
    x, new = raw(5), raw(2, seed=7)
    detector = made(network, students=3)
    detector.prepare(Views(x=x))

    def e_and_v(raw_images):
        z = network.standardise(raw_images)
        target = (detector.teachers[0].dense(z) - detector.mean[0, :, None, None]) / detector.scale[0, :, None, None]
        s = torch.stack([student.dense(z) for student in detector.students[0]]).double()
        e = ((s.mean(0) - target.double()) ** 2).sum(1)
        return e, (s**2).sum(2).mean(0) - (s.mean(0) ** 2).sum(1)  # as the specification writes v

    with torch.no_grad():
        for part in (x[:2], x[2:]):
            detector.update(Views(x=network.standardise(part)))
        detector.finish()
        expected = 0
        for usual, one in zip(e_and_v(x), e_and_v(new), strict=True):
            expected = expected + (one - usual.mean()) / usual.std(correction=0)
        found = detector.score_map(Views(x=network.standardise(new)))
    assert found.shape == (2, 24, 24)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(detector.score(Views(x=network.standardise(new))), found.flatten(1).max(1).values)


def test_several_patch_sizes_are_averaged(network):
    shape = (3, 34, 34)
    x = raw(3, side=34)
    both = set_up(UninformedStudents(patches=[17, 33], width=3, teacher_steps=1), spec_of(network, shape)).eval()
    both.prepare(Views(x=x))
    z = network.standardise(x)
    with torch.no_grad():
        both.update(Views(x=z))
        both.finish()
        maps = both.score_map(Views(x=z))
        found = both.error_and_variance(z)
        flat = found.transpose(0, 2).flatten(2)  # (2, P, pixels) of e and v
        mean, deviation = flat.mean(2), flat.std(2, correction=0)
        sums = sum((found[:, p, k] - mean[k, p]) / deviation[k, p] for p in range(2) for k in range(2))
        by_hand = sums / 2
    torch.testing.assert_close(maps, by_hand)


def test_the_loss_is_the_squared_error_of_every_student(network):
    x = raw(2)
    detector = made(network, students=2)
    detector.prepare(Views(x=x))
    z = network.standardise(x)
    with torch.no_grad():
        target = (detector.teachers[0].dense(z) - detector.mean[0, :, None, None]) / detector.scale[0, :, None, None]
        expected = sum(float(((s.dense(z) - target) ** 2).sum(1).mean()) for s in detector.students[0])
        assert float(detector.loss(Views(x=x), torch.Generator())) == pytest.approx(expected, rel=1e-5)


def test_only_students_are_trained_and_descriptors_are_normal(network):
    detector = made(network)
    detector.prepare(Views(x=raw(6)))
    trained = {id(p) for group in detector.recipe.optimizer(detector).param_groups for p in group["params"]}
    assert trained == {id(p) for p in detector.students.parameters()}
    z = patches_of(network.standardise(raw(6)), 17, 4000, torch.Generator().manual_seed(1))
    with torch.no_grad():
        normal = (detector.teachers[0](z) - detector.mean[0]) / detector.scale[0]
    np.testing.assert_allclose(normal.mean(0), 0, atol=0.15)
    np.testing.assert_allclose(normal.std(0), 1, atol=0.15)


def test_what_does_not_fit_is_refused(network):
    with pytest.raises(UserError, match=r"patches = \[16\]: allowed are some of \[17, 33, 65\]"):
        UninformedStudents(patches=[16])
    with pytest.raises(UserError, match=r"patches of 33 pixels, but images of 24; set detector.patches"):
        made(network, patches=[17, 33])
