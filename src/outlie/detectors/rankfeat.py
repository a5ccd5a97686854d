"""RankFeat: -T logsumexp(l / T), l the mean logits after F - s_1 u_1 v_1^T at the last two stages; F is C x HW."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from outlie.detectors.base import Detector, Spec, Views
from outlie.errors import UserError
from outlie.options import PositiveFloat

ROWS = 128  # of one forward pass, whose maps are all held


def without_first_component(maps: Tensor) -> Tensor:
    """Each sample's (C, HW) matrix less its largest singular component; (B, C, H, W) -> (B, C, H, W)."""
    # v_1 is the first eigenvector of F^T F, u_1 of F F^T: the smaller of the two replaces an SVD at a tenth of its cost
    f = maps.flatten(2).double()
    if f.shape[1] < f.shape[2]:
        u_BC1 = torch.linalg.eigh(f @ f.mT).eigenvectors[:, :, -1:]
        rest = f - u_BC1 @ (u_BC1.mT @ f)
    else:
        v_BX1 = torch.linalg.eigh(f.mT @ f).eigenvectors[:, :, -1:]
        rest = f - (f @ v_BX1) @ v_BX1.mT
    return rest.to(maps.dtype).view(maps.shape)


class RankFeat(Detector):
    """Energy after the largest singular component of the last two stages' maps is taken away; ResNets only.

    The released code's power iteration from random numbers is left out: the component here is exact.

    Args:
        blocks: stages whose logits are averaged: both, the last or the second_last.
        T: temperature of the energy.
    """

    needs: ClassVar[tuple[str, ...]] = ("x", "logits", "network")
    paper: ClassVar[str] = (
        "Song et al., RankFeat: Rank-1 Feature Removal for Out-of-distribution Detection, NeurIPS 2022"
    )
    posthoc: ClassVar[bool] = True
    scoring: ClassVar[tuple[str, ...]] = ("blocks", "T")

    def __init__(self, blocks: Literal["both", "last", "second_last"] = "both", T: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.blocks, self.T = blocks, T
        self._network: list[Any] = []  # in a list: its weights are not this detector's

    def setup(self, spec: Spec) -> None:
        require_stages("RankFeat", spec)
        self._network = [spec.network]

    def score(self, views: Views) -> Tensor:
        """(B,) float64."""
        return torch.cat([self._score(part) for part in views.x.split(ROWS)])

    def _score(self, x: Tensor) -> Tensor:
        (network,) = self._network
        stages = network.stages(x)
        last = len(stages) - 1
        chosen = {"both": [last, last - 1], "last": [last], "second_last": [last - 1]}[self.blocks]
        logits = [network.tail(without_first_component(stages[i]), i).double() for i in chosen]
        return -self.T * (torch.stack(logits).mean(0) / self.T).logsumexp(1)


def require_stages(name: str, spec: Spec) -> None:
    """Raise UserError where the network has no maps between its stages."""
    if not hasattr(spec.network, "stages"):
        kind = type(spec.network).__name__
        raise UserError(f"{name} needs the maps after a network's stages, {kind} has none; set backbone to a ResNet")
