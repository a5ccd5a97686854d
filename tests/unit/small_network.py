"""A small network with the two stages and the tail that ODIN, RankFeat and Gram ask of a backbone."""

import torch
from torch import Tensor

from outlie.detectors.base import Views

CLASSES = 5


class Network(torch.nn.Module):
    """Two convolutional stages, pooled, and a head; float64, so that a difference is one of definition."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([50.0, 60.0, 70.0])[:, None, None])
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            self.first, self.second = torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.Conv2d(6, 8, 3, stride=2)
            self.head = torch.nn.Linear(8, CLASSES)
            self.double()
            usual = self.stages(torch.randn(200, 3, 9, 9).double())[-1].mean((0, 2, 3))
            self.head.weight *= 5
            self.head.bias.copy_(-self.head.weight @ usual)  # every class is predicted somewhere

    def stages(self, z: Tensor) -> list[Tensor]:
        first = self.first(z).relu()
        return [first, self.second(first).relu()]

    def tail(self, maps: Tensor, stage: int) -> Tensor:
        return self.head((self.second(maps).relu() if stage == 0 else maps).mean((2, 3)))

    def views(self, z: Tensor) -> Views:
        features = self.stages(z)[-1].mean((2, 3))
        return Views(x=z, features=features, logits=self.head(features))


def images(n: int, seed: int) -> Tensor:
    return torch.randn(n, 3, 9, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
