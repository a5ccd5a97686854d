"""DiT as a backbone: transformer blocks on patches of pixels, trained by denoising."""

from typing import Any, ClassVar, Literal

from torch import nn

from outlie.backbones.denoiser import Denoiser
from outlie.diffusion import dit
from outlie.options import PositiveInt


class DiT(Denoiser):
    """A diffusion transformer without classes; features are block outputs averaged over the patches.

    On pixels, which nobody has published for DDAE: the published DiT-XL/2 works on latents whose weights and encoder
    have to be downloaded.

    Args:
        size: S, B, L or XL: width, depth and heads of the paper.
        patch: side of a patch in pixels; images are padded to a multiple.
    """

    paper: ClassVar[str] = "Peebles and Xie, Scalable Diffusion Models with Transformers, ICCV 2023"

    def __init__(self, size: Literal["S", "B", "L", "XL"] = "S", patch: PositiveInt = 2, **shared: Any) -> None:
        super().__init__(**shared)
        self.size, self.patch = size, patch

    def make(self, shape: tuple[int, ...], labels: int) -> nn.Module:
        """The network for images of that shape."""
        width, depth, heads = dit.SIZES[self.size]
        side = max(shape[1:])
        return dit.DiT(shape[0], side + -side % self.patch, self.patch, width, depth, heads, augment_dim=labels)
