"""The Lightning modules: one that trains a detector's or a backbone's loss, one that extracts a backbone's views."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from outlie.averaging import MovingAverage
from outlie.batches import Batches, epoch_seed
from outlie.detectors.base import Views
from outlie.detectors.training import Recipe
from outlie.errors import UserError
from outlie.gather import mean_over_ranks, rank_and_world
from outlie.results import store
from outlie.trainer import Options
from outlie.validation import Validation, held_out

Told = Callable[[list[float], list[float]], None]  # losses of every epoch, on training rows and on held-out ones


class Train(L.LightningModule):
    """Trains the `loss` of a detector or a backbone by its recipe on the views of the training rows.

    Epoch e draws its order, its noise and its dropout from generators seeded by (seed, e): a run that was killed and
    resumes at an epoch's start ends with the same weights as one that was not.

    Args:
        detector: it, or the backbone: whatever has a `recipe` and a `loss(views, generator)`.
        checkpoint: where to keep the state every `checkpoint_seconds`; written whole or not at all. A module with
            `snapshots` has as many states of its weights kept beside it, in snapshots/, evenly over the epochs.
        on_epoch: called after each epoch with the losses so far, on training rows and on held-out ones.
    """

    def __init__(
        self,
        detector: torch.nn.Module,
        views: Views,
        seed: int,
        checkpoint: Path,
        checkpoint_seconds: float = 10.0,
        max_epochs: int | None = None,
        on_epoch: Told = lambda losses, validation: None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # halves Lightning's own cost per step
        self.detector: Any = detector  # some hooks are optional
        self.seed, self.on_epoch = seed, on_epoch
        self.recipe: Recipe = self.detector.recipe
        self.validation = None
        if self.recipe.validation and len(views) > 1:
            kept, validating = held_out(len(views), self.recipe.validation, seed)
            self.validation, views = Validation(views[validating], self.recipe.patience), views[kept]
        recipe = self.recipe
        self.batches = Batches(
            views, recipe.batch_size, recipe.drop_last, self._order, recipe.fewest, recipe.shuffle, recipe.part_rows,
            lambda: self.current_epoch % self.batches.parts,
        )  # fmt: skip
        wanted = self.recipe.epochs_of(len(self.batches))
        self.epochs = min(wanted, max_epochs or wanted)
        self.checkpoint, self.checkpoint_seconds = checkpoint, checkpoint_seconds
        self.losses: list[float] = []  # mean training loss of every epoch
        snapshots = min(getattr(detector, "snapshots", 0), self.epochs)
        self.snapshot_epochs = {round((i + 1) * self.epochs / snapshots) - 1 for i in range(snapshots)}
        # in a list, so that it is no submodule: its weights have no gradient for DDP to wait for
        self._average = [MovingAverage(detector, self.recipe.ema_at)] if self.recipe.ema else []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.recipe.optimizer(self.detector)

    def train_dataloader(self) -> Batches:
        return self.batches

    def transfer_batch_to_device(self, batch: Views, device: torch.device, dataloader_idx: int) -> Views:
        return batch  # the views are there already

    def on_fit_start(self) -> None:
        for rows in (self.batches, self.validation):
            if rows is not None:
                rows.views = rows.views.map(lambda t: t.to(self.device))
        for average in self._average:
            average.to(self.device)
        # one process without a gradient scaler needs none of Lightning's wrapping: a tenth of a small network's step
        self._plain = rank_and_world()[1] == 1 and self.trainer.precision in ("32-true", "64-true", "bf16-mixed")
        self._optimizer: Any = self.optimizers(use_pl_optimizer=not self._plain)
        self._saved, self._save_s = time.monotonic(), 0.0

    def on_train_epoch_start(self) -> None:
        rank, world = rank_and_world()
        start = epoch_seed(self.seed, self.current_epoch) * world + rank
        self.generator = torch.Generator(self.device).manual_seed(start)
        torch.manual_seed(start)  # dropout layers know no generator
        self._step_losses = torch.zeros(len(self.batches), device=self.device)

    def training_step(self, batch: Views, batch_idx: int) -> None:
        if self.recipe.decay_lr:
            progress = (self.current_epoch + batch_idx / len(self.batches)) / self.epochs
            for group in self._optimizer.param_groups:
                group["lr"] = self.recipe.lr_at(progress) * group.get("scale", 1.0)
        loss = self.detector.loss(batch.map(lambda t: t.to(self.device)), self.generator)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward() if self._plain else self.manual_backward(loss)
        if self.recipe.clip_norm:
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            if scaler is not None:  # fp16: the norm is that of the unscaled gradient
                scaler.unscale_(self.optimizers(use_pl_optimizer=False))
            torch.nn.utils.clip_grad_norm_(self.detector.parameters(), self.recipe.clip_norm)
        self._optimizer.step()
        for average in self._average:
            average.update(self.detector)
        self._step_losses[batch_idx] = loss.detach()  # stays on the device: asking for a number would wait for it

    def on_train_epoch_end(self) -> None:
        loss = float(mean_over_ranks(self._step_losses.mean()))
        if loss != loss or abs(loss) == float("inf"):
            wrong = (~self._step_losses.isfinite()).nonzero()
            step = f", step {int(wrong[0])}" if len(wrong) else ""  # of another rank where it is not ours
            kept = f"the last good state is {self.checkpoint}; " if self.checkpoint.exists() else ""
            raise UserError(
                f"the training loss became {loss} in epoch {self.current_epoch}{step} of {len(self.batches)}; {kept}"
                "lower lr, or look for extreme values in the data"
            )
        self.losses.append(loss)
        enough = self.validation is not None and self.validation.stops(self.detector)
        self.on_epoch(self.losses, self.validation_losses)
        if self.current_epoch in self.snapshot_epochs and self.trainer.is_global_zero:
            with store.whole(self.checkpoint.parent / "snapshots" / f"{self.current_epoch + 1:05d}.ckpt") as temporary:
                torch.save((self._average[0].module if self._average else self.detector).state_dict(), temporary)
        stop = getattr(self.detector, "stop", None)
        if enough or (stop is not None and stop(self.losses)):
            self.trainer.should_stop = True
        # saving a large state takes its time: a fiftieth of the training at most
        since = time.monotonic() - self._saved - 50 * self._save_s * bool(self.checkpoint_seconds)
        since = mean_over_ranks(torch.tensor(since, device=self.device))
        last = self.trainer.should_stop or self.current_epoch + 1 == self.epochs
        # one answer for all ranks, as saving is a collective; from a last state there is nothing to resume: Lightning
        # would go on beyond a stop, and leave out on_train_end after the last epoch
        if since >= self.checkpoint_seconds and not last:
            self.save()

    def save(self) -> None:
        """Keep the state at this epoch's end."""
        started = time.monotonic()
        if self.trainer.is_global_zero:
            with store.whole(self.checkpoint) as temporary:
                self.trainer.save_checkpoint(temporary)
        else:
            self.trainer.save_checkpoint(self.checkpoint)  # writes nothing, takes part
        self._saved = time.monotonic()
        self._save_s = self._saved - started

    def on_train_end(self) -> None:
        for average in self._average:
            self.detector.load_state_dict(average.module.state_dict())
        if self.validation is not None:
            self.validation.keep_best(self.detector)

    @property
    def validation_losses(self) -> list[float]:
        """Loss of every epoch on the held-out rows; [] where there are none."""
        return [] if self.validation is None else self.validation.losses

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["losses"] = self.losses
        checkpoint["average"] = [average.state() for average in self._average]
        if self.validation is not None:
            checkpoint["validation"] = self.validation.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.losses = list(checkpoint["losses"])
        for average, state in zip(self._average, checkpoint["average"]):
            average.load(state)
        if self.validation is not None:
            self.validation.load(checkpoint["validation"])

    def _order(self) -> torch.Generator:
        return torch.Generator().manual_seed(epoch_seed(self.seed, self.current_epoch // self.batches.parts))


class Extract(L.LightningModule):
    """Passes rows through a backbone: one forward pass, whose views serve every detector."""

    def __init__(self, backbone: torch.nn.Module, without: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.backbone, self.without = backbone, without

    def predict_step(self, batch: Tensor, batch_idx: int) -> Views:
        views = self.backbone(batch)
        for name in self.without:
            setattr(views, name, None)
        return views


class Bar(L.Callback):
    """Epochs done, loss and time left, on stderr; redrawn at most a few times a second."""

    def __init__(self, title: str) -> None:
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} epochs"),
            TextColumn("loss {task.fields[loss]}"), TimeRemainingColumn(), transient=True, refresh_per_second=4,
            console=Console(stderr=True),
        )  # fmt: skip
        self.title = title

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.start()
        self.task = self.bar.add_task(self.title, total=trainer.max_epochs, loss="-", completed=trainer.current_epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Train)
        self.bar.update(self.task, completed=trainer.current_epoch + 1, loss=f"{pl_module.losses[-1]:.4g}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.bar.stop()


def make_trainer(
    options: Options, folder: Path, max_epochs: int = 1, callbacks: list[L.Callback] | None = None
) -> L.Trainer:
    """A lean Trainer: no logger, checkpoint callback, bar, summary or sampler of its own."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):  # it adds handlers of its own at import
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    try:
        return L.Trainer(
            accelerator={"auto": "gpu" if torch.cuda.is_available() else "cpu"}.get(
                options.accelerator, options.accelerator
            ),
            devices=options.devices,
            num_nodes=options.num_nodes,
            strategy=options.strategy,
            precision=options.precision,
            max_epochs=max_epochs,
            sync_batchnorm=rank_and_world()[1] > 1 and torch.cuda.is_available(),  # gloo has none: each rank its own
            callbacks=callbacks,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    except (ValueError, MisconfigurationException, ImportError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
