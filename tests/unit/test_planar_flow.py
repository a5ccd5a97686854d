"""The planar flow against autograd's Jacobian, SciPy's normal density, quadrature and the released score."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from outlie import stages
from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.planar_flow import PlanarFlow, invertible
from outlie.trainer import Options


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bent(dim: int, **options) -> PlanarFlow:
    """A flow far from the identity, whose first layer would fold the space if it were not constrained."""
    detector = set_up(PlanarFlow(layers=4, **options), Spec({"x": (dim,)}))
    with torch.no_grad():
        for i, parameter in enumerate((detector.w, detector.b, detector.u)):
            parameter.copy_(1.5 * drawn(*parameter.shape, seed=i + 3))
        detector.b[0] = 0.2
        detector.u[0] = -2.5 * detector.w[0] / detector.w[0].square().sum()  # w.u = -2.5
    return detector.eval()


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_log_det_is_that_of_autograds_jacobian(dim, constrained):
    detector = bent(dim, constrained=constrained)
    x = drawn(20, dim)
    z, log_det = (t.detach() for t in detector.flow(x))
    for row, end, own in zip(x, z, log_det):
        jacobian = torch.autograd.functional.jacobian(lambda r: detector.flow(r[None])[0][0], row)
        sign, expected = np.linalg.slogdet(jacobian.numpy())
        assert float(own) == pytest.approx(expected, rel=1e-7, abs=1e-9)
        assert sign == 1 or not constrained
        density = norm.logpdf(end.numpy()).sum() + expected
        score = detector.score(Views(x=row[None])).detach()
        assert float(score) == pytest.approx(-density, rel=1e-7)


def integral(detector: PlanarFlow) -> float:
    """Of p over a wide grid, midpoints."""
    dim = detector.w.shape[1]
    edge, n = (60.0, 200_000) if dim == 1 else (14.0, 900)
    line = (torch.arange(n).double() + 0.5) * (2 * edge / n) - edge
    grid = torch.cartesian_prod(*[line] * dim).view(-1, dim)
    with torch.no_grad():
        return float(detector.log_density(grid).exp().sum()) * (2 * edge / n) ** dim


@pytest.mark.parametrize("dim", [1, 2])
def test_the_density_integrates_to_one(dim):
    assert integral(bent(dim)) == pytest.approx(1, abs=2e-3)


def test_without_the_constraint_it_need_not():
    assert abs(integral(bent(1, constrained=False)) - 1) > 0.05


def test_u_hat_keeps_w_u_above_minus_one_and_moves_along_w_only():
    w, u = 3 * drawn(200, 4), 3 * drawn(200, 4, seed=1)
    hat = invertible(u, w)
    dots, before = (w * hat).sum(1), (w * u).sum(1)
    assert before.min() < -20 and dots.min() > -1 - 1e-12
    np.testing.assert_allclose(dots, np.log1p(np.exp(before + np.log(np.e - 1))) - 1, rtol=1e-9, atol=1e-12)
    moved = hat - u
    across = moved - (moved * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True) * w
    assert across.abs().max() < 1e-9
    assert torch.equal(invertible(u[:3], torch.zeros(3, 4).double()), u[:3])
    near_0 = invertible(1e-3 * u, 1e-3 * w)  # a start near the identity, whatever 1 / ||w||
    assert near_0.abs().max() < 0.1


@pytest.mark.parametrize("seed", range(5))
def test_one_dimensional_layers_never_turn_back(seed):
    detector = bent(1)
    with torch.no_grad():
        detector.u.copy_(5 * drawn(4, 1, seed=seed))
        z = detector.flow(torch.linspace(-9, 9, 5001, dtype=torch.float64)[:, None])[0][:, 0]
    assert (z.diff() > 0).all()


def test_the_released_score_averages_the_normal_term_away():
    detector = bent(3, constrained=False, score_by="log_det")
    x = drawn(12, 3)
    z, log_det = (t.detach().numpy() for t in detector.flow(x))
    base = norm.logpdf(z).sum(1)  # (B,)
    released = -(base + log_det[:, None]).mean(1)  # (B,) + (B, 1) is (B, B)
    score = detector.score(Views(x=x)).detach().numpy()
    np.testing.assert_allclose(score - score[0], released - released[0], rtol=1e-9, atol=1e-9)
    assert released.argsort().tolist() != (-(base + log_det)).argsort().tolist()


def test_it_learns_two_clusters_and_far_rows_score_higher(tmp_path):
    n = 600
    clusters = (
        drawn(n, 2) * torch.tensor([0.25, 1.0]) + torch.tensor([1.5, 0.0]) * (torch.arange(n) % 2 * 2 - 1)[:, None]
    )
    detector = set_up(PlanarFlow(epochs=60, lr=5e-3), Spec({"x": (2,)}))
    untrained = -float(detector.loss(Views(x=clusters), torch.Generator()).detach())
    losses = stages.train(detector, Views(x=clusters), 0, Options(accelerator="cpu", threads=1), tmp_path)["losses"]
    normal = norm.logpdf(clusters, clusters.mean(0), clusters.std(0)).sum(1).mean()  # the best that a normal can do
    assert untrained < normal < -losses[-1] - 0.1
    gap, far = torch.zeros(1, 2), torch.tensor([[50.0, 50.0], [-1e6, 0], [0, 1e9]])
    score = stages.score(detector, Views(x=torch.cat([clusters, gap, far])), torch.device("cpu"))
    assert torch.isfinite(score).all()
    assert score[n] > score[:n].quantile(0.95) and score[n + 1 :].min() > score[: n + 1].max()


@pytest.mark.parametrize("x", [drawn(1, 4), drawn(30, 1), torch.zeros(9, 3)], ids=["one row", "one column", "zeros"])
def test_odd_data_has_finite_losses_gradients_and_scores(x):
    detector = set_up(PlanarFlow(), Spec({"x": tuple(x.shape[1:])}))
    detector.loss(Views(x=x), torch.Generator()).backward()
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters())
    assert torch.isfinite(detector.score(Views(x=torch.cat([x, x + 1e6])))).all()
