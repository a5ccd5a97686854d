"""The summary's sentences about a segmenter."""

from collections.abc import Mapping
from typing import Any


def segmentation_in_words(segmentation: Mapping[str, Any] | None) -> list[str | None]:
    """Mean IoU and pixel accuracy, the IoU of each class, and of what the mean is not."""
    if not segmentation or segmentation.get("miou") is None:
        return []
    iou, validation = segmentation["iou"], segmentation.get("validation") or {}
    first = (
        f"Mean IoU {_percent(segmentation['miou'])} over {len(iou)} classes, pixel accuracy "
        f"{_percent(segmentation['pixel_accuracy'])} ({segmentation['images']:,} test images, one confusion matrix)."
    )
    apart = [
        f"{name} alone {_percent(part['miou'])} ({part['images']:,} images)"
        for name, part in segmentation["subsets"].items()
        if part["miou"] is not None
    ]
    if validation.get("miou") is not None:
        apart.append(f"validation {_percent(validation['miou'])}, for selection only")
    by_class = ", ".join(f"{name} {100 * value:.1f}" for name, value in iou.items()) if len(iou) <= 30 else ""
    absent = segmentation["absent"]
    return [
        first + (f" {'; '.join(apart)}." if apart else ""),
        f"IoU in %: {by_class}." if by_class else None,
        f"Left out, as no test pixel is of it: {', '.join(absent)}." if absent else None,
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
