"""Distillers against the specification's fixture, loops over their definitions, and what all of them have to be."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp, softmax
from torch import Tensor, nn

from outlie import catalog
from outlie.build import build
from outlie.diffusion.processes import VP
from outlie.distillers.attention import attention_difference
from outlie.distillers.base import Distiller, Seen
from outlie.distillers.channel_kl import channel_kl
from outlie.distillers.cwd import CWD, CWDFeatures
from outlie.distillers.diffkd import DiffKD, ddim
from outlie.distillers.fitnet import FitNet
from outlie.distillers.gdd import GDD
from outlie.distillers.hinton import Hinton, energy_difference, labels_at, soft_labels
from outlie.distillers.ifvd import IFVD, to_centroid, variation_difference
from outlie.distillers.mgd import MGD, squared_error
from outlie.distillers.skd import SKD, pair_difference, soft_cross_entropy
from outlie.errors import UserError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "distillation.json").read_text())
S, T = torch.tensor(GOLDEN["student"], dtype=torch.float32), torch.tensor(GOLDEN["teacher"], dtype=torch.float32)
S_LOGITS, T_LOGITS = torch.tensor(GOLDEN["student_logits"]).float(), torch.tensor(GOLDEN["teacher_logits"]).float()
NO_Y = torch.zeros(1, dtype=torch.int64)
YAMLS = catalog.choices("distiller", catalog.roots())
EVERY = sorted({*YAMLS} - {"scores"})  # which teaches no network
ROWS = ("hinton", "fitnet")  # families that compare rows too


def built(name: str, **options) -> Distiller:
    return build(catalog.load(YAMLS[name]) | options)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seen(channels: list[int], side: int, seed: int, n: int = 3) -> Seen:
    """Maps of the given channels, half as large each time, and logits of 5 classes of 12 x 12 pixels."""
    draw = generator(seed)
    maps = [torch.randn(n, c, side >> i, side >> i, generator=draw) for i, c in enumerate(channels)]
    return Seen(torch.randn(n, 5, 12, 12, generator=draw), maps)


def labels(n: int = 3) -> Tensor:
    """Classes 0 to 3 of 5, and pixels that do not count."""
    y = torch.randint(0, 4, (n, 12, 12), generator=generator(9))
    return y.masked_fill(torch.rand(y.shape, generator=generator(8)) < 0.2, 255)


def pair(n: int = 3) -> tuple[Seen, Seen]:
    """A student of other channels and other sizes than its teacher's."""
    return seen([4, 6], 8, 1, n), seen([12, 16], 12, 2, n)


def set_up(distiller: Distiller, student: Seen, teacher: Seen) -> Distiller:
    torch.manual_seed(0)
    distiller.setup(student, teacher)
    return distiller


