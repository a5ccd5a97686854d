"""Every yaml of configs/detector builds a detector whose hooks and options fit together; presets are as published."""

import importlib.util
import inspect

import pytest
import torch
from omegaconf import OmegaConf

from outlie import catalog, checks, signatures
from outlie.backbones.classifier import Classifier
from outlie.backbones.denoiser import Denoiser
from outlie.backbones.identity import Identity
from outlie.backbones.resnet import ResNet
from outlie.backbones.unet import UNet
from outlie.build import build
from outlie.compose import compose
from outlie.detectors.base import Detector, Spec, Views, set_up
from outlie.detectors.training import Recipe
from outlie.results.store import stage_folder

WHERE = catalog.roots()
NAMES = sorted(catalog.choices("detector", WHERE))
HAS_PYOD = importlib.util.find_spec("pyod") is not None
CLASSES, DIM = 5, 16
STUDENTS = {"stfpm", "reverse_distillation", "efficient_ad", "uninformed_students"}  # they want images and a network


def word_of_a_backbone(name: str) -> str:
    """The simplest backbone that has what the detector needs; a small ResNet for those that want the network."""
    needs = signatures.read(catalog.target(catalog.choices("detector", WHERE)[name])).needs
    able = checks.providers(needs, WHERE)
    simplest = ["resnet10", "unet/small"] if "network" in needs else ["identity", "mlp", "unet/small"]
    return "backbone=" + next(backbone for backbone in simplest if backbone in able)


def composed(name: str, *words: str) -> dict:
    config = OmegaConf.to_container(compose("train", [f"detector={name}", word_of_a_backbone(name), *words]))
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def built(name: str, *words: str) -> Detector:
    detector = composed(name, *words)["detector"]
    if detector["_target_"].endswith("PyOD") and not HAS_PYOD:
        pytest.skip("needs PyOD")
    return build(detector)


def spec(name: str = "") -> Spec:
    """Sizes for every kind of detector, with a head and a network that was never trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, denoiser = ResNet(depth=10, width=2), UNet(base=8, multipliers=[1, 2], depth=1)
        for one in (network, denoiser):
            one.build((1, 8, 8), CLASSES)
    assert network.head.in_features == DIM
    on_denoiser = name and "denoiser" in signatures.read(catalog.target(catalog.choices("detector", WHERE)[name])).needs
    x = (1, 8, 8) if name.startswith("pixel_") or on_denoiser else (DIM,)
    x = (1, 66, 66) if name.split("/")[0] in STUDENTS else x  # patches of 65 pixels
    sizes = {"x": x, "features": (DIM,), "logits": (CLASSES,)}
    return Spec(sizes, 0, CLASSES, network.head, denoiser if on_denoiser else network)


@pytest.mark.parametrize("name", NAMES)
def test_its_hooks_fit_together(name):
    detector = set_up(built(name), spec(name))
    cls = type(detector)
    assert cls.score is not Detector.score
    provided = [set(one.provides) for one in (Classifier, Denoiser)]
    assert set.union(*provided) <= {*Views.__dataclass_fields__, "head", "network", "denoiser"}
    assert any(set(cls.needs) <= one for one in provided)
    localises = hasattr(detector, "score_map")
    assert cls.posthoc or localises or set(cls.needs) <= set(Identity.provides)
    assert not localises or (cls.images and cls.raw)
    trained, fitted = hasattr(detector, "loss"), hasattr(detector, "fit")
    assert trained or fitted or cls.posthoc  # a classifier's scores may need neither
    if trained:
        assert isinstance(detector.recipe, Recipe)
        assert list(inspect.signature(detector.loss).parameters) == ["views", "generator"]
        assert any(p.requires_grad for p in detector.parameters())
    else:
        assert not list(detector.parameters())  # nothing would ever train them, a head or network is not the detector's
        assert not hasattr(detector, "stop") and not hasattr(detector, "recipe")
    assert detector.fits_on in ("train", "calibration")
    assert fitted or detector.fits_on == "train"
    if fitted and "network" in cls.needs:  # its views come batch by batch
        assert hasattr(detector, "update") and hasattr(detector, "finish")


def test_the_split_to_fit_on_is_an_option_that_is_followed():
    read = {name: signatures.read(catalog.target(path)) for name, path in catalog.choices("detector", WHERE).items()}
    choosing = [name for name, own in read.items() if own.parameter("split") and "/" not in name]
    assert {"kl_matching", "react", "vra"} <= set(choosing)
    for name in choosing:
        for split in ("train", "calibration"):
            assert built(name, f"detector.split={split}").fits_on == split


# a value that is not the default, of every option of every detector that changes the score alone
OTHER = {
    "rec_start": 3, "steps": 3, "forward_noise": "true", "posterior_noise": "true", "k": 3, "T": 77, "scorer": "mode",
    "aggregate": "mean", "gamma": 0.5, "M": 2, "alpha": 2, "below": "zero", "percentile": 50, "denominator": "raw",
    "max_logit": "true", "noise": 0.002, "distance": "origin", "metric": "cosine", "power": 2, "threshold": 0.1,
    "blocks": "last", "score_by": "recon_err", "draws": 5, "diagnose": 0, "levels": 5, "complexity": "true",
    "repetitions": 3, "squares": 4, "sigma": 2, "eps": 3.0,
}  # fmt: skip
OWN = {
    ("diffusion", "score_by"): "full_path", ("dte_c", "score_by"): "mode", ("dte_ig", "score_by"): "raw",
    ("pixel_ddpm", "score_by"): "full_path", ("pixel_dte_c", "score_by"): "mode",
    ("planar_flow", "score_by"): "log_det",
    ("lmd", "distance"): "ssim", ("ash_b", "variant"): "s", ("ash_p", "variant"): "b", ("ash_s", "variant"): "p",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in NAMES if "/" not in name])
def test_scoring_options_are_options_and_share_the_weights(name):
    detector = built(name)
    scoring = type(detector).scoring
    default = composed(name)
    assert set(scoring) <= set(default["detector"])
    weights = {key: value.shape for key, value in set_up(detector, spec(name)).state_dict().items()}
    for option in scoring:
        word = f"detector.{option}={OWN.get((name, option)) or OTHER[option]}"
        changed, other = composed(name, word), built(name, word)
        assert changed["detector"] != default["detector"]
        assert stage_folder(changed, scoring) == stage_folder(default, scoring)
        assert {key: value.shape for key, value in set_up(other, spec(name)).state_dict().items()} == weights


def tunable() -> list[str]:
    """Scores of a classifier's views that have an option which changes the score only."""
    read = {name: signatures.read(catalog.target(path)) for name, path in catalog.choices("detector", WHERE).items()}
    return [name for name, own in read.items() if own.posthoc and own.scoring and "network" not in own.needs]


