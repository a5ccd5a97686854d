"""Experiment trackers beside metrics.csv, which every run has: W&B, TensorBoard, MLflow.

A tracker never asks, never needs an account or a network, and never fails a run: the first exception from it costs one
warning line and that tracker. Values are logged once an epoch, not once a step (a W&B call takes 0.2 to 0.9 ms).
"""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from outlie.errors import UserError

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """What `logger=` instantiates; `Trackers` calls these in this order. One without `image` is shown none."""

    def open(self, run_dir: Path, config: dict[str, Any], name: str) -> None: ...
    def log(self, step: int, values: dict[str, float]) -> None: ...
    def image(self, name: str, path: Path) -> None: ...
    def summary(self, values: dict[str, Any]) -> None: ...
    def close(self, ok: bool) -> None: ...


class Trackers:
    """The trackers of one run; one that raises is dropped and the run goes on."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.alive = list(trackers)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Values of one epoch."""
        self._each(lambda tracker: tracker.log(step, values))

    def image(self, name: str, path: Path) -> None:
        """A picture that is already a PNG file."""
        self._each(lambda tracker: tracker.image(name, path) if hasattr(tracker, "image") else None)

    def summary(self, values: dict[str, Any]) -> None:
        """Final numbers of the run."""
        self._each(lambda tracker: tracker.summary(values))

    def artifact(self, name: str, kind: str, files: Sequence[Path]) -> None:
        """Files that belong together, for a tracker that keeps such."""
        self._each(lambda tracker: getattr(tracker, "artifact", lambda *_: None)(name, kind, files))

    def close(self, ok: bool) -> None:
        """Mark the run as finished or failed and write what is pending; a second call does nothing."""
        self._each(lambda tracker: tracker.close(ok))
        self.alive = []

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self.alive):
            try:
                call(tracker)
            except Exception as error:
                self.alive.remove(tracker)
                kind = type(tracker).__name__
                log.warning("%s dropped, the run goes on: %s", kind, " ".join(str(error).split()) or repr(error))
                log.debug("%s", kind, exc_info=error)


def open_loggers(trackers: Sequence[Tracker], run_dir: Path, config: dict[str, Any], name: str) -> Trackers:
    """Open every tracker for the run `name` in `run_dir`; `config` is the resolved config as plain containers."""
    opened = Trackers(trackers)
    opened._each(lambda tracker: tracker.open(run_dir, config, name))
    return opened


class CSV:
    """metrics.csv alone; the runner writes it for every run, so there is nothing left to do here."""

    def open(self, run_dir: Path, config: dict[str, Any], name: str) -> None:
        """Nothing to open."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Already in metrics.csv."""

    def image(self, name: str, path: Path) -> None:
        """Already a file."""

    def summary(self, values: dict[str, Any]) -> None:
        """Already in result.json."""

    def close(self, ok: bool) -> None:
        """Nothing to close."""


class WandB:
    """Weights & Biases, offline unless an API key is found; send an offline run with `wandb sync RUN/wandb/offline-*`.

    Args:
        project: the project's name
        entity: user or team; None = the account's default
        group: name under which runs are grouped, e.g. a sweep
        tags: words to filter by
        mode: auto = the environment's WANDB_MODE, else online with an API key (WANDB_API_KEY, netrc), else offline
    """

    def __init__(
        self,
        project: str = "outlie",
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        mode: Literal["auto", "online", "offline"] = "auto",
    ) -> None:
        if mode not in ("auto", "online", "offline"):
            raise UserError(f"logger.mode '{mode}'; allowed: auto, online, offline")
        self.project, self.entity, self.group, self.tags, self.mode = project, entity, group, tags, mode
        self._run: Any = None

    def open(self, run_dir: Path, config: dict[str, Any], name: str) -> None:
        """Start a W&B run; without an answer from the server in 15 seconds, or with a key it refuses, offline."""
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        mode = wandb_mode() if self.mode == "auto" else self.mode
        if mode == "online" and not wandb_key():
            log.warning("W&B: no API key (WANDB_API_KEY or netrc), so this run is logged offline")
            mode = "offline"

        def start(mode: str) -> Any:
            return wandb.init(
                project=self.project,
                entity=self.entity,
                group=self.group,
                tags=self.tags,
                name=name,
                config=config,
                dir=str(run_dir),
                mode=mode,  # pyright: ignore[reportArgumentType]
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off", init_timeout=15, disable_git=True, save_code=False),
            )

        try:
            self._run = start(mode)
        except wandb.Error as error:
            if mode != "online":
                raise
            log.warning("W&B: online failed (%s), so this run is logged offline", " ".join(str(error).split()))
            self._run = start("offline")
        if self._run.url:
            log.info("W&B: %s", self._run.url)

    def log(self, step: int, values: dict[str, float]) -> None:
        """One point of each curve."""
        self._run.log(values, step=step)

    def image(self, name: str, path: Path) -> None:
        """The picture, at the epoch logged last: a step of its own would make W&B drop the next epoch's values."""
        import wandb

        self._run.log({name: wandb.Image(str(path))}, commit=False)

    def summary(self, values: dict[str, Any]) -> None:
        """The run's summary, as its table shows it."""
        self._run.summary.update(values)

    def artifact(self, name: str, kind: str, files: Sequence[Path]) -> None:
        """Files as one artifact, a new version of it where their content is new."""
        import wandb

        artifact = wandb.Artifact(name, type=kind)
        for file in files:
            artifact.add_file(str(file))
        self._run.log_artifact(artifact)

    def close(self, ok: bool) -> None:
        """Finish with exit code 0 or 1; without it a crashed run shows as finished."""
        self._run.finish(exit_code=0 if ok else 1)


