"""EfficientAD: sizes and losses against the specification and written out; maps, quantiles, the taught teacher."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from outlie.detectors.base import Views, set_up
from outlie.detectors.efficient_ad import EfficientAD, channel_pooled, hardest_mean
from outlie.detectors.patch_networks import AutoEncoder, pdn, pdn_side
from outlie.detectors.photos import drawn, grey_of, jittered, read_photos
from outlie.errors import UserError

from .test_stfpm import raw, spec_of, teacher

SHAPE = (3, 48, 48)
SMALL = {"channels": 6, "width": 4, "code": 4, "teacher_steps": 5, "min_steps": 0}


def made(network, **options) -> EfficientAD:
    return set_up(EfficientAD(**SMALL | options), spec_of(network, SHAPE)).eval()


def ready(network, x, **options) -> EfficientAD:
    """Prepared and fitted, not trained."""
    detector = made(network, **options)
    detector.prepare(Views(x=x))
    with torch.no_grad():
        detector.update(Views(x=network.standardise(x)))
        detector.finish()
    return detector


@pytest.fixture(scope="module")
def network():
    return teacher(shape=SHAPE)


def test_the_pdns_are_the_published_ones():
    small, medium = (pdn(size, 3, 128, 384) for size in ("S", "M"))
    assert sum(p.numel() for p in small.parameters()) == 2_694_144  # 2.69 M
    z = torch.zeros(1, 3, 256, 256)
    with torch.no_grad():
        assert small(z).shape == (1, 384, 56, 56)
        assert medium(z[..., :64, :64]).shape == (1, 384, 8, 8)
        for side in (36, 50, 64, 100):
            assert small[:1](z) is not None and pdn(size="S", channels=3, width=2, outputs=3)(
                z[..., :side, :side]
            ).shape[2] == pdn_side(side)
    assert pdn_side(256) == 56


def test_a_position_sees_33_pixels():
    net = pdn("S", 1, 2, 2).double()
    x = torch.rand(1, 1, 64, 64, dtype=torch.float64).requires_grad_()
    net(x)[0, 0, 3, 4].backward()
    seen = (x.grad[0, 0] != 0).nonzero()
    low, high = seen.amin(0), seen.amax(0)
    assert (high - low + 1 <= 33).all() and (high - low + 1 >= 25).all()  # a dead ReLU may hide the rim
    assert (low >= torch.tensor([12, 16])).all() and (high < torch.tensor([12, 16]) + 33).all()  # 4 pixels a cell


def test_the_auto_encoder_is_the_published_one_at_256_and_fits_other_sizes():
    net = AutoEncoder(3, (256, 256), 64, 384)
    convs = [m for m in net.encode if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convs] == [32, 32, 64, 64, 64, 64] and convs[-1].kernel_size == (8, 8)
    with torch.no_grad():
        x = torch.zeros(1, 3, 256, 256)
        assert net.encode(x).shape == (1, 64, 1, 1) and net(x).shape == (1, 384, 56, 56)
        for side in (40, 64, 100):
            other = AutoEncoder(1, (side, side + 8), 4, 5)
            assert other(torch.zeros(1, 1, side, side + 8)).shape == (1, 5, pdn_side(side), pdn_side(side + 8))


@pytest.mark.parametrize("n", [10, 1000, 1001, 5003])
def test_the_hard_loss_is_the_mean_above_the_quantile(n):
    values = torch.rand(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    expected = values[values >= torch.quantile(values, 0.999)].mean()
    assert float(hardest_mean(values)) == pytest.approx(float(expected), rel=1e-12)


def test_loss_written_out(network, tmp_path):
    x = raw(2, side=48)
    for i in range(3):
        Image.fromarray(raw(1, seed=i, side=60)[0].permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    detector = ready(network, x, photos=tmp_path)
    found = detector.loss(Views(x=x), torch.Generator().manual_seed(3))
    # the same draws in the same order: photos, which are grey, then the colours of the training images
    generator = torch.Generator().manual_seed(3)
    photos = read_photos(tmp_path, SHAPE)
    picked = drawn(photos, 2, generator, torch.device("cpu")).float()
    grey = torch.rand(2, generator=generator) < 0.3
    picked = torch.stack([grey_of(p[None])[0].expand(3, -1, -1) if g else p for p, g in zip(picked, grey, strict=True)])
    other = network.standardise(jittered(x, generator))

    def normal(z):
        return (detector.teacher(z) - detector.mean) / detector.scale

    z, half = network.standardise(x), 6
    with torch.no_grad():
        hard = (normal(z) - detector.student(z)[:, :half]) ** 2
        expected = hard[hard >= torch.quantile(hard, 0.999)].mean()
        expected = expected + (detector.student(network.standardise(picked))[:, :half] ** 2).mean()
        whole = detector.autoencoder(other)
        expected = expected + ((normal(other) - whole) ** 2).mean()
        expected = expected + ((whole - detector.student(other)[:, half:]) ** 2).mean()
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-4)


def test_colours_change_by_one_factor_each():
    x = raw(60, side=8)
    found = jittered(x, torch.Generator().manual_seed(0))
    kinds = []
    for before, after in zip(x.float(), found, strict=True):
        inside = (after > 0) & (after < 255)
        grey = grey_of(before[None])[0]
        for i, other in enumerate((torch.zeros_like(grey), grey.mean() * torch.ones_like(grey), grey)):
            other = other.expand(3, -1, -1)
            far = inside & ((before - other).abs() > 20)
            factor = (after - other)[far] / (before - other)[far]
            if float(factor.max() - factor.min()) < 1e-3:
                kinds.append(i)
                assert 0.8 - 1e-3 <= float(factor[0]) <= 1.2 + 1e-3
    assert len(kinds) == 60 and set(kinds) == {0, 1, 2}


def test_the_description_of_training_images_is_normal(network):
    x = raw(20, side=48)
    detector = ready(network, x)
    described = detector.described(network.standardise(x)).double()
    np.testing.assert_allclose(described.mean((0, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(described.var((0, 2, 3), correction=0), 1, rtol=1e-3)


def test_map_and_quantiles_written_out(network):
    x, new = raw(12, side=48), raw(3, seed=9, side=48)
    detector = made(network)
    detector.prepare(Views(x=x))
    with torch.no_grad():
        for part in (x[:5], x[5:]):  # in batches
            detector.update(Views(x=network.standardise(part)))
        detector.finish()

        def both(z):
            student, target = detector.student(z), (detector.teacher(z) - detector.mean) / detector.scale
            return ((target - student[:, :6]) ** 2).mean(1), ((detector.autoencoder(z) - student[:, 6:]) ** 2).mean(1)

        total = 0
        for calibration, one in zip(both(network.standardise(x)), both(network.standardise(new)), strict=True):
            low, high = np.quantile(calibration.double().numpy(), [0.9, 0.995])
            total = total + 0.1 * (one.double() - low) / (high - low) / 2
        padded = F.pad(total, (4, 4, 4, 4)).float()
        expected = F.interpolate(padded[:, None], (48, 48), mode="bilinear", align_corners=False)[:, 0]
        found = detector.score_map(Views(x=network.standardise(new)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_channels_are_averaged_with_their_neighbours():
    maps = torch.arange(12.0).view(1, 6, 1, 2)
    torch.testing.assert_close(channel_pooled(maps, 3), maps.view(1, 3, 2, 1, 2).mean(2))


def test_a_taught_teacher_comes_closer_to_the_backbone(network):
    x, errors = raw(16, side=4).repeat_interleave(12, 2).repeat_interleave(12, 3), []
    for steps in (1, 30):
        detector = made(network, teacher_steps=steps, width=16)
        detector.prepare(Views(x=x))
        target = detector.target(x)
        target = (target - target.mean((0, 2, 3), keepdim=True)) / target.std((0, 2, 3), keepdim=True).clamp(min=1e-6)
        with torch.no_grad():
            errors.append(float(F.mse_loss(detector.teacher(network.standardise(x)), target)))
    assert errors[1] < 0.98 * errors[0]


def test_a_given_teacher_is_taken_as_it_is_and_never_trained(network, tmp_path):
    given = pdn("S", 3, 4, 6)
    torch.save(given.state_dict(), tmp_path / "teacher.pth")
    detector = made(network, teacher=tmp_path / "teacher.pth")
    detector.prepare(Views(x=raw(4, side=48)))
    trained = {id(p) for group in detector.recipe.optimizer(detector).param_groups for p in group["params"]}
    for name, value in given.state_dict().items():
        assert torch.equal(detector.teacher.state_dict()[name], value)
    assert not trained & {id(p) for p in detector.teacher.parameters()}
    other = made(network, teacher=tmp_path / "teacher.pth", width=8)
    with pytest.raises(UserError, match="another architecture"):
        other.prepare(Views(x=raw(4, side=48)))


def test_small_images_are_refused(network):
    with pytest.raises(UserError, match=r"images of 36 pixels or more, these have 32; set dataset.size"):
        set_up(EfficientAD(**SMALL), spec_of(network, (3, 32, 32)))


def test_the_learning_rate_falls_to_a_tenth_at_95_percent():
    recipe = EfficientAD().recipe
    assert recipe.decay_lr and recipe.epochs_of(700) == 100  # 70,000 steps
    assert [recipe.lr_at(p) for p in (0.0, 0.949, 0.95, 1.0)] == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5])


def test_photos_are_centre_crops_at_twice_the_size(tmp_path):
    image = np.zeros((200, 300, 3), np.uint8)
    image[:, :150] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    photos = read_photos(tmp_path, (3, 50, 50))  # the shorter side becomes 100, of 150 x 100 the middle 50 x 50
    assert photos.shape == (1, 3, 50, 50)
    assert (photos[0, :, :, :24] == 255).all() and (photos[0, :, :, 26:] == 0).all()
    with pytest.raises(UserError, match=r"detector.photos=.* is not there"):
        read_photos(tmp_path / "nowhere", (3, 50, 50))
