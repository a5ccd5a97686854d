"""DiT against the published sizes and the paper's forward pass written out with softmax and loops."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from outlie.diffusion.dit import SIZES, DiT, positions
from outlie.errors import UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(trained: bool = True, **options) -> DiT:
    """A small one; `trained` = with weights other than the zeros it starts from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dit = DiT(**{"channels": 3, "size": 8, "patch": 2, "width": 24, "depth": 3, "heads": 3} | options)
        if trained:
            for parameter in dit.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
    return dit.eval()


def batch(channels: int = 3, height: int = 8, width: int = 8, n: int = 4) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, channels, height, width, generator=seeded(1))
    return x, torch.linspace(0.5, 70, n)


def reference(state: dict[str, Tensor], x: Tensor, time: Tensor, extra: Tensor, patch: int, heads: int) -> list[Tensor]:
    """Tokens after every block, then the image; `extra` (B, width) is the class's part of the embedding."""
    state = {name: value.double() for name, value in state.items()}
    x, B, (H, W) = x.double(), len(x), x.shape[2:]
    h, w = H // patch, W // patch

    def linear(name: str, z: Tensor) -> Tensor:
        return z @ state[name + ".weight"].T + state[name + ".bias"]

    def norm(z: Tensor) -> Tensor:
        return (z - z.mean(-1, keepdim=True)) / (z.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    def silu(z: Tensor) -> Tensor:
        return z / (1 + (-z).exp())

    angles = time.double()[:, None] * torch.tensor([10_000 ** (-k / 128) for k in range(128)], dtype=torch.float64)
    c = linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1))
    c = linear("t_embedder.mlp.2", silu(c)) + extra
    patches = [x[:, :, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch] for i in range(h) for j in range(w)]
    weight = state["x_embedder.proj.weight"].flatten(1)
    tokens = torch.stack([p.flatten(1) @ weight.T for p in patches], 1) + state["x_embedder.proj.bias"]
    tokens = tokens + torch.as_tensor(written_positions(h, w, tokens.shape[-1]))
    out = []
    for layer in range(sum(name.endswith("attn.qkv.weight") for name in state)):
        name = f"blocks.{layer}."
        m = linear(name + "adaLN_modulation.1", silu(c)).reshape(B, 6, 1, -1)
        z = norm(tokens) * (1 + m[:, 1]) + m[:, 0]
        q, k, v = linear(name + "attn.qkv", z).chunk(3, 2)
        mixed = []
        for head in range(heads):
            part = slice(head * q.shape[2] // heads, (head + 1) * q.shape[2] // heads)
            logits = q[..., part] @ k[..., part].mT / math.sqrt(q.shape[2] // heads)
            share = logits.exp() / logits.exp().sum(-1, keepdim=True)
            mixed.append(share @ v[..., part])
        tokens = tokens + m[:, 2] * linear(name + "attn.proj", torch.cat(mixed, 2))
        z = linear(name + "mlp.fc1", norm(tokens) * (1 + m[:, 4]) + m[:, 3])
        z = 0.5 * z * (1 + (math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)).tanh())
        tokens = tokens + m[:, 5] * linear(name + "mlp.fc2", z)
        out.append(tokens)
    shift, scale = linear("final_layer.adaLN_modulation.1", silu(c)).chunk(2, 1)
    z = linear("final_layer.linear", norm(tokens) * (1 + scale[:, None]) + shift[:, None])
    image = torch.zeros(B, z.shape[-1] // patch**2, H, W, dtype=torch.float64)
    for n in range(h * w):
        top, left = n // w * patch, n % w * patch
        image[:, :, top : top + patch, left : left + patch] = z[:, n].view(B, patch, patch, -1).permute(0, 3, 1, 2)
    return [*out, image]


def written_positions(h: int, w: int, dim: int) -> np.ndarray:
    """Half of the columns tell x, half y; of each, sines first."""
    table = np.zeros((h * w, dim))
    for i in range(h):
        for j in range(w):
            for k in range(dim // 4):
                frequency = 1 / 10_000 ** (2 * k / (dim // 2))
                row = table[i * w + j]
                row[k], row[dim // 4 + k] = np.sin(j * frequency), np.cos(j * frequency)
                row[dim // 2 + k], row[3 * dim // 4 + k] = np.sin(i * frequency), np.cos(i * frequency)
    return table


def count(width: int, depth: int, patch: int, channels: int, outputs: int, classes: int, labels: int = 0) -> int:
    """Trainable parameters: two for each linear map (weights, bias), one for a table."""
    block = 3 * width * width + 3 * width  # qkv
    block += width * width + width  # projection
    block += width * 4 * width + 4 * width + 4 * width * width + width  # perceptron
    block += width * 6 * width + 6 * width  # modulations
    embedding = patch**2 * channels * width + width + 256 * width + width + width * width + width + labels * width
    embedding += (classes + 1) * width if classes else 0
    final = width * 2 * width + 2 * width + width * patch**2 * outputs + patch**2 * outputs
    return depth * block + embedding + final


@pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_parameter_counts_are_the_published(size, millions):
    width, depth, heads = SIZES[size]
    with torch.device("meta"):
        dit = DiT(4, 32, 2, width, depth, heads, outputs=8, classes=1000)
    total = sum(p.numel() for p in dit.parameters())
    assert total == count(width, depth, 2, 4, 8, 1000)
    assert (total + 256 * width) / 1e6 == pytest.approx(
        millions, abs=0.6
    )  # printed without decimals, with the positions
    if size == "XL":
        assert total == 674_834_720 and total + 256 * width == 675_129_632
        assert dit.default_block == "layer_13" and dit.block_names[::27] == ("layer_0", "layer_27")


def test_parameter_counts_of_other_options():
    total = sum(p.numel() for p in network(augment_dim=9).parameters())
    assert total == count(24, 3, 2, 3, 3, 0, labels=9)
    assert sum(p.numel() for p in network(patch=4, outputs=6, classes=2).parameters()) == count(24, 3, 4, 3, 6, 2)


@pytest.mark.parametrize(("channels", "height", "width", "patch"), [(3, 8, 8, 2), (1, 12, 8, 4), (2, 6, 10, 1)])
def test_the_forward_pass_is_the_papers(channels, height, width, patch):
    dit = network(channels=channels, patch=patch, outputs=2 * channels, classes=5)
    x, time = batch(channels, height, width)
    y = torch.tensor([0, 4, 2, 2])
    state = dit.state_dict()
    assert "positions" not in state
    table = state["y_embedder.embedding_table.weight"].double()
    for told, rows in [(y, y), (None, torch.full((4,), 5))]:
        out, maps = dit(x, time, blocks=dit.block_names, y=told)
        *tokens, image = reference(state, x, time, table[rows], patch, 3)
        assert out.shape == (4, 2 * channels, height, width) and tuple(maps) == dit.block_names
        torch.testing.assert_close(out.double(), image, rtol=2e-4, atol=2e-4)
        for name, expected in zip(dit.block_names, tokens, strict=True):
            assert maps[name].shape == (4, 24, height // patch, width // patch)
            torch.testing.assert_close(maps[name].flatten(2).mT.double(), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("h", "w", "dim"), [(4, 4, 24), (3, 5, 8), (1, 7, 64)])
def test_positions_are_the_formulas(h, w, dim):
    np.testing.assert_allclose(positions(h, w, dim), written_positions(h, w, dim), atol=1e-6)


def test_a_new_network_is_the_identity_and_says_zero():
    dit = network(trained=False, augment_dim=9, classes=4)
    x, time = batch()
    out, maps = dit(x, time, torch.ones(4, 9), blocks=dit.block_names)
    assert (out == 0).all()
    stem = dit.x_embedder(x) + dit.positions
    for name in dit.block_names:
        assert torch.equal(maps[name].flatten(2).mT, stem)


def test_the_start_is_the_papers():
    dit = network(trained=False, width=64, heads=4, classes=9)
    zero = {name for name, p in dit.named_parameters() if (p == 0).all()}
    biases = {name for name, _ in dit.named_parameters() if name.endswith("bias")}
    modulations = {f"blocks.{i}.adaLN_modulation.1.weight" for i in range(3)}
    assert zero == biases | modulations | {"final_layer.adaLN_modulation.1.weight", "final_layer.linear.weight"}
    bounds = {"x_embedder.proj": 64 + 12, "blocks.0.attn.qkv": 64 + 192, "blocks.2.mlp.fc1": 64 + 256}
    state = dit.state_dict()
    for name, fans in bounds.items():  # Glorot: uniform within sqrt(6 / (in + out))
        largest = state[name + ".weight"].abs().max()
        assert 0.97 * math.sqrt(6 / fans) < largest <= math.sqrt(6 / fans)
    for name in ("t_embedder.mlp.0", "t_embedder.mlp.2", "y_embedder.embedding_table"):
        assert state[name + ".weight"].std() == pytest.approx(0.02, rel=0.1)


def test_truncated_features_are_the_full_ones_and_nothing_after_them_runs():
    dit = network()
    x, time = batch()
    full = dit(x, time, blocks=("layer_0", "layer_1"))
    later: list[int] = []
    dit.blocks[2].register_forward_hook(lambda *_: later.append(1))
    none, maps = dit(x, time, blocks=["layer_1", "layer_0"], stop=True)
    assert none is None and not later
    assert full[0] is not None and maps.keys() == full[1].keys() == {"layer_0", "layer_1"}
    assert all(torch.equal(maps[name], full[1][name]) for name in maps)
    last = dit(x, time, blocks=["layer_2"], stop=True)
    assert last[0] is None and list(last[1]) == ["layer_2"] and later
    assert dit(x, time)[1] == {}


def test_rows_do_not_see_each_other():
    dit = network()
    x, time = batch()
    alone = torch.cat([dit(x[i : i + 1], time[i : i + 1])[0] for i in range(4)])
    torch.testing.assert_close(dit(x, time)[0], alone, rtol=1e-4, atol=1e-5)


def test_no_label_is_a_label_of_zeros():
    dit = network(augment_dim=9)
    x, time = batch()
    none, zeros = dit(x, time)[0], dit(x, time, torch.zeros(4, 9))[0]
    assert torch.equal(none, zeros)
    labels = torch.randn(4, 9, generator=seeded())
    assert (dit(x, time, labels)[0] - none).abs().amax((1, 2, 3)).min() > 1e-3
    # where it enters: like a change of the first map's bias
    moved = network(augment_dim=9)
    with torch.no_grad():
        moved.t_embedder.mlp[0].bias += moved.t_embedder.label.weight @ labels[0]
    torch.testing.assert_close(dit(x[:1], time[:1], labels[:1])[0], moved(x[:1], time[:1])[0])


def test_backward_reaches_every_parameter():
    dit = network(augment_dim=9, classes=3).train()
    x, time = batch()
    out, _ = dit(x, time, torch.ones(4, 9), y=torch.tensor([0, 1, 2, 1]), generator=seeded())
    out.square().mean().backward()
    for name, parameter in dit.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        assert parameter.grad.isfinite().all(), name


def test_a_tenth_of_the_classes_is_not_told_in_training_only():
    dit = network(classes=3)
    embedder, y = dit.y_embedder, torch.ones(5000, dtype=torch.int64)
    told = embedder.embedding_table.weight[1]
    assert torch.equal(embedder(y, 5000, None), told.expand(5000, -1))
    embedder.train()
    first, again = embedder(y, 5000, seeded()), embedder(y, 5000, seeded())
    assert torch.equal(first, again)
    hidden = (first == embedder.embedding_table.weight[3]).all(1)
    assert hidden.float().mean() == pytest.approx(0.1, abs=0.02)
    assert (first[~hidden] == told).all()
    with pytest.raises(TypeError, match="needs a generator"):
        dit.train()(*batch(), y=torch.ones(4, dtype=torch.int64))


def test_mistakes_are_named():
    dit = network()
    x, time = batch()
    with pytest.raises(UserError, match=r"unknown block 'layer_3' \(did you mean 'layer_\d'\?\); allowed: layer_0,"):
        dit(x, time, blocks=["layer_3"])
    with pytest.raises(UserError, match="images of 7 x 8 cannot be cut into patches of 2 x 2"):
        dit(x[:, :, :7], time)
    with pytest.raises(UserError, match="images of 9 x 9 cannot be cut into patches of 4 x 4"):
        DiT(1, 9, 4)
    with pytest.raises(UserError, match="width = 26 must be a multiple of heads = 2 and of 4"):
        DiT(1, 8, 2, width=26, heads=2)
    with pytest.raises(UserError, match="width = 24 must be a multiple of heads = 5"):
        DiT(1, 8, 2, width=24, heads=5)
