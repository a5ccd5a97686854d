"""F(x, time) as a transformer on patches: DiT (Peebles & Xie, ICCV 2023), x <- x + gate f(norm(x) (1 + scale) + shift).

shift, scale and gate are linear in the embedding c of time, augmentation and class, and zero at the start (adaLN-Zero):
a new network is the identity in every block and its output is zero. Modules carry the published checkpoints' names; the
positions there (`pos_embed`) are not needed here.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.backbones.vit import Attention, PatchEmbed
from outlie.diffusion.nets import time_embedding
from outlie.errors import UserError, unknown

SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}  # width, depth, heads
FREQUENCIES = 256  # width of the time's sinusoid
CLASS_DROPOUT = 0.1  # share of a training batch that is not told its class


def modulated(x_BND: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    """norm(x) (1 + scale) + shift; the LayerNorm has no weights of its own."""
    return F.layer_norm(x_BND, x_BND.shape[-1:], eps=1e-6) * (1 + scale_BD[:, None]) + shift_BD[:, None]


def positions(height: int, width: int, dim: int, device: torch.device | None = None) -> Tensor:
    """(height width, dim): [sin(x w), cos(x w), sin(y w), cos(y w)], w_k = 10000^(-k / (dim/4)), row by row."""
    quarter = dim // 4
    steps = torch.arange(quarter, device=device, dtype=torch.float64) / quarter
    frequencies = torch.exp(-math.log(10_000) * steps)
    y, x = torch.meshgrid(
        torch.arange(height, device=device, dtype=torch.float64),
        torch.arange(width, device=device, dtype=torch.float64),
        indexing="ij",
    )
    angles = [place.flatten()[:, None] * frequencies for place in (x, y)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1).float()


class Perceptron(nn.Module):
    """W2 gelu(W1 x), gelu by tanh."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """x <- x + gate attention(modulated x); x <- x + gate mlp(modulated x); six modulations from c."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = Perceptron(width, 4 * width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x_BND: Tensor, c_BD: Tensor) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c_BD).chunk(6, 1)
        x_BND = x_BND + gate[:, None] * self.attn(modulated(x_BND, shift, scale))
        return x_BND + gate_mlp[:, None] * self.mlp(modulated(x_BND, shift_mlp, scale_mlp))


class Final(nn.Module):
    """W modulated(x): tokens -> patches of the output."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x_BND: Tensor, c_BD: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c_BD).chunk(2, 1)
        return self.linear(modulated(x_BND, shift, scale))


class TimeEmbedder(nn.Module):
    """W2 SiLU(W1 [cos, sin] + A label); A, without bias, only where there are augmentation labels."""

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Linear(labels, width, bias=False) if labels else None

    def forward(self, time_B: Tensor, label: Tensor | None) -> Tensor:
        hidden = self.mlp[0](time_embedding(time_B, FREQUENCIES))
        if self.label is not None and label is not None:
            hidden = hidden + self.label(label)
        return self.mlp[2](self.mlp[1](hidden))


class ClassEmbedder(nn.Module):
    """One vector a class; the last is the null token's, "not told"."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.null = classes
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, y: Tensor | None, batch: int, generator: torch.Generator | None) -> Tensor:
        if y is None:
            return self.embedding_table.weight[self.null].expand(batch, -1)
        if self.training:
            if generator is None:
                raise TypeError("training with classes needs a generator: it draws the rows that are not told theirs")
            told = torch.rand(len(y), generator=generator, device=generator.device) >= CLASS_DROPOUT
            y = torch.where(told.to(y.device), y, self.null)
        return self.embedding_table(y)


