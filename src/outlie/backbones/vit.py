"""The vision transformer, Dosovitskiy et al., ICLR 2021; names of timm and DeiT."""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.backbones.classifier import Classifier
from outlie.backbones.weights import vit_npz_names
from outlie.detectors.base import Views
from outlie.errors import UserError
from outlie.options import PositiveFloat, PositiveInt


class PatchEmbed(nn.Module):
    """Patches as tokens: (B, C, H, W) -> (B, N, D)."""

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, stride=patch)

    def forward(self, z: Tensor) -> Tensor:
        return self.proj(z).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v in each head, then a linear map; (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BND: Tensor) -> Tensor:
        batch, tokens, dim = x_BND.shape
        qkv = self.qkv(x_BND).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, dim))


class Perceptron(nn.Module):
    """W2 gelu(W1 x)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x <- x + attention(norm x); x <- x + mlp(norm x)."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Perceptron(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(Classifier):
    """A vision transformer; features are the class token after the last LayerNorm.

    Args:
        patch: pixels a side of a patch.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of a block's perceptron, in units of dim.
    """

    provides: ClassVar[tuple[str, ...]] = ("x", "features", "logits", "maps", "head", "network")
    paper: ClassVar[str] = "Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021"

    def __init__(
        self,
        patch: PositiveInt = 16,
        dim: PositiveInt = 768,
        depth: PositiveInt = 12,
        heads: PositiveInt = 12,
        mlp_ratio: PositiveFloat = 4.0,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if dim % heads:
            raise UserError(f"dim = {dim} is no multiple of heads = {heads}; set backbone.dim or backbone.heads")
        self.patch, self.dim, self.depth, self.heads, self.mlp_ratio = patch, dim, depth, heads, mlp_ratio

    def build(self, shape: tuple[int, ...], classes: int) -> None:
        """Make patch embedding, position embedding, blocks and head; UserError where patches do not tile the image."""
        channels, *sides = self.input_shape(shape)
        if len(sides) != 2 or any(side % self.patch for side in sides):
            raise UserError(
                f"samples of shape {shape} cannot be cut into patches of {self.patch} x {self.patch} pixels; "
                "set backbone.patch or backbone.size"
            )
        self.grid = (sides[0] // self.patch, sides[1] // self.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + math.prod(self.grid), self.dim))
        self.patch_embed = PatchEmbed(channels, self.patch, self.dim)
        hidden = round(self.dim * self.mlp_ratio)
        self.blocks = nn.Sequential(*(Block(self.dim, self.heads, hidden) for _ in range(self.depth)))
        self.norm = nn.LayerNorm(self.dim, eps=1e-6)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.head = nn.Linear(self.dim, classes)

    def tokens(self, z: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1 + N, D): the class token, then the patches, after the last block's LayerNorm."""
        patches_BND = self.patch_embed(z)
        tokens_BND = torch.cat([self.cls_token.expand(len(z), -1, -1), patches_BND], 1) + self.pos_embed
        return self.norm(self.blocks(tokens_BND))

    def embed(self, z: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        return self.tokens(z)[:, 0]

    def views(self, z: Tensor) -> Views:
        """Also maps (B, D, H / patch, W / patch): the patches' tokens."""
        tokens_BND = self.tokens(z).float()
        features_BD = tokens_BND[:, 0]
        maps_BDHW = tokens_BND[:, 1:].transpose(1, 2).unflatten(2, self.grid)
        return Views(x=z, features=features_BD, logits=self.logits(features_BD), maps=maps_BDHW)

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Google's names become timm's, the position embedding is resized to our grid."""
        state = vit_npz_names(state)
        if self.finetune:  # the layer that only the pre-training's head had
            state = {name: tensor for name, tensor in state.items() if not name.startswith("pre_logits.")}
        if "pos_embed" in state:
            state |= {"pos_embed": resized_positions(state["pos_embed"], self.grid)}
        return state

    def new_head(self) -> dict[str, Tensor]:
        """Zeros: fine-tuning starts from equal logits."""
        return {name: torch.zeros_like(tensor) for name, tensor in self.head.state_dict().items()}


def resized_positions(pos_embed: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1, 1 + g^2, D) position embedding -> (1, 1 + H W, D) by bicubic interpolation; the class token keeps its own."""
    count, dim = pos_embed.shape[1:]
    side = math.isqrt(count - 1)
    if side**2 != count - 1 or count == 1 + math.prod(grid):
        return pos_embed
    patches = pos_embed[:, 1:].float().reshape(1, side, side, dim).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, grid, mode="bicubic", align_corners=False)
    return torch.cat([pos_embed[:, :1].float(), patches.flatten(2).transpose(1, 2)], 1)
