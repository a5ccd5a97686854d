"""Run folders: what a hash depends on, files whole or not at all, one process at a time, nothing unpickled."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from outlie.backbones.identity import Identity
from outlie.compose import compose
from outlie.detectors.base import Spec, Views, set_up
from outlie.detectors.ddpm import DDPM
from outlie.detectors.knn import KNN
from outlie.errors import UserError
from outlie.results import checkpoint, store


@functools.cache
def config(*words: str) -> dict:
    return OmegaConf.to_container(compose("train", list(words)))


def run_hash(*words: str) -> str:
    return store.run_folder(config(*words)).name


def stage(*words: str) -> Path:
    return store.stage_folder(config(*words), DDPM.scoring)


@pytest.mark.parametrize(
    "words",
    [
        ["output_dir=elsewhere"],
        ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.num_nodes=3", "trainer.strategy=ddp"],
        ["trainer=cpu", "trainer.threads=1", "trainer.checkpoint_seconds=0", "trainer.progress=off"],
        ["logger=wandb"],
        ["metrics=fast"],
        ["metrics.names=[auroc]", "metrics.false_alarms=0.05"],
        ["force=true"],
        ["debug=true"],
        ["allow=[mypackage]"],
        ["detector.T=1000"],  # the default, said aloud
        ["seed=0"],
    ],
    ids=lambda words: words[0],
)
def test_what_cannot_change_a_number_does_not_change_the_run(words):
    assert run_hash(*words) == run_hash()
    assert stage(*words).name == stage().name


@pytest.mark.parametrize(
    "words",
    [
        ["seed=1"],
        ["dataset=wine"],
        ["dataset.protocol=dte_semi"],
        ["detector.T=500"],
        ["detector.lr=0.002"],
        ["trainer.precision=64-true"],
        ["trainer.max_epochs=3"],
    ],
    ids=lambda words: words[0],
)
def test_what_changes_the_training_changes_both_hashes(words):
    assert run_hash(*words) != run_hash()
    assert stage(*words) != stage()


@pytest.mark.parametrize("word", ["rec_start=77", "steps=7", "forward_noise=true", "score_by=full_path"])
def test_a_scoring_option_makes_another_run_of_the_same_weights(word):
    assert run_hash(f"detector.{word}") != run_hash()
    assert stage(f"detector.{word}") == stage()


CLASSIFIER = ("dataset=digits_ood", "backbone=resnet10", "detector=neco")


@pytest.mark.parametrize(
    "words",
    [
        ["detector=vim"],
        ["detector.d=5"],
        ["dataset.near=[mnist]", "dataset.far=[dtd_part]"],
        ["metrics=fast", "logger=wandb", "trainer.threads=1"],
    ],
    ids=lambda words: words[0],
)
def test_a_network_is_shared_by_all_detectors_and_ood_sets(words):
    assert store.backbone_folder(config(*CLASSIFIER, *words)) == store.backbone_folder(config(*CLASSIFIER))


@pytest.mark.parametrize(
    "word",
    ["seed=1", "backbone.lr=0.01", "dataset.calibration=0.3", "dataset.held_out=[9]", "trainer.max_epochs=3"],
)
def test_what_changes_a_networks_training_makes_another_one(word):
    changed, same = config(*CLASSIFIER, word), config(*CLASSIFIER)
    assert store.backbone_folder(changed) != store.backbone_folder(same)
    assert store.run_folder(changed) != store.run_folder(same)


def test_a_comparison_is_of_a_run_and_its_test_sets_whatever_the_detector():
    run = Path("outputs/train/digits_ood-neco-1")

    def folder(*words: str) -> Path:
        return store.comparison_folder(config(*CLASSIFIER, *words), run)

    assert folder() == folder("detector=vim") == folder("detector.d=5")
    assert folder().name.startswith(f"{run.name}-detectors-")
    assert folder() != folder("dataset.near=[mnist]")
    assert store.detector_name("vim/neco_paper", {"d": 300}) != store.detector_name("vim/neco_paper", {"d": 3})
    assert store.detector_name("vim/neco_paper", {"d": 300}).startswith("vim_neco_paper-")


def test_a_users_file_counts_by_its_content(tmp_path):
    def named(path: Path) -> str:
        return run_hash("dataset=csv", f"dataset.path={path}")

    one, same, other = (tmp_path / name for name in ("one.csv", "same.csv", "other.csv"))
    one.write_text("a,label\n1,0\n")
    same.write_text("a,label\n1,0\n")
    other.write_text("a,label\n2,0\n")
    first = named(one)
    assert named(same) == first != named(other)
    one.write_text("a,label\n2,0\n")
    assert named(one) == named(other) != first


def test_folder_says_dataset_detector_and_hash():
    cfg = config("output_dir=here", "dataset=adbench/thyroid", "detector=knn/paper")
    folder = store.run_folder(cfg)
    assert folder.parent == Path("here/train")
    assert folder.name == f"adbench_thyroid-knn_paper-{store.digest(store.identity(cfg))}"
    assert stage("output_dir=here").parent == Path("here/stages") and stage().name.startswith("ddpm-")
    asked = config("output_dir=here", "metrics=fast")
    assert store.eval_folder(asked, folder).name.startswith(folder.name)


def test_digest_ignores_the_order_of_keys():
    assert store.digest({"a": 1, "b": {"c": 2, "d": 3}}) == store.digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert store.digest({"a": 1}) != store.digest({"a": 2})


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with store.whole(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    for error in (ValueError("stop"), KeyboardInterrupt()):
        with pytest.raises(type(error)), store.whole(path) as temporary:
            temporary.write_text("half")
            raise error
        assert path.read_text() == "first"
        assert list(path.parent.iterdir()) == [path]


def test_a_disk_that_is_full_is_told(tmp_path):
    path = tmp_path / "file.txt"
    told = pytest.raises(UserError, match=r"cannot write .*file\.txt: No space left on device; free space")
    with told, store.whole(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another output_dir="):
        store.write_json(tmp_path / "file" / "result.json", {})
    with pytest.raises(UserError, match="choose another output_dir="), store.lock(tmp_path / "file" / "folder"):
        pass


HOLD = "import sys; from pathlib import Path; from outlie.results import store\n"
HOLD += "with store.lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_a_second_process_is_refused_until_the_first_ends(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=r"another process is computing .*run; wait"), store.lock(tmp_path / "run"):
        pass
    with store.lock(tmp_path / "another run"):
        pass
    other.kill()  # it cannot clean up
    other.communicate()
    with store.lock(tmp_path / "run"):
        pass
    with store.lock(tmp_path / "run"):  # nor does a lock that was given back stay
        pass


def test_results_are_read_or_absent(tmp_path):
    assert store.read_result(tmp_path) is None
    result = {"schema": store.SCHEMA, "status": "done", "metrics": {"auroc": 0.1 + 0.2}}
    store.write_json(tmp_path / "result.json", result)
    assert store.read_result(tmp_path) == result
    for unreadable in ('{"status": "do', "[]", "{}"):
        (tmp_path / "result.json").write_text(unreadable)
        assert store.read_result(tmp_path) is None
    store.write_json(tmp_path / "result.json", result | {"schema": store.SCHEMA + 1})
    with pytest.raises(UserError, match=f"has schema {store.SCHEMA + 1}, this outlie reads {store.SCHEMA}"):
        store.read_result(tmp_path)


def test_scores_come_back_as_they_were(tmp_path):
    rng = np.random.default_rng(0)
    splits = {
        "test": (np.arange(5) * 10, np.array([0, 1, 0, 1, 1]), rng.normal(size=5)),
        "calibration": (np.arange(3), np.zeros(3, np.int64), rng.normal(size=3) * 1e-300),
        "unknown": (np.arange(2), None, np.array([np.pi, -1e300])),
    }
    store.write_scores(tmp_path / "scores.parquet", splits)
    back = store.read_scores(tmp_path)
    assert list(back) == list(splits)
    for name, (index, label, score) in splits.items():
        np.testing.assert_array_equal(back[name][0], index)
        assert (back[name][1] is None) == (label is None)
        if label is not None:
            np.testing.assert_array_equal(back[name][1], label)
        np.testing.assert_array_equal(back[name][2], score)
        assert back[name][2].dtype == np.float64


def test_broken_scores_are_told(tmp_path):
    with pytest.raises(UserError, match="force=true"):
        store.read_scores(tmp_path)
    store.write_scores(tmp_path / "scores.parquet", {"test": (np.arange(99), None, np.arange(99.0))})
    whole = (tmp_path / "scores.parquet").read_bytes()
    (tmp_path / "scores.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="force=true"):
        store.read_scores(tmp_path)


def test_the_training_curve_is_exact(tmp_path):
    store.write_curve(tmp_path / "metrics.csv", [0.1 + 0.2, 1e-17])
    epoch, loss = np.loadtxt(tmp_path / "metrics.csv", delimiter=",", skiprows=1).T
    assert epoch.tolist() == [0, 1] and loss.tolist() == [0.1 + 0.2, 1e-17]


def saved_model(path: Path) -> tuple[Identity, KNN]:
    backbone, detector = Identity(), KNN(k=2)
    backbone.mean, backbone.scale = torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, 4.0]).double()
    detector.fit(backbone(torch.randn(20, 2, generator=torch.Generator().manual_seed(0))))
    checkpoint.save_model(path, backbone, detector, Spec({"features": (2,)}, seed=7), ("width", "height"))
    return backbone, detector


def test_a_model_comes_back_as_it_was(tmp_path):
    backbone, detector = saved_model(tmp_path / "model.ckpt")
    assert set(torch.load(tmp_path / "model.ckpt", weights_only=True)) >= {"backbone", "detector", "columns", "seed"}
    again, same = Identity(), KNN(k=2)
    assert checkpoint.load_model(tmp_path / "model.ckpt", again, same) == ("width", "height")
    x = torch.randn(4, 2)
    assert torch.equal(detector.score(backbone(x)), same.score(again(x)))
    assert not same.training


def test_a_trained_model_takes_sizes_and_seed_from_the_checkpoint(tmp_path):
    detector = set_up(DDPM(T=10, rec_start=5, posterior_noise=True), Spec({"x": (3,)}, seed=7)).eval()
    checkpoint.save_model(tmp_path / "model.ckpt", Identity(), detector, Spec({"x": (3,)}, seed=7), ())
    again = DDPM(T=10, rec_start=5, posterior_noise=True)
    state = torch.get_rng_state()
    checkpoint.load_model(tmp_path / "model.ckpt", Identity(), again)
    assert torch.equal(torch.get_rng_state(), state)
    x = Views(x=torch.randn(4, 3))
    assert torch.equal(detector.score(x), again.score(x))


class Watching(KNN):
    def setup(self, spec: Spec) -> None:
        self.spec = spec


def test_the_kinds_of_columns_come_back_and_older_checkpoints_have_none(tmp_path):
    path, blocks = tmp_path / "model.ckpt", (("number", 2), ("boolean", 1), ("levels", 4))
    checkpoint.save_model(path, Identity(), Watching(), Spec({"x": (7,)}, blocks=blocks), ())
    again = Watching()
    checkpoint.load_model(path, Identity(), again)
    assert again.spec.blocks == blocks
    content = torch.load(path, weights_only=True)
    del content["blocks"]
    torch.save(content, path)
    checkpoint.load_model(path, Identity(), again)
    assert again.spec.blocks == ()


def test_a_truncated_or_missing_checkpoint_is_told(tmp_path):
    path = tmp_path / "model.ckpt"
    saved_model(path)
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cannot read .*model\.ckpt .*force=true makes it again"):
            checkpoint.load_model(path, Identity(), KNN())
    path.write_text("no checkpoint at all, but a text of some length")
    with pytest.raises(UserError, match="cannot read"):
        checkpoint.load_state(path)
    path.unlink()
    with pytest.raises(UserError, match=r"no checkpoint .*force=true"):
        checkpoint.load_state(path)


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickled_object_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    torch.save({"detector": Trap(tmp_path / "sprung")}, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="cannot read"):
        checkpoint.load_state(tmp_path / "model.ckpt")
    assert not (tmp_path / "sprung").exists()
    torch.load(tmp_path / "model.ckpt", weights_only=False)
    assert (tmp_path / "sprung").exists()  # the trap works


def test_environment_and_version_are_plain_values():
    found = store.environment("cpu")
    assert json.loads(json.dumps(found)) == found
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert store.code_version().startswith("0.")
