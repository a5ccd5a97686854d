"""What a run says about its denoiser: loss by noise level, samples of it along its training, their distance to the data."""

from pathlib import Path
from typing import Any

from outlie.cell import Ground


def report(ground: Ground, cfg: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    return {}, []
