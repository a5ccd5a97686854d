"""GOAD: of which random linear map is this the image? A normal row lets all of them be told. Bergman & Hoshen 2020.

z_m = LeakyReLU(W T_m x) for m = 1 to M; p(j | z) = softmax_j(-||z - c_j||^2), c_j the mean of z_j over training rows;
score = -sum_m log p(m | z_m).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.training import Recipe
from outlie.errors import UserError
from outlie.options import NonNegativeFloat, PositiveFloat, PositiveInt

ROWS_AT_ONCE = 64  # a row has M^2 distances


@dataclass(frozen=True)
class GOADRecipe(Recipe):
    """Adam with the short memory of the released code."""

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Adam with beta_1 = 0.5."""
        return torch.optim.Adam(module.parameters(), lr=self.lr, betas=(0.5, 0.999), fused=True)


def centre_triplet(z_BMK: Tensor, margin: float) -> Tensor:
    """mean max(0, ||z_m - c_m||^2 + margin - min_{j != m} ||z_m - c_j||^2), c_j the batch's mean of z_j; scalar."""
    centres_MK = z_BMK.mean(0)
    # ||z||^2 is in both distances
    apart_BMM = centres_MK.square().sum(1) - 2 * z_BMK @ centres_MK.T
    own = torch.eye(len(centres_MK), dtype=torch.bool, device=z_BMK.device)
    nearest_BM = apart_BMM.masked_fill(own, torch.inf).amin(2)
    return (apart_BMM.diagonal(dim1=1, dim2=2) + margin - nearest_BM).clamp(min=0).mean()


def surprise(z_BMK: Tensor, centres_MK: Tensor, eps: float) -> Tensor:
    """-sum_m log softmax_j(-max(||z_m - c_j||^2, eps))[m]; (B,).

    As softplus of log sum_{j != m} exp(d_m - d_j): rows whose maps are all told with certainty still differ.
    """
    squared_BMM = z_BMK.square().sum(2, keepdim=True) + centres_MK.square().sum(1) - 2 * z_BMK @ centres_MK.T
    squared_BMM = squared_BMM.clamp(min=eps)
    nearer_BMM = squared_BMM.diagonal(dim1=1, dim2=2)[..., None] - squared_BMM
    own = torch.eye(len(centres_MK), dtype=torch.bool, device=z_BMK.device)
    odds_BM = nearer_BMM.masked_fill(own, -torch.inf).logsumexp(2)
    return F.softplus(odds_BM, threshold=700).sum(1)


class GOAD(Detector):
    """Random maps that a small network learns to tell apart by the distance to their centres.

    Each T_m is a matrix of independent standard normal numbers, without an offset; as in the released code z is taken
    after the activation: before it, the centres of standardised columns would all be 0. The centres are those of the
    trained network; the released code adds up those of the last epoch's batches while it still trains.

    Args:
        maps: M, number of random maps.
        map_dim: width of a map's image.
        width: K, width of z.
        margin: by which a map's own centre must be the nearest.
        triplet: weight of the triplet loss beside the cross-entropy of the map's number.
        eps: squared distances in the score are at least this.
        epochs: epochs to train.
        batch_size: rows per optimiser step; each is sent through every map.
        lr: learning rate of Adam.
    """

    needs: ClassVar[tuple[str, ...]] = ("x",)
    paper: ClassVar[str] = "Bergman & Hoshen, Classification-Based Anomaly Detection for General Data, ICLR 2020"
    scoring: ClassVar[tuple[str, ...]] = ("eps",)
    transforms: Tensor  # (D, M, map_dim)
    centres: Tensor  # (M, K)

    def __init__(
        self,
        maps: PositiveInt = 256,
        map_dim: PositiveInt = 32,
        width: PositiveInt = 8,
        margin: NonNegativeFloat = 1.0,
        triplet: NonNegativeFloat = 0.1,
        eps: NonNegativeFloat = 0.0,
        epochs: PositiveInt = 1,
        batch_size: PositiveInt = 64,
        lr: PositiveFloat = 1e-3,
    ) -> None:
        super().__init__()
        if maps < 2:
            raise UserError(f"maps = {maps}: one map cannot be told from others; set detector.maps to at least 2")
        self.maps, self.map_dim, self.width, self.margin, self.triplet, self.eps = (
            maps, map_dim, width, margin, triplet, eps,
        )  # fmt: skip
        self.recipe = GOADRecipe(epochs, batch_size, lr)
        self.register_buffer("transforms", torch.empty(0), persistent=False)
        self.register_buffer("centres", torch.empty(0))

    def setup(self, spec: Spec) -> None:
        """Draw the maps and build the network.

        The maps are large (17 MB for 512 columns), so a checkpoint holds the seed alone; NumPy promises that the
        numbers of a `RandomState` never change.
        """
        dim = spec.shapes["x"][0]
        drawn = np.random.RandomState(spec.seed).standard_normal((dim, self.maps, self.map_dim))
        self.transforms = torch.from_numpy(drawn).float()
        self.trunk = nn.Linear(self.map_dim, self.width, bias=False)
        self.head = nn.Linear(self.width, self.maps)
        for layer in (self.trunk, self.head):
            nn.init.xavier_normal_(layer.weight, gain=2**0.5)

    def represent(self, x_BD: Tensor) -> Tensor:
        """(B, M, K) representations of each row's images, in the precision of x."""
        joined = (self.transforms @ self.trunk.weight.T).to(x_BD)  # (D, M, K): map and first layer are one product
        return F.leaky_relu((x_BD @ joined.flatten(1)).view(len(x_BD), self.maps, self.width), 0.2)

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """-log p(m | z_m) of the head, and the triplet loss of the distances; scalar."""
        z_BMK = self.represent(views.x.to(self.transforms))
        which = torch.arange(self.maps, device=z_BMK.device).repeat(len(z_BMK))
        told = F.cross_entropy(self.head(z_BMK).flatten(0, 1), which)
        return told + self.triplet * centre_triplet(z_BMK, self.margin)

    def fit(self, train: Views) -> None:
        """Keep the centre of every map."""
        sums = [self.represent(x_BD.double()).sum(0) for x_BD in train.x.split(1024)]
        self.centres = torch.stack(sums).sum(0) / len(train)

    def score(self, views: Views) -> Tensor:
        """(B,) -log p of all maps, summed."""
        parts = views.x.to(self.centres).split(ROWS_AT_ONCE)
        return torch.cat([surprise(self.represent(x_BD), self.centres, self.eps) for x_BD in parts])
