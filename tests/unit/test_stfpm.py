"""STFPM against the specification's fixture and against the loss and the map written out; what its student is."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from outlie.backbones.mlp import MLP
from outlie.backbones.resnet import ResNet
from outlie.backbones.wide_resnet import WideResNet
from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.stfpm import STFPM
from outlie.detectors.student_teacher import (
    at_size,
    cosine_distance,
    flat_cosine_distance,
    gaussian_blur,
    squared_distance,
    stage_maps,
)
from outlie.errors import UserError

# fixture of the specification of distillation, section 6
S = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]], [[4.0, 0.0], [0.0, -4.0]]]], dtype=torch.float64)
T = torch.tensor([[[[3.0, 2.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]]], dtype=torch.float64)


def teacher(kind=ResNet, shape=(3, 24, 24), **options) -> ResNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = kind(**(options or {"depth": 10, "width": 4}))
        network.mean, network.scale = torch.full((shape[0], 1, 1), 120.0), torch.full((shape[0], 1, 1), 60.0)
        network.build(shape, 5)
        for module in network.modules():  # running statistics that are not those of a fresh network
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def spec_of(network, shape=(3, 24, 24), seed: int = 0) -> Spec:
    return Spec({"x": shape}, seed, 5, network.head, network)


def made(network, **options) -> STFPM:
    return set_up(STFPM(**options), spec_of(network)).eval()


def raw(count: int = 6, seed: int = 0, side: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def test_distances_of_the_specifications_fixture():
    found = squared_distance(S, T)
    torch.testing.assert_close(
        found[0], torch.tensor([[1.367544, 0.211146], [0.585786, 3.6]], dtype=torch.float64), rtol=0, atol=1e-6
    )
    assert float(found.mean()) == pytest.approx(1.441119, abs=1e-6)
    assert float(cosine_distance(S, T).mean()) == pytest.approx(0.720560, abs=1e-6)
    assert float(flat_cosine_distance(S, T)) == pytest.approx(0.860990, abs=1e-6)


@pytest.mark.parametrize("sigma", [0.7, 4.0])
def test_blur_is_scipys(sigma):
    maps = torch.rand(
        3, 9, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )  # narrower than 4 sigma
    expected = np.stack([gaussian_filter(one, sigma) for one in maps.numpy()])
    np.testing.assert_allclose(gaussian_blur(maps, sigma).numpy(), expected, rtol=0, atol=1e-10)


def test_loss_and_map_written_out():
    network, x = teacher(), raw(2)
    detector = made(network, levels=[1, 2, 3])
    z = network.standardise(x)
    with torch.no_grad():
        theirs, ours = network.stages(z)[:3], detector.student.stages(z)[:3]
        loss, product = 0.0, torch.ones(2, *theirs[0].shape[2:])
        for t, s in zip(theirs, ours, strict=True):
            distance = torch.zeros(2, *t.shape[2:])
            for b in range(2):
                for i in range(t.shape[2]):
                    for j in range(t.shape[3]):
                        a, c = t[b, :, i, j], s[b, :, i, j]
                        distance[b, i, j] = ((a / a.norm().clamp(min=1e-12) - c / c.norm().clamp(min=1e-12)) ** 2).sum()
            loss += float(distance.mean())
            product = (
                product
                * torch.nn.functional.interpolate(
                    distance[:, None], product.shape[1:], mode="bilinear", align_corners=False
                )[:, 0]
            )
        assert float(detector.loss(Views(x=x), torch.Generator())) == pytest.approx(loss, rel=1e-4)
        found = detector.score_map(Views(x=z))
        torch.testing.assert_close(found, at_size(product, (24, 24)), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(detector.score(Views(x=z)), found.flatten(1).max(1).values)
        assert found.shape == (2, 24, 24)


def test_the_validation_loss_is_the_loss_of_all_held_out_images():
    network, x = teacher(), raw(40)
    detector = made(network)
    with torch.no_grad():
        each = torch.stack([detector.objective(one[None]) for one in x])
    assert float(detector.validate(Views(x=x))) == pytest.approx(float(each.mean()), rel=1e-4)


def test_the_student_has_the_teachers_shape_and_none_of_its_weights():
    network = teacher()
    detector = made(network, levels=[1, 2])
    ours, theirs = detector.student.state_dict(), network.state_dict()
    weights = [name for name in ours if name.endswith("weight") and ours[name].ndim == 4]
    assert weights and all(ours[name].shape == theirs[name].shape for name in weights)
    assert not any(torch.equal(ours[name], theirs[name]) for name in weights)
    running = [name for name in ours if name.endswith("running_mean")]
    assert all(not ours[name].any() for name in running)
    assert not [name for name in ours if name.startswith(("layer3", "layer4", "fc"))]
    assert all(name.startswith("student.") for name in detector.state_dict())
    assert len(stage_maps(detector.student, network.standardise(raw()), [2])) == 1


def test_ten_steps_leave_the_teacher_as_it_was():
    network = teacher()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    detector = made(network, lr=0.1, batch_size=4).train()
    optimizer, losses = detector.recipe.optimizer(detector), []
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["momentum"] == 0.9
    x = raw(4)
    for _ in range(10):
        loss = detector.loss(Views(x=x), torch.Generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert not network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert detector.student.bn1.running_mean.any()  # the student's own statistics are learned


def test_the_published_settings_are_the_defaults():
    recipe = STFPM().recipe
    assert (recipe.lr, recipe.weight_decay, recipe.batch_size, recipe.epochs) == (0.4, 1e-4, 32, 100)
    assert recipe.validation == 0.2


def test_other_networks_with_stages_will_do():
    network = teacher(WideResNet, depth=10, widen=1)
    detector = made(network, levels=[1, 2, 3])
    assert detector.score_map(Views(x=network.standardise(raw(2)))).shape == (2, 24, 24)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"stage 5 of 4: set detector.levels to some of 1 to 4"):
        made(teacher(), levels=[1, 5])
    network = MLP()
    network.build((8,), 3)
    with pytest.raises(UserError, match="STFPM needs the maps after a network's stages"):
        set_up(STFPM(), Spec({"x": (8,)}, 0, 3, network.head, network))


def test_the_seed_makes_the_student():
    network = teacher()
    one, same, other = (set_up(STFPM(), spec_of(network, seed=seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["student.conv1.weight"], other["student.conv1.weight"])
