"""Composition over a config root of the tests' own: what a run gets, and what a user is told."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from outlie.compose import compose
from outlie.errors import UserError


@pytest.fixture
def train(toy: Path) -> Callable[..., dict]:
    def composed(*words: str, command: str = "train", **kwargs) -> dict:
        plain = OmegaConf.to_container(compose(command, list(words), (str(toy),), **kwargs), throw_on_missing=True)
        assert isinstance(plain, dict)
        return {str(k): v for k, v in plain.items()}

    return composed


@pytest.fixture
def complaint(train: Callable[..., dict]) -> Callable[..., str]:
    def message(*words: str, **kwargs) -> str:
        with pytest.raises(UserError) as caught:
            train(*words, **kwargs)
        return str(caught.value)

    return message


def test_defaults_of_the_signature_fill_the_config(train):
    config = train()
    assert config["detector"] == {
        "_target_": "toy.detectors.Near", "k": 5, "rate": 0.1, "mode": "kth",
        "options": None, "inner": {"depth": 1}, "flag": False,
    }  # fmt: skip
    assert config["dataset"] == {"_target_": "toy.data.Table", "rows": 10, "fraction": 0.5, "columns": None}
    assert config["trainer"]["_target_"] == "outlie.trainer.Options"  # found behind the user's folder, in ours


def test_choices_are_recorded(train):
    assert train("dataset=many/one", "detector=near/paper")["choices"] == {
        "dataset": "many/one", "backbone": "plain", "detector": "near/paper", "metrics": "few", "trainer": "default",
        "logger": "none",
    }  # fmt: skip


def test_one_deep_choice_lands_in_its_group(train):
    config = train("detector=near/paper")
    assert config["detector"]["k"] == 32
    assert config["detector"]["rate"] == 0.001
    assert "near" not in config


@pytest.mark.parametrize(
    ("word", "section", "key", "value"),
    [
        ("detector.k=7", "detector", "k", 7),
        ("+detector.k=7", "detector", "k", 7),
        ("++detector.k=7", "detector", "k", 7),
        ("detector.rate=1", "detector", "rate", 1.0),
        ("detector.rate=1e-4", "detector", "rate", 0.0001),
        ("dataset.columns=[a,b]", "dataset", "columns", ["a", "b"]),
        ("dataset.columns=[a, 'b c']", "dataset", "columns", ["a", "b c"]),
        ("dataset.columns=null", "dataset", "columns", None),
        ("detector.options.depth=3", "detector", "options", {"depth": 3}),
        ("detector.inner.width=3", "detector", "inner", {"depth": 1, "width": 3}),
        ("detector.options={depth: 3}", "detector", "options", {"depth": 3}),
        ("metrics.nested.depth=3", "metrics", "nested", {"depth": 3}),
        ("detector.k=${seed}", "detector", "k", 3),
    ],
)
def test_values_in_hydras_grammar(train, word, section, key, value):
    found = train(word, "seed=3")[section][key]
    assert found == value
    assert type(found) is type(value)


def test_last_of_two_wins(train):
    config = train("detector.k=7", "detector=near/paper", "detector.k=8", "detector=near")
    assert config["detector"]["k"] == 8
    assert config["choices"]["detector"] == "near"


def test_deleting_a_value_goes_back_to_the_signature(train):
    assert train("detector=near/paper", "~detector.k")["detector"]["k"] == 5


def test_experiment_chooses_groups_and_sets_values(train):
    config = train("experiment=table_1")
    assert (config["seed"], config["detector"]["k"], config["detector"]["mode"]) == (5, 32, "mean")
    assert config["choices"]["experiment"] == "table_1"
    assert config["choices"]["detector"] == "near/paper"
    over = train("experiment=table_1", "detector=near", "seed=1")
    assert (over["seed"], over["detector"]["k"], over["detector"]["mode"]) == (1, 5, "mean")


def test_interpolation_is_resolved(train):
    assert train("backbone=net", "seed=3")["backbone"]["width"] == 3


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["detector=naer"], "unknown detector 'naer' (did you mean 'near'?); allowed: "),
        (["detecter=near"], "unknown group or key 'detecter' (did you mean 'detector'?)"),
        (["detecter.k=3"], "unknown group or key 'detecter' (did you mean 'detector'?)"),
        (["sed=3"], "unknown group or key 'sed' (did you mean 'seed'?)"),
        (["hydra.run.dir=x"], "unknown group or key 'hydra'"),
        (["choices.detector=x"], "unknown group or key 'choices'"),
        (["detector.flg=true"], "unknown key of detector 'flg' (did you mean 'detector.flag'?); allowed: flag, inner"),
        (["metrics.nested.deep=1"], "unknown key of metrics.nested 'deep'"),
        (["detector.k.x=1"], "unknown key 'detector.k.x': detector.k is a single value"),
        (["seed.x=1"], "unknown key 'seed.x': seed is a single value"),
        (["detector.k=many"], "detector.k='many': expected an integer of at least 1"),
        (["detector.k=0"], "detector.k=0: expected an integer of at least 1"),
        (["detector.k=true"], "detector.k=true: expected an integer"),
        (["detector.k=1.5"], "detector.k=1.5: expected an integer"),
        (["detector.k=null"], "detector.k=null: expected an integer"),
        (["detector.mode=men"], "expected one of kth, mean (did you mean 'mean'?)"),
        (["detector.options.depth=a"], "expected a mapping, each value an integer, or null"),
        (["dataset.fraction=1"], "dataset.fraction=1.0: expected a number between 0 and 1"),
        (["dataset.columns=[a,1]"], "expected a list, each item text, or null"),
        (["seed=-1"], "seed=-1: expected an integer of at least 0"),
        (["seed=a"], "seed='a': expected an integer of at least 0"),
        (["force=1"], "force=1: expected true or false"),
        (["allow=toy"], "allow='toy': expected a list"),
        (["dataset=file"], "dataset.path is missing: give dataset.path=... (the file)"),
        (["dataset=file", "dataset.path=nofile.csv"], "dataset.path='nofile.csv': expected a path that exists"),
        (["detector=logits"], "needs logits, which backbone 'plain' does not provide (it has x, features); would do: "),
        (["detector._target_=os.system"], "if you trust that module, add allow=[os]"),
        (["detector._target_=outlie.detectors.knn.KN"], "class of outlie.detectors.knn 'KN' (did you mean 'KNN'?)"),
        (["detector._target_=outlie.cli.main"], "unknown class of outlie.cli 'main'"),
        (["detector._target_=outlie.cli.os.system"], "unknown class of outlie.cli.os 'system'"),
        (["detector._target_=3"], "expected the dotted name of a class"),
        (["detector.options={_target_: os.system}"], "detector.options._target_='os.system' is outside outlie"),
        (["detector.inner={_target_: os.system}"], "detector.inner._target_='os.system' is outside outlie"),
        (["detector.inner=[{_target_: os.system}]"], "detector.inner[0]._target_='os.system' is outside outlie"),
        (["detector.inner={_target_: toy.data.Table, _partial_: true}"], "detector.inner._partial_ is not allowed"),
        (["allow=[]"], "is outside outlie; if you trust that module, add allow=[toy]"),
        (["detector.k=1,2"], "is several values: run train -m computes them all; write [a,b] for a list"),
        (["detector.k=[1"], "cannot read 'detector.k=[1'"),
        (["detector.k=${nothing}"], "nothing"),
        (["near"], "'near' is not KEY=VALUE; did you mean 'detector=near'?"),
        (["nothing"], "'nothing' is not KEY=VALUE"),
        (["~detector"], "detector cannot be left out"),
        (["detector=null"], "detector cannot be left out"),
        (["~seed"], "seed cannot be left out"),
        (["experiment=wrong"], "unknown group or key 'sede' (did you mean 'seed'?)"),
        (["experiment=wrong"], "unknown key of detector 'kk'"),
        (["experiment=tabel_1"], "unknown experiment 'tabel_1' (did you mean 'table_1'?)"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_fix(complaint, words, expected):
    assert expected in complaint(*words)


def test_backbones_that_would_do_are_the_users_and_ours(complaint):
    *_, would_do = complaint("detector=logits").partition("would do: ")
    named = would_do.split(", ")
    assert {"backbone=net", "backbone=mlp", "backbone=resnet18"} <= set(named)
    assert not {"backbone=plain", "backbone=identity"} & set(named)


def test_all_mistakes_at_once(complaint):
    text = complaint(
        "dataset=fil", "detector=logits", "detector.k=0", "detector.mood=mean", "sed=1", "trainer.devices=0",
        "trainer.precision={a: 1}",
    )  # fmt: skip
    lines = text.splitlines()
    assert lines[0] == "7 problems:"
    assert len(lines) == 8
    assert all(line.startswith("  - ") for line in lines[1:])
    for part in ("'fil'", "detector.k=0", "'mood'", "'sed'", "trainer.devices=0", "trainer.precision=", "needs logits"):
        assert part in text


def test_nothing_more_is_said_about_a_section_that_does_not_exist(complaint):
    assert "\n" not in complaint("detector=naer", "detector.zzz=1")


def test_number_for_text_says_how_to_quote(complaint, train, toy):
    (toy / "rows.csv").touch()
    words = ("dataset=file", f"dataset.path={toy}/rows.csv")
    assert """'dataset.label="7"'""" in complaint(*words, "dataset.label=7")
    assert train(*words, 'dataset.label="7"')["dataset"]["label"] == "7"


def test_path_that_exists_nearly(complaint, toy):
    (toy / "rows.csv").touch()
    assert f"(did you mean '{toy}/rows.csv'?)" in complaint("dataset=file", f"dataset.path={toy}/row.csv")


def test_output_dir_must_be_writable(complaint, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert "is not a folder" in complaint(f"output_dir={tmp_path}/file/below")
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "no permission" in complaint(f"output_dir={tmp_path}/new")


def test_config_dir_comes_first_and_must_exist(train, tmp_path):
    other = tmp_path / "other" / "detector"
    other.mkdir(parents=True)
    (other / "knn.yaml").write_text("# mine\n_target_: toy.detectors.Near\nk: 77\n")
    config = compose(
        "train", ["detector=knn", "allow=[toy]", "metrics=fast", "logger=default"], (str(tmp_path / "other"),)
    )
    assert config.detector.k == 77
    assert config.trainer.devices == 1
    with pytest.raises(UserError, match="is not a folder"):
        compose("train", [], (str(tmp_path / "nowhere"),))


def test_broken_yaml_is_named(complaint, toy):
    (toy / "detector" / "broken.yaml").write_text("a: [1\n")
    assert "broken.yaml is not valid YAML" in complaint("detector=broken")


def store(config: dict, folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    return folder / "config.yaml"


def test_stored_config_is_the_base(train, tmp_path):
    first = train("detector=near/paper", "detector.k=9", "seed=4")
    path = store(first, tmp_path / "run")
    again = train(config_file=path)
    assert again == first
    changed = train("detector.mode=mean", "dataset=many/one", config_file=path)
    assert (changed["detector"]["k"], changed["detector"]["mode"], changed["dataset"]["rows"]) == (9, "mean", 7)
    assert changed["choices"]["dataset"] == "many/one"
    assert changed["choices"]["detector"] == "near/paper"


def test_stored_config_may_not_allow_anything(toy, tmp_path):
    evil = {"detector": {"_target_": "os.system", "command": "true"}, "allow": ["os"]}
    path = store(evil, tmp_path / "run")
    with pytest.raises(UserError, match=r"'os.system' is outside outlie"):
        compose("train", [], (str(toy),), path)
    path.write_text("detector: ${oc.env:HOME}\n")
    with pytest.raises(UserError, match="values only"):
        compose("train", [], (str(toy),), path)


def test_experiment_cannot_be_put_on_a_stored_config(train, complaint, tmp_path):
    path = store(train(), tmp_path / "run")
    assert "experiment= cannot be put on top" in complaint("experiment=table_1", config_file=path)


def test_eval_takes_the_run_as_base(train, complaint):
    first = train("detector.k=9", "seed=4")
    folder = store(first, Path("outputs/train/table-near-1a2b3c4d")).parent
    store(first, Path("outputs/train/table-other-1afe0000"))
    for name in (str(folder), "table-near-1a2b3c4d", "table-near", "1a2b"):
        config = train(f"run={name}", "metrics.nested.depth=2", "allow=[toy]", command="eval")
        assert (config["run"], config["seed"], config["detector"]["k"]) == (str(folder), 4, 9)
        assert config["explain"] is False
        assert config["metrics"]["nested"]["depth"] == 2
    other = train("run=1a2b", "dataset=many/one", "allow=[toy]", command="eval")
    assert other["dataset"]["rows"] == 7
    assert other["choices"]["dataset"] == "many/one"
    assert "is several: table-near-1a2b3c4d, table-other-1afe0000" in complaint("run=table", command="eval")
    assert "did you mean 'table-near-1a2b3c4d'?" in complaint("run=tabel-near-1a2b3c4d", command="eval")
    assert "run is missing: give run=...; in outputs: table-near" in complaint(command="eval")
    text = complaint("run=nothing", "metrics=fw", command="eval")
    assert "unknown metrics 'fw'" in text
    assert "unknown run 'nothing'" in text
    again = train("allow=[toy]", command="eval", config_file=store(other, Path("outputs/eval/e")))
    assert again["run"] == str(folder)
    assert again["dataset"]["rows"] == 7


def test_config_survives_yaml(train):
    config = train("detector.rate=1e-7")
    assert yaml.safe_load(OmegaConf.to_yaml(OmegaConf.create(config))) == config
