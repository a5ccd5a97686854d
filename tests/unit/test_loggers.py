"""Every tracker writes with no network, no account, an empty HOME and no standard input, and none can fail a run."""

import io
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from matplotlib.image import imread

from outlie import loggers
from outlie.errors import UserError

SCRIPT = """
    import logging, sys
    from pathlib import Path
    from matplotlib.image import imsave
    from outlie import loggers

    logging.basicConfig(level=logging.WARNING)
    tracker = getattr(loggers, sys.argv[1])(**eval(sys.argv[3]))
    trackers = loggers.open_loggers([tracker], Path(sys.argv[2]), {"seed": 0, "detector": {"k": 5}}, "wine-knn-0")
    picture = Path(sys.argv[2]).with_name("picture.png")
    imsave(picture, [[[1.0, 0, 0], [0, 0.5, 1.0]]])
    for epoch in range(3):
        trackers.log(epoch, {"loss": 1 / (epoch + 1)})
        for name in [["curves", "scatter"], [], ["scatter"]][epoch]:
            trackers.image(f"collapse/{name}", picture)
    trackers.summary({"auroc": 0.9, "status": "done", "threshold": None})
    trackers.artifact("table-dte_semi", "table", [picture])
    print("alive", len(trackers.alive))
    trackers.close(ok=True)
"""


def run_tracker(kind, tmp_path, options=None, **environment):
    """The script above in its own process; returns its run folder and its whole output."""
    home, run = tmp_path / "home", tmp_path / "a run"
    home.mkdir()
    run.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "MLFLOW", "NETRC"))}
    env = kept | {"HOME": str(home), "MPLCONFIGDIR": str(home)} | environment
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), kind, str(run), repr(options or {})],
        env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return run, done.stdout


def test_csv_needs_nothing(tmp_path):
    run, output = run_tracker("CSV", tmp_path)
    assert output == "alive 1\n"
    assert list(run.iterdir()) == []


def test_wandb_without_account_is_offline_and_silent(tmp_path):
    run, output = run_tracker("WandB", tmp_path, {"group": "g", "tags": ["t"]})
    assert output == "alive 1\n"
    (written,) = run.glob("wandb/offline-run-*/run-*.wandb")
    assert written.stat().st_size > 0
    assert b"table-dte_semi" in written.read_bytes()  # an artifact, sent by `wandb sync`
    images = sorted(path.name.rsplit("_", 1)[0] for path in run.rglob("media/images/collapse/*.png"))
    assert images == ["curves_0", "scatter_0", "scatter_2"]  # the epochs they belong to, none with a step of its own


def test_wandb_online_without_a_key_is_offline_and_does_not_ask(tmp_path):
    run, output = run_tracker("WandB", tmp_path, {"mode": "online"})
    assert "no API key" in output
    assert "alive 1" in output
    assert list(run.glob("wandb/offline-run-*/run-*.wandb"))


def test_wandb_mode_of_the_environment_wins(tmp_path):
    run, output = run_tracker("WandB", tmp_path, WANDB_MODE="disabled")
    assert output == "alive 1\n"
    assert list(run.iterdir()) == []


def test_wandb_with_an_unreachable_server_goes_offline(tmp_path):
    run, output = run_tracker("WandB", tmp_path, WANDB_API_KEY="0" * 40, WANDB_BASE_URL="http://127.0.0.1:9")
    assert "online failed" in output
    assert "alive 1" in output
    assert list(run.glob("wandb/offline-run-*/run-*.wandb"))


def test_wandb_finds_a_key_in_netrc(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert loggers.wandb_mode() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "0" * 40)
    assert loggers.wandb_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert loggers.wandb_mode() == "offline"
    (tmp_path / "netrc").write_text("machine broken")
    assert loggers.wandb_mode() == "offline"


def test_tensorboard_writes_curves_and_final_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    run, output = run_tracker("TensorBoard", tmp_path)
    assert "alive 1" in output
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [round(e.value, 6) for e in events.Scalars("loss")] == [1.0, 0.5, 0.333333]
    assert events.Scalars("auroc")[0].value == pytest.approx(0.9)
    (image,) = events.Images("collapse/curves")
    pixels = imread(io.BytesIO(image.encoded_image_string), format="png")
    np.testing.assert_allclose(pixels[..., :3], [[[1, 0, 0], [0, 0.5, 1]]], atol=0.003)


def test_mlflow_writes_into_the_run_folder(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    run, output = run_tracker("MLflow", tmp_path)
    assert output == "alive 1\n"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    client = MlflowClient((run / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("outlie")
    assert experiment is not None
    (stored,) = client.search_runs([experiment.experiment_id])
    assert stored.info.run_name == "wine-knn-0"
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"seed": "0", "detector/k": "5"}
    assert stored.data.metrics == {"auroc": 0.9, "loss": pytest.approx(1 / 3)}
    assert [file.path for file in client.list_artifacts(stored.info.run_id)] == ["picture.png"]


class Breaking(loggers.CSV):
    """Fails at the named call."""

    def __init__(self, at):
        self.calls = []
        for name in ("open", "log", "image", "summary", "close"):
            setattr(self, name, lambda *args, name=name: self.called(name, at))

    def called(self, name, at):
        self.calls.append(name)
        if name == at:
            raise RuntimeError("disk\nis full")


@pytest.mark.parametrize("at", ["open", "log", "image", "summary", "close"])
def test_a_broken_tracker_is_dropped_with_one_line(tmp_path, caplog, at):
    broken, good = Breaking(at), Breaking(None)
    trackers = loggers.open_loggers([broken, good], tmp_path, {}, "name")
    for step in range(3):
        trackers.log(step, {"loss": 1.0})
    trackers.image("summary", tmp_path / "summary.png")
    trackers.summary({})
    trackers.close(ok=False)
    trackers.close(ok=False)
    assert good.calls == ["open", "log", "log", "log", "image", "summary", "close"]
    assert broken.calls[-1] == at
    assert [r.getMessage() for r in caplog.records] == ["Breaking dropped, the run goes on: disk is full"]


class Old:
    """A user's tracker from before there were pictures."""

    def open(self, run_dir, config, name):
        self.seen = []

    def log(self, step, values):
        self.seen.append(values)

    def summary(self, values): ...

    def close(self, ok): ...


def test_a_tracker_without_pictures_is_passed_over(tmp_path, caplog):
    old, good = Old(), Breaking(None)
    trackers = loggers.open_loggers([old, good], tmp_path, {}, "name")
    trackers.image("summary", tmp_path / "summary.png")
    trackers.log(0, {"loss": 1.0})
    assert trackers.alive == [old, good]
    assert old.seen == [{"loss": 1.0}]
    assert good.calls == ["open", "image", "log"]
    assert not caplog.records


def test_a_picture_that_is_not_there_costs_the_tracker_only(tmp_path):
    pytest.importorskip("tensorboard")
    trackers = loggers.open_loggers([loggers.TensorBoard()], tmp_path, {}, "name")
    trackers.image("summary", tmp_path / "missing.png")
    assert trackers.alive == []


def test_unknown_wandb_mode():
    with pytest.raises(UserError, match="auto, online, offline"):
        loggers.WandB(mode="sometimes")
