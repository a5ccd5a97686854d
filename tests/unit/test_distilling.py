"""Training with a teacher: what it may change, what a student is afterwards, GDD's own properties."""

import copy

import pytest
import torch
from torch import nn

from outlie.backbones.mlp import MLP
from outlie.backbones.resnet import ResNet
from outlie.data.split import Rows, Split
from outlie.detectors.base import Views
from outlie.distillers.base import Seen
from outlie.distillers.calibrate import measured
from outlie.distillers.gdd import GDD, standard_noise
from outlie.distillers.hinton import Hinton
from outlie.distillers.training import Distilling, locations
from outlie.errors import UserError


def split(side: int = 8, classes: int = 3, n: int = 12) -> Split:
    """Random grey images of a few classes."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 1, side, side), generator=draw, dtype=torch.uint8)
    rows = Rows(x, torch.arange(n), torch.zeros(n, dtype=torch.int64), torch.arange(n) % classes)
    mean, scale = torch.full((1, 1, 1), 127.0), torch.full((1, 1, 1), 74.0)
    return Split("ood", rows, {"test": rows}, None, mean, scale, "", classes=tuple("abcdefgh"[:classes]))


def network(width: int, data: Split, **options) -> ResNet:
    torch.manual_seed(width)
    made = ResNet(depth=10, width=width, augment="none", epochs=1, batch_size=4, lr=0.01, **options)
    made.setup(data)
    return made


def wrapped(distiller=None, data: Split | None = None, **options) -> Distilling:
    data = data or split()
    distiller = distiller or GDD(weight=1.0, locations=["layer2"])
    torch.manual_seed(0)
    return Distilling(network(4, data, **options), network(8, data), distiller, data.train.x)


def step(module: Distilling, seed: int = 0) -> torch.Tensor:
    rows = split().train
    return module.train().loss(Views(x=rows.x, y=rows.y), torch.Generator().manual_seed(seed))


def test_the_teacher_is_bit_equal_after_ten_steps_and_stays_in_eval():
    module = wrapped()
    teacher = module._teacher[0]
    before = copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for seed in range(10):
        optimizer.zero_grad()
        step(module, seed).backward()
        optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not teacher.training and not any(m.training for m in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())


def test_the_state_holds_no_teacher_and_the_students_own_holds_no_helper():
    module = wrapped()
    names = list(module.state_dict())
    assert all(name.startswith(("student.", "distiller.")) for name in names)
    alone = network(4, split())
    alone.load_state_dict(module.student.state_dict())  # strict: exactly the keys of a student that never had a teacher
    x = split().train.x
    assert torch.equal(alone.eval()(x).logits, module.student.eval()(x).logits)


def test_the_loss_is_the_objective_plus_the_weighted_part():
    rows = split().train
    views = Views(x=rows.x, y=rows.y)
    once = wrapped(GDD(weight=1.0, locations=["layer2"]))
    thrice = wrapped(GDD(weight=3.0, locations=["layer2"]))
    objective, parts = once.eval().terms(views, torch.Generator().manual_seed(1))
    _, more = thrice.eval().terms(views, torch.Generator().manual_seed(1))
    torch.testing.assert_close(3 * parts["gdd_0"], more["gdd_0"])
    total = once.eval().loss(views, torch.Generator().manual_seed(1))
    torch.testing.assert_close(total, objective + parts["gdd_0"])
    assert once.means()["gdd_0"] == pytest.approx(float(parts["gdd_0"].detach()), rel=1e-6)


def test_noise_comes_from_the_generator_and_from_nowhere_else():
    silent, loud = wrapped(GDD(sigma=0.0, locations=["layer2"])), wrapped(GDD(locations=["layer2"]))
    for module in (silent, loud):
        module.eval()
    rows = split().train
    views = Views(x=rows.x, y=rows.y)
    values = {
        name: [float(module.loss(views, torch.Generator().manual_seed(seed)).detach()) for seed in (0, 0, 1)]
        for name, module in (("silent", silent), ("loud", loud))
    }
    assert values["silent"][0] == values["silent"][1] == values["silent"][2]
    assert values["loud"][0] == values["loud"][1] != values["loud"][2]


def test_the_weight_is_measured_on_the_part_that_it_scales():
    module = wrapped(Hinton(weight=1.0, energy=5.0))
    rows = split().train
    views = Views(x=rows.x, y=rows.y)
    before = copy.deepcopy(module.student.state_dict())
    own_loss, part = measured(module, copy.deepcopy(module.student), views, seed=0)
    with torch.no_grad():
        objective, parts = module.train().terms(views, torch.Generator().manual_seed(0))
    assert own_loss == pytest.approx(float(objective), rel=0.5)
    assert part == pytest.approx(float(parts["hinton"]), rel=0.5)  # and without 5 times the energies' difference
    after = wrapped(Hinton(weight=1.0, energy=5.0)).student.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("distiller", "data", "student", "words"),
    [
        (GDD(locations=["layer9"]), split(), {}, "unknown layer of the student.*layer9.*did you mean 'layer"),
        (GDD(locations=["layer2:layr2"]), split(), {}, "unknown layer of the teacher.*layr2"),
        (GDD(), split(), {}, "one position"),  # 8 pixels: the last stage is 1 x 1
        (Hinton(), split(), {"mixup": 0.2}, "mixup"),
    ],
)
def test_what_cannot_be_compared_is_refused(distiller, data, student, words):
    with pytest.raises(UserError, match=words):
        wrapped(distiller, data, **student)


def test_a_teacher_of_other_classes_is_refused():
    with pytest.raises(UserError, match="5 classes"):
        Distilling(network(4, split()), network(8, split(classes=5)), Hinton(), split().train.x)


def test_networks_without_stages_need_names():
    torch.manual_seed(0)
    student, teacher = nn.Linear(2, 2), nn.Linear(2, 2)
    student.stage_names = teacher.stage_names = ()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError, match="no stages"):
        locations(GDD(), student, teacher)


def test_stages_are_paired_as_the_distiller_says():
    few, many = nn.Module(), nn.Module()
    few.stage_names, many.stage_names = ("a", "b"), ("a", "b", "c", "d")  # pyright: ignore[reportAttributeAccessIssue]
    for module in (few, many):
        for name in "abcd":
            setattr(module, name, nn.Identity())
    assert locations(GDD(), few, many) == [("b", "d")]
    every = GDD()
    every.places = "all"  # pyright: ignore[reportAttributeAccessIssue]
    assert locations(every, many, many) == [(name, name) for name in "abcd"]
    with pytest.raises(UserError, match="which belong together"):
        locations(every, few, many)


# GDD itself


def seen(channels: int, side: int = 6, n: int = 8, seed: int = 0) -> Seen:
    draw = torch.Generator().manual_seed(seed)
    return Seen(torch.zeros(n, 3), [torch.randn(n, channels, side, side, generator=draw)])


def set_up(distiller: GDD, student: Seen, teacher: Seen) -> GDD:
    torch.manual_seed(0)
    distiller.setup(student, teacher)
    return distiller


def value(distiller: GDD, student: Seen, teacher: Seen, seed: int = 0) -> torch.Tensor:
    y = torch.zeros(len(student.logits), dtype=torch.int64)
    return distiller(student, teacher, y, torch.Generator().manual_seed(seed))["gdd_0"]


def cancels(distiller: GDD) -> None:
    """Weights of G's first convolution that sum to zero over the input channels at every tap."""
    first = distiller.generators[0][0]  # pyright: ignore[reportIndexIssue]
    with torch.no_grad():
        first.weight -= first.weight.mean(1, keepdim=True)


