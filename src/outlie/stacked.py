"""Trainings that differ in their seed only, as one: vmap over stacked weights, every seed with its own random draws.

Order, noise and dropout of epoch e come from generators seeded by (seed, e), as in `lightning.Train`: a seed meets the
rows, the noise and the dropout masks that it meets alone. A training of many steps magnifies the last bit of a sum into
another network, so on a CPU layers round as they do alone, too: measured (AVX-512, MKL), the weights are the same, bit
for bit. On a GPU sums may round otherwise, and dropout draws otherwise (its fused kernel has a stream of its own): the
networks are equal in distribution.
"""

from __future__ import annotations

import copy
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.overrides import TorchFunctionMode

from outlie import distributed
from outlie.batches import Batches, epoch_seed
from outlie.detectors.base import Detector, Views
from outlie.detectors.training import Recipe
from outlie.stages import step_flops, training_steps
from outlie.trainer import Options

NOISE = (torch.rand, torch.randn, torch.randint)  # how a loss draws, besides dropout; vmap refuses any other draw
# what rounds otherwise for several seeds at once: sums in another order, a power past the last whole vector
ROUNDING = (F.linear, F.batch_norm, F.cross_entropy, Tensor.__rpow__)
VECTOR = 16  # floats that a CPU takes at once
Told = Callable[[int, int, list[float]], None]  # epochs done, epochs in all, last loss of each seed still in training


class Draw(NamedTuple):
    """A random tensor that a loss asks for."""

    fill: Callable[[torch.Generator, Tensor], object]
    shape: torch.Size
    dtype: torch.dtype
    dropout: bool  # from the stream that dropout has for itself


class Draws(TorchFunctionMode):
    """Notes what a loss draws, in order; or hands it `ready` tensors, in that order, in place of its draws."""

    def __init__(self, ready: list[Tensor] | None = None) -> None:
        super().__init__()
        self.noted: list[Draw] = []
        self.ready = None if ready is None else iter(ready)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in NOISE:
            if self.ready is not None:
                return next(self.ready)
            drawn = func(*args, **kwargs)

            def again(generator: torch.Generator, out: Tensor) -> None:
                func(*args, **kwargs | {"generator": generator, "out": out})

            self.noted.append(Draw(again, drawn.shape, drawn.dtype, dropout=False))
            return drawn
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func in ROUNDING and self.ready is not None and args[0].device.type == "cpu":
            return Apart.apply(func, *args, *kwargs.values())
        return func(*args, **kwargs)

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return input
        if self.ready is not None:
            return input * next(self.ready)
        keep = 1 - p  # as F.dropout makes its mask on a CPU
        fill = lambda generator, out: out.bernoulli_(keep, generator=generator).div_(keep)  # noqa: E731
        self.noted.append(Draw(fill, input.shape, input.dtype, dropout=True))
        return input


