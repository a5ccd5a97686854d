"""GANomaly against the two losses written out, and against two optimisers, one for each network."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from outlie import stages
from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.ganomaly import GANomaly
from outlie.trainer import Options

DISCRIMINATOR = ("features.", "classifier.")


def made(dim: int = 9, **options) -> GANomaly:
    return set_up(GANomaly(**options), Spec({"x": (dim,)}))


def rows(n: int = 40, dim: int = 9, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters(detector: GANomaly, of_discriminator: bool) -> list[nn.Parameter]:
    return [p for name, p in detector.named_parameters() if name.startswith(DISCRIMINATOR) == of_discriminator]


def losses(detector: GANomaly, x: Tensor) -> tuple[Tensor, Tensor]:
    """The discriminator's and the generator's, as the released code has them, with their gradients everywhere."""
    code, back, code_2 = detector.reconstructed(x)
    real, fake = (torch.sigmoid(detector.classifier(detector.features(t)))[:, 0] for t in (x, back))
    zeros, ones = torch.zeros_like(real), torch.ones_like(real)
    discriminator = (F.binary_cross_entropy(real, zeros) + F.binary_cross_entropy(fake, ones)) / 2
    latent = (detector.features(back) - detector.features(x)).square().mean()
    return discriminator, (latent + (x - back).abs().mean() + (code - code_2).abs().mean()) / 3


def test_each_network_has_the_gradient_of_its_own_loss():
    detector, x = made(), rows()
    loss = detector.loss(Views(x=x), torch.Generator())
    assert float(loss.detach()) == pytest.approx(sum(own.item() for own in losses(detector, x)), rel=1e-9)
    loss.backward()
    for of_discriminator, own in zip((True, False), losses(detector, x)):
        mine = parameters(detector, of_discriminator)
        for parameter, expected in zip(mine, torch.autograd.grad(own, mine)):
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12)
            assert expected.abs().max() > 0


def test_training_is_that_of_two_optimisers_that_step_at_once(tmp_path):
    detector, by_hand, x = made(batch_size=16, epochs=3), made(), rows(40)
    stages.train(detector, Views(x=x), 0, Options(accelerator="cpu", threads=1), tmp_path)
    both = [torch.optim.SGD(parameters(by_hand, one), lr=1e-2, momentum=0.7) for one in (True, False)]
    for _ in range(3):
        for batch in (x[:16], x[16:32]):  # rows in their order, the last eight left out
            found = losses(by_hand, batch)
            gradients = [
                torch.autograd.grad(own, parameters(by_hand, one), retain_graph=True)
                for one, own in zip((True, False), found)
            ]
            for optimizer, own in zip(both, gradients):
                for parameter, gradient in zip(optimizer.param_groups[0]["params"], own):
                    parameter.grad = gradient
                optimizer.step()
    for ours, theirs in zip(detector.parameters(), by_hand.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_the_score_is_the_sum_over_the_codes_differences():
    detector, x = made(), rows(5)
    score = detector.score(Views(x=x)).detach()
    for row, own in zip(x, score):
        code = torch.tanh(detector.encoder[0](row))
        again = torch.tanh(detector.encoder_2[0](detector.decoder(code)))
        assert float(own) == pytest.approx(sum(abs(float(a) - float(b)) for a, b in zip(code, again)), rel=1e-9)


@pytest.mark.parametrize(("dim", "hidden"), [(1, 1), (2, 1), (7, 3), (8, 2), (40, 10)])
def test_width_of_the_code(dim, hidden):
    assert made(dim).encoder[0].out_features == hidden
    assert made(dim, hidden=6).encoder[0].out_features == 6


def test_rows_off_the_sheet_score_higher_and_far_ones_finite(tmp_path):
    generator = torch.Generator().manual_seed(0)
    plane = F.normalize(torch.randn(2, 8, generator=generator), dim=0)

    def sheet(n: int, noise: float) -> Tensor:
        return torch.randn(n, 2, generator=generator) @ plane + noise * torch.randn(n, 8, generator=generator)

    detector, train = made(8), sheet(1000, 0.1)
    stages.train(detector, Views(x=train), 0, Options(accelerator="cpu", threads=1), tmp_path)
    test = torch.cat([sheet(200, 0.1), sheet(100, 1.5), 1e6 * sheet(100, 1)])
    score = stages.score(detector, Views(x=test), torch.device("cpu"))
    assert torch.isfinite(score).all()
    assert roc_auc_score(np.repeat([0, 1], [200, 100]), score[:300]) > 0.9
    assert roc_auc_score(np.repeat([0, 1], [200, 100]), torch.cat([score[:200], score[300:]])) > 0.9


@pytest.mark.parametrize("x", [rows(1), rows(30, 1), rows(30, 2), torch.zeros(9, 3)], ids=str)
def test_odd_data_has_finite_losses_gradients_and_scores(x):
    detector = made(x.shape[1])
    detector.loss(Views(x=x), torch.Generator()).backward()
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters())
    assert torch.isfinite(detector.score(Views(x=torch.cat([x, x + 1e6])))).all()
