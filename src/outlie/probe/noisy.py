"""How well the class can be read from a noisy image: z = pool(block(x_t)) + sinusoid(t); logits = W2 SiLU(W1 z).

One head for all noise levels on a frozen denoiser; t = 1..1000, or j = 1..18 along EDM's grid. Xiang et al., Denoising
Diffusion Autoencoders are Unified Self-supervised Learners, ICCV 2023. The specification of DDAE, section 7.4.
"""

from __future__ import annotations

import math
import time as clock
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlie.backbones import augment
from outlie.backbones.denoiser import Denoiser, pool
from outlie.diffusion.image_samplers import heun_sigmas
from outlie.diffusion.processes import VE, VP
from outlie.diffusion.unet import sinusoid
from outlie.errors import UserError
from outlie.log import log
from outlie.results.store import whole

EPOCHS, BATCH, LR = 15, 128, 1e-3  # published
AT_ONCE = 256  # images of one pass of the evaluation
STEP = 50  # of t, from one evaluated level to the next
QUIET_SECONDS = 30.0

Reads = Callable[[Tensor, Tensor], Tensor]  # noisy images (B, C, H, W), times (B,) -> logits (B, classes)


def training_times(process: VP | VE) -> Tensor:
    """Times that a head is trained at, noise rising: t = 1..T, or EDM's 18 sigmas; sigma 0 is none of them."""
    if isinstance(process, VP):
        return torch.arange(1, process.T + 1)
    return heun_sigmas().flip(0).float()


def evaluated_times(process: VP | VE) -> Tensor:
    """Of these, t = 1, 51, ..., 951, or all sigmas."""
    times = training_times(process)
    return times[::STEP] if isinstance(process, VP) else times


def index_of(process: VP | VE, time_B: Tensor) -> Tensor:
    """t itself, or the number j = 1..18 of the nearest sigma; (B,) int64."""
    if isinstance(process, VP):
        return time_B.long()
    grid = training_times(process).to(time_B.device)
    return (time_B[:, None].log() - grid.log()).abs().argmin(1) + 1


class NoisyHead(nn.Module):
    """Two layers on the pooled map of one block, told how much noise there is; the denoiser below is frozen.

    Args:
        network: the denoiser; its weights are not this module's.
        block: whose map is pooled.
        width: channels of the block.
        classes: number of classes.
    """

    def __init__(self, network: Denoiser, block: str, width: int, classes: int) -> None:
        super().__init__()
        self._network, self.block, self.width = [network], block, width  # in a list: its weights are not the head's
        self.hidden, self.out = nn.Linear(width, 2 * width), nn.Linear(2 * width, classes)

    def forward(self, noisy: Tensor, time_B: Tensor) -> Tensor:
        """(B, C, H, W) noisy images and their times -> (B, classes)."""
        (network,) = self._network
        with torch.no_grad():
            features_BD = pool(network.maps(noisy, time_B, [self.block])[self.block])
        z_BD = features_BD + sinusoid(index_of(network.process, time_B), self.width)
        return self.out(F.silu(self.hidden(z_BD)))


def new_head(network: Denoiser, block: str | None, shape: tuple[int, ...], classes: int, seed: int) -> NoisyHead:
    """An untrained head at that block, by default the last of the network's feature blocks.

    Raises:
        UserError: the block does not exist.
    """
    block = network.feature_blocks[-1] if block is None else block
    if block not in network.block_names:
        raise UserError(f"there is no block '{block}'; there are {', '.join(network.block_names)}")
    device = next(network.parameters()).device
    time = training_times(network.process)[:1].to(device)  # never sigma = 0: the network is told its logarithm
    with torch.no_grad():
        width = network.maps(torch.zeros(1, *shape, device=device), time, [block])[block].shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NoisyHead(network, block, width, classes).to(device)