def summed(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum()


def total(parts: dict[str, Tensor]) -> float:
    return float(summed(parts).detach())


# the specification's fixture


@pytest.mark.parametrize("temperature", [1, 2, 4, 8])
def test_channel_kl_is_the_fixtures(temperature):
    assert float(channel_kl(S, T, temperature)) == pytest.approx(
        GOLDEN["channel_kl"][str(temperature)], rel=2e-6
    )  # float32


def test_channel_kl_of_each_channel_and_its_limit():
    raw = [float(channel_kl(S[:, c : c + 1], T[:, c : c + 1], 4)) / 16 for c in (0, 1)]
    assert raw == pytest.approx(GOLDEN["raw_kl_by_channel_at_4"], abs=1e-6)
    assert float(channel_kl(S, T, 300)) == pytest.approx(GOLDEN["channel_kl_limit"], rel=3e-3)
    limit = 0.5 * (T - S).numpy().var((2, 3)).mean()
    assert limit == GOLDEN["channel_kl_limit"]


def test_channel_kl_does_not_see_levels_and_is_zero_for_equals():
    assert float(channel_kl(S + 5, T - 3, 4)) == pytest.approx(GOLDEN["channel_kl"]["4"], abs=1e-6)
    assert float(channel_kl(T, T, 4)) == 0


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_hinton_is_the_fixtures(temperature):
    expected = GOLDEN["hinton"][str(int(temperature))]
    assert float(soft_labels(S_LOGITS, T_LOGITS, temperature, NO_Y)) == pytest.approx(expected, abs=1e-6)
    parts = Hinton(2.0, temperature)(Seen(S_LOGITS, []), Seen(T_LOGITS, []), NO_Y, generator())
    assert total(parts) == pytest.approx(2 * expected, abs=2e-6)
    assert float(soft_labels(T_LOGITS, T_LOGITS, temperature, NO_Y)) == 0


def test_attention_is_the_fixtures():
    assert float(attention_difference(S, T)) == pytest.approx(GOLDEN["attention"], abs=1e-6)


def test_mgd_is_the_fixtures():
    assert float(squared_error(S, T)) == GOLDEN["mgd_sum_of_squares"]
    distiller = set_up(MGD(weight=1.0, mask=0.0), Seen(S, [S]), Seen(T, [T]))
    assert isinstance(distiller, MGD)
    distiller.generators = nn.ModuleList([nn.Identity()])
    assert total(distiller(Seen(S, [S]), Seen(T, [T]), NO_Y, generator())) == GOLDEN["mgd_sum_of_squares"]


def test_cwd_is_the_channel_kl_of_logits():
    assert total(CWD()(Seen(S, []), Seen(T, []), NO_Y, generator())) == pytest.approx(3 * GOLDEN["channel_kl"]["4"])


# loops over the definitions


def test_soft_labels_of_pixels_are_the_mean_over_those_that_count():
    student, teacher, y = seen([], 0, 1).logits, seen([], 0, 2).logits, labels()
    terms = []
    for n, i, j in zip(*np.nonzero(y.numpy() != 255)):
        p, log_q = softmax(teacher[n, :, i, j].numpy() / 4), log_softmax(student[n, :, i, j].numpy() / 4)
        terms.append(16 * (p * (np.log(p) - log_q)).sum())
    assert float(soft_labels(student, teacher, 4.0, y)) == pytest.approx(np.mean(terms), rel=1e-5)
    nothing = torch.full_like(y, 255)
    assert float(soft_labels(student, teacher, 4.0, nothing)) == 0


def test_energies_are_compared_in_standard_deviations_of_the_batch():
    student, teacher = torch.randn(7, 5, generator=generator(1)), 3 * torch.randn(7, 5, generator=generator(2)) + 9
    e_s, e_t = (-np.asarray(logsumexp(z.double().numpy(), 1)) for z in (student, teacher))
    z_s, z_t = ((e - e.mean()) / e.std() for e in (e_s, e_t))
    y = torch.zeros(7, dtype=torch.int64)
    assert float(energy_difference(student, teacher, y)) == pytest.approx(((z_s - z_t) ** 2).mean(), rel=1e-4)
    assert float(energy_difference(student, student + 5, y)) == pytest.approx(0, abs=1e-6)  # levels are z-scored away
    parts = Hinton(energy=2.0)(Seen(student, []), Seen(teacher, []), y, generator())
    assert float(parts["energy"]) == pytest.approx(2 * ((z_s - z_t) ** 2).mean(), rel=1e-4)


def test_one_sample_has_no_energy_to_compare_and_no_bad_gradient():
    student = torch.randn(1, 5, requires_grad=True)
    energy_difference(student, torch.randn(1, 5), NO_Y).backward()
    assert student.grad is not None and not student.grad.any()


def test_labels_take_the_nearest_pixels():
    y = torch.tensor([[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 255]]])
    assert labels_at(y, torch.zeros(1, 1, 2, 2)).tolist() == [[[0, 2], [8, 10]]]
    assert labels_at(y, torch.zeros(1, 1, 8, 8))[0, -1].tolist() == [12, 12, 13, 13, 14, 14, 255, 255]


def test_attention_pools_the_larger_map():
    small, large = torch.randn(2, 3, 4, 4, generator=generator(1)), torch.randn(2, 5, 8, 8, generator=generator(2))
    pooled = large.view(2, 5, 4, 2, 4, 2).mean((3, 5))
    assert float(attention_difference(small, large)) == pytest.approx(float(attention_difference(small, pooled)))
    assert float(attention_difference(large, small)) == pytest.approx(float(attention_difference(pooled, small)))


