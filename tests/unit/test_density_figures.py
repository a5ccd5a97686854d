"""The pictures of q_EW: their files, and their estimates against the specification and against integrals."""

import csv
import json
from pathlib import Path

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from outlie.density import figures
from outlie.density.targets import ONE_MODE, ONE_MODE_Q, THREE_MODES
from outlie.errors import UserError

FIGURE = json.loads((Path(__file__).parents[1] / "golden" / "iwae_oracle.json").read_text())["figure_2d"]["per_k"]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def plane(tmp_path_factory) -> list[dict[str, str]]:
    path = figures.mixture_2d(tmp_path_factory.mktemp("plane") / "mixture.png", seed=1)
    assert path.read_bytes().startswith(b"\x89PNG")
    return table(path.with_suffix(".csv"))


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> list[dict[str, str]]:
    path = figures.one_d(tmp_path_factory.mktemp("line") / "one.svg", seed=1)
    assert b"<svg" in path.read_bytes()[:2000]
    return table(path.with_suffix(".csv"))


def test_the_estimates_in_the_plane_are_the_specifications(plane):
    assert [row["k"] for row in plane] == ["1", "10", "100"]
    for row in plane:
        expected = FIGURE[row["k"]]
        assert abs(float(row["bound"]) - expected["L_iwae"]) < 4 * float(row["bound_se"])
        assert float(row["kl_on_grid"]) == pytest.approx(expected["kl_qew_target"], rel=0.02, abs=0.012)
        assert float(row["mass_on_grid"]) == pytest.approx(1, abs=0.15)
        assert row["batches"] == "100"
    assert float(plane[0]["kl_on_grid"]) == pytest.approx(FIGURE["1"]["kl_qew_target"], abs=0.005)


def test_more_batches_bring_the_kl_to_the_specifications(tmp_path):
    path = figures.mixture_2d(tmp_path / "mixture.png", seed=2, k=(2,), batches=2000)
    (row,) = table(path.with_suffix(".csv"))
    assert float(row["kl_on_grid"]) == pytest.approx(FIGURE["2"]["kl_qew_target"], abs=0.004)
    assert float(row["mass_on_grid"]) == pytest.approx(1, abs=0.02)


def test_training_by_the_bound_widens_q_over_the_modes(lines):
    """The ELBO's q is one mode, with its standard deviation of 1/2; L_k's spans them, and so resampling is better."""
    by = {(row["panel"], row["k"]): row for row in lines if row["q_std"]}
    assert float(by["fitted by the ELBO", "1"]["q_std"]) == pytest.approx(0.5, abs=0.05)
    for k in ("5", "10"):
        elbo, bound = by["fitted by the ELBO", k], by[f"fitted by L_{{{k}}}", k]
        assert 2.5 < float(bound["q_std"]) < 4.5  # the largest bound is at 3.3 for k = 5, 3.6 for k = 10
        assert float(bound["bound"]) > float(elbo["bound"]) + 0.3
        assert float(bound["kl_on_grid"]) < float(elbo["kl_on_grid"]) / 4


def test_q_tilde_in_the_picture_has_the_integrals_of_quadrature(lines):
    drawn = [row for row in lines if row["panel"] == "q_tilde"]
    p, q = norm(-2.5, torch.e**0.5), norm(4.5, torch.e**0.25)
    for row in drawn:
        z_2 = float(row["z_2"])
        expected = quad(lambda z: 2 * p.pdf(z) / (p.pdf(z) / q.pdf(z) + p.pdf(z_2) / q.pdf(z_2)), -12, 14, limit=200)[0]  # noqa: B023
        assert float(row["mass_on_grid"]) == pytest.approx(expected, rel=1e-3)
    assert len(drawn) == 3 and len({row["z_2"] for row in drawn}) == 3
    (ew,) = (row for row in lines if row["panel"] == "q_EW")
    assert float(ew["mass_on_grid"]) == pytest.approx(1, abs=0.05)


def test_the_targets_on_the_line():
    z = torch.linspace(-9, 9, 50, dtype=torch.float64)
    torch.testing.assert_close(ONE_MODE.log_density(z[:, None]), torch.as_tensor(norm(-2.5, torch.e**0.5).logpdf(z)))
    torch.testing.assert_close(ONE_MODE_Q.log_prob(z[:, None]), torch.as_tensor(norm(4.5, torch.e**0.25).logpdf(z)))
    parts = sum(w * norm(m, 0.5).pdf(z) for w, m in zip((0.3, 0.4, 0.3), (-4, 0, 4.5)))
    torch.testing.assert_close(THREE_MODES.log_density(z[:, None]).exp(), torch.as_tensor(parts))
    assert THREE_MODES.log_total == pytest.approx(0)


def test_a_seed_gives_the_same_numbers(tmp_path):
    first, again, other = (
        figures.mixture_2d(tmp_path / f"{i}.svg", seed, (2,), 3).with_suffix(".csv").read_text()
        for i, seed in enumerate((0, 0, 1))
    )
    assert first == again != other


@pytest.mark.parametrize("name", ["figure.pdf", "figure", "figure.jpg"])
@pytest.mark.parametrize("picture", [figures.mixture_2d, figures.one_d])
def test_other_formats_are_refused_before_anything_is_computed(tmp_path, name, picture):
    with pytest.raises(UserError, match=r"\.png or \.svg"):
        picture(tmp_path / name)
    assert not list(tmp_path.iterdir())
