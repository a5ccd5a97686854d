"""What student-teacher detectors share: d(t, s) between maps, the teacher's maps, a fresh student, recipes.

The teacher is the run's backbone. It is held in a plain list, so it is never trained, moved into a checkpoint or put
into train mode with its student.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.detectors.base import Spec, Views
from outlie.detectors.rankfeat import require_stages
from outlie.detectors.training import Recipe
from outlie.errors import UserError

USES = 256  # pixels for which a weight of a residual network is used about once, for stages.step_flops
VALIDATED = 32  # images of one forward pass without gradients
HEADS = ("decoder", "auxiliary_head")  # children that make no stage's map


@dataclass(frozen=True)
class SGDRecipe(Recipe):
    """SGD with momentum and coupled L2."""

    momentum: float = 0.9

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """For the weights that are trained."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class AdamRecipe(Recipe):
    """Adam with other decays of its moments, and the learning rate divided by ten after a share of the steps."""

    betas: tuple[float, float] = (0.9, 0.999)
    drop_at: float = 1.0

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """For the weights that are trained."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=True)

    def lr_at(self, progress: float) -> float:
        """A tenth from `drop_at` on; asked before every step where decay_lr is set."""
        return self.lr * (0.1 if progress >= self.drop_at else 1.0)


def squared_distance(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """||t / ||t|| - s / ||s|| ||^2 at every position; (B, H, W)."""
    return (F.normalize(teacher_BCHW, dim=1) - F.normalize(student_BCHW, dim=1)).square().sum(1)


def cosine_distance(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """1 - cos(t, s) over the channels of every position; (B, H, W)."""
    return 1 - F.cosine_similarity(teacher_BCHW, student_BCHW, dim=1)


def flat_cosine_distance(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """1 - cos of the whole maps, flattened; (B,)."""
    return 1 - F.cosine_similarity(teacher_BCHW.flatten(1), student_BCHW.flatten(1), dim=1)


def at_size(map_BHW: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, pixels' centres as in images; (B, h, w) -> (B, H, W)."""
    return F.interpolate(map_BHW[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


def gaussian_blur(map_BHW: Tensor, sigma: float) -> Tensor:
    """As scipy.ndimage.gaussian_filter: cut off at 4 sigma, the border mirrored with its edge doubled."""
    if not sigma:
        return map_BHW
    rows_HH, columns_WW = (blur_matrix(n, sigma).to(map_BHW) for n in map_BHW.shape[1:])
    return rows_HH @ map_BHW @ columns_WW.T


def blur_matrix(n: int, sigma: float) -> Tensor:
    """(n, n) float64: row i has the Gaussian weights around i, those beyond an end put back where they are mirrored."""
    reach = int(4 * sigma + 0.5)
    offset = torch.arange(-reach, reach + 1)
    weight = torch.exp(-0.5 * (offset.double() / sigma).square())
    place = (torch.arange(n)[:, None] + offset) % (2 * n)
    place = torch.where(place < n, place, 2 * n - 1 - place)
    return torch.zeros(n, n, dtype=torch.float64).scatter_add_(1, place, (weight / weight.sum()).expand(n, -1))


def teacher_of(name: str, spec: Spec, levels: Sequence[int]) -> Any:
    """The backbone, ready to be looked at; UserError where it has no such stages."""
    require_stages(name, spec)
    network: Any = spec.network
    count = len(network.stage_names)
    if wrong := [level for level in levels if not 1 <= level <= count]:
        raise UserError(f"stage {wrong[0]} of {count}: set detector.levels to some of 1 to {count}")
    return network.eval()


def stage_maps(network: Any, z: Tensor, levels: Sequence[int]) -> list[Tensor]:
    """The maps after these stages (from 1) in float32; later stages are left out where they can be."""
    if not hasattr(network, "stem"):
        maps = network.stages(z)
        return [maps[level - 1].float() for level in levels]
    found, out = {}, network.stem(z)
    for level, layer in enumerate(network.layers()[: max(levels)], 1):
        found[level] = out = layer(out)
    return [found[level].float() for level in levels]


@torch.no_grad()
def teacher_maps(network: Any, z: Tensor, levels: Sequence[int]) -> list[Tensor]:
    """The same of a teacher, who follows its student's device."""
    return stage_maps(network.to(z.device), z, levels)


def student_of(network: Any, levels: Sequence[int]) -> Any:
    """A network of the same architecture with fresh weights, without what the maps of these stages do not need."""
    student = copy.deepcopy(network)
    unneeded = {*student.stage_names[max(levels) :], *HEADS}
    head = getattr(student, "head", None)
    for name, child in list(student.named_children()):
        if child is head or name in unneeded:
            setattr(student, name, nn.Identity())
    for module in student.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    if callable(initialise := getattr(student, "initialise", None)):
        initialise()
    return student.requires_grad_(True).train()


def uses(spec: Spec) -> int:
    """About how often a step uses each weight, an image."""
    *_, height, width = spec.shapes["x"]
    return max(1, height * width // USES)


@torch.no_grad()
def mean_over(views: Views, value: Callable[[Tensor], Tensor], at_once: int = VALIDATED) -> Tensor:
    """Mean of a scalar of raw images over all rows, some at a time."""
    parts = [(len(x), value(x)) for x in (views.x[rows] for rows in torch.arange(len(views)).split(at_once))]
    return torch.stack([n * one for n, one in parts]).sum() / len(views)