def test_fitnet_is_a_mean_squared_error_of_maps_and_of_rows():
    same = Seen(S, [S]), Seen(T, [T])
    assert total(set_up(FitNet(), *same)(*same, NO_Y, generator())) == pytest.approx(100 * 56 / 8)
    rows = Seen(S_LOGITS, [torch.randn(6, 4)]), Seen(T_LOGITS, [torch.randn(6, 9)])
    distiller = set_up(FitNet(weight=1.0), *rows)
    layer = next(m for m in distiller.modules() if isinstance(m, nn.Linear))
    made = rows[0].maps[0].numpy() @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    expected = ((made - rows[1].maps[0].numpy()) ** 2).mean()
    assert total(distiller(*rows, NO_Y, generator())) == pytest.approx(float(expected), rel=1e-5)


def test_pixels_of_skd_are_a_cross_entropy_of_soft_labels():
    student, teacher = seen([], 0, 1).logits, seen([], 0, 2).logits
    authors = -(softmax(teacher.numpy(), 1) * log_softmax(student.numpy(), 1)).sum() / 12**2  # summed over the batch
    assert float(soft_cross_entropy(student, teacher)) == pytest.approx(authors / 3, rel=1e-5)


@pytest.mark.parametrize(("height", "width", "cell"), [(8, 8, 0.5), (8, 6, 0.25), (5, 7, 0.5)])
def test_pairs_of_skd_are_the_similarities_of_pooled_regions(height, width, cell):
    student, teacher = torch.randn(2, 3, height, width), torch.randn(2, 4, height, width)
    tall, wide = int(cell * height), int(cell * width)
    errors = []
    for n in range(2):
        matrices = []
        for f in (student[n].numpy(), teacher[n].numpy()):
            cells = [
                f[:, i : i + tall, j : j + wide].max((1, 2))
                for i in range(0, height, tall) for j in range(0, width, wide)
            ]  # fmt: skip
            unit = np.array([one / np.linalg.norm(one) for one in cells])
            matrices.append(unit @ unit.T)
        errors.append(((matrices[0] - matrices[1]) ** 2).sum() / len(matrices[0]) ** 2)
    assert float(pair_difference(student, teacher, cell)) == pytest.approx(np.mean(errors), rel=1e-4)


def test_variation_is_the_cosine_to_the_mean_of_the_pixels_class():
    student, teacher, y = torch.randn(3, 4, 12, 12), torch.randn(3, 6, 12, 12), labels()
    differences, all_cosines = [], []
    for n in range(3):
        cosines = []
        for f in (student[n].numpy(), teacher[n].numpy()):
            means = {k: f[:, y[n].numpy() == k].mean(1) for k in np.unique(y[n].numpy()) if k != 255}
            cosines.append({
                (i, j): f[:, i, j] @ means[k] / np.linalg.norm(f[:, i, j]) / np.linalg.norm(means[k])
                for (i, j), k in np.ndenumerate(y[n].numpy()) if k != 255
            })  # fmt: skip
        differences += [(cosines[0][at] - cosines[1][at]) ** 2 for at in cosines[0]]
        all_cosines.append(cosines[0])
    assert float(variation_difference(student, teacher, y, 5)) == pytest.approx(np.mean(differences), rel=1e-4)
    found = to_centroid(student, y, 5)
    assert float(found[1][next(iter(all_cosines[1]))]) == pytest.approx(next(iter(all_cosines[1].values())), rel=1e-4)
    assert not found[y == 255].any()


def test_ddim_lands_where_an_exact_predictor_says():
    """Of a point mass x_0 the noise is known: eps = (x - a x_0) / b; the last step arrives at x_0 itself."""
    process, clean = VP(), torch.randn(2, 3, 2, 2, generator=generator(1))
    asked: list[int] = []

    def exact(x: Tensor, time: Tensor) -> Tensor:
        asked.append(int(time[0]))
        abar = float(np.prod(1 - np.linspace(1e-4, 0.02, 1000)[: asked[-1]]))
        return (x - abar**0.5 * clean) / (1 - abar) ** 0.5

    distiller = set_up(DiffKD(), *pair())
    assert isinstance(distiller, DiffKD)
    times = distiller.of_maps[0].times  # pyright: ignore[reportAttributeAccessIssue]
    landed = ddim(exact, torch.randn(2, 3, 2, 2, generator=generator(2)), process, times)
    torch.testing.assert_close(landed, clean, rtol=1e-4, atol=1e-4)
    assert asked == [401, 301, 201, 101, 1]  # 400, 300, ... of a chain that counts from 0


