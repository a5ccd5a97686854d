"""Many detectors side by side: which ones, what is found done, and the table, the words and the picture of results."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from outlie import catalog, signatures
from outlie.backbones.classifier import Classifier
from outlie.backbones.denoiser import Denoiser
from outlie.backbones.identity import Identity
from outlie.commands import compare
from outlie.errors import UserError
from outlie.metrics.evaluation import Metrics
from outlie.results import comparison, evaluated, store

SETS = {"cifar100": "ood_near", "svhn": "ood_far", "dtd": "ood_far"}


def result(detector: str, *aurocs: float | None, **more) -> dict:
    """A result as `run eval detectors=` stores it: the AUROC of each of SETS, FPR95 half of it."""
    own = dict(zip(SETS, aurocs, strict=False))
    metrics = {name: {"auroc": v, "fpr95_id_positive": v and v / 2} for name, v in own.items()}
    protocols = {name: SETS[name] for name in own}
    means = {p: evaluated.mean_of([metrics[n] for n in own if SETS[n] == p]) for p in dict.fromkeys(protocols.values())}
    about = {"dataset": "cifar10_ood", "backbone": "resnet18", "seed": 3, "protocol": "ood", "protocols": protocols}
    return about | {
        "detector": detector, "status": "done", "error": None, "metrics": metrics, "means": means, "findings": [],
        "latency": {"detector_p50_ms": 0.0123}, "classifier": {"accuracy": 0.951},
    } | more  # fmt: skip


def failed(detector: str) -> dict:
    return result(detector, status="failed", error="d = 300 is too much", latency=None)


# which detectors


def test_all_are_the_scores_of_cached_views_and_network_the_rest():
    cached, network = (compare.names_of(group, Classifier.provides) for group in compare.GROUPS)
    assert {"msp", "neco", "vim", "mahalanobis", "deep_knn"} <= set(cached)
    assert set(network) == {"gram", "odin", "rankfeat"}
    assert not set(cached) & set(network)
    assert not [name for name in cached + network if "/" in name]  # presets are for who asks for them
    served = {*cached, *network, *(n for group in compare.GROUPS for n in compare.names_of(group, Denoiser.provides))}
    for name, path in catalog.choices("detector", catalog.roots()).items():
        if "/" not in name:
            assert signatures.read(catalog.target(path)).posthoc == (name in served), name


def test_network_evaluations_stand_beside_whole_latencies():
    cost = {"cost": {"nfe": 350}, "latency": {"detector_p50_ms": 9.0, "latency_p50_ms": 12.0}}
    console = Console(file=io.StringIO(), width=200)
    comparison.render([result("ddpm_ood", 0.9, **cost), result("knn", 0.8)], Path("folder"), console)
    said = console.file.getvalue()
    (line,) = [line for line in said.splitlines() if "ddpm_ood" in line]
    assert line.split()[-2:] == ["350", "12"] and "NFE" in said
    (line,) = [line for line in said.splitlines() if line.strip().startswith("knn")]
    assert line.split()[-2:] == ["-", "0.012"]  # a shared pass: the detector's own part


def test_a_denoiser_serves_its_own():
    cached, network = (compare.names_of(group, Denoiser.provides) for group in compare.GROUPS)
    assert {"ddae", "mahalanobis", "deep_knn", "neco"} <= set(cached)
    assert {"diffpath", "msma", "cfs", "ddpm_ood", "lmd"} <= set(network)
    assert not {"msp", "vim", "odin"} & {*cached, *network}


def test_names_are_taken_in_order_and_once():
    assert compare.names_of(["vim/neco_paper", "knn", "vim/neco_paper"], Classifier.provides) == [
        "vim/neco_paper",
        "knn",
    ]
    both = compare.names_of(["odin", "all", "network", "msp"], Classifier.provides)
    assert both[0] == "odin" and len(both) == len(set(both))
    assert compare.names_of("msp", Classifier.provides) == ["msp"]


@pytest.mark.parametrize(
    ("asked", "provides", "says"),
    [
        ("mps", Classifier.provides, "did you mean 'msp'"),
        (["msp", "al"], Classifier.provides, "detectors=all, network or names"),
        (
            "all",
            Identity.provides,
            "score a trained classifier or denoiser, and the run's backbone has x, features only",
        ),
        ("vim", ("x", "features", "logits"), "'vim' needs head"),
        ([], Classifier.provides, "names no detector"),
    ],
)
def test_what_cannot_be_compared(asked, provides, says):
    with pytest.raises(UserError, match=says):
        compare.names_of(asked, provides)


def test_a_section_is_that_of_run_train():
    assert compare.section_of("vim/neco_paper") == {"_target_": "outlie.detectors.vim.ViM", "d": 300}
    assert compare.section_of("odin")["T"] == 1000


# what is done already


def stored(folder: Path, metrics: Metrics, **more) -> dict:
    rng = np.random.default_rng(0)
    scores = {
        "calibration": (np.arange(120), np.zeros(120, int), rng.normal(size=120)),
        "test": (np.arange(50), np.zeros(50, int), rng.normal(size=50)),
        "svhn": (np.arange(30), np.ones(30, int), rng.normal(1, 1, 30)),
    }
    content = {"schema": 1, "status": "done", "seed": 0, "lints": ["a lint"], "protocols": {"svhn": "ood_far"}}
    content |= evaluated.evaluate_scores(scores, metrics, 0, ["a lint"], content["protocols"]) | more
    folder.mkdir()
    store.write_scores(folder / "scores.parquet", scores)
    store.write_json(folder / "result.json", content)
    return json.loads((folder / "result.json").read_text())


def test_a_finished_result_is_found_a_failed_one_is_not(tmp_path):
    metrics = Metrics(names=["auroc"], bootstrap=10)
    content = stored(tmp_path / "done", metrics)
    assert compare.done(tmp_path / "done", metrics) == content
    stored(tmp_path / "failed", metrics, status="failed")
    assert compare.done(tmp_path / "failed", metrics) is None
    assert compare.done(tmp_path / "nowhere", metrics) is None


def test_other_metrics_come_from_the_stored_scores(tmp_path):
    first = stored(tmp_path / "run", Metrics(names=["auroc"], bootstrap=0))
    again = compare.done(tmp_path / "run", Metrics(names=["auroc", "fpr95_id_positive"], bootstrap=0))
    assert again is not None
    assert set(again["metrics"]["svhn"]) == {"auroc", "fpr95_id_positive"}
    assert again["metrics"]["svhn"]["auroc"] == first["metrics"]["svhn"]["auroc"]
    assert again["means"]["ood_far"] == again["metrics"]["svhn"]
    assert again["findings"] == first["findings"]
    assert store.read_result(tmp_path / "run") == json.loads(json.dumps(again))


# side by side


def rendered(results: list[dict], folder: Path) -> str:
    out = io.StringIO()
    comparison.render(results, folder, Console(file=out, width=200, highlight=False))
    return " ".join(out.getvalue().split())


def test_the_best_comes_first_and_a_failure_last_with_its_reason(tmp_path):
    said = rendered([result("msp", 0.7, 0.8, 0.9), failed("vim"), result("neco", 0.8, 0.9, 0.95)], tmp_path)
    assert "2 detectors on cifar10_ood (one resnet18, seed 3, 95.10 % accurate)" in said
    # three sets: the means by protocol, near then far, each AUROC and FPR95
    assert "neco 80.00 40.00 92.50 46.25 0.012 msp 70.00 35.00 85.00 42.50 0.012" in said
    assert "failed: vim: d = 300 is too much" in said
    assert str(tmp_path) in said and "recall@1%: share" in said
    assert "None" not in said


def test_two_sets_are_a_column_each():
    columns = comparison.columns_of([result("msp", 0.7, 0.8), result("neco", 0.8, None)])
    assert list(columns) == ["cifar100", "svhn"]
    assert columns["svhn"]["msp"]["auroc"] == 0.8 and columns["svhn"]["neco"]["auroc"] is None


def test_many_sets_are_a_column_for_each_protocol():
    columns = comparison.columns_of([result("msp", 0.7, 0.8, 0.9)])
    assert list(columns) == ["ood_near", "ood_far"]
    assert columns["ood_far"]["msp"]["auroc"] == pytest.approx(0.85)


def test_the_mean_is_over_test_sets_not_protocols():
    assert comparison.mean_auroc(result("msp", 0.6, 0.8, 1.0)) == pytest.approx(0.8)
    assert comparison.mean_auroc(result("msp", 0.6, None, 1.0)) == pytest.approx(0.8)
    assert comparison.mean_auroc(failed("msp")) == -1


def test_a_finding_of_several_detectors_is_said_once(tmp_path):
    one, two = (result(name, 0.7, findings=["3 copies", f"only {name}"]) for name in ("msp", "neco"))
    said = rendered([one, two], tmp_path)
    assert said.count("3 copies") == 1
    assert "! msp: only msp" in said and "! neco: only neco" in said


@pytest.mark.parametrize(
    "results",
    [
        [result("msp", 0.7, 0.8, 0.9), result("neco", 0.0, None, 0.5, latency=None)],
        [result("msp", None), result("neco", None)],
        [result("msp", 0.9, classifier={}), failed("vim")],
        [failed("vim")],
        [result("msp", 0.9) | {"metrics": {"svhn": {"fpr95_id_positive": 0.5}}, "means": {}}],
    ],
    ids=["three sets", "no AUROC", "one failed", "all failed", "AUROC not asked for"],
)
def test_every_kind_of_result_is_shown_and_drawn(results, tmp_path, recwarn):
    assert "nan" not in rendered(results, tmp_path)
    comparison.draw(results, tmp_path / "comparison.png")
    assert (tmp_path / "comparison.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.png"]
    assert not [str(w.message) for w in recwarn if issubclass(w.category, UserWarning)]


def test_the_table_is_fractions_with_the_means_below(tmp_path):
    compare.write_table(tmp_path / "comparison.csv", [result("msp", 0.7, 0.8, 0.9), failed("vim")])
    with open(tmp_path / "comparison.csv") as file:
        lines = list(csv.DictReader(file))
    assert [(line["detector"], line["protocol"], line["set"], float(line["auroc"])) for line in lines] == [
        ("msp", "ood_near", "cifar100", 0.7),
        ("msp", "ood_far", "svhn", 0.8),
        ("msp", "ood_far", "dtd", 0.9),
        ("msp", "ood_near", "mean", 0.7),
        ("msp", "ood_far", "mean", pytest.approx(0.85)),
    ]
    compare.write_table(tmp_path / "none.csv", [failed("vim") | {"means": {}}])
    assert (tmp_path / "none.csv").read_text() == "detector\n"
