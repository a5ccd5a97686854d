"""Training throughput of a U-Net: `run train`'s loop against a plain one; writes unet_training.csv.

    python benchmarks/unet_training.py            both networks, one thread, CPU seconds

The plain loop is what a careful first version looks like: float32, contiguous tensors, softmax attention spelled out,
Adam as PyTorch has it by default, the average of the weights parameter by parameter, the loss read and logged after
every step. Both train the same network on the same images, with the same loss.
"""

import copy
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from outlie.backbones.denoising import ema_decay
from outlie.backbones.unet import UNet
from outlie.data.split import Rows, Split
from outlie.detectors.base import Views
from outlie.diffusion import unet
from outlie.lightning import Train, make_trainer
from outlie.trainer import Options

OUT = Path(__file__).with_suffix(".csv")
SMALL = {"base": 32, "multipliers": (1, 2, 2), "depth": 1, "attention": (2,), "dropout": 0.0}
CASES = {"unet/small, 28 x 28 grey": (SMALL, (1, 28, 28), 64, 8), "unet, 32 x 32 colour": ({}, (3, 32, 32), 8, 3)}


def network(options: dict, shape: tuple[int, ...], batch: int, x: torch.Tensor) -> UNet:
    torch.manual_seed(0)
    made = UNet(**options, images=len(x), batch_size=batch, flip=False, warmup_images=0)
    made.setup(Split("p", Rows(x, torch.arange(len(x))), {}, None, torch.zeros(1), torch.ones(1), ""))
    return made.train()


def ours(made: UNet, x: torch.Tensor) -> float:
    """CPU seconds an image of a whole training by `Train`, the second epoch on."""
    with tempfile.TemporaryDirectory() as folder:
        marks: list[float] = []
        loop = Train(
            made, Views(x=x), 0, Path(folder) / "t.ckpt", checkpoint_seconds=1e9,  # the plain loop keeps none either
            on_epoch=lambda *_: marks.append(time.process_time()),
        )  # fmt: skip
        loop.epochs = 3
        make_trainer(Options(accelerator="cpu"), Path(folder), 3).fit(loop)
    return (marks[2] - marks[0]) / 2 / len(x)


class PlainAttention(unet.Attention):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, C, H, W = x.shape
        q, k, v = self.qkv(self.norm(x).flatten(2).mT).chunk(3, 2)
        weights = (q @ k.mT / C**0.5).softmax(-1)
        return x + self.out(weights @ v).mT.contiguous().view(B, C, H, W)


def plain(made: UNet, x: torch.Tensor, batch: int) -> float:
    """CPU seconds an image of the plain loop, the second epoch on."""
    net: nn.Module = made.net.to(memory_format=torch.contiguous_format)
    unet.UNet.memory_format = torch.contiguous_format
    for module in net.modules():
        if isinstance(module, unet.Attention):
            module.__class__ = PlainAttention
    optimizer, average, abar = (
        torch.optim.Adam(net.parameters(), lr=4e-4),
        copy.deepcopy(net),
        made.process.abar.float(),
    )
    step, start = 0, 0.0
    with tempfile.NamedTemporaryFile("w") as log:
        for epoch in range(3):
            if epoch == 1:
                start = time.process_time()
            for rows in torch.randperm(len(x)).split(batch):
                images = x[rows].float() / 127.5 - 1
                t = torch.randint(1, 1001, (len(images),))
                noise = torch.randn_like(images)
                a = abar[t][:, None, None, None]
                out, _ = net(a.sqrt() * images + (1 - a).sqrt() * noise, t / 1000)
                loss = F.mse_loss(out, noise)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                decay = ema_decay(step, 0.9999)
                with torch.no_grad():
                    for ours, theirs in zip(average.parameters(), net.parameters()):
                        ours.mul_(decay).add_(theirs, alpha=1 - decay)
                log.write(f"{step},{loss.item()}\n")
                log.flush()
                step += 1
    unet.UNet.memory_format = torch.channels_last
    return (time.process_time() - start) / 2 / len(x)


def main() -> None:
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    rows = []
    for name, (options, shape, batch, steps) in CASES.items():
        x = torch.randint(256, (batch * steps, *shape), dtype=torch.uint8)
        pairs = [(plain(network(options, shape, batch, x), x, batch), ours(network(options, shape, batch, x), x))
                 for _ in range(2)]  # fmt: skip
        slow, fast = (min(column) for column in zip(*pairs))
        rows.append([name, batch, f"{1e3 * slow:.1f}", f"{1e3 * fast:.1f}", f"{slow / fast:.2f}"])
        print(*rows[-1], flush=True)
    with OUT.open("w", newline="") as file:
        file.write(
            f"# python benchmarks/unet_training.py; code {commit}; torch {torch.__version__}, one thread, no GPU\n"
        )
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["network", "batch", "plain_cpu_ms_per_image", "ours_cpu_ms_per_image", "ratio"])
        out.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