def test_ddim_keeps_what_has_no_noise():
    """With eps = 0 a step from abar to abar' multiplies by sqrt(abar' / abar): all steps, by 1 / sqrt(abar_401)."""
    x = torch.randn(2, 3, 2, 2)
    abar = np.prod(1 - np.linspace(1e-4, 0.02, 1000)[:401])
    found = ddim(lambda x, time: torch.zeros_like(x), x, VP(), [401, 301, 201, 101, 1])
    torch.testing.assert_close(found, x / float(abar) ** 0.5, rtol=1e-4, atol=1e-5)


def test_the_code_of_diffkd_is_no_target_that_moves():
    student, teacher = pair()
    distiller = set_up(DiffKD(code=8), student, teacher)
    parts = distiller(student, teacher, labels(), generator())
    assert {"autoencoder_0", "noise_0", "diffkd_0", "noise_logits", "diffkd_logits"} <= set(parts)
    encoder = [p for name, p in distiller.named_parameters() if "encoder" in name and "decoder" not in name]
    assert all(grad is None for grad in torch.autograd.grad(parts["diffkd_0"], encoder, allow_unused=True,
                                                            retain_graph=True))  # fmt: skip
    assert "autoencoder_0" not in set_up(DiffKD(code=None), student, teacher)(student, teacher, labels(), generator())


# what every distiller is


@pytest.mark.parametrize("name", EVERY)
def test_it_is_finite_reaches_everything_and_is_reproducible(name):
    student, teacher = pair()
    for tensor in (student.logits, *student.maps):
        tensor.requires_grad_()
    distiller, y = set_up(built(name), student, teacher), labels()
    parts = distiller(student, teacher, y, generator())
    assert parts and all(part.ndim == 0 and part.isfinite() and part.item() >= 0 for part in parts.values())
    summed(parts).backward()
    used = [tensor.grad for tensor in (student.logits, *student.maps) if tensor.grad is not None]
    assert used and all(grad.isfinite().all() and grad.any() for grad in used)
    assert len(used) >= (1 if distiller.places == "none" else len(student.maps))
    for helper, parameter in distiller.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), helper
    again = distiller(student, teacher, y, generator())
    assert {key: part.item() for key, part in again.items()} == {key: part.item() for key, part in parts.items()}


@pytest.mark.parametrize("name", EVERY)
def test_its_own_parts_are_linear_in_the_weight(name):
    student, teacher = pair()
    weight = built(name).weight
    one, three = (
        set_up(built(name, weight=w), student, teacher)(student, teacher, labels(), generator())
        for w in (weight, 3 * weight)
    )
    beside = {"energy", "soft_labels", "logits", "pixel", "pooled_0", "pooled_1"}  # these have a weight of their own
    assert set(one) - beside
    for key, part in one.items():
        assert three[key].item() == pytest.approx(part.item() * (1 if key in beside else 3), rel=1e-5), key


@pytest.mark.parametrize("name", EVERY)
def test_a_peak_of_the_teacher_stays_finite(name):
    student, teacher = pair()
    teacher.maps[0][:, 0, 3, 3] = 1e3
    teacher.logits[:, 0] = 1e3
    student.maps[0].requires_grad_()
    parts = set_up(built(name), student, teacher)(student, teacher, labels(), generator())
    assert all(part.isfinite() for part in parts.values())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hinton", {}), ("hinton/energy", {}), ("fitnet/soft_labels", {"norm": True}), ("attention", {}), ("cwd", {}),
        ("cwd/features", {}), ("mgd/logits", {"mask": 0.0}), ("skd", {}), ("ifvd/pixel", {}), ("gdd", {"sigma": 0.0}),
    ],
)  # fmt: skip
def test_a_batch_said_twice_is_the_batch(name, options):
    (student, teacher), y = pair(), labels()
    twice = [Seen(torch.cat([s.logits] * 2), [torch.cat([f] * 2) for f in s.maps]) for s in (student, teacher)]
    distiller = set_up(built(name, **options), student, teacher)
    one = distiller(student, teacher, y, generator())
    two = distiller(twice[0], twice[1], torch.cat([y, y]), generator(5))
    assert {k: v.item() for k, v in two.items()} == pytest.approx({k: v.item() for k, v in one.items()}, rel=1e-4)


