"""Networks for tables: the DDPM noise predictor and the DTE time predictor."""

import math

import torch
from torch import Tensor, nn


def time_embedding(t: Tensor, width: int) -> Tensor:
    """[cos(t w_k), sin(t w_k)] with w_k = 10000^(-k / (width/2)); (B,) -> (B, width)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResidualBlock(nn.Module):
    """x + Dropout(Linear(Dropout(ReLU(Linear(BatchNorm(x))))))."""

    def __init__(self, width: int, hidden: int, hidden_dropout: float, residual_dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm1d(width),
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Dropout(hidden_dropout),
            nn.Linear(hidden, width),
            nn.Dropout(residual_dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        return x + self.layers(x)


class TabularResNet(nn.Module):
    """eps_theta(x_t, t) for tables: a residual MLP; the time is added once, to the stem's output.

    At the published sizes (D = 21) it has 368,789 parameters. Livernoche et al. 2024, released code.
    """

    def __init__(
        self,
        dim: int,
        width: int = 128,
        hidden: int = 256,
        blocks: int = 3,
        time_width: int = 256,
        hidden_dropout: float = 0.4,
        residual_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.time_width = time_width
        self.time = nn.Sequential(
            nn.Linear(time_width, time_width),
            nn.SiLU(),
            nn.Linear(time_width, time_width),
            nn.SiLU(),
            nn.Linear(time_width, width),
        )
        self.stem = nn.Linear(dim, width)
        self.blocks = nn.Sequential(
            *(ResidualBlock(width, hidden, hidden_dropout, residual_dropout) for _ in range(blocks))
        )
        self.head = nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, dim))

    def embed_time(self, t: Tensor) -> Tensor:
        """(B,) time indices -> (B, width), what the stem's output is shifted by."""
        return self.time(time_embedding(t, self.time_width))

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """(B, D) noisy rows and (B or 1, width) from `embed_time` -> (B, D) predicted noise."""
        return self.head(self.blocks(self.stem(x) + shift))


def time_mlp(dim: int, hidden: tuple[int, ...], dropout: float, out: int) -> nn.Sequential:
    """The DTE network: ReLU layers of widths `hidden`, dropout after each but the first, no normalisation, no time.

    At hidden = (256, 512, 256) and D = 21 it has 270,343 parameters with 7 outputs, 268,801 with one.
    """
    layers: list[nn.Module] = []
    for depth, width in enumerate(hidden):
        layers += [nn.Linear(dim, width), nn.ReLU()]
        if depth > 0:
            layers.append(nn.Dropout(dropout))
        dim = width
    return nn.Sequential(*layers, nn.Linear(dim, out))
