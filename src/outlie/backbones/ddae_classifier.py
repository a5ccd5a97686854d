"""A denoiser fine-tuned to classify: softmax(W pool(block(a x + b eps)) + w_0), all of it trained by cross-entropy.

Xiang et al., Denoising Diffusion Autoencoders are Unified Self-supervised Learners, ICCV 2023, fine-tune so; their
settings could not be read, those of configs/backbone/unet_finetune.yaml are ours. The specification of DDAE, 7.2.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from outlie import signatures
from outlie.backbones.classifier import Classifier
from outlie.backbones.denoiser import Denoiser, pool
from outlie.backbones.weights import load_weights, match
from outlie.build import build
from outlie.data.split import Split
from outlie.detectors.base import Views
from outlie.errors import UserError, unknown
from outlie.options import NonNegativeFloat, NonNegativeInt, PositiveFloat


class DDAEClassifier(Classifier):
    """A pre-trained denoiser up to one of its blocks, its map pooled, and a linear head; fine-tuned end to end.

    Args:
        denoiser: model.ckpt of a finished run with a denoiser (backbone=unet), config.yaml beside it: what is trained.
        block: whose map is pooled; what follows is taken off; null = the published middle one.
        log_snr: noise level ln(a^2 / b^2) that images are given, in training and after it.
        noise_seed: of the one draw that all images are given; in training each has its own.
        denoiser_lr: learning rate of that block, as a share of lr, which is the head's.
        layer_decay: factor of the learning rate from each block to the one before it.
        dropout: in residual blocks; null = as the denoiser was trained.
        normalise: half = pixels to -1..1, as a denoiser takes them.
        weights: model.ckpt of a run with this backbone, in place of denoiser; nothing is trained then.
    """

    paper: ClassVar[str] = (
        "Xiang et al., Denoising Diffusion Autoencoders are Unified Self-supervised Learners, ICCV 2023"
    )
    channels_last: ClassVar[bool] = True
    origin: Tensor

    def __init__(
        self,
        denoiser: Path | str | None = None,  # str: a finished run is loaded also where that file is gone
        block: str | None = None,
        log_snr: float = 6.0,
        noise_seed: NonNegativeInt = 0,
        denoiser_lr: PositiveFloat = 0.1,
        layer_decay: PositiveFloat = 0.75,
        dropout: NonNegativeFloat | None = None,
        normalise: Literal["half"] = "half",
        **shared: Any,
    ) -> None:
        super().__init__(normalise=normalise, **shared)
        if layer_decay > 1:
            raise UserError(f"layer_decay = {layer_decay}: allowed are above 0 to 1; set backbone.layer_decay")
        if denoiser is not None and self.weights is not None:
            raise UserError(
                "both denoiser and weights are given: weights are those of a whole classifier, its denoiser included; "
                "leave backbone.denoiser or backbone.weights away"
            )
        self.file = None if denoiser is None else Path(denoiser).expanduser()
        self.block, self.log_snr, self.noise_seed = block, log_snr, noise_seed
        self.denoiser_lr, self.layer_decay, self.dropout = denoiser_lr, layer_decay, dropout
        self.made_of: dict[str, Any] = {}  # the denoiser's config section and the block
        self.register_buffer("origin", torch.empty(0, dtype=torch.uint8))  # the same as JSON, kept with the weights
        self.register_load_state_dict_pre_hook(_remade)
        self._generator: torch.Generator | None = None  # of the noise, while `loss` runs

    def setup(self, split: Split) -> None:
        """Build the network for the data, load the denoiser's weights, or those of a whole classifier.

        Raises:
            UserError: nothing to start from, a file that is missing or of another kind, weights that do not fit.
        """
        if self.file is None and self.weights is None:
            raise UserError(
                "there is no denoiser to fine-tune; set backbone.denoiser to the model.ckpt of a finished run with a "
                "denoiser (run train backbone=unet ...)"
            )
        if self.file is not None and not self.file.is_file():
            raise UserError(f"no denoiser {self.file}; set backbone.denoiser to the model.ckpt of a finished run")
        super().setup(split)
        if self.file is not None:
            state = load_weights(self.file)
            match({name: t for name, t in state.items() if name not in self.unused}, self.denoiser, str(self.file))

    def build(self, shape: tuple[int, ...], classes: int) -> None:
        """Make the truncated denoiser and the head; where its file is gone, the checkpoint to be loaded tells how."""
        self.sizes = (self.input_shape(shape), classes)
        if self.weights is not None and self.weights.is_file():
            self.make(self._of_weights(self.weights))
        elif self.file is not None and self.file.is_file():
            section = section_beside(self.file)
            self.make({"denoiser": section, "block": self.block, "log_snr": self.log_snr})

    def make(self, made_of: dict[str, Any]) -> None:
        """The network from a denoiser's section, a block and a noise level, with random weights.

        Raises:
            UserError: a section of no denoiser, an unknown block, a noise level that its process has not.
        """
        shape, classes = self.sizes
        changed = {"weights": None, "finetune": False} | ({} if self.dropout is None else {"dropout": self.dropout})
        denoiser = build(denoising(made_of["denoiser"], self.source) | changed)
        denoiser.build(shape, None)
        block = made_of["block"] or denoiser.net.default_block
        if block not in denoiser.block_names:
            raise UserError(f"backbone.block: {unknown('block', block, denoiser.block_names)}")
        self.time = denoiser.process.time_at(made_of["log_snr"]).item()
        self.layers, width = dependence(denoiser.eval(), block)
        self.unused = {name for name, _ in denoiser.named_parameters() if name not in self.layers}
        prune(denoiser, self.unused)
        self.denoiser, self.head = denoiser.train(self.training), nn.Linear(width, classes)
        self.made_of = made_of | {"block": block}
        text = json.dumps(self.made_of, default=str).encode()
        self.origin = torch.frombuffer(bytearray(text), dtype=torch.uint8).clone()

    def _of_weights(self, path: Path) -> dict[str, Any]:
        """What a fine-tuned run says its network is made of; UserError where the options say otherwise."""
        origin = load_weights(path).get("origin")
        if origin is None:
            raise UserError(
                f"{path} is not of a run with this backbone; for the checkpoint of a denoiser set backbone.denoiser"
            )
        made_of = read_origin(origin)
        if self.block not in (None, made_of["block"]):
            raise UserError(f"{path} was fine-tuned at block {made_of['block']}; set backbone.block=null")
        if self.finetune:  # from another noise level it is a start like any other
            return made_of | {"log_snr": self.log_snr}
        if self.log_snr != made_of["log_snr"]:
            raise UserError(
                f"{path} was fine-tuned at log_snr = {made_of['log_snr']:g}, not {self.log_snr:g}; set "
                f"backbone.log_snr={made_of['log_snr']:g}, or backbone.finetune=true"
            )
        return made_of

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights, told to be of our noise level."""
        return state | {"origin": self.origin}

    @property
    def source(self) -> str:
        """Where the weights are from, for messages."""
        return str(self.file or self.weights)

    def embed(self, z: Tensor) -> Tensor:
        """Pooled map of a z + b eps; (B, C, H, W) in [-1, 1] -> (B, D) float32."""
        if self._generator is None:  # of the CPU: the same on every device
            generator = torch.Generator().manual_seed(self.noise_seed)
            noise = torch.randn(1, *z.shape[1:], generator=generator).to(z.device)
        else:
            noise = torch.randn(z.shape, generator=self._generator, device=z.device)
        time, block = torch.tensor(self.time, device=z.device), self.made_of["block"]
        noisy = self.denoiser.process.noised(z, time, noise)
        return pool(self.denoiser.maps(noisy, time, [block])[block])

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """Cross-entropy of augmented raw images, each with noise of its own; scalar."""
        self._generator = generator
        try:
            return super().loss(views, generator)
        finally:
            self._generator = None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters of the head, then of each block from the last to the first; `scale` = learning rate over lr."""
        named, last = dict(self.denoiser.named_parameters()), max(self.layers.values())
        groups: list[dict[str, Any]] = [{"params": list(self.head.parameters()), "scale": 1.0}]
        for layer in range(last, -1, -1):
            some = [named[name] for name, at in self.layers.items() if at == layer]
            groups.append({"params": some, "scale": self.denoiser_lr * self.layer_decay ** (last - layer)})
        return [group for group in groups if group["params"]]


def dependence(denoiser: Denoiser, block: str) -> tuple[dict[str, int], int]:
    """Parameter -> number of the first block whose map depends on it, up to `block`; and that block's channels.

    The smallest image that the network takes is passed, so it costs little.
    """
    names = denoiser.block_names[: denoiser.block_names.index(block) + 1]
    named = dict(denoiser.named_parameters())
    side = 2 * denoiser.net.multiple  # at 1 x 1 GroupNorm has nothing to normalise
    with torch.enable_grad():
        maps = denoiser.maps(torch.zeros(1, denoiser.shape[0], side, side), denoiser.process.time_at(0.0), names)
        layers: dict[str, int] = {}
        for layer, name in enumerate(names):
            # of every parameter each time: on a CPU torch 2.13 crashes in the backward of a channels_last GroupNorm
            # where the gradient of its input is not asked for
            total, asked = maps[name].sum(), list(named.values())
            gradients = torch.autograd.grad(total, asked, retain_graph=True, allow_unused=True)
            found = {key for key, gradient in zip(named, gradients) if gradient is not None}
            layers |= dict.fromkeys(sorted(found - set(layers)), layer)
    return layers, maps[block].shape[1]


def prune(module: nn.Module, unused: set[str]) -> None:
    """Take off every layer all of whose parameters are unused: DDP waits for a gradient of each that is there."""
    of = {id(parameter): name for name, parameter in module.named_parameters()}
    for parent in list(module.modules()):
        for name, child in reversed(list(parent.named_children())):
            parameters = list(child.parameters())
            if not parameters or not all(of[id(parameter)] in unused for parameter in parameters):
                continue
            if isinstance(parent, nn.ModuleDict):
                del parent[name]
            elif isinstance(parent, nn.ModuleList):
                del parent[int(name)]
            else:
                setattr(parent, name, None)


def section_beside(path: Path) -> dict[str, Any]:
    """The backbone of the config.yaml that lies beside a run's checkpoint.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    config = path.with_name("config.yaml")
    if not config.is_file():
        raise UserError(
            f"no {config}, which tells what network {path.name} is of; set backbone.denoiser to the model.ckpt in the "
            "folder of a finished run"
        )
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(config))
        return dict(content["backbone"])
    except (OSError, yaml.YAMLError, OmegaConfBaseException, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{config} is not the config of a run ({type(error).__name__})") from error


def denoising(section: dict[str, Any], source: str) -> dict[str, Any]:
    """The section, of a class of outlie.backbones that is a denoiser; UserError for any other."""
    target = str(section.get("_target_"))
    signature = signatures.read(target) if target.startswith("outlie.backbones.") else None
    if signature is None or "denoiser" not in signature.provides:
        raise UserError(
            f"{source} is of a run whose backbone is {target.rpartition('.')[2]}, which is no denoiser; set "
            "backbone.denoiser to the model.ckpt of a run with backbone=unet"
        )
    return section


def read_origin(origin: Tensor) -> dict[str, Any]:
    """What `DDAEClassifier.make` was given, from the buffer that keeps it."""
    return json.loads(bytes(origin.tolist()))


def _remade(module: DDAEClassifier, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Make the layers that a checkpoint says it is of, where `build` did not know (a load_state_dict pre-hook)."""
    origin = state.get(f"{prefix}origin")
    if origin is not None and (made_of := read_origin(origin)) != module.made_of:
        module.make(made_of)
        module.to(module.mean.device)