def train_head(
    network: Denoiser,
    x: Tensor,
    y: Tensor,
    classes: int,
    seed: int,
    epochs: int = EPOCHS,
    batch_size: int = BATCH,
    lr: float = LR,
    block: str | None = None,
) -> tuple[NoisyHead, list[float]]:
    """Train a head by cross-entropy at times drawn uniformly; it, and the mean loss of every epoch.

    Adam, cosine to 0 by epochs; images are cropped and, where the denoiser's were, mirrored. Every image has a new time
    and new noise in every epoch, drawn on the CPU so that devices agree.

    Args:
        network: a trained denoiser, frozen.
        x: (N, C, H, W) uint8.
        y: (N,) class labels.
        classes: number of classes.
        seed: of the initial weights, the order and the noise.
        epochs: passes over the rows.
        batch_size: rows of an optimiser step.
        lr: of the first epoch.
        block: None = the last of the network's feature blocks.

    Raises:
        UserError: rows that cannot be learnt from, an unknown block, epochs below 1.
    """
    checked(x, y, classes, "training")
    if epochs < 1:
        raise UserError(f"epochs = {epochs}: must be 1 or more")
    network.eval()
    head = new_head(network, block, tuple(x.shape[1:]), classes, seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(head.parameters(), lr=lr, fused=True)
    times, losses, said = training_times(network.process), [], clock.monotonic()
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = lr * (0.5 + 0.5 * math.cos(math.pi * epoch / epochs))
        total = torch.zeros((), device=head.out.weight.device)
        for rows in torch.randperm(len(x), generator=generator).split(batch_size):
            images = augment.pad_crop(x[rows].cpu(), max(x.shape[2:]) // 8, generator)
            images = augment.flip(images, generator) if network.flip else images
            time_B = times[torch.randint(len(times), (len(rows),), generator=generator)]
            noise = torch.randn(images.shape, generator=generator)
            logits_BC = read(head, network, images, time_B, noise)
            loss = F.cross_entropy(logits_BC, y[rows].to(logits_BC.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
        losses.append(float(total) / len(x))
        if not math.isfinite(losses[-1]):
            raise UserError(f"the loss of the head became {losses[-1]} in epoch {epoch}; is the denoiser trained?")
        if clock.monotonic() - said > QUIET_SECONDS:
            log.info("          epoch %d of %d, loss %.4g", epoch + 1, epochs, losses[-1])
            said = clock.monotonic()
    return head, losses


def read(model: Reads, network: Denoiser, images: Tensor, time_B: Tensor, noise: Tensor) -> Tensor:
    """Logits of uint8 images that are given that noise, on the network's device; (B, classes)."""
    device = next(network.parameters()).device
    x, time_B = network.standardise(images.to(device)), time_B.to(device)
    return model(network.process.noised(x, time_B, noise.to(device)), time_B)


@torch.no_grad()
def accuracy_by_noise(
    model: Reads, network: Denoiser, x: Tensor, y: Tensor, seed: int, at_once: int = AT_ONCE
) -> list[dict[str, float]]:
    """Share of test images whose class is read correctly, at every evaluated level; noise rising.

    An image has one draw of noise, the same at all levels, so that levels differ in how much of it there is alone.

    Args:
        model: noisy images, times -> logits; in eval mode.
        network: whose process and range of pixels count.
        x: (N, C, H, W) uint8.
        y: (N,) class labels.
        seed: of the noise.
        at_once: images of one pass.

    Returns:
        time (t or sigma), log_snr, accuracy, n.
    """
    times, generator = evaluated_times(network.process), torch.Generator().manual_seed(seed)
    right = torch.zeros(len(times), dtype=torch.int64)
    for rows in torch.arange(len(x)).split(at_once):
        noise = torch.randn((len(rows), *x.shape[1:]), generator=generator)
        for level, time in enumerate(times):
            logits_BC = read(model, network, x[rows], time.expand(len(rows)), noise)
            right[level] += int((logits_BC.argmax(1).cpu() == y[rows].cpu()).sum())
    log_snr = network.process.log_snr(times.to(next(network.parameters()).device)).tolist()
    return [
        {"time": time, "log_snr": snr, "accuracy": hits / len(x), "n": len(x)}
        for time, snr, hits in zip(times.tolist(), log_snr, right.tolist(), strict=True)
    ]


def report(
    network: Denoiser,
    train_x: Tensor,
    train_y: Tensor | None,
    test_x: Tensor,
    test_y: Tensor | None,
    folder: Path,
    seed: int = 0,
    epochs: int = EPOCHS,
    rows: int | None = None,
) -> dict[str, Any]:
    """Train a head, measure it at every level, write noisy.csv and noisy.png; what was measured and what it cost.

    Args:
        network: a trained denoiser.
        train_x: (N, C, H, W) uint8.
        train_y: (N,) class labels 0..classes - 1.
        test_x: images of the same classes.
        test_y: their labels.
        folder: for the two files.
        seed: of everything drawn.
        epochs: of the head.
        rows: at most so many images of training and of test, drawn without replacement; None = all.

    Raises:
        UserError: no labels, labels or images that do not fit, epochs or rows below 1.
    """
    if train_y is None or test_y is None:
        raise UserError("this dataset has no class labels: there is nothing to read from a noisy image")
    if rows is not None and rows < 1:
        raise UserError(f"rows = {rows}: must be 1 or more")
    classes = int(train_y.max()) + 1 if len(train_y) else 0
    train_x, train_y = some(train_x, train_y, rows, seed)
    test_x, test_y = some(test_x, test_y, rows, seed)
    checked(test_x, test_y, classes, "test")
    wall, cpu, before = clock.perf_counter(), clock.process_time(), network.evaluated
    head, losses = train_head(network, train_x, train_y, classes, seed, epochs)
    levels = accuracy_by_noise(head.eval(), network, test_x, test_y, seed + 1)
    chance = float(test_y.bincount().max()) / len(test_y)
    write_csv(levels, network.process.unit, folder / "noisy.csv")
    title = f"class read from noisy images at {head.block}, {len(test_y)} test images"
    draw({"DDAE": levels}, chance, folder / "noisy.png", title)
    return {
        "block": head.block,
        "train_rows": len(train_x),
        "test_rows": len(test_x),
        "accuracy_noisy_least": levels[0]["accuracy"],
        "accuracy_noisy_mean": sum(level["accuracy"] for level in levels) / len(levels),
        "most_frequent_class": chance,
        "levels": levels,
        "losses": losses,
        "noisy_s": clock.perf_counter() - wall,
        "noisy_cpu_s": clock.process_time() - cpu,
        "noisy_evaluations": network.evaluated - before,
    }


def some(x: Tensor, y: Tensor, rows: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """At most so many rows, in their order."""
    if rows is None or rows >= len(x):
        return x, y
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:rows].sort().values
    return x[chosen], y[chosen]


def checked(x: Tensor, y: Tensor, classes: int, part: str) -> None:
    """UserError unless x are uint8 images, one label in 0..classes - 1 each."""
    if x.ndim != 4 or x.dtype != torch.uint8:
        kind = str(x.dtype).removeprefix("torch.")
        raise UserError(f"{part} images of shape {tuple(x.shape)} of {kind}: expected (N, C, H, W) of uint8")
    if len(x) == 0 or len(x) != len(y):
        raise UserError(f"{len(x)} {part} images and {len(y)} labels: expected as many, and one at least")
    if classes < 2:
        raise UserError("only one class in the training rows: there is nothing to read from a noisy image")
    if int(y.min()) < 0 or int(y.max()) >= classes:
        wrong = int(y.min()) if int(y.min()) < 0 else int(y.max())
        raise UserError(f"class label {wrong} in the {part} rows: allowed are 0 to {classes - 1}")


def write_csv(levels: list[dict[str, float]], unit: str, path: Path) -> None:
    """t or sigma, log_snr, accuracy, n; one line a level."""
    lines = [f"{row['time']:.6g},{row['log_snr']:.6g},{row['accuracy']:.6g},{row['n']}" for row in levels]
    with whole(path) as temporary:
        temporary.write_text("\n".join([f"{unit},log_snr,accuracy,n", *lines, ""]))


def draw(curves: dict[str, list[dict[str, float]]], chance: float, path: Path, title: str) -> None:
    """Accuracy against log-SNR, less noise to the right, with the share of the most frequent class as a dashed line."""
    from matplotlib.figure import Figure  # without pyplot: no global state and no display

    drawing = Figure(figsize=(6.4, 4.2), dpi=110, layout="constrained")
    axes = drawing.subplots()
    for name, levels in curves.items():
        axes.plot([row["log_snr"] for row in levels], [100 * row["accuracy"] for row in levels], "o-", ms=4, label=name)
    axes.axhline(100 * chance, color="0.5", ls="--", lw=1, label="most frequent class")
    axes.set(xlabel="log-SNR  ln(a$^2$ / b$^2$)", ylabel="accuracy (%)", title=title, ylim=(0, 102))
    axes.grid(alpha=0.3)
    axes.legend()
    with whole(path) as temporary:
        drawing.savefig(temporary, format="png")
