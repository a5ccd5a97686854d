"""The vision transformer against PyTorch's attention and Google's layout written out in NumPy; timm's numbers are in
test_backbones."""

import numpy as np
import pytest
import torch
from scipy.special import erf, softmax

from outlie.backbones.vit import Attention, ViT, resized_positions
from outlie.data.split import Rows, Split
from outlie.errors import UserError


def split_of(side: int = 16, classes: int = 3) -> Split:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (2 * classes, 3, side, side), generator=generator, dtype=torch.uint8)
    rows = Rows(x, torch.arange(len(x)), None, torch.arange(len(x)) % classes)
    return Split("p", rows, {}, None, torch.zeros(3, 1, 1), torch.ones(3, 1, 1), "hash")


def npz(dim: int = 16, heads: int = 2, depth: int = 2, grid: int = 4, classes: int = 3) -> dict[str, np.ndarray]:
    """Weights in the layout of Google's checkpoints, patches of 4."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * 0.3).astype(np.float32)

    weights = {
        "cls": draw(1, 1, dim),
        "embedding/kernel": draw(4, 4, 3, dim),
        "embedding/bias": draw(dim),
        "Transformer/posembed_input/pos_embedding": draw(1, 1 + grid**2, dim),
        "Transformer/encoder_norm/scale": 1 + draw(dim),
        "Transformer/encoder_norm/bias": draw(dim),
        "head/kernel": draw(dim, classes),
        "head/bias": draw(classes),
    }
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        attention, mlp = f"{block}/MultiHeadDotProductAttention_1", f"{block}/MlpBlock_3"
        for part in ("query", "key", "value"):
            weights[f"{attention}/{part}/kernel"] = draw(dim, heads, dim // heads)
            weights[f"{attention}/{part}/bias"] = draw(heads, dim // heads)
        weights[f"{attention}/out/kernel"], weights[f"{attention}/out/bias"] = draw(heads, dim // heads, dim), draw(dim)
        for norm in (0, 2):
            weights[f"{block}/LayerNorm_{norm}/scale"] = 1 + draw(dim)
            weights[f"{block}/LayerNorm_{norm}/bias"] = draw(dim)
        weights[f"{mlp}/Dense_0/kernel"], weights[f"{mlp}/Dense_0/bias"] = draw(dim, 4 * dim), draw(4 * dim)
        weights[f"{mlp}/Dense_1/kernel"], weights[f"{mlp}/Dense_1/bias"] = draw(4 * dim, dim), draw(dim)
    return weights


def flax_forward(w: dict[str, np.ndarray], z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and logits as the paper's own code defines them, patch by patch; z is (B, 3, H, W)."""

    def norm(x, name):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + 1e-6) * w[f"{name}/scale"] + w[f"{name}/bias"]

    batch, _, height, width = z.shape
    patches = [
        np.einsum("bchw,hwcd->bd", z[:, :, i : i + 4, j : j + 4], w["embedding/kernel"]) + w["embedding/bias"]
        for i in range(0, height, 4)
        for j in range(0, width, 4)
    ]
    x = np.concatenate([np.repeat(w["cls"], batch, 0), np.stack(patches, 1)], 1)
    x = x + w["Transformer/posembed_input/pos_embedding"]
    for i in range(2):
        block = f"Transformer/encoderblock_{i}"
        attention, mlp = f"{block}/MultiHeadDotProductAttention_1", f"{block}/MlpBlock_3"
        y = norm(x, f"{block}/LayerNorm_0")
        q, k, v = (
            np.einsum("bnd,dhe->bnhe", y, w[f"{attention}/{part}/kernel"]) + w[f"{attention}/{part}/bias"]
            for part in ("query", "key", "value")
        )
        share = softmax(np.einsum("bnhe,bmhe->bhnm", q, k) / np.sqrt(q.shape[-1]), -1)
        mixed = np.einsum("bhnm,bmhe->bnhe", share, v)
        x = x + np.einsum("bnhe,hed->bnd", mixed, w[f"{attention}/out/kernel"]) + w[f"{attention}/out/bias"]
        y = norm(x, f"{block}/LayerNorm_2") @ w[f"{mlp}/Dense_0/kernel"] + w[f"{mlp}/Dense_0/bias"]
        y = y * (1 + erf(y / np.sqrt(2))) / 2
        x = x + y @ w[f"{mlp}/Dense_1/kernel"] + w[f"{mlp}/Dense_1/bias"]
    features = norm(x, "Transformer/encoder_norm")[:, 0]
    return features, features @ w["head/kernel"] + w["head/bias"]


def small(**options) -> ViT:
    return ViT(patch=4, dim=16, depth=2, heads=2, **options)


