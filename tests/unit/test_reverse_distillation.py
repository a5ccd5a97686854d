"""RD4AD: loss and map written out, the shapes of bottleneck and decoder, what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from outlie.detectors.base import Views, set_up
from outlie.detectors.reverse_distillation import Reverse, ReverseDistillation
from outlie.errors import UserError

from .test_stfpm import raw, spec_of, teacher


def made(network, shape=(3, 24, 24), **options) -> ReverseDistillation:
    return set_up(ReverseDistillation(**options), spec_of(network, shape)).eval()


def rebuilt(detector, network, z):
    with torch.no_grad():
        theirs = network.stages(z)[:3]
        return list(zip(detector.student(theirs), theirs, strict=True))


def test_both_losses_written_out():
    network, x = teacher(), raw(3)
    z = network.standardise(x)
    for cosine in ("flat", "position"):
        detector, expected = made(network, cosine=cosine), 0.0
        for ours, theirs in rebuilt(detector, network, z):
            assert ours.shape == theirs.shape
            for b in range(3):
                s, t = ours[b].double(), theirs[b].double()
                if cosine == "flat":
                    expected += (1 - float((s * t).sum() / s.norm() / t.norm())) / 3
                else:
                    a, c = (m / m.norm(dim=0).clamp(min=1e-8) for m in (s, t))
                    cos = [a[:, i, j] @ c[:, i, j] for i in range(s.shape[1]) for j in range(s.shape[2])]
                    expected += (1 - float(torch.stack(cos).mean())) / 3
        with torch.no_grad():
            assert float(detector.loss(Views(x=x), torch.Generator())) == pytest.approx(expected, rel=1e-4)


def test_the_map_is_the_blurred_sum():
    network = teacher()
    detector, z = made(network, sigma=2.0), network.standardise(raw(2))
    expected = torch.zeros(2, 24, 24)
    for s, t in rebuilt(detector, network, z):
        distance = 1 - (F.normalize(s, dim=1) * F.normalize(t, dim=1)).sum(1)
        expected += F.interpolate(distance[:, None], (24, 24), mode="bilinear", align_corners=False)[:, 0]
    with torch.no_grad():
        found = detector.score_map(Views(x=z))
    for one, want in zip(found, expected, strict=True):
        torch.testing.assert_close(
            one.double(), torch.from_numpy(gaussian_filter(want.double().numpy(), 2.0)), rtol=1e-5, atol=1e-5
        )
    torch.testing.assert_close(detector.score(Views(x=z)), found.flatten(1).max(1).values)


@pytest.mark.parametrize(("depth", "channels"), [(18, (8, 16, 32)), (50, (16, 32, 64))])
@pytest.mark.parametrize("side", [16, 20, 25])
def test_bottleneck_and_decoder_give_the_teachers_shapes(depth, channels, side):
    """Also where a side is no multiple of 8, and for both kinds of blocks."""
    network = Reverse(channels, depth)
    sides = [side, -(-side // 2), -(-side // 4)]
    maps = [torch.randn(2, c, s, s) for c, s in zip(channels, sides, strict=True)]
    assert [one.shape for one in network(maps)] == [one.shape for one in maps]
    assert len(network.decode[0]) == {18: 2, 50: 3}[depth] and len(network.embed) == {18: 2, 50: 3}[depth]
    # every map passes through the bottleneck: there is no other way from a level to itself
    assert network.embed(torch.randn(2, 3 * channels[2], 8, 8)).shape == (2, 2 * channels[2], 4, 4)


def test_it_learns_normal_images_and_the_teacher_stays_as_it_was():
    network, x = teacher(), raw(4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    detector = made(network, lr=5e-3).train()
    optimizer, losses = detector.recipe.optimizer(detector), []
    assert optimizer.defaults["betas"] == (0.5, 0.999)
    for _ in range(15):
        loss = detector.loss(Views(x=x), torch.Generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(name.startswith("student.") for name in detector.state_dict())


def test_what_does_not_fit_is_refused():
    for levels in ([1, 2], [3, 2, 1], [1, 1, 2]):
        with pytest.raises(UserError, match="reverse distillation has three, finest first"):
            ReverseDistillation(levels=levels)
    with pytest.raises(UserError, match=r"each must halve the sides of the one before; set detector.levels"):
        made(teacher(depth=10, width=4), levels=[1, 2, 4])
