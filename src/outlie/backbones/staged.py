"""What convolutional classifiers share: maps after each stage, and the way from any of them to the logits."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from outlie.backbones.classifier import Classifier
from outlie.detectors.base import Views


class Staged(Classifier):
    """A convolutional classifier: stem, stages, pooling, head; a subclass defines `stem`, `layers` and `pool`."""

    provides: ClassVar[tuple[str, ...]] = ("x", "features", "logits", "maps", "head", "network")
    channels_last: ClassVar[bool] = True

    def stem(self, z: Tensor) -> Tensor:
        """(B, C, H, W) -> input of the first stage."""
        raise NotImplementedError(f"{type(self).__name__} defines no stem(z)")

    def layers(self) -> list[nn.Module]:
        """The stages."""
        raise NotImplementedError(f"{type(self).__name__} defines no layers()")

    def pool(self, last_BCHW: Tensor) -> Tensor:
        """The last stage's map -> (B, D) features."""
        raise NotImplementedError(f"{type(self).__name__} defines no pool(map)")

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of `layers`."""
        stages = {id(layer): i for i, layer in enumerate(self.layers())}
        found = {stages[id(module)]: name for name, module in self.named_modules() if id(module) in stages}
        return tuple(found[i] for i in sorted(found))

    def initialise(self) -> None:
        """N(0, 2 / fan_out) for convolutions; the head keeps its own."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def stages(self, z: Tensor) -> list[Tensor]:
        """The map after each stage, each (B, C_i, H_i, W_i)."""
        maps = [self.stem(z)]
        for layer in self.layers():
            maps.append(layer(maps[-1]))
        return maps[1:]

    def embed(self, z: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        return self.pool(self.stages(z)[-1])

    def views(self, z: Tensor) -> Views:
        """Also maps (B, C, H, W): the last stage's, before pooling."""
        last_BCHW = self.stages(z)[-1]
        features_BD = self.pool(last_BCHW).float()
        return Views(x=z, features=features_BD, logits=self.logits(features_BD), maps=last_BCHW.float())

    def tail(self, map_BCHW: Tensor, stage: int) -> Tensor:
        """Logits from the map after stage `stage` (from 0): tail(stages(z)[i], i) = logits for every i; (B, C)."""
        for layer in self.layers()[stage + 1 :]:
            map_BCHW = layer(map_BCHW)
        return self.logits(self.pool(map_BCHW))
