"""Networks: sizes of the published code, and the forward pass written out from the specification."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import nn

from outlie.diffusion.nets import TabularResNet, time_embedding, time_mlp


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_parameter_counts():
    assert count(TabularResNet(21)) == 368_789
    assert count(time_mlp(21, (256, 512, 256), 0.5, 7)) == 270_343
    assert count(time_mlp(21, (256, 512, 256), 0.5, 1)) == 268_801


def test_time_embedding_has_the_cosines_first():
    t = np.array([0, 1, 17, 999])
    angles = t[:, None] * 10_000.0 ** (-np.arange(128) / 128)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], 1)
    np.testing.assert_allclose(time_embedding(torch.as_tensor(t), 256), expected, atol=2e-4)
    assert torch.equal(time_embedding(torch.tensor([0]), 4)[0], torch.tensor([1.0, 1.0, 0.0, 0.0]))


def trained_a_little(dim: int = 4) -> TabularResNet:
    """Batch statistics and weights that are not those of a fresh network."""
    torch.manual_seed(0)
    net = TabularResNet(dim)
    for _ in range(3):
        net(3 * torch.randn(32, dim) + 1, net.embed_time(torch.arange(32)))
    return net.eval()


def test_forward_pass_written_out():
    net = trained_a_little()
    state = {name: value.double().numpy() for name, value in net.state_dict().items()}
    x, t = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 3, 50, 400, 700, 999])

    def linear(name, h):
        return h @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, h):
        scale = np.sqrt(state[f"{name}.running_var"] + 1e-5)
        return (h - state[f"{name}.running_mean"]) / scale * state[f"{name}.weight"] + state[f"{name}.bias"]

    def silu(h):
        return h * expit(h)

    embedded = time_embedding(t, 256).double().numpy()
    shift = linear("time.4", silu(linear("time.2", silu(linear("time.0", embedded)))))
    h = linear("stem", x.double().numpy()) + shift
    for block in range(3):
        name = f"blocks.{block}.layers"
        h = h + linear(f"{name}.4", np.maximum(linear(f"{name}.1", norm(f"{name}.0", h)), 0))
    expected = linear("head.2", np.maximum(norm("head.0", h), 0))
    with torch.no_grad():
        np.testing.assert_allclose(net(x, net.embed_time(t)), expected, rtol=1e-4, atol=1e-5)


def test_one_embedding_serves_all_rows_of_a_step():
    net, x = trained_a_little(), torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        per_row = net(x, net.embed_time(torch.full((6,), 17)))
        once = net(x, net.embed_time(torch.tensor([17])))
    torch.testing.assert_close(once, per_row, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("which", ["resnet", "mlp"])
def test_in_eval_mode_a_row_does_not_see_its_batch(which):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    if which == "resnet":
        net = trained_a_little()
        shift = net.embed_time(torch.tensor([17])).detach()

        def forward(rows):
            return net(rows, shift)
    else:
        forward = time_mlp(4, (16, 32, 16), 0.5, 7).eval()
    with torch.no_grad():
        alone = torch.cat([forward(row[None]) for row in x])
        torch.testing.assert_close(forward(x), alone, rtol=1e-5, atol=1e-6)


def test_dropout_after_every_hidden_layer_but_the_first():
    kinds = [type(layer).__name__ for layer in time_mlp(21, (256, 512, 256), 0.5, 7)]
    assert kinds == ["Linear", "ReLU", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    rates = [m.p for m in TabularResNet(21).modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.4, 0.1] * 3