def wandb_mode() -> str:
    """WANDB_MODE if set, else online if an API key is there, else offline."""
    return os.environ.get("WANDB_MODE") or ("online" if wandb_key() else "offline")


def wandb_key() -> bool:
    """True if W&B finds an API key without asking: in the environment, or in the netrc file for its server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    if server := os.environ.get("WANDB_BASE_URL"):
        servers = [server]
    else:  # the second is the former name of the first, which wandb still looks up
        servers = [wandb.Settings().base_url, "https://api.wandb.ai"]
    for path in [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]:
        try:
            accounts = netrc.netrc(os.path.expanduser(path)).hosts
        except (OSError, netrc.NetrcParseError):
            continue
        if any(urlsplit(server).netloc in accounts for server in servers):
            return True
    return False


class TensorBoard:
    """Event files in the run's folder; look at them with `tensorboard --logdir outputs`."""

    def __init__(self) -> None:
        self._logger: Any = None

    def open(self, run_dir: Path, config: dict[str, Any], name: str) -> None:
        """Create RUN/tensorboard."""
        try:
            import tensorboard  # noqa: F401  # pyright: ignore[reportUnusedImport]
        except ImportError as error:
            raise UserError("pip install 'outlie[tensorboard]'") from error
        from lightning.pytorch.loggers import TensorBoardLogger

        self._logger = TensorBoardLogger(run_dir, name="tensorboard", version="", default_hp_metric=False)
        self._config = config

    def log(self, step: int, values: dict[str, float]) -> None:
        """One point of each curve."""
        self._logger.log_metrics(values, step)

    def image(self, name: str, path: Path) -> None:
        """The picture in the Images tab."""
        from matplotlib.image import imread

        pixels = (255 * imread(path)).round().astype("uint8")  # (H, W, 3 or 4); a PNG is read as fractions
        self._logger.experiment.add_image(name, pixels, dataformats="HWC")

    def summary(self, values: dict[str, Any]) -> None:
        """The final numbers beside the config, in the HParams tab."""
        self._logger.log_hyperparams(self._config, numbers(values))

    def close(self, ok: bool) -> None:
        """Write what is pending."""
        self._logger.finalize("success" if ok else "failed")


class MLflow:
    """MLflow; by default files in RUN/mlruns, which `MLFLOW_ALLOW_FILE_STORE=true mlflow ui` shows.

    Args:
        experiment: name of the MLflow experiment
        tracking_uri: a server or store; None = the environment's MLFLOW_TRACKING_URI, else RUN/mlruns
    """

    def __init__(self, experiment: str = "outlie", tracking_uri: str | None = None) -> None:
        self.experiment, self.tracking_uri = experiment, tracking_uri
        self._logger: Any = None

    def open(self, run_dir: Path, config: dict[str, Any], name: str) -> None:
        """Start an MLflow run and store the config as its parameters."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:  # sqlite would need the full mlflow (0.7 GB); mlflow-skinny has files, behind this switch
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (Path(run_dir).resolve() / "mlruns").as_uri()
        try:
            import mlflow  # noqa: F401  # pyright: ignore[reportUnusedImport]
        except ImportError as error:
            raise UserError("pip install 'outlie[mlflow]'") from error
        from lightning.pytorch.loggers import MLFlowLogger

        logging.getLogger("lightning.pytorch.loggers.mlflow").setLevel(logging.ERROR)  # else: "not found. Creating it."
        self._logger = MLFlowLogger(self.experiment, run_name=name, tracking_uri=uri)
        self._logger.log_hyperparams(config)

    def log(self, step: int, values: dict[str, float]) -> None:
        """One point of each curve."""
        self._logger.log_metrics(values, step)

    def image(self, name: str, path: Path) -> None:
        """The file as an artifact, under its own name."""
        self._logger.experiment.log_artifact(self._logger.run_id, str(path))

    def summary(self, values: dict[str, Any]) -> None:
        """The final numbers as metrics."""
        self._logger.log_metrics(numbers(values))

    def close(self, ok: bool) -> None:
        """Mark the run FINISHED or FAILED."""
        self._logger.finalize("success" if ok else "failed")


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The entries that are numbers."""
    return {k: float(v) for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
