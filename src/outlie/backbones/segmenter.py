"""What every segmenter shares: a class for each pixel, its objective, its views and where its weights come from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.backbones import dense_augment
from outlie.backbones.dense_heads import FCN, at_size
from outlie.backbones.from_data import standardisation
from outlie.backbones.training import ClassifierRecipe
from outlie.backbones.weights import load_weights, match
from outlie.data.dense_files import IGNORE
from outlie.data.split import Split
from outlie.detectors.base import Views, resize_buffers
from outlie.errors import UserError
from outlie.options import NonNegativeFloat, PositiveFloat, PositiveInt

OWN = ("mean", "scale", "class_weight")  # buffers that are no layer's


class Segmenter(nn.Module):
    """A network that gives every pixel a class; trained unless weights are given.

    Features are the mean over positions of the last stage's map. A subclass defines `layers`, `stages`,
    `decode` and `stage_names`.

    Args:
        weights: checkpoint to load: a segmenter's, or (with finetune) a torchvision ResNet's, of which the stages are
            taken and the head is made anew.
        finetune: train although weights are given.
        normalise: data = the split's mean and scale; imagenet = ImageNet's; half = pixels to -1..1.
        epochs: passes over the training images, where steps is null.
        steps: optimiser steps, in place of epochs.
        batch_size: images per optimiser step.
        optimizer: sgd with momentum, or adamw.
        lr: largest learning rate.
        momentum: of sgd.
        weight_decay: on every parameter; coupled L2 with sgd, decoupled with adamw.
        schedule: poly = (1 - share of the training done)^0.9 down to floor; cosine to 0; constant.
        floor: learning rate at the end, of poly.
        warmup: share of the training in which the learning rate rises from 0.
        clip_norm: largest norm of the gradient; 0 = any.
        ema: decay of the moving average of the weights that is kept in the end; 0 = off.
        scales: smallest and largest factor by which a training image is scaled; [1, 1] = off.
        crop: side of the square that is cut out of a scaled training image; null = as large as the images.
        flip: training images are mirrored with probability 1/2.
        recolour: training images are changed in brightness, contrast and saturation.
        class_weights: median_frequency = rare classes count more in the loss, as SegNet does; none = pixels are equal.
        auxiliary: weight of a second head's loss on the stage before the last, in training only; 0 = no such head.
        dropout: of channels before the last convolution of a head.
    """

    provides: ClassVar[tuple[str, ...]] = ("x", "features", "maps", "network")
    classes: int
    decoder: Any  # a module with `classify`, its last convolution
    auxiliary_head: FCN | None
    mean: Tensor
    scale: Tensor
    class_weight: Tensor

    def __init__(
        self,
        weights: Path | None = None,
        finetune: bool = False,
        normalise: Literal["data", "imagenet", "half"] = "data",
        epochs: PositiveInt = 200,
        steps: PositiveInt | None = 20_000,
        batch_size: PositiveInt = 8,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: PositiveFloat = 0.01,
        momentum: NonNegativeFloat = 0.9,
        weight_decay: NonNegativeFloat = 5e-4,
        schedule: Literal["poly", "cosine", "constant"] = "poly",
        floor: NonNegativeFloat = 1e-4,
        warmup: NonNegativeFloat = 0.0,
        clip_norm: NonNegativeFloat = 0.0,
        ema: NonNegativeFloat = 0.0,
        scales: Sequence[PositiveFloat] = (0.5, 2.0),
        crop: PositiveInt | None = None,
        flip: bool = True,
        recolour: bool = True,
        class_weights: Literal["none", "median_frequency"] = "none",
        auxiliary: NonNegativeFloat = 0.4,
        dropout: NonNegativeFloat = 0.1,
    ) -> None:
        super().__init__()
        if len(scales) != 2 or scales[0] > scales[1]:
            raise UserError(f"scales = {list(scales)}: allowed is [SMALLEST, LARGEST]; set backbone.scales")
        if not dropout < 1:
            raise UserError(f"dropout = {dropout}: allowed are 0 up to, but not, 1; set backbone.dropout")
        self.weights = None if weights is None else Path(weights).expanduser()
        self.finetune, self.normalise = finetune, normalise
        self.scales, self.crop, self.flip, self.recolour = (float(scales[0]), float(scales[1])), crop, flip, recolour
        self.class_weights, self.auxiliary, self.dropout = class_weights, auxiliary, dropout
        self.recipe = ClassifierRecipe(
            epochs, steps, batch_size, optimizer, lr, momentum, False, weight_decay, schedule,
            warmup=warmup, clip_norm=clip_norm, ema=ema, floor=floor,
        )  # fmt: skip
        self.register_load_state_dict_pre_hook(resize_buffers)
        for name in OWN:
            self.register_buffer(name, torch.empty(0))

    @property
    def trained(self) -> bool:
        """Whether there is a training stage."""
        return self.finetune or self.weights is None

    def setup(self, split: Split) -> None:
        """Take standardisation and class weights, build the layers for the data, load given weights.

        Raises:
            UserError: no label maps, or options or weights that do not fit the data.
        """
        if self.finetune and self.weights is None:
            raise UserError(
                "finetune = true, but there are no weights; set backbone.weights, or backbone.finetune=false"
            )
        given = None if self.weights is None else load_weights(self.weights)
        head = (given or {}).get("decoder.classify.weight")
        # nothing is learned from images without label maps: the classes are those of the weights
        classes = pixel_classes(split) if self.trained or split.train.y is not None or head is None else len(head)
        self.mean, self.scale = standardisation(split, self.normalise)
        self.build(tuple(split.train.x.shape[1:]), classes)
        if given is not None:
            self.start_from(given)
        if self.class_weights == "median_frequency":
            assert split.train.y is not None
            self.class_weight = median_frequency(split.train.y, classes)

    def build(self, shape: tuple[int, ...], classes: int) -> None:
        """Make the layers for images (C, H, W), with random weights; also called before a checkpoint is loaded."""
        self.classes = classes
        widths = self.layers(shape[0])
        self.auxiliary_head = FCN(widths[-2], classes, self.dropout) if self.auxiliary else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for head in (self.decoder, self.auxiliary_head):
            if head is not None:  # nearly equal logits at first
                nn.init.normal_(head.classify.weight, std=0.01)
                nn.init.zeros_(head.classify.bias)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def layers(self, channels: int) -> list[int]:
        """Make the stages and `decoder` for images of so many channels; the channels of each stage's map."""
        raise NotImplementedError(f"{type(self).__name__} defines no layers(channels)")

    def stages(self, z: Tensor) -> list[Tensor]:
        """Standardised images -> the map after each stage, each (B, C_i, H_i, W_i)."""
        raise NotImplementedError(f"{type(self).__name__} defines no stages(z)")

    def decode(self, stages: list[Tensor]) -> Tensor:
        """The stages' maps -> logits (B, C, H', W')."""
        raise NotImplementedError(f"{type(self).__name__} defines no decode(stages)")

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Modules (as in `named_modules`) whose outputs are the maps of the stages, first to last."""
        raise NotImplementedError(f"{type(self).__name__} defines no stage_names")

    def start_from(self, state: dict[str, Tensor]) -> None:
        """Load a segmenter's weights, or the stages of a classifier's; the rest stays as `build` made it."""
        ours = {name: tensor for name, tensor in self.state_dict().items() if name not in OWN}
        state = dict(state)
        own = {name: state.pop(name) for name in OWN if name in state}
        if own.get("mean") is not None and own.get("scale") is not None:  # what the weights were trained with
            if own["mean"].shape != self.mean.shape:
                raise UserError(
                    f"{self.weights}: weights for {len(own['mean'])} channels, the data have {len(self.mean)}"
                )
            self.mean, self.scale = own["mean"], own["scale"]
        new = {name: tensor for name, tensor in ours.items() if name.startswith("auxiliary_head.")}
        if any(name.startswith("fc.") for name in state):  # a classifier's
            state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
            new |= {name: tensor for name, tensor in ours.items() if name.startswith("decoder.")}
        else:
            last = {name: tensor for name, tensor in ours.items() if name.startswith("decoder.classify.")}
            if any(name in state and state[name].shape != tensor.shape for name, tensor in last.items()):
                new |= last  # for another number of classes
            elif any(name.startswith("auxiliary_head.") for name in state):
                new = {}
            if self.auxiliary_head is None:
                state = {name: tensor for name, tensor in state.items() if not name.startswith("auxiliary_head.")}
        if any(not name.startswith("auxiliary_head.") for name in new) and not self.finetune:
            raise UserError(
                f"{self.weights} has no head for these {self.classes} classes; backbone.finetune=true trains a new one"
            )
        named = {name: tensor for name, tensor in state.items() if name not in new}
        match(new | named | {"class_weight": self.class_weight}, self, str(self.weights))

    def standardise(self, x: Tensor) -> Tensor:
        """z = (x - mean) / scale; (B, C, H, W) pixels of 0..255 -> float32."""
        z = ((x.to(self.mean.dtype) - self.mean) / self.scale).float()
        return z.contiguous(memory_format=torch.channels_last)

    def views(self, z: Tensor) -> Views:
        """Standardised images -> Views(x = z, features (B, D), maps (B, C, H, W)), float32 also under autocast."""
        stages = self.stages(z)
        size = z.shape[2:]
        learns = self.training and self.auxiliary_head is not None
        return Views(
            x=z,
            features=stages[-1].float().mean((2, 3)),
            maps=at_size(self.decode(stages).float(), size),
            auxiliary=at_size(self.auxiliary_head(stages[-2]).float(), size) if learns else None,  # type: ignore[misc]
        )

    def forward(self, x: Tensor) -> Views:
        """(B, C, H, W) raw images -> Views."""
        return self.views(self.standardise(x))

    def augmented_views(self, views: Views, generator: torch.Generator) -> Views:
        """Raw images (float32) and label maps as one step of training sees them; IGNORE around the image."""
        size = (self.crop, self.crop) if self.crop else tuple(views.x.shape[2:])
        fill = self.mean.expand(views.x.shape[1], 1, 1)
        x, y = dense_augment.scale_crop_flip(views.x, views.y, self.scales, size, self.flip, fill, generator)
        return Views(x=dense_augment.recolour(x, generator) if self.recolour else x, y=y)

    def objective(self, seen: Views, y_BHW: Tensor) -> Tensor:
        """Mean -log p(y | z) over the pixels that have a class, the auxiliary head's added; scalar."""
        loss = self.cross_entropy(seen.maps, y_BHW)
        return loss if seen.auxiliary is None else loss + self.auxiliary * self.cross_entropy(seen.auxiliary, y_BHW)

    def cross_entropy(self, maps_BCHW: Tensor, y_BHW: Tensor) -> Tensor:
        """Weighted mean of -log p(y) over labelled pixels; 0 where there are none."""
        weight_C = self.class_weight if len(self.class_weight) else maps_BCHW.new_ones(maps_BCHW.shape[1])
        total = F.cross_entropy(maps_BCHW, y_BHW.long(), weight_C, ignore_index=IGNORE, reduction="sum")
        counts_C = torch.bincount(y_BHW.flatten().int(), minlength=IGNORE + 1)[: len(weight_C)]
        return total / (counts_C * weight_C).sum().clamp(min=1e-12)

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """The objective of augmented raw images; scalar."""
        raw = self.augmented_views(views, generator)
        return self.objective(self.views(self.standardise(raw.x)), raw.y)


def pixel_classes(split: Split) -> int:
    """C, the number of classes; UserError where pixels have no labels."""
    if split.train.y is None or split.train.y.ndim != 3:
        raise UserError(
            "this dataset has no label maps: a segmenter needs a class for each pixel; set dataset=camvid or "
            "dense_folder, give a trained one's backbone.weights, or take another backbone"
        )
    return len(split.classes)


def median_frequency(y_NHW: Tensor, classes: int) -> Tensor:
    """median of f / f_c, f_c = pixels of class c / labelled pixels of the images that have c; 0 where none has; (C,).

    Eigen and Fergus, ICCV 2015, as SegNet counts it.
    """
    counts_NC = torch.stack([(y_NHW == c).sum((1, 2)) for c in range(classes)], 1)
    of_NC = torch.where(counts_NC > 0, counts_NC.sum(1, keepdim=True), 0)
    frequency_C = counts_NC.sum(0).double() / of_NC.sum(0).clamp(min=1)
    found = frequency_C > 0
    return torch.where(found, frequency_C[found].quantile(0.5) / frequency_C.clamp(min=1e-12), 0.0).float()
