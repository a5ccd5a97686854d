"""`run figure NAME`: a paper's figure and the table of its numbers; what it needs trained is trained, or found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from outlie.errors import UserError, unknown

DRAWN = ("iwae_mixture", "iwae_one_d")  # from closed forms: nothing is trained
TRAINED = ("iwae_posterior", "iwae_reconstructions")
EXPERIMENT = "mnist_iwae_2d_cpu"
FORMATS = (".png", ".svg")


def main(words: list[str], config_dirs: tuple[str, ...] = ()) -> int:
    """Draw one figure and say where it is; exit code."""
    if not words:
        raise UserError(f"give a figure: {', '.join((*DRAWN, *TRAINED))}. run figure --help")
    name, *overrides = words
    if name not in (*DRAWN, *TRAINED):
        raise UserError(f"{unknown('figure', name, (*DRAWN, *TRAINED))}. run figure --help")
    given = dict(word.split("=", 1) for word in overrides if word.startswith(("file=", "seed=", "output_dir=")))
    path = Path(given.get("file", Path(given.get("output_dir", "outputs"), "figures", f"{name}.png")))
    if path.suffix not in FORMATS:
        raise UserError(f"file={path}: a picture ends in {' or '.join(FORMATS)}")
    seed = given.get("seed", "0")
    if not seed.isdigit():
        raise UserError(f"seed={seed}: expected an integer of at least 0")
    rest = [word for word in overrides if not word.startswith("file=")]
    other = [word for word in rest if word.partition("=")[0] not in ("seed", "output_dir")]
    if name in DRAWN and other:
        raise UserError(f"figure {name} trains nothing, so '{other[0]}' has no place: file= and seed= only")
    path.parent.mkdir(parents=True, exist_ok=True)
    if name in DRAWN:
        from outlie.density import figures

        (figures.mixture_2d if name == "iwae_mixture" else figures.one_d)(path, int(seed))
    else:
        _draw_trained(name, path, rest, config_dirs)
    if path.exists():
        print(f"{path} and {path.with_suffix('.csv').name}")
    return 0


def _draw_trained(name: str, path: Path, overrides: list[str], config_dirs: tuple[str, ...]) -> None:
    from outlie.build import build
    from outlie.commands import train
    from outlie.compose import compose
    from outlie.density import trained_figures
    from outlie.detectors.vae import VAE
    from outlie.results import checkpoint, store

    config = compose("train", [f"experiment={EXPERIMENT}", "metrics=fast", *overrides], config_dirs)
    cfg = train.plain(config)
    train.main(config)
    if cfg["dry_run"]:
        return
    detector, backbone = build(cfg["detector"], list(cfg["allow"])), build(cfg["backbone"], list(cfg["allow"]))
    if not isinstance(detector, VAE):
        raise UserError(f"figure {name} shows a density model, not detector={cfg['choices']['detector']}")
    checkpoint.load_model(store.run_folder(cfg) / "model.ckpt", backbone, detector)
    split: Any = build(cfg["dataset"], list(cfg["allow"])).load(cfg["seed"])
    drawing = trained_figures.posterior if name == "iwae_posterior" else trained_figures.reconstructions
    drawing(path, detector, backbone, split)
