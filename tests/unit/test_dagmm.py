"""DAGMM against SciPy's normal densities, NumPy's weighted moments and its definition row by row."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.metrics import roc_auc_score

from outlie import stages
from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.dagmm import DAGMM, mixture_of, precision_factors
from outlie.trainer import Options

CPU = torch.device("cpu")


def made(dim: int = 5, seed: int = 0, **options) -> DAGMM:
    """Weights as large as trained ones, so that the components differ."""
    detector = set_up(DAGMM(**options), Spec({"x": (dim,)}, seed))
    with torch.no_grad():
        for parameter in detector.estimator.parameters():
            parameter.mul_(5)
    return detector.eval()


def rows(n: int = 80, dim: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def on_a_sheet(n: int, seed: int, noise: float = 0.1) -> torch.Tensor:
    """Rows near a plane in eight dimensions, each column with variance 1."""
    generator = torch.Generator().manual_seed(0)
    plane = torch.nn.functional.normalize(torch.randn(2, 8, generator=generator), dim=0)
    generator.manual_seed(seed)
    return torch.randn(n, 2, generator=generator) @ plane + noise * torch.randn(n, 8, generator=generator)


def trained(detector: DAGMM, x: torch.Tensor, folder) -> list[float]:
    losses = stages.train(detector, Views(x=x), 0, Options(accelerator="cpu", threads=1), folder)["losses"]
    stages.fit(detector, Views(x=x), CPU)
    return losses


def numpy_mixture(z: np.ndarray, gamma: np.ndarray) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """(phi, mean, covariance) of each component."""
    return [
        (weights.mean(), np.average(z, 0, weights), np.cov(z.T, aweights=weights, ddof=0))
        for weights in gamma.T
    ]  # fmt: skip


def energies(z: np.ndarray, mixture: list[tuple[float, np.ndarray, np.ndarray]]) -> np.ndarray:
    return -np.log(sum(phi * multivariate_normal(mean, covariance).pdf(z) for phi, mean, covariance in mixture))


def test_the_mixture_is_numpys_weighted_moments():
    z, gamma = rows(60, 3), rows(60, 4, seed=1).softmax(1)
    phi, means, covariances = mixture_of(z, gamma)
    for k, (weight, mean, covariance) in enumerate(numpy_mixture(z.numpy(), gamma.numpy())):
        assert float(phi[k]) == pytest.approx(weight)
        np.testing.assert_allclose(means[k], mean, rtol=1e-9)
        np.testing.assert_allclose(covariances[k], covariance, rtol=1e-7)
    factors = precision_factors(covariances)
    np.testing.assert_allclose(factors @ factors.mT, np.linalg.inv(covariances.numpy()), rtol=1e-7)


def test_the_row_is_its_code_and_two_errors():
    detector, x = made(), rows(6)
    z, back = (t.detach().numpy() for t in detector.compressed(x))
    assert z.shape == (6, 3) and back.shape == (6, 5)
    for row, there, own in zip(x.numpy(), back, z):
        assert own[1] == pytest.approx(math.dist(row, there) / math.hypot(*row))
        assert own[2] == pytest.approx(row @ there / (math.hypot(*row) * math.hypot(*there)))
    np.testing.assert_allclose(z[:, :1], detector.encoder(x).detach(), rtol=1e-9)


@torch.no_grad()
def test_the_score_is_the_energy_of_the_training_mixture():
    detector, train, test = made(), rows(), 2 * rows(30, seed=1)
    detector.fit(Views(x=train))
    z = detector.compressed(train)[0]
    gamma = detector.estimator(z).softmax(1).numpy()
    assert gamma.std(0).max() > 1e-3  # the components are not all alike
    expected = energies(detector.compressed(test)[0].numpy(), numpy_mixture(z.numpy(), gamma))
    score = detector.score(Views(x=test))
    assert score.dtype == torch.float64
    np.testing.assert_allclose(score, expected, rtol=1e-6)
    np.testing.assert_allclose(detector.score(Views(x=test[4:5])), expected[4:5], rtol=1e-6)


def test_the_loss_is_reconstruction_energy_and_thinness():
    detector, x = made(lambda_energy=0.3, lambda_cov=0.02), rows()
    with torch.no_grad():
        z, back = detector.compressed(x)
        mixture = numpy_mixture(z.numpy(), detector.estimator(z).softmax(1).numpy())
    expected = ((x - back) ** 2).mean() + 0.3 * energies(z.numpy(), mixture).mean()
    expected += 0.02 * sum((1 / covariance.diagonal()).sum() for _, _, covariance in mixture)
    loss = detector.loss(Views(x=x), torch.Generator())
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-6)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in detector.parameters())


def test_weights_as_released_are_small_and_stay(tmp_path):
    detector = set_up(DAGMM(untrained=True), Spec({"x": (40,)}))
    before = {name: p.detach().clone() for name, p in detector.named_parameters()}
    drawn = torch.cat([p.flatten() for p in before.values()])
    assert float(drawn.mean()) == pytest.approx(0, abs=2e-3) and float(drawn.std()) == pytest.approx(0.02, rel=0.05)
    assert len(trained(detector, rows(300, 40), tmp_path)) == 1
    assert all(torch.equal(p, before[name]) for name, p in detector.named_parameters())
    assert torch.isfinite(detector.score(Views(x=rows(9, 40, seed=2)))).all()


def test_rows_off_the_sheet_score_higher(tmp_path):
    detector = set_up(DAGMM(epochs=60, min_steps=0, batch_size=64, lr=2e-3), Spec({"x": (8,)}))
    losses = trained(detector, on_a_sheet(500, 1), tmp_path)
    assert losses[-1] < 0.6 * losses[0]
    test = torch.cat([on_a_sheet(200, 2), on_a_sheet(100, 3, noise=1.5)])
    score = stages.score(detector, Views(x=test), CPU)
    assert roc_auc_score(np.repeat([0, 1], [200, 100]), score) > 0.85


@pytest.mark.parametrize(
    "x",
    [
        rows(1), rows(2), torch.zeros(20, 5).double(), rows(40, 2), rows(40, 1),
        torch.cat([rows(40, 3), torch.zeros(40, 2)], 1), rows(1).expand(30, 5),
    ],
    ids=["one row", "two rows", "zeros", "two columns", "one column", "constant columns", "one row many times"],
)  # fmt: skip
def test_odd_data_has_finite_losses_gradients_and_scores(x):
    detector = set_up(DAGMM(), Spec({"x": tuple(x.shape[1:])}))
    loss = detector.loss(Views(x=x), torch.Generator())
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters())
    with torch.no_grad():
        detector.eval().fit(Views(x=x))
        assert torch.isfinite(detector.score(Views(x=torch.cat([x, torch.zeros_like(x), x + 1e6])))).all()


def test_a_component_without_rows_takes_no_part():
    z = rows(50, 3)
    alone, two = torch.ones(50, 1).double(), torch.tensor([[1.0, 0.0]]).double().expand(50, 2)
    phi, means, covariances = mixture_of(z, two)
    assert torch.isfinite(precision_factors(covariances)).all()
    assert float(phi[1]) < 1e-12
    torch.testing.assert_close((phi[0], means[0], covariances[0]), tuple(t[0] for t in mixture_of(z, alone)))
