"""Neural-collapse measures against the golden vectors and the definitions in loops."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from outlie.detectors import moments
from outlie.errors import UserError
from outlie.metrics import collapse
from outlie.metrics.collapse import neural_collapse

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "nc_neco_test_vectors.json").read_text())
NAMES = {
    "nc1": "nc1",
    "nc2_equinorm_M_ddof1": "nc2_equinorm",
    "nc2_equinorm_W_popstd": "nc2_equinorm_weights",  # 0 either way
    "nc2_equiang_M_avgabs": "nc2_equiangularity",
    "nc2_equiang_W_avgabs": "nc2_equiangularity_weights",
    "nc3": "nc3",
    "nc4": "nc4",
    "nc5_orthodev": "nc5/ood",
}


def exact_etf() -> dict[str, np.ndarray]:
    """A head and features that are a simplex ETF in a rotated space; OOD rows whose mean is orthogonal to it."""
    rotate = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    simplex = np.zeros((5, 8))
    simplex[:, :5] = np.sqrt(5 / 4) * (np.eye(5) - 1 / 5)
    ood = np.zeros((2, 8))
    ood[0, 5], ood[1, 6] = 1.0, 2.0
    return {"H": np.repeat(3 * simplex, 4, 0) @ rotate, "y": np.repeat(np.arange(5), 4), "W": simplex @ rotate,
            "b": np.zeros(5), "H_ood": ood @ rotate}  # fmt: skip


INPUTS = {
    "exact_ETF": exact_etf(),
    "toy3": {key: np.array(GOLDEN["toy3"][key]) for key in ("H", "y", "W", "b", "H_ood")},
}


def measured(case: dict[str, np.ndarray], **options) -> dict[str, float]:
    h, y, w, b, ood = (torch.as_tensor(case[key]) for key in ("H", "y", "W", "b", "H_ood"))
    return neural_collapse(h, y, w, b, {"ood": ood}, **options)


@pytest.mark.parametrize("name", INPUTS)
def test_golden_vectors(name):
    ours, expected = measured(INPUTS[name]), GOLDEN[name]
    for theirs, key in NAMES.items():
        assert ours[key] == pytest.approx(expected[theirs], rel=1e-9, abs=1e-12), key
    population = measured(INPUTS[name], ddof=0)
    assert population["nc2_equinorm"] == pytest.approx(expected["nc2_equinorm_M_popstd"], rel=1e-9, abs=1e-12)
    h, y, ood = (torch.as_tensor(INPUTS[name][key]) for key in ("H", "y", "H_ood"))
    means, _ = moments.class_means(h, y)
    std = collapse.equiangularity_std(means - means.mean(0))
    assert std == pytest.approx(expected["nc2_equiang_M_std"], rel=1e-9, abs=1e-12)
    centred = collapse.nc5_centred(means, ood.mean(0))
    assert centred == pytest.approx(expected["nc5_centred_variant"], rel=1e-9, abs=1e-12)
    assert ours["train_accuracy"] == 1


def test_a_mean_orthogonal_to_a_simplex_is_one_more_class():
    ours = measured(INPUTS["exact_ETF"])
    # C means of a simplex and one at a right angle to all: cosine -1/4 for 20 pairs, 0 for 10, each against -1/5
    assert ours["nc2_equiangularity_with/ood"] == pytest.approx((20 * 0.05 + 10 * 0.2) / 30)


def random_case(classes: int = 6, dim: int = 9, n: int = 200) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    y = np.concatenate([np.arange(classes), rng.choice(classes, n - classes, p=np.arange(1, classes + 1) / 21)])
    means = 2 * rng.normal(size=(classes, dim)) + 1
    return {"H": (means[y] + rng.normal(size=(n, dim))).astype(np.float32), "y": y,
            "W": means + rng.normal(size=(classes, dim)), "b": 5 * rng.normal(size=classes),
            "H_ood": rng.normal(size=(30, dim)) + 0.7}  # fmt: skip


def by_definition(case: dict[str, np.ndarray]) -> dict[str, float]:
    """The table of the specification, in loops over rows, classes and pairs."""
    h, y, w, b, ood = (case[key].astype(float) for key in ("H", "y", "W", "b", "H_ood"))
    c, n = len(w), len(h)
    mu = np.array([h[y == k].mean(0) for k in range(c)])
    mean = mu.mean(0)
    mu_ood = ood.mean(0)

    def nc1(scatter, rows, centres):
        between = sum(np.outer(m - mean, m - mean) for m in centres) / len(centres)
        return np.trace(scatter / rows @ np.linalg.pinv(between, rcond=1e-10, hermitian=True)) / len(centres)

    def angle(rows):
        pairs = [(p, q) for i, p in enumerate(rows) for j, q in enumerate(rows) if i != j]
        cosines = [p @ q / np.linalg.norm(p) / np.linalg.norm(q) for p, q in pairs]
        return np.mean([abs(cosine + 1 / (len(rows) - 1)) for cosine in cosines])

    def norms(rows):
        lengths = [np.linalg.norm(row) for row in rows]
        return np.std(lengths, ddof=1) / np.mean(lengths)

    within = sum(np.outer(row - mu[int(k)], row - mu[int(k)]) for row, k in zip(h, y))
    spread = sum(np.outer(row - mu_ood, row - mu_ood) for row in ood)
    predicted = [int(np.argmax(w @ row + b)) for row in h]
    nearest = [int(np.argmin([np.linalg.norm(row - m) for m in mu])) for row in h]
    return {
        "nc1": nc1(within, n, mu),
        "nc2_equinorm": norms(mu - mean),
        "nc2_equinorm_weights": norms(w),
        "nc2_equiangularity": angle(mu - mean),
        "nc2_equiangularity_weights": angle(w),
        "nc3": np.sum((w / np.linalg.norm(w) - (mu - mean) / np.linalg.norm(mu - mean)) ** 2),
        "nc4": np.mean(np.array(predicted) != np.array(nearest)),
        "train_accuracy": np.mean(np.array(predicted) == y),
        "nc5/ood": np.mean([abs(m @ mu_ood) / np.linalg.norm(m) / np.linalg.norm(mu_ood) for m in mu]),
        "nc1_with/ood": nc1(within + spread, n + len(ood), [*mu, mu_ood]),
        "nc2_equiangularity_with/ood": angle([*(mu - mean), mu_ood - mean]),
    }


@pytest.mark.parametrize(("classes", "dim"), [(6, 9), (6, 5), (6, 3), (2, 9)])
def test_they_are_the_definitions(classes, dim):
    case = random_case(6, dim)
    if classes == 2:
        keep = case["y"] < 2
        case |= {"H": case["H"][keep], "y": case["y"][keep], "W": case["W"][:2], "b": case["b"][:2]}
    ours, expected = measured(case), by_definition(case)
    assert set(ours) == set(expected)
    if classes > 2:
        assert 0 < expected["nc4"] < 1 and 0 < expected["train_accuracy"] < 1
    for key, value in expected.items():
        assert ours[key] == pytest.approx(value, rel=1e-7, abs=1e-9), key


def test_classes_whose_means_coincide_span_less():
    case = random_case()
    few = case["y"] == 0
    h, y = case["H"] + 100, case["y"]
    case |= {"H": np.concatenate([h[few], h[y > 1], h[few]]), "y": np.concatenate([y[few], y[y > 1], y[few] + 1])}
    assert measured(case)["nc1"] == pytest.approx(by_definition(case)["nc1"], rel=1e-7)


def test_no_bias_no_ood_and_nothing_changed():
    case = random_case()
    h, w = torch.as_tensor(case["H"]), torch.as_tensor(case["W"]).float().requires_grad_()
    before = h.clone()
    ours = neural_collapse(h, torch.as_tensor(case["y"]), w, None)
    assert not any("/" in key for key in ours)
    assert all(isinstance(value, float) for value in ours.values())
    assert ours["nc4"] == pytest.approx(by_definition(case | {"b": np.zeros(6), "W": w.detach().numpy()})["nc4"])
    assert torch.equal(h, before)


@pytest.mark.parametrize("noise", [1.0, 1e-2, 1e-4])
def test_nc1_falls_with_the_square_of_the_noise(noise):
    rng = np.random.default_rng(0)
    y = torch.arange(5000) % 5
    means = torch.as_tensor(exact_etf()["W"]) * 10
    h = means[y] + noise * torch.as_tensor(rng.normal(size=(5000, 8)))
    ours = neural_collapse(h, y, means, None)["nc1"]
    # Sigma_W = noise^2 I, Sigma_B = 10^2 (1/4) on 4 dimensions: Tr / C = 4 noise^2 / 25 / 5
    assert ours == pytest.approx(4 * noise**2 / 25 / 5, rel=0.1)


def test_a_network_that_says_nothing_is_not_called_collapsed():
    ours = neural_collapse(torch.ones(6, 3), torch.arange(6) % 2, torch.eye(2, 3), None)
    assert math.isnan(ours["nc1"])


def test_mistakes():
    h, y, w = torch.rand(6, 3), torch.arange(6) % 2, torch.rand(2, 3)
    with pytest.raises(UserError, match="1 class: neural collapse is about two classes"):
        neural_collapse(h, y * 0, w[:1], None)
    with pytest.raises(UserError, match="1 of 3 classes have no training rows"):
        neural_collapse(h, y, torch.rand(3, 3), None)
    with pytest.raises(UserError, match="class label 2 is out of range"):
        neural_collapse(h, y + 1, w, None)
    with pytest.raises(UserError, match="no rows to fit on"):
        neural_collapse(h, y, w, None, {"empty": h[:0]})
