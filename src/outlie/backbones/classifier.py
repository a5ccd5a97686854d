"""What every classifier backbone shares: standardisation, objective, views and where its weights come from."""

from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.backbones import augment as augmentation
from outlie.backbones.from_data import class_count, standardisation
from outlie.backbones.training import ClassifierRecipe
from outlie.backbones.weights import load_weights, match
from outlie.data.split import Split
from outlie.detectors.base import Views, resize_buffers
from outlie.errors import UserError
from outlie.options import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class Classifier(nn.Module):
    """A network with a linear head over the classes of the data; trained unless weights are given.

    A subclass defines `build` (the layers), `embed` (z -> features) and `head`.

    Args:
        weights: checkpoint to load: .pt, .pth, .safetensors, .npz, or a run's model.ckpt, whose standardisation counts.
        finetune: train although weights are given; a head of another size is made anew.
        normalise: data = the split's mean and scale; imagenet = ImageNet's; half = pixels to -1..1.
        size: height and width that images are resized to; null = as they come.
        epochs: passes over the training rows.
        steps: optimiser steps, in place of epochs.
        batch_size: rows per optimiser step.
        optimizer: sgd with momentum, or adamw.
        lr: largest learning rate.
        momentum: of sgd.
        nesterov: Nesterov's momentum.
        weight_decay: on every parameter; coupled L2 with sgd, decoupled with adamw.
        schedule: cosine to 0; multistep = a tenth after each milestone; constant.
        milestones: shares of the training.
        warmup: share of the training in which the learning rate rises from 0.
        clip_norm: largest norm of the gradient; 0 = any.
        label_smoothing: share of the target that is spread over all classes.
        mixup: alpha of Beta(alpha, alpha); 0 = off.
        ema: decay of the moving average of the weights that is kept in the end; 0 = off.
        augment: crop = shifted by up to an eighth, black around; flip = mirrored; resized_crop = a random box, flipped.
        crop_area: smallest area of resized_crop's box, as a share of the image.
        snapshots: weights kept along the training, for neural-collapse curves.
    """

    provides: ClassVar[tuple[str, ...]] = ("x", "features", "logits", "head", "network")
    channels_last: ClassVar[bool] = False  # memory layout; convolutions are faster in it
    takes_tables: ClassVar[bool] = False
    head: nn.Linear
    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        weights: Path | None = None,
        finetune: bool = False,
        normalise: Literal["data", "imagenet", "half"] = "data",
        size: PositiveInt | None = None,
        epochs: PositiveInt = 200,
        steps: PositiveInt | None = None,
        batch_size: PositiveInt = 128,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: PositiveFloat = 0.1,
        momentum: NonNegativeFloat = 0.9,
        nesterov: bool = False,
        weight_decay: NonNegativeFloat = 5e-4,
        schedule: Literal["cosine", "multistep", "constant"] = "cosine",
        milestones: list[Fraction] = [0.33333, 0.66667],  # noqa: B006 (a signature is a schema; never changed in place)
        warmup: NonNegativeFloat = 0.0,
        clip_norm: NonNegativeFloat = 0.0,
        label_smoothing: NonNegativeFloat = 0.0,
        mixup: NonNegativeFloat = 0.0,
        ema: NonNegativeFloat = 0.0,
        augment: Literal["none", "crop_flip", "crop", "resized_crop"] = "crop_flip",
        crop_area: Fraction = 0.08,
        snapshots: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        if not label_smoothing < 1:
            raise UserError(f"label_smoothing = {label_smoothing}: allowed are 0 up to, but not, 1")
        self.weights = None if weights is None else Path(weights).expanduser()
        self.finetune, self.normalise, self.size = finetune, normalise, size
        self.label_smoothing, self.mixup = label_smoothing, mixup
        self.augment, self.crop_area, self.snapshots = augment, crop_area, snapshots
        self.recipe = ClassifierRecipe(
            epochs, steps, batch_size, optimizer, lr, momentum, nesterov, weight_decay, schedule, tuple(milestones),
            warmup, clip_norm, ema,
        )  # fmt: skip
        self.register_load_state_dict_pre_hook(resize_buffers)
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("scale", torch.empty(0))

    @property
    def trained(self) -> bool:
        """Whether there is a training stage."""
        return self.finetune or not self.pretrained

    @property
    def pretrained(self) -> bool:
        """Whether weights are given."""
        return self.weights is not None

    def setup(self, split: Split) -> None:
        """Take the standardisation, build the layers for the data's shape and classes, load given weights.

        Raises:
            UserError: no class labels, a class without samples, options or weights that do not fit the data.
        """
        if self.finetune and not self.pretrained:
            raise UserError(
                "finetune = true, but there are no weights; set backbone.weights, or backbone.finetune=false"
            )
        shape, labelled = tuple(split.train.x.shape[1:]), self.trained or split.train.y is not None
        classes = class_count(split) if labelled else 0
        if len(shape) != 3 and not self.takes_tables:
            raise UserError(f"rows of shape {shape} are no images; set backbone=mlp")
        if len(shape) != 3 and (self.augment != "none" or self.size or self.normalise != "data"):
            raise UserError(
                f"rows of shape {shape} are no images; set backbone.augment=none, backbone.normalise=data and "
                "backbone.size=null"
            )
        self.mean, self.scale = standardisation(split, self.normalise)
        self.build(shape, classes or 2)
        if self.pretrained:
            given = self.given_weights()
            if not labelled:  # nothing is learned from these data: the classes are those of the weights
                classes = self.given_classes(given)
                self.build(shape, classes)
            self.start_from(given, classes)

    @property
    def classes(self) -> int:
        """C, the number of classes, once the layers are built."""
        return self.head.out_features

    def given_classes(self, state: dict[str, Tensor]) -> int:
        """Rows of the head in given weights."""
        weight = self.adapted(dict(state)).get(f"{self.head_name}.weight")
        if weight is None:
            raise UserError(
                f"{self.source} has no {self.head_name}.weight: give a classifier's weights with their head"
            )
        return len(weight)

    @property
    def head_name(self) -> str:
        """The head's name in a checkpoint."""
        return next(name for name, module in self.body.named_modules() if module is self.head)

    def start_from(self, state: dict[str, Tensor], classes: int) -> None:
        """Load weights; a head of another size is left as `build` made it where it will be trained."""
        state = self.adapted(state)
        mean, scale = state.pop("mean", None), state.pop("scale", None)
        if mean is not None and scale is not None:  # another run's: what the weights were trained with
            if mean.shape != self.mean.shape:
                raise UserError(f"{self.source}: weights for {len(mean)} channels, the data have {len(self.mean)}")
            self.mean, self.scale = mean, scale
        name = self.head_name
        given = state.get(f"{name}.weight")
        if self.finetune and (given is None or len(given) != classes):
            state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
            state |= {f"{name}.{key}": value for key, value in self.new_head().items()}
        elif given is not None and len(given) != classes:
            raise UserError(
                f"{self.source}: weights for {len(given)} classes, the data have {classes}; "
                "backbone.finetune=true trains a new head"
            )
        match(state, self.body, self.source)

    def build(self, shape: tuple[int, ...], classes: int) -> None:
        """Make the layers for samples of that shape, with random weights; also called before a checkpoint is loaded."""
        raise NotImplementedError(f"{type(self).__name__} defines no build(shape, classes)")

    def embed(self, z: Tensor) -> Tensor:
        """(B, ...) standardised input -> (B, D) features."""
        raise NotImplementedError(f"{type(self).__name__} defines no embed(z)")

    @property
    def source(self) -> str:
        """Where the weights are from, for messages."""
        return str(self.weights)

    @property
    def body(self) -> nn.Module:
        """The module whose names a checkpoint uses."""
        return self

    def given_weights(self) -> dict[str, Tensor]:
        """Name -> tensor of the weights to start from."""
        assert self.weights is not None
        return load_weights(self.weights)

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights under our names and in our sizes, where a published layout differs."""
        return state

    def new_head(self) -> dict[str, Tensor]:
        """The head to fine-tune from, where the checkpoint's is for other classes."""
        return self.head.state_dict()

    def input_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a standardised sample."""
        return (shape[0], self.size, self.size) if self.size else shape

    def standardise(self, x: Tensor) -> Tensor:
        """z = (x - mean) / scale, images resized to `size`; (B, C, H, W) uint8 or (B, D) float64 -> float32."""
        z = x.to(self.mean.dtype)
        if self.size and z.shape[-2:] != (self.size, self.size):
            z = F.interpolate(z, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        z = ((z - self.mean) / self.scale).float()
        return z.contiguous(memory_format=torch.channels_last) if self.channels_last else z

    def views(self, z: Tensor) -> Views:
        """Standardised input -> Views(x = z, features (B, D), logits (B, C)), float32 also under autocast."""
        features_BD = self.embed(z).float()
        return Views(x=z, features=features_BD, logits=self.logits(features_BD))

    def logits(self, features_BD: Tensor) -> Tensor:
        """W h + b in float32, so that it is what a detector computes from the head; (B, C)."""
        with torch.autocast(features_BD.device.type, enabled=False):
            return self.head(features_BD.float())

    def forward(self, x: Tensor) -> Views:
        """(B, ...) raw samples -> Views."""
        return self.views(self.standardise(x))

    def augmented(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(B, C, H, W) uint8, randomly cropped and mirrored as `augment` says."""
        match self.augment:
            case "none":
                return x
            case "resized_crop":
                size = (self.size, self.size) if self.size else (x.shape[2], x.shape[3])
                x = augmentation.resized_crop(x, size, self.crop_area, generator)
            case _:
                x = augmentation.pad_crop(x, max(x.shape[2:]) // 8, generator)  # 4 at 32 pixels
        return x if self.augment == "crop" else augmentation.flip(x, generator)

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """Cross-entropy of augmented raw samples, mixed as mixup says; scalar."""
        raw = self.augmented_views(views, generator)
        z, y_B = self.standardise(raw.x), raw.y
        if self.mixup:
            z, partner_B, share = augmentation.mixup(z, self.mixup, generator)
            logits_BC = self.views(z).logits
            return share * self.cross_entropy(logits_BC, y_B) + (1 - share) * self.cross_entropy(
                logits_BC, y_B[partner_B]
            )
        return self.objective(self.views(z), y_B)

    def augmented_views(self, views: Views, generator: torch.Generator) -> Views:
        """Raw samples (and their labels) as one step of training sees them."""
        return Views(x=self.augmented(views.x, generator), y=views.y)

    def objective(self, seen: Views, y_B: Tensor) -> Tensor:
        """The task's loss of what the network made of standardised samples; scalar."""
        return self.cross_entropy(seen.logits, y_B)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Modules (as in `named_modules`) whose outputs are the stages' maps, first to last; () = there are none."""
        return ()

    def cross_entropy(self, logits_BC: Tensor, y_B: Tensor) -> Tensor:
        """Mean -log p(y | z), labels smoothed; scalar."""
        return F.cross_entropy(logits_BC, y_B, label_smoothing=self.label_smoothing)
