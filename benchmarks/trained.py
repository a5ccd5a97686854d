"""A density model of `run train`, for the benchmarks beside this file: trained quietly, or found trained."""

import contextlib
import io

from torch import nn

from outlie.build import build
from outlie.cli import main
from outlie.commands.train import plain
from outlie.compose import compose
from outlie.data.split import Rows
from outlie.detectors.vae import VAE
from outlie.results import checkpoint, store

OUTPUT = "outputs/benchmarks"


def trained(words: list[str]) -> tuple[dict, dict, VAE, nn.Module, dict[str, Rows]]:
    """The config and result of `run train` with these overrides, its detector and backbone, and its test sets."""
    words = [*words, "metrics=fast", "trainer.threads=1", "trainer.progress=off", f"output_dir={OUTPUT}"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        if main(["train", *words]):
            raise SystemExit(said.getvalue())
    cfg = plain(compose("train", words))
    folder = store.run_folder(cfg)
    detector, backbone = build(cfg["detector"]), build(cfg["backbone"])
    assert isinstance(detector, VAE)
    checkpoint.load_model(folder / "model.ckpt", backbone, detector)
    result = store.read_result(folder)
    assert result is not None
    return cfg, result, detector, backbone, build(cfg["dataset"]).load(cfg["seed"]).tests
