"""What a backbone takes from the data: the number of classes, and how rows are standardised."""

import torch
from torch import Tensor

from outlie.data.split import Split
from outlie.errors import UserError

# mean and standard deviation of a channel, in pixels of 0..255
CONSTANTS = {
    "imagenet": ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
    "half": ([127.5], [127.5]),
}


def class_count(split: Split) -> int:
    """C, the number of classes; UserError where labels are missing, out of range, or a class has no training rows."""
    names, y = getattr(split, "classes", ()), split.train.y
    if y is None:
        raise UserError(
            "this dataset has no class labels: a classifier cannot be trained on it; set backbone=identity, or "
            "backbone.weights to those of a trained one"
        )
    if y.ndim != 1:
        raise UserError(
            "every pixel of these images has a class, an image has none; choose backbone=seg_unet, or identity"
        )
    lowest, highest = int(y.min()), int(y.max())
    classes = len(names) or highest + 1
    if lowest < 0 or highest >= classes:
        wrong = lowest if lowest < 0 else highest
        raise UserError(f"class label {wrong} in the training rows: allowed are 0 to {classes - 1}")
    empty = [names[c] if names else str(c) for c in (y.bincount(minlength=classes) == 0).nonzero()[:, 0].tolist()]
    if empty:
        raise UserError(f"no training rows of class {', '.join(empty[:5])}: number the classes without gaps")
    if classes < 2:
        raise UserError("only one class in the training rows: a classifier needs two; set backbone=identity")
    return classes


def standardisation(split: Split, normalise: str) -> tuple[Tensor, Tensor]:
    """mean and scale: (C, 1, 1) float32 of images, in pixels of 0..255, or (D,) float64 of a table."""
    x, mean, scale = split.train.x, split.mean, split.scale
    if normalise != "data":
        constants, channels = CONSTANTS[normalise], x.shape[1]
        if len(constants[0]) not in (1, channels):
            raise UserError(
                f"normalise = {normalise} is for 3 channels, the data have {channels}; set it to data or half"
            )
        mean, scale = (torch.tensor(c).expand(channels)[:, None, None].clone() for c in constants)
    return (mean, scale) if len(x.shape) == 2 else (mean.float(), scale.float())
