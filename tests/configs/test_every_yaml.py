"""Every yaml of every group: described, checked against its class, composed; both routes give the same config."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from outlie import annotations, catalog, checks, compose, hydra_route, overrides, plain_route, signatures

WHERE = catalog.roots()
EVERY = [(group, choice) for group in catalog.groups(WHERE) for choice in catalog.choices(group, WHERE)]


TRAIN = [(group, choice) for group, choice in EVERY if group not in ("distiller", *catalog.APART)]


def words_for(group: str, choice: str, some_file: Path) -> list[str]:
    """An override for the choice, with what it leaves to the user filled in."""
    path = catalog.choices(group, WHERE)[choice]
    section, words = catalog.load(path), [f"{group}={choice}"]
    signature = signatures.read(section.get("_target_", ""))
    for p in signature.parameters if signature else ():
        if section.get(p.name, checks.MISSING if p.required else None) == checks.MISSING:
            words.append(f"{group}.{p.name}={some_file if annotations.takes_path(p.annotation) else 1}")
    if group == "detector" and signature:
        words.append(f"backbone={checks.providers(signature.needs, WHERE)[0]}")
    return words


@pytest.mark.parametrize(("group", "choice"), TRAIN, ids=["=".join(one) for one in TRAIN])
def test_it_composes(group, choice, tmp_path):
    some_file = tmp_path / "rows.csv"
    some_file.touch()
    words = words_for(group, choice, some_file)
    composed = compose.compose("train", words)
    config = OmegaConf.to_container(composed, throw_on_missing=True)
    assert isinstance(config, dict)
    assert config["choices"][group] == choice
    line = overrides.sort(words, WHERE, overrides.read)
    plain, problems = compose.finish("train", line, WHERE, None, plain_route.draft, hydra_route.resolve)
    assert plain == config
    assert not problems


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The folder of a classifier's run, as far as a composition looks at it."""
    folder = tmp_path_factory.mktemp("outputs") / "train" / "digits_ood-msp-0123456789"
    folder.mkdir(parents=True)
    words = ["dataset=digits_ood", "backbone=resnet10", "detector=msp"]
    OmegaConf.save(compose.compose("train", words), folder / "config.yaml")
    return folder


@pytest.mark.parametrize("choice", [choice for group, choice in EVERY if group == "distiller"])
def test_a_distiller_composes_on_a_teachers_run(choice, classifier):
    words = [f"teacher={classifier}", f"distiller={choice}", "backbone=resnet10/narrow"]
    config = compose.compose("distill", words)
    assert config.choices.distiller == choice and config.teacher == str(classifier)
    assert config.choices.backbone == "resnet10/narrow" and config.choices.dataset == "digits_ood"
    assert config.choices.detector == ("score_student" if choice == "scores" else "msp")


@pytest.mark.parametrize(("group", "choice"), EVERY, ids=["=".join(one) for one in EVERY])
def test_it_says_what_it_is(group, choice):
    path = catalog.choices(group, WHERE)[choice]
    assert len(catalog.description(path)) > 5
    target = catalog.load(path).get("_target_")
    if target is not None:
        signature = signatures.read(target)
        assert signature is not None
        assert signature.doc
        assert [p.name for p in signature.parameters if not p.doc] == []


def test_every_top_level_key_has_a_type_and_a_line():
    for command in ("train", "eval", "probe", "sample", "score", "export", "bench"):
        for key in catalog.keys(catalog.primary(command, WHERE)):
            assert key.doc
            assert key.name in checks.ROOT


def test_detectors_say_where_they_are_from():
    for choice, path in catalog.choices("detector", WHERE).items():
        signature = signatures.read(catalog.target(path))
        assert signature is not None
        assert signature.paper, choice