def test_shared_noise_can_be_cancelled_and_noise_of_each_channel_cannot():
    student, teacher = seen(6), seen(6, seed=1)
    shared = set_up(GDD(), student, teacher)
    own = set_up(GDD(noise_shape="per_channel"), student, teacher)
    values = {}
    for name, distiller in (("shared", shared), ("own", own)):
        cancels(distiller)
        values[name] = [float(value(distiller, student, teacher, seed)) for seed in (0, 1)]
    assert values["shared"][0] == pytest.approx(values["shared"][1], rel=1e-5)
    assert abs(values["own"][0] - values["own"][1]) > 1e-3 * values["own"][0]


def test_the_last_bias_has_no_gradient_for_channels_and_one_for_squares():
    student, teacher = seen(4), seen(6, seed=1)
    gradients = {}
    for target in ("channel_kl", "mse"):
        distiller = set_up(GDD(target=target), student, teacher)
        value(distiller, student, teacher).backward()
        gradients[target] = distiller.generators[0][-1].bias.grad.abs().max()  # pyright: ignore
    assert gradients["channel_kl"] < 1e-5 * 145 and gradients["mse"] > 1e-2


def test_without_noise_a_batch_said_twice_costs_the_same():
    student, teacher = seen(4), seen(6, seed=1)
    distiller = set_up(GDD(sigma=0.0), student, teacher)
    twice = [Seen(one.logits.repeat(2, 1), [one.maps[0].repeat(2, 1, 1, 1)]) for one in (student, teacher)]
    torch.testing.assert_close(value(distiller, student, teacher), value(distiller, *twice))


