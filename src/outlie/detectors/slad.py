"""SLAD: how much of a row's information is in these columns? A network ranks subspaces by it. Xu et al. 2023.

Subspace c of a group: some columns of x, sent to h numbers by a random matrix of its size; its scale is the sum of its
columns' weights. A network gives each subspace a number, p = softmax over a group of 10, against t = softmax(scales);
score = mean over 20 groups of the divergence of p and t.
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

# as released: how often an epoch goes over tables of up to so many rows (there 500, 1,000, 5,000 and 100,000 exactly)
PASSES = ((512, 50), (1024, 20), (5000, 5), (100_000, 2))


@dataclass(frozen=True)
class SLADRecipe(Recipe):
    """More passes over small tables.

    Args:
        passes: over the rows in an epoch; None = as released.
    """

    passes: int | None = None

    def epochs_of(self, steps_an_epoch: int) -> int:
        """Passes over the rows in all epochs."""
        rows = steps_an_epoch * self.batch_size  # up to a batch more than there are
        released = next((passes for most, passes in PASSES if rows <= most), 1)
        return self.epochs * (self.passes or released)


def column_weights(x_ND: Tensor) -> Tensor:
    """Mean absolute Pearson correlation of each column with all, scaled to 0 to 1; ones from 50 columns on; (D,).

    A column that is constant correlates with none; weights that are all alike are ones (released: NaN).
    """
    dim = x_ND.shape[1]
    centred = x_ND.double() - x_ND.double().mean(0)
    unit = F.normalize(centred, dim=0)
    mean = (unit.T @ unit).abs().mean(1)
    spread = mean.max() - mean.min()
    return torch.ones_like(mean) if dim >= 50 or not spread > 1e-9 else (mean - mean.min()) / spread


def divergence(logits_BC: Tensor, scales_BC: Tensor) -> Tensor:
    """KL(m || softmax(p)) + KL(m || softmax(t)), p and t the softmaxes of both, m = (p + t) / 2; (B,).

    As released; the paper's Jensen-Shannon divergence is KL(p || m) + KL(t || m), halved, without a second softmax.
    """
    p, t = logits_BC.softmax(1), scales_BC.softmax(1)
    m = (p + t) / 2
    return (2 * torch.xlogy(m, m) - m * (p.log_softmax(1) + t.log_softmax(1))).sum(1)


class SLAD(Detector):
    """Scale learning over random subspaces.

    In training a row meets one random group at a time; the released code fixes rows for each group beforehand.

    Args:
        groups: number of groups of subspaces; the score is the mean over them.
        group_size: subspaces in a group.
        sizes: at most so many different sizes of subspaces, drawn from 1 to the number of columns.
        subspace_dim: h, numbers that a subspace is sent to.
        width: of the hidden layer.
        magnify: factor of the scales, which are divided by h.
        epochs: epochs to train.
        passes: over the rows in an epoch; None = 50 for tables of up to 512 rows, then 20, 5, 2 and 1 (published).
        batch_size: rows per optimiser step.
        lr: learning rate of Adam.
        weight_decay: coupled L2.
    """

    needs: ClassVar[tuple[str, ...]] = ("x",)
    paper: ClassVar[str] = "Xu et al., Fascinating Supervisory Signals and Where to Find Them, ICML 2023 (SLAD)"
    subspaces: Tensor  # (groups, D, group_size * h)
    members: Tensor  # (groups, group_size, D), how often a column is in a subspace
    scales: Tensor  # (groups, group_size)

    def __init__(
        self,
        groups: PositiveInt = 20,
        group_size: PositiveInt = 10,
        sizes: PositiveInt = 50,
        subspace_dim: PositiveInt = 128,
        width: PositiveInt = 100,
        magnify: PositiveFloat = 200.0,
        epochs: PositiveInt = 100,
        passes: PositiveInt | None = None,
        batch_size: PositiveInt = 128,
        lr: PositiveFloat = 1e-3,
        weight_decay: NonNegativeFloat = 1e-5,
    ) -> None:
        super().__init__()
        if group_size < 2:
            raise UserError("group_size = 1: one subspace has no rank; set detector.group_size to at least 2")
        self.groups, self.group_size, self.sizes = groups, group_size, sizes
        self.subspace_dim, self.width, self.magnify = subspace_dim, width, magnify
        self.recipe = SLADRecipe(epochs, batch_size, lr, weight_decay, passes=passes)
        self.register_buffer("subspaces", torch.empty(0), persistent=False)
        self.register_buffer("members", torch.empty(0), persistent=False)
        self.register_buffer("scales", torch.zeros(groups, group_size))

    def setup(self, spec: Spec) -> None:
        """Draw the subspaces and build the network.

        The matrices are large (52 MB for 512 columns), so a checkpoint holds the seed alone; NumPy promises that the
        numbers of a `RandomState` never change.
        """
        dim = spec.shapes["x"][0]
        if dim < 2:
            raise UserError(
                f"slad ranks subspaces and needs at least 2 columns, the data have {dim}; use detector=ecod"
            )
        random, of_size = np.random.RandomState(spec.seed), {}
        pool = np.sort(random.choice(np.arange(1, dim + 1), min(self.sizes, dim), replace=False))
        for size in pool:
            of_size[size] = random.uniform(-1, 1, (size, self.subspace_dim)) / size**0.5
        members = np.zeros((self.groups, self.group_size, dim), np.float32)
        subspaces = np.zeros((self.groups, dim, self.group_size, self.subspace_dim), np.float32)
        for group, place in np.ndindex(self.groups, self.group_size):
            size = random.choice(pool)
            columns = random.choice(dim, size, replace=dim <= 10)  # of few columns, some twice
            np.add.at(members[group, place], columns, 1)
            np.add.at(subspaces[group, :, place], columns, of_size[size])
        self.members, self.subspaces = torch.from_numpy(members), torch.from_numpy(subspaces).flatten(2)
        self.net = nn.Sequential(
            nn.Linear(self.subspace_dim, self.width, bias=False), nn.LeakyReLU(), nn.Linear(self.width, 1, bias=False)
        )

    def prepare(self, train: Views) -> None:
        """Give every subspace the scale that its columns have in the training rows."""
        weights = column_weights(train.x).to(self.members)
        self.scales = self.members @ weights * self.magnify / self.subspace_dim

    def ranked(self, x_BD: Tensor, group: int) -> Tensor:
        """(B, group_size) numbers that the network gives the subspaces of a group."""
        sent = (x_BD @ self.subspaces[group]).view(len(x_BD), self.group_size, self.subspace_dim)
        return self.net(sent)[..., 0]

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """Mean divergence, each row in one group; a batch is shared out among groups in random order; scalar."""
        x_BD = views.x.to(self.subspaces)
        order = torch.randperm(self.groups, generator=generator, device=x_BD.device).tolist()
        shares = [(group, rows) for group, rows in zip(order, x_BD.tensor_split(self.groups)) if len(rows)]
        sent = torch.cat([rows @ self.subspaces[group] for group, rows in shares])
        logits_BC = self.net(sent.view(len(x_BD), self.group_size, self.subspace_dim))[..., 0]
        scales_BC = torch.cat([self.scales[group].expand(len(rows), -1) for group, rows in shares])
        return divergence(logits_BC, scales_BC).mean()

    def score(self, views: Views) -> Tensor:
        """(B,) divergence, mean over the groups."""
        x_BD = views.x.to(self.subspaces)
        total_B = x_BD.new_zeros(len(x_BD), dtype=torch.float64)
        for group, scales_C in enumerate(self.scales.double()):
            total_B += divergence(self.ranked(x_BD, group).double(), scales_C.expand(len(x_BD), -1))
        return total_B / self.groups