@pytest.mark.parametrize("name", [name for name in tunable() if "/" not in name])
def test_an_option_that_changes_the_score_only_does_not_enter_the_fit(name):
    """What `scoring` promises: the fitted state is the same, the score is not."""
    generator, y = torch.Generator().manual_seed(0), torch.arange(200) % CLASSES
    near = torch.randn(200, DIM, generator=generator) + 2 * (y[:, None] == torch.arange(DIM))
    features = torch.nn.functional.softplus(near)
    views = Views(features=features, logits=features[:, :CLASSES] * 2 - 1, y=y)
    detector = built(name)
    fit, score = fitted_and_scored(detector, views)
    for option in type(detector).scoring:
        value = OWN.get((name, option)) or OTHER[option]
        other_fit, other_score = fitted_and_scored(built(name, f"detector.{option}={value}"), views)
        assert fit.keys() == other_fit.keys()
        assert all(torch.equal(fit[key], other_fit[key]) for key in fit), option
        assert not torch.allclose(score, other_score), option


def fitted_and_scored(detector: Detector, views: Views) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    set_up(detector, spec())
    with torch.no_grad():
        if hasattr(detector, "fit"):
            detector.fit(views)
        return dict(detector.state_dict()), detector.score(views).double()


RELEASED = {"epochs": 400, "batch_size": 64, "lr": 1e-4, "weight_decay": 5e-4, "decay_lr": False, "min_steps": 0}
TIME = {"T": 400, "hidden": [256, 512, 256], "dropout": 0.5, "drift": False}
# specification of NECO, section 2: what the authors' code does for each network; the mean is always taken away
COLUMNS = ("d", "standardize", "denominator", "max_logit", "center")
AUTHORS = {
    "vit": (100, True, "same", True, True),
    "deit": (100, True, "raw", True, True),
    "swin": (100, True, "raw", True, True),
    "resnet": (100, True, "same", False, True),
    "vit_cifar": (100, False, "same", True, True),
}
NECO = {f"neco/paper_{name}": dict(zip(COLUMNS, values, strict=True)) for name, values in AUTHORS.items()}
# specification of IWAE, section 3: what Burda et al.'s code does; two layers of 100 and 50 or one of 50
BURDA = {
    "schedule": "burda", "epochs": 3280, "batch_size": 20, "lr": 1e-3, "weight_decay": 0.0, "clip_norm": 0,
    "validation": 0, "patience": 0, "likelihood": "bernoulli", "binarise": True, "hidden": [200, 200],
    "activation": "tanh", "network": "mlp", "k": 50, "estimator": "standard", "members": 1, "background": None,
}  # fmt: skip
LAYERS = {
    "paper": {"latent": 50, "latent_2": None},
    "paper_2l": {"latent": 100, "latent_2": 50, "hidden_2": [100, 100]},
}
AUTOENCODERS = {
    f"{name}/{preset}": BURDA | layers | {"objective": objective}
    for name, objective in (("vae", "elbo"), ("iwae", "iwae"))
    for preset, layers in LAYERS.items()
}
# specification of Livernoche et al. 2024: sections 3 (DDPM), 5 (DTE-NP, KNN), 6 (DTE-C, DTE-IG)
PAPER = {
    # specification of distillation, section 3
    "stfpm/paper": {"levels": [1, 2, 3], "epochs": 100, "batch_size": 32, "lr": 0.4, "momentum": 0.9}
    | {"weight_decay": 1e-4, "validation": 0.2},
    "reverse_distillation/paper": {"levels": [1, 2, 3], "cosine": "flat", "sigma": 4.0, "epochs": 200}
    | {"batch_size": 16, "lr": 5e-3},
    "efficient_ad/paper": {"size": "S", "min_steps": 70_000, "batch_size": 1, "lr": 1e-4, "weight_decay": 1e-5}
    | {"channels": 384, "width": 128, "code": 64, "teacher_steps": 60_000, "split": "calibration"},
    "uninformed_students/paper": {"patches": [17, 33, 65], "students": 3, "width": 128, "batch_size": 1}
    | {"lr": 1e-4, "weight_decay": 1e-5, "split": "calibration"},
    "diffusion/paper": RELEASED
    | {"T": 1000, "rec_start": 250, "steps": None, "forward_noise": False, "posterior_noise": False}
    | {"score_by": "reconstruction", "early_stop": True},
    "dte_c/paper": RELEASED | TIME | {"bins": 7, "loss": "double_softmax", "score_by": "mean"},
    "pixel_ddpm/paper": RELEASED
    | {"T": 1000, "rec_start": 250, "steps": None, "forward_noise": False, "posterior_noise": False, "epochs": 100}
    | {"score_by": "reconstruction", "early_stop": True, "divide": 0.5, "base": None},
    "pixel_dte_c/paper": RELEASED
    | {"T": 400, "drift": False, "bins": 7, "loss": "double_softmax", "score_by": "mean"}
    | {"divide": 0.5, "depth": 50, "width": 64, "stem": "imagenet"},
    "dte_ig/paper": RELEASED | TIME | {"score_by": "beta"},
    # specification of classical baselines, and what DTE's released code does besides
    "icl/paper": {"window": None, "hidden": 200, "temperature": 0.1, "enough": None, "epochs": 2000, "min_steps": 0}
    | {"batch_size": 3000, "lr": 1e-3},
    "dagmm/paper": {"components": 4, "latent": 1, "hidden": [60, 30, 10], "untrained": True},
    "planar_flow/paper": {"layers": 10, "constrained": False, "score_by": "log_det", "epochs": 200, "batch_size": 64}
    | {"lr": 2e-3, "weight_decay": 1e-4},
    "dte_np/paper": {"k": 5, "scorer": "mean_dist"},
    "dte_np/paper_unsup": {"k": 32, "scorer": "mean_dist"},
    "knn/paper": {"k": 5, "aggregate": "kth"},
    "knn/paper_unsup": {"k": 32, "aggregate": "kth"},
    **NECO,
    **AUTOENCODERS,
    "gram/paper": {"powers": 10},
    "cfs/paper": {"repeats": 1, "fit_rows": 8192, "head": "gaussian", "log_snr": None},  # specification of DDAE, 8.5
    "lmd/paper": {"steps": 1000, "repetitions": 10, "squares": 8},  # and 8.3
    # specification of NECO: what its authors' code runs the baselines with
    "residual/neco_paper": {"d": 300},
    "vim/neco_paper": {"d": 300},
    "react/resnet_paper": {"percentile": 90.0, "split": "train"},
    "react/swin_paper": {"percentile": 95.0, "split": "train"},
    "react/vit_paper": {"percentile": 99.0, "split": "train"},
}