def test_a_peak_of_a_thousand_is_finite():
    student, teacher = seen(4), seen(6, seed=1)
    teacher.maps[0][0, 0, 0, 0] = 1e3
    distiller = set_up(GDD(), student, teacher)
    assert value(distiller, student, teacher).isfinite()


def test_without_generator_and_noise_it_is_the_channel_loss_of_the_features():
    from outlie.distillers.channel_kl import channel_kl

    student, teacher = seen(6), seen(6, seed=1)
    distiller = set_up(GDD(weight=2.0, gen_layers=0, sigma=0.0), student, teacher)
    torch.testing.assert_close(
        value(distiller, student, teacher), 2 * channel_kl(student.maps[0], teacher.maps[0], 4.0)
    )
    assert not list(distiller.parameters())


def test_eight_fixed_images_are_learnt():
    """Property (ix): 300 steps of a student of two layers lower the loss more than five times."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, 8, 8, generator=draw)
    torch.manual_seed(0)
    teach = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
    student = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    with torch.no_grad():
        teacher = Seen(torch.zeros(8, 3), [3 * teach(x)])
    distiller = set_up(GDD(sigma=0.1), Seen(torch.zeros(8, 3), [student(x)]), teacher)
    optimizer = torch.optim.Adam([*student.parameters(), *distiller.parameters()], 1e-2)
    losses = []
    for seed in range(300):
        loss = value(distiller, Seen(torch.zeros(8, 3), [student(x)]), teacher, seed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 5


@pytest.mark.parametrize("law", ["gaussian", "uniform", "laplace", "poisson"])
def test_every_law_has_mean_zero_and_variance_one(law):
    drawn = standard_noise(law, (40_000,), torch.Generator().manual_seed(0))
    assert abs(float(drawn.mean())) < 0.02 and abs(float(drawn.var()) - 1) < 0.05


@pytest.mark.parametrize("place", ["before", "after", "inside", "teacher", "image"])
def test_noise_acts_where_it_is_placed(place):
    student, teacher = seen(4), seen(6, seed=1)
    distiller = set_up(GDD(place=place), student, teacher)
    z = torch.zeros(2, 1, 4, 4)
    disturbed = bool(distiller.image(z, torch.Generator().manual_seed(0)).abs().sum())
    assert disturbed == (place == "image")
    values = [float(value(distiller, student, teacher, seed)) for seed in (0, 1)]
    assert (values[0] != values[1]) == (place != "image")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"place": "inside", "gen_layers": 1}, "ReLU"),
        ({"noise": "mask", "place": "teacher"}, "hides"),
    ],
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(UserError, match=words):
        GDD(**options)


def test_levels_need_all_channels():
    with pytest.raises(UserError, match="gen_width"):
        set_up(GDD(pooled=1.0, gen_width=4), seen(4), seen(6, seed=1))


def test_a_narrow_generator_has_few_parameters():
    """Section 1.8: A to C_mid, G at C_mid, a 1x1 convolution to C_T."""
    student, teacher = seen(8), seen(64, seed=1)
    narrow = set_up(GDD(gen_width=16), student, teacher)
    exact = set_up(GDD(), student, teacher)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(narrow) == (8 * 16 + 16) + 2 * (9 * 16 * 16 + 16) + (16 * 64 + 64)
    assert count(exact) == (8 * 64 + 64) + 2 * (9 * 64 * 64 + 64)


def test_rows_are_refused():
    rows = Seen(torch.zeros(4, 3), [torch.zeros(4, 5)])
    with pytest.raises(UserError, match="distiller=hinton or distiller=fitnet"):
        GDD().setup(rows, rows)


def test_a_network_on_rows_learns_from_another():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 5, generator=draw, dtype=torch.float64), torch.arange(12) % 3
    rows = Rows(x, torch.arange(12), torch.zeros(12, dtype=torch.int64), y)
    data = Split("ood", rows, {"test": rows}, None, x.mean(0), x.std(0), "", classes=("a", "b", "c"))
    made = []
    for width in (4, 8):
        torch.manual_seed(width)
        mlp = MLP(hidden=[width], augment="none", epochs=1, batch_size=4)
        mlp.setup(data)
        made.append(mlp)
    module = Distilling(made[0], made[1], Hinton(), x)
    loss = module.train().loss(Views(x=x, y=y), torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.isfinite() and made[0].head.weight.grad.abs().sum() > 0