@pytest.mark.parametrize(("distiller", "blind"), [(GDD(), True), (MGD(), False)])
def test_the_last_bias_of_the_generator(distiller, blind):
    """A constant in a channel changes no softmax over positions, but a squared error: property (i)."""
    student, teacher = pair()
    loss = summed(set_up(distiller, student, teacher)(student, teacher, labels(), generator()))
    last = distiller.generators[0][-1]
    bias, weight = torch.autograd.grad(loss, [last.bias, last.weight])
    assert (float(bias.abs().max()) < 1e-5 * float(weight.abs().max())) == blind


@pytest.mark.parametrize("name", ["mgd", "diffkd", "gdd"])
def test_noise_and_mask_follow_the_generator(name):
    student, teacher = pair()
    distiller = set_up(built(name), student, teacher)
    values = [total(distiller(student, teacher, labels(), generator(seed))) for seed in (0, 1, 0)]
    assert values[0] == values[2] != values[1]


@pytest.mark.parametrize("name", EVERY)
def test_half_precision_is_compared_in_whole(name):
    """Under autocast the student's tensors are bfloat16; what is summed and exponentiated is not."""
    student, teacher = pair()
    half = Seen(student.logits.bfloat16(), [f.bfloat16() for f in student.maps])
    distiller = set_up(built(name), student, teacher)
    whole = total(distiller(student, teacher, labels(), generator()))
    with torch.autocast("cpu", torch.bfloat16):
        parts = distiller(half, teacher, labels(), generator())
    assert all(part.dtype == torch.float32 for part in parts.values())
    assert total(parts) == pytest.approx(whole, rel=0.1)


def rows(width: int) -> Seen:
    return Seen(torch.randn(6, 5), [torch.randn(6, width), torch.randn(6, width)])


@pytest.mark.parametrize("name", EVERY)
def test_rows_are_compared_or_refused(name):
    student, teacher, y = rows(4), rows(7), torch.zeros(6, dtype=torch.int64)
    if name.partition("/")[0] in ROWS:
        parts = set_up(built(name), student, teacher)(student, teacher, y, generator())
        assert all(part.isfinite() for part in parts.values())
    else:
        with pytest.raises(UserError, match=r"distiller=\w+"):
            built(name).setup(student, teacher)


@pytest.mark.parametrize("name", ["attention", "fitnet/soft_labels", "cwd/features", "mgd", "skd", "diffkd", "gdd"])
def test_classifiers_of_images_have_maps_and_one_class_a_sample(name):
    (student, teacher), y = pair(), torch.zeros(3, dtype=torch.int64)
    student.logits, teacher.logits = torch.randn(3, 5), torch.randn(3, 5)
    parts = set_up(built(name), student, teacher)(student, teacher, y, generator())
    assert all(part.isfinite() for part in parts.values())


@pytest.mark.parametrize("distiller", [CWD(), MGD(logits=3.0), IFVD()])
def test_what_needs_pixels_says_so(distiller):
    student, teacher = pair()
    student.logits, teacher.logits = torch.randn(3, 5), torch.randn(3, 5)
    with pytest.raises(UserError, match="needs a class of every pixel"):
        distiller.setup(student, teacher)


def test_one_position_is_no_distribution(caplog):
    student, teacher = pair()
    student.maps[1], teacher.maps[1] = student.maps[1][:, :, :1, :1], teacher.maps[1][:, :, :1, :1]
    with pytest.raises(UserError, match=r"\(6, 1, 1\): one position; name an earlier layer"):
        CWDFeatures().setup(student, teacher)
    with caplog.at_level("INFO", "outlie"):
        parts = set_up(built("attention"), student, teacher)(student, teacher, labels(), generator())
    assert parts["attention_1"] == 0 and "attention_1 compares one position" in caplog.text
    assert "attention_0" not in caplog.text


def test_bad_options_are_refused():
    with pytest.raises(UserError, match=r"hides every position; set distiller\.mask"):
        MGD(mask=1.0)
    with pytest.raises(UserError, match="maps with maps and rows with rows"):
        FitNet().setup(rows(4), pair()[1])


def test_logits_of_another_size_are_resized_to_the_teachers():
    student, teacher = pair()
    same = [d(student, teacher, labels(), generator()) for d in (Hinton(), CWD(), SKD(pair=0.0))]
    assert all(part.isfinite() for parts in same for part in parts.values())
    student.logits = torch.nn.functional.interpolate(student.logits, (6, 9))
    for distiller in (Hinton(), CWD(), SKD(pair=0.0), set_up(CWDFeatures(), student, teacher)):
        assert total(distiller(student, teacher, labels(), generator())) > 0