# published settings that are the defaults, or those of a code that made no table
SAME = {
    "dte_ig/released": RELEASED | TIME | {"score_by": "raw"},
    "goad": {"maps": 256, "map_dim": 32, "width": 8, "margin": 1, "triplet": 0.1, "eps": 0, "epochs": 1}
    | {"batch_size": 64, "lr": 1e-3},
    "slad": {"groups": 20, "group_size": 10, "sizes": 50, "subspace_dim": 128, "width": 100, "magnify": 200}
    | {"epochs": 100, "passes": None, "batch_size": 128, "lr": 1e-3, "weight_decay": 1e-5},
    "ganomaly": {"hidden": None, "epochs": 50, "batch_size": 64, "lr": 1e-2, "momentum": 0.7},
    "drocc": {"radius": 3, "gamma": 2, "lamda": 1, "alone": 0.25, "ascent_steps": 50, "ascent_rate": 1e-3}
    | {"hidden": 128, "epochs": 200, "batch_size": 256, "lr": 1e-4},
}


@pytest.mark.parametrize("name", sorted(PAPER | SAME))
def test_presets_are_the_published_settings(name):
    section = composed(name)["detector"]
    published = (PAPER | SAME)[name]
    assert {key: section[key] for key in published} == published


def test_every_preset_has_its_published_settings_here():
    assert {name for name in NAMES if "paper" in name.partition("/")[2]} == set(PAPER)
