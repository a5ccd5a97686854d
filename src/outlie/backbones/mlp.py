"""A multi-layer perceptron on flattened samples: images as well as tables."""

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from outlie.backbones.classifier import Classifier
from outlie.options import PositiveInt


class MLP(Classifier):
    """Linear layers with ReLU; features are the last hidden layer's output.

    Args:
        hidden: widths of the layers before the head.
    """

    takes_tables: ClassVar[bool] = True

    def __init__(
        self,
        hidden: list[PositiveInt] = [256, 256],  # noqa: B006 (a signature is a schema; never changed in place)
        augment: Literal["none", "crop_flip", "crop", "resized_crop"] = "none",
        epochs: PositiveInt = 100,
        **shared: Any,
    ) -> None:
        super().__init__(augment=augment, epochs=epochs, **shared)
        self.hidden = tuple(hidden)

    def build(self, shape: tuple[int, ...], classes: int) -> None:
        """Make the hidden layers and the head."""
        layers: list[nn.Module] = [nn.Flatten()]
        width = 1
        for side in self.input_shape(shape):
            width *= side
        for out in self.hidden:
            layers += [nn.Linear(width, out), nn.ReLU()]
            width = out
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, classes)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The activations of the hidden layers."""
        return tuple(f"layers.{i}" for i, layer in enumerate(self.layers) if isinstance(layer, nn.ReLU))

    def embed(self, z: Tensor) -> Tensor:
        """(B, ...) -> (B, D)."""
        return self.layers(z)