class DiT(nn.Module):
    """The network, on pixels or latents; DiT-XL/2 on 4 x 32 x 32 with 1000 classes has 674,834,720 parameters.

    Args:
        channels: of the input.
        size: height and width that positions are kept for; others work too.
        patch: pixels a side of a patch.
        width: of a token; see SIZES for the published (width, depth, heads).
        depth: number of blocks.
        heads: of the attention.
        outputs: channels of the output; None = as the input, twice that with a learned variance.
        classes: classes to be conditioned on; 0 = none.
        augment_dim: width of an augmentation label; 0 = none is taken.

    Raises:
        UserError: heads do not divide the width, 4 does not, or the patch does not tile `size`.
    """

    positions: Tensor

    def __init__(
        self,
        channels: int,
        size: int = 32,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        outputs: int | None = None,
        classes: int = 0,
        augment_dim: int = 0,
    ) -> None:
        super().__init__()
        if width % heads or width % 4:
            raise UserError(f"width = {width} must be a multiple of heads = {heads} and of 4; set width or heads")
        self.multiple, self.outputs = patch, outputs or channels
        self.grid = self._grid(size, size)
        self.block_names = tuple(f"layer_{i}" for i in range(depth))
        self.default_block = f"layer_{(depth - 1) // 2}"  # the middle one: layer_13 of 28
        self.x_embedder = PatchEmbed(channels, patch, width)
        self.t_embedder = TimeEmbedder(width, augment_dim)
        self.y_embedder = ClassEmbedder(classes, width) if classes else None
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final_layer = Final(width, patch**2 * self.outputs)
        self.register_buffer("positions", positions(*self.grid, width), persistent=False)
        self._initialise()

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        blocks: Collection[str] = (),
        stop: bool = False,
        y: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """F(x, time), (B, outputs, H, W), and the maps of the named blocks; with `stop` None, ended after the last.

        Args:
            x: (B, C, H, W), sizes multiples of `multiple`.
            time: (B,) as the network is told it.
            label: (B, augment_dim) how the image was augmented; None = not at all, as a label of zeros.
            blocks: names of blocks whose output is wanted, (B, width, H / patch, W / patch).
            stop: end after the last of `blocks`.
            y: (B,) int64 classes, for a network that has them; None = the null token.
            generator: needed in training with `y`: a tenth of the rows, drawn from it, gets the null token.

        Raises:
            UserError: an unknown block, or sizes that the patches do not tile.
        """
        wanted, maps = set(blocks), {}
        for name in sorted(wanted - set(self.block_names)):
            raise UserError(unknown("block", name, self.block_names))
        grid = self._grid(*x.shape[2:])
        c_BD = self.t_embedder(time, label)
        if self.y_embedder is not None:
            c_BD = c_BD + self.y_embedder(y, len(x), generator)
        tokens_BND = self.x_embedder(x)
        tokens_BND = tokens_BND + self._positions(grid, tokens_BND)
        for name, block in zip(self.block_names, self.blocks):
            if stop and len(maps) == len(wanted):
                return None, maps
            tokens_BND = block(tokens_BND, c_BD)
            if name in wanted:
                maps[name] = tokens_BND.transpose(1, 2).unflatten(2, grid)
        if stop:
            return None, maps
        return self._image(self.final_layer(tokens_BND, c_BD), grid), maps

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        patch = self.multiple
        if height % patch or width % patch:
            raise UserError(f"images of {height} x {width} cannot be cut into patches of {patch} x {patch} pixels")
        return height // patch, width // patch

    def _positions(self, grid: tuple[int, int], like_BND: Tensor) -> Tensor:
        if grid == self.grid:
            return self.positions
        return positions(*grid, like_BND.shape[-1], like_BND.device).to(self.positions.dtype)

    def _image(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, h w, patch patch C), channels innermost -> (B, C, h patch, w patch)."""
        patch, (h, w) = self.multiple, grid
        out = tokens.view(len(tokens), h, w, patch, patch, self.outputs)
        return out.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), self.outputs, h * patch, w * patch)

    def _initialise(self) -> None:
        """Xavier uniform for linear maps, also of the patches; 0.02 for embeddings; zero for modulations and output."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith("embedding_table.weight") or (name.startswith("t_embedder") and parameter.ndim == 2):
                nn.init.normal_(parameter, std=0.02)
            elif "adaLN_modulation" in name or name == "final_layer.linear.weight":
                nn.init.zeros_(parameter)