def test_googles_weights_give_googles_features(tmp_path):
    weights, split = npz(), split_of()
    np.savez(tmp_path / "vit.npz", **weights)
    network = small(weights=tmp_path / "vit.npz", normalise="half").eval()
    assert not network.trained
    network.setup(split)
    with torch.no_grad():
        views = network(split.train.x)
    features, logits = flax_forward(weights, split.train.x.numpy() / 127.5 - 1)
    np.testing.assert_allclose(views.features, features, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(views.logits, logits, rtol=1e-3, atol=1e-4)
    assert logits.std(0).min() > 0.01


def test_fine_tuning_starts_from_a_head_of_zeros(tmp_path):
    weights = npz(classes=21) | {"pre_logits/kernel": np.zeros((16, 16), np.float32), "pre_logits/bias": np.zeros(16)}
    np.savez(tmp_path / "vit.npz", **weights)
    with pytest.raises(UserError, match=r"weights for 21 classes, the data have 3; backbone\.finetune=true"):
        small(weights=tmp_path / "vit.npz").setup(split_of())
    network = small(weights=tmp_path / "vit.npz", finetune=True)
    network.setup(split_of())
    assert network.trained
    assert network.head.weight.shape == (3, 16) and not network.head.weight.any() and not network.head.bias.any()
    torch.testing.assert_close(network.cls_token.detach(), torch.as_tensor(weights["cls"]))


def test_a_name_that_google_does_not_have_is_told(tmp_path):
    np.savez(tmp_path / "vit.npz", **npz(), **{"Transformer/encoderblock_0/odd/kernel": np.zeros((2, 2))})
    with pytest.raises(UserError, match=r"another architecture: 1 unexpected: blocks\.0\.odd/kernel"):
        small(weights=tmp_path / "vit.npz").setup(split_of())
    few = {name: w for name, w in npz().items() if not name.endswith("1/MultiHeadDotProductAttention_1/key/kernel")}
    np.savez(tmp_path / "vit.npz", **few)
    with pytest.raises(UserError, match=r"1 of another shape: blocks\.1\.attn\.qkv\.weight \(32, 16\) for \(48, 16\)"):
        small(weights=tmp_path / "vit.npz").setup(split_of())


def test_attention_is_pytorchs():
    torch.manual_seed(0)
    ours, theirs = Attention(24, 3), torch.nn.MultiheadAttention(24, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.weight.copy_(ours.proj.weight)
        theirs.out_proj.bias.copy_(ours.proj.bias)
        x = torch.randn(2, 7, 24)
        torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0], rtol=1e-4, atol=1e-5)


def keys(values: np.ndarray, out: int) -> np.ndarray:
    """Keys' cubic convolution with a = -3/4 along the first axis, one output at a time, edges repeated."""

    def kernel(t: float) -> float:
        a, t = -0.75, abs(t)
        return (a + 2) * t**3 - (a + 3) * t**2 + 1 if t <= 1 else a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0

    n, result = len(values), []
    for i in range(out):
        place = (i + 0.5) * n / out - 0.5
        near = [int(np.floor(place)) + j for j in (-1, 0, 1, 2)]
        result.append(sum(kernel(place - j) * values[min(max(j, 0), n - 1)] for j in near))
    return np.stack(result)


@pytest.mark.parametrize("grid", [(16, 12), (5, 9)])
def test_positions_for_another_grid_are_bicubic(grid):
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(1, 65, 3)).astype(np.float32)
    resized = resized_positions(torch.as_tensor(positions), grid).numpy()
    expected = keys(keys(positions[0, 1:].reshape(8, 8, 3), grid[0]).swapaxes(0, 1), grid[1]).swapaxes(0, 1)
    np.testing.assert_allclose(resized[0, 1:].reshape(*grid, 3), expected, atol=1e-5)
    np.testing.assert_array_equal(resized[:, 0], positions[:, 0])


def test_positions_of_the_same_grid_or_of_no_square_are_left_alone():
    for count, grid in ((17, (4, 4)), (17, (2, 8)), (13, (4, 4))):
        positions = torch.zeros(1, count, 3)
        assert resized_positions(positions, grid) is positions


def test_a_checkpoint_of_another_grid_is_loaded(tmp_path):
    torch.manual_seed(0)
    first = small()
    first.setup(split_of(side=16))
    torch.save(first.state_dict(), tmp_path / "vit.pt")
    second = small(weights=tmp_path / "vit.pt")
    second.setup(split_of(side=24))
    expected = resized_positions(first.pos_embed.detach(), (6, 6))
    assert torch.equal(second.pos_embed.detach(), expected) and expected.shape == (1, 37, 16)


def test_an_image_that_patches_do_not_tile():
    with pytest.raises(UserError, match=r"cannot be cut into patches of 4 x 4 pixels; set backbone\.patch"):
        small().setup(split_of(side=18))
    small(size=16).setup(split_of(side=18))
    with pytest.raises(UserError, match="dim = 16 is no multiple of heads = 3"):
        ViT(dim=16, heads=3)


def test_parameter_count_of_b16_is_the_known_one():
    with torch.device("meta"):
        network = ViT(size=224)
        network.build((3, 32, 32), 1000)
    assert sum(p.numel() for p in network.parameters()) == 86_567_656
