"""Every yaml of configs/detector builds a detector whose hooks and options fit together; presets are as published."""

import importlib.util
import inspect

import pytest
from omegaconf import OmegaConf

from outlie import catalog
from outlie.backbones.identity import Identity
from outlie.build import build
from outlie.compose import compose
from outlie.detectors.base import Detector, Spec, Views, set_up
from outlie.detectors.training import Recipe
from outlie.results.store import stage_folder

WHERE = catalog.roots()
NAMES = sorted(catalog.choices("detector", WHERE))
HAS_PYOD = importlib.util.find_spec("pyod") is not None


def built(name: str, *words: str) -> Detector:
    detector = compose("train", [f"detector={name}", *words]).detector
    if detector._target_.endswith("PyOD") and not HAS_PYOD:
        pytest.skip("needs PyOD")
    return build(detector)


@pytest.mark.parametrize("name", NAMES)
def test_its_hooks_fit_together(name):
    detector = built(name)
    set_up(detector, Spec({"x": (4,), "features": (4,)}, seed=0))
    assert type(detector).score is not Detector.score
    assert set(type(detector).needs) <= set(Identity.provides) <= set(Views.__dataclass_fields__)
    trained, fitted = hasattr(detector, "loss"), hasattr(detector, "fit")
    assert trained or fitted
    if trained:
        assert isinstance(detector.recipe, Recipe)
        assert list(inspect.signature(detector.loss).parameters) == ["views", "generator"]
        assert any(p.requires_grad for p in detector.parameters())
    else:
        assert not list(detector.parameters())  # nothing would ever train them
        assert not hasattr(detector, "stop") and not hasattr(detector, "recipe")


OTHER = {
    "rec_start": 3, "steps": 3, "forward_noise": "true", "posterior_noise": "true", "score_by": None, "k": 3, "T": 77,
    "scorer": "mode", "aggregate": "mean",
}  # fmt: skip
SCORE_BY = {"diffusion": "full_path", "dte_c": "mode", "dte_ig": "raw"}


@pytest.mark.parametrize("name", [name for name in NAMES if "/" not in name])
def test_scoring_options_are_options_and_share_the_weights(name):
    detector = built(name)
    scoring = type(detector).scoring
    default = OmegaConf.to_container(compose("train", [f"detector={name}"]))
    assert set(scoring) <= set(default["detector"])
    weights = {
        key: value.shape for key, value in set_up(detector, Spec({"x": (4,), "features": (4,)})).state_dict().items()
    }
    for option in scoring:
        value = SCORE_BY[name] if option == "score_by" else OTHER[option]
        word = f"detector.{option}={value}"
        other = built(name, word)
        changed = OmegaConf.to_container(compose("train", [f"detector={name}", word]))
        assert changed["detector"] != default["detector"]
        assert stage_folder(changed, scoring) == stage_folder(default, scoring)
        set_up(other, Spec({"x": (4,), "features": (4,)}))
        assert {key: value.shape for key, value in other.state_dict().items()} == weights


RELEASED = {"epochs": 400, "batch_size": 64, "lr": 1e-4, "weight_decay": 5e-4, "decay_lr": False, "min_steps": 0}
TIME = {"T": 400, "hidden": [256, 512, 256], "dropout": 0.5, "drift": False}
# specification of Livernoche et al. 2024: sections 3 (DDPM), 5 (DTE-NP, KNN), 6 (DTE-C, DTE-IG)
PAPER = {
    "diffusion/paper": RELEASED
    | {"T": 1000, "rec_start": 250, "steps": None, "forward_noise": False, "posterior_noise": False}
    | {"score_by": "reconstruction", "early_stop": True},
    "dte_c/paper": RELEASED | TIME | {"bins": 7, "loss": "double_softmax", "score_by": "mean"},
    "dte_ig/paper": RELEASED | TIME | {"score_by": "raw"},
    "dte_np/paper": {"k": 5, "scorer": "mean_dist"},
    "dte_np/paper_unsup": {"k": 32, "scorer": "mean_dist"},
    "knn/paper": {"k": 5, "aggregate": "kth"},
    "knn/paper_unsup": {"k": 32, "aggregate": "kth"},
}


@pytest.mark.parametrize("name", sorted(PAPER))
def test_presets_are_the_published_settings(name):
    section = OmegaConf.to_container(compose("train", [f"detector={name}"]).detector)
    assert {key: section[key] for key in PAPER[name]} == PAPER[name]


def test_every_preset_has_its_published_settings_here():
    assert {name for name in NAMES if "/paper" in name} == set(PAPER)