class Apart(torch.autograd.Function):
    """What rounds for S networks as it does for one: vmap's own rules are others."""

    @staticmethod
    def forward(layer: Any, *inputs: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Of one network."""
        return layer(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to keep: what `vmap` calls has gradients of its own."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, layer: Any, *inputs: Any) -> tuple[Tensor, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Of S networks, (S, B, ...)."""
        dims = in_dims[1:]
        inputs = tuple(one if dim is None else one.movedim(dim, 0) for one, dim in zip(inputs, dims, strict=True))
        rows = None not in dims and layer is F.linear and inputs[0].ndim == 3
        if rows and inputs[1].shape[1] > 1:  # one column is another kernel
            x_SBI, weight_SOI, bias_SO = inputs
            return torch.baddbmm(bias_SO[:, None], x_SBI, weight_SOI.mT), 0
        parts = [[one] * info.batch_size if dim is None else one.unbind() for one, dim in zip(inputs, dims)]
        return torch.stack([layer(*each) for each in zip(*parts)]), 0


class Loss(nn.Module):
    """A detector whose forward is its loss: what torch.func can call with other weights."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector: Any = detector

    def forward(self, x_BD: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar."""
        return self.detector.loss(Views(x=x_BD), generator)


class Stack:
    """Weights, buffers and optimiser of S detectors, one tensor for each name, seeds first."""

    def __init__(self, detectors: list[Detector], device: torch.device) -> None:
        # of far noise, whose scatter_ vmap does seed by seed: as fast as anything here
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        self.detectors = detectors
        self.one, self.unused = Loss(detectors[0]), torch.Generator(device)
        weights, self.buffers = stack_module_state([Loss(detector) for detector in detectors])
        self.weights = {name: _leaves(value.detach()) for name, value in weights.items()}
        self.recipe: Any = detectors[0].recipe
        self.optimizer = self._optimizer()
        self.draws: dict[torch.Size, list[Draw]] = {}  # of a batch of that shape
        self._losses = vmap(self._loss)

    def _loss(
        self, weights: dict[str, Tensor], buffers: dict[str, Tensor], x_BD: Tensor, ready: list[Tensor]
    ) -> Tensor:
        with Draws(ready):
            return functional_call(self.one, (weights, buffers), (x_BD, self.unused))

    def drawn(self, x_SBD: Tensor, noise: list[torch.Generator], dropout: list[torch.Generator]) -> list[Tensor]:
        """What the losses of these batches draw, (S, ...) each, every seed from its own generators."""
        shape = x_SBD.shape[1:]
        if shape not in self.draws:
            with Draws() as draws, torch.no_grad():
                copy.deepcopy(self.one)(x_SBD[0], torch.Generator(x_SBD.device))  # a copy: batch statistics move
            self.draws[shape] = draws.noted
        ready = []
        for draw in self.draws[shape]:
            out = torch.empty(len(x_SBD), *draw.shape, dtype=draw.dtype, device=x_SBD.device)
            for generator, one in zip(dropout if draw.dropout else noise, out, strict=True):
                draw.fill(generator, one)
            ready.append(out)
        return ready

    def step(self, x_SBD: Tensor, ready: list[Tensor]) -> Tensor:
        """One step of each seed; (S,) losses before it."""
        weights = {name: _stacked(leaves) for name, leaves in self.weights.items()}
        losses_S = self._losses(weights, self.buffers, x_SBD, ready)
        self.optimizer.zero_grad(set_to_none=True)
        losses_S.sum().backward()  # the gradient of each seed's own loss: no other depends on its weights
        self.optimizer.step()
        return losses_S.detach()

    @torch.no_grad()
    def write_back(self, place: int) -> None:
        """Give the detector at that place its weights and buffers."""
        one = Loss(self.detectors[place])
        for name, value in one.named_parameters():
            value.copy_(_stacked(self.weights[name])[place])
        for name, value in one.named_buffers():
            value.copy_(self.buffers[name][place])

    def keep(self, places: list[int]) -> None:
        """Go on with these only."""
        self.detectors = [self.detectors[place] for place in places]
        self.buffers = {name: value[places] for name, value in self.buffers.items()}
        before, adam = self.weights, self.optimizer.state
        self.weights = {name: _leaves(_stacked(leaves).detach()[places]) for name, leaves in before.items()}
        self.optimizer = self._optimizer()
        for name, leaves in self.weights.items():  # all have made as many steps
            steps = adam[before[name][0]]["step"]
            moments = [
                _leaves(_stacked([adam[leaf][moment] for leaf in before[name]])[places])
                for moment in ("exp_avg", "exp_avg_sq")
            ]
            for leaf, first, second in zip(leaves, *moments, strict=True):
                self.optimizer.state[leaf] = {"step": steps.clone(), "exp_avg": first.data, "exp_avg_sq": second.data}

    def _optimizer(self) -> torch.optim.Optimizer:
        return self.recipe.optimizer(nn.ParameterList(leaf for leaves in self.weights.values() for leaf in leaves))


def _leaves(stacked: Tensor) -> list[nn.Parameter]:
    """What the optimiser is given: one tensor, matrices transposed as the gradient of a batched product lies.

    Where one seed's numbers do not fill whole vectors, its last ones are rounded otherwise than the rest (no fused
    multiply-add): then a tensor for each seed, so that the same ones are.
    """
    if stacked[0].numel() % VECTOR:
        return [nn.Parameter(one.clone()) for one in stacked]
    return [nn.Parameter(stacked.mT.contiguous() if stacked.ndim == 3 else stacked.clone())]


def _stacked(leaves: Sequence[Tensor]) -> Tensor:
    """(S, ...) of what `_leaves` made."""
    if leaves[0].numel() % VECTOR:
        return torch.stack(list(leaves))
    return leaves[0].mT if leaves[0].ndim == 3 else leaves[0]


def train_together(
    detectors: list[Detector],
    views: list[Views],
    seeds: list[int],
    options: Options,
    told: Told = lambda done, epochs, losses: None,
) -> list[dict[str, Any] | None]:
    """Train detectors of one of the `batched.groups`, each on its own views and by its own seed, in place.

    Args:
        told: called after every epoch.

    Returns:
        Of each detector losses, validation_losses (none), train_s and train_cpu_s (its share), as `stages.train` does;
        None where the loss became NaN or infinite: that detector is left as it was.
    """
    device, recipe = distributed.device(options), cast(Recipe, detectors[0].recipe)
    stack = Stack([detector.to(device).train() for detector in detectors], device)
    epoch = 0

    def streams(which: list[int], on: torch.device) -> list[torch.Generator]:
        return [torch.Generator(on).manual_seed(epoch_seed(seeds[i], epoch)) for i in which]

    batches = [
        Batches(
            Views(x=cast(Tensor, one.x).to(device)), recipe.batch_size, recipe.drop_last,
            lambda i=i: streams([i], torch.device("cpu"))[0], recipe.fewest, recipe.shuffle,
        )
        for i, one in enumerate(views)
    ]  # fmt: skip
    steps, training = len(batches[0]), list(range(len(detectors)))  # which detector is at each place of the stack
    epochs = min(recipe.epochs_of(steps), options.max_epochs or sys.maxsize)
    spent: list[dict[str, Any] | None] = [
        {"losses": [], "validation_losses": [], "train_s": 0.0, "train_cpu_s": 0.0} for _ in detectors
    ]
    for epoch in range(epochs):
        wall, cpu = time.perf_counter(), time.process_time()
        noise, dropout = streams(training, device), streams(training, device)
        losses_ST = torch.zeros(len(training), steps, device=device)
        with training_steps(step_flops(detectors[0], views[0])):
            for step, parts in enumerate(zip(*(batches[i] for i in training), strict=True)):
                if recipe.decay_lr:
                    for group in stack.optimizer.param_groups:
                        group["lr"] = recipe.lr_at((epoch + step / steps) / epochs)
                x_SBD = torch.stack([cast(Tensor, part.x) for part in parts])
                losses_ST[:, step] = stack.step(x_SBD, stack.drawn(x_SBD, noise, dropout))
        means, places = losses_ST.mean(1).tolist(), []
        share = {
            "train_s": (time.perf_counter() - wall) / len(training),
            "train_cpu_s": (time.process_time() - cpu) / len(training),
        }
        for place, (i, loss) in enumerate(zip(training, means, strict=True)):
            if not math.isfinite(loss):
                spent[i] = None
                continue
            mine: Any = spent[i]
            mine["losses"].append(loss)
            mine |= {name: mine[name] + value for name, value in share.items()}
            stop = getattr(detectors[i], "stop", None)
            if epoch + 1 == epochs or (stop is not None and stop(mine["losses"])):
                stack.write_back(place)
            else:
                places.append(place)
        told(epoch + 1, epochs, means)
        if len(places) < len(training):
            training = [training[place] for place in places]
            if not training:
                break
            stack.keep(places)
    for detector in detectors:
        detector.cpu().eval()
    return spent
