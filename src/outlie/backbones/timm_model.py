"""Any classifier of timm, https://github.com/huggingface/pytorch-image-models; imported only here."""

from typing import Any

from torch import Tensor, nn

from outlie.backbones.classifier import Classifier
from outlie.errors import UserError


class Timm(Classifier):
    """A network of timm by its name; features are what its linear head is given.

    Args:
        model: timm's name, e.g. resnet50.a1_in1k or deit_base_patch16_224.fb_in1k.
        pretrained: start from timm's own weights, which are downloaded; used as they are unless finetune is set.
    """

    def __init__(self, model: str = "resnet18", pretrained: bool = False, **shared: Any) -> None:
        super().__init__(**shared)
        if pretrained and self.weights is not None:
            raise UserError(
                "pretrained = true and weights are given; set backbone.pretrained=false or leave out weights"
            )
        self.name, self.from_timm = model, pretrained

    @property
    def pretrained(self) -> bool:
        """Whether weights are given, by us or by timm."""
        return self.from_timm or self.weights is not None

    def build(self, shape: tuple[int, ...], classes: int) -> None:
        """Make timm's network with a head for our classes."""
        self.model = create(self.name, num_classes=classes, in_chans=shape[0])
        head = self.model.get_classifier()
        if not isinstance(head, nn.Linear):
            raise UserError(
                f"timm's {self.name} ends in a {type(head).__name__}, not in a linear head; take another model"
            )

    @property
    def head(self) -> nn.Linear:  # pyright: ignore[reportIncompatibleVariableOverride]
        """timm's classifier."""
        return self.model.get_classifier()

    @property
    def source(self) -> str:
        """Where the weights are from, for messages."""
        return f"timm's {self.name}" if self.from_timm else super().source

    @property
    def body(self) -> nn.Module:
        """timm's network: a checkpoint has its names."""
        return self.model

    def given_weights(self) -> dict[str, Tensor]:
        """timm's own weights, or those of the file."""
        return create(self.name, pretrained=True).state_dict() if self.from_timm else super().given_weights()

    def embed(self, z: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        return self.model.forward_head(self.model.forward_features(z), pre_logits=True)


def create(name: str, **options: Any) -> Any:
    """timm.create_model; UserError where timm is missing or broken, or does not know or cannot load the model."""
    try:
        import timm
    except Exception as error:  # a torchvision built for another torch raises a RuntimeError
        raise UserError(
            f"backbone=timm needs timm, which cannot be imported ({type(error).__name__}: {error}); "
            "pip install outlie[vision]"
        ) from error
    try:
        return timm.create_model(name, **options)
    except Exception as error:  # an unknown name, no network, an option that this model does not take
        raise UserError(f"timm cannot make '{name}': {' '.join(str(error).split())}") from error
