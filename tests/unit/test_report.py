"""What a report collects: rows, columns and seeds told apart, protocols apart, what has no number said."""

import json
import math

import numpy as np
import pytest

from outlie.errors import UserError
from outlie.results import report, report_ranks, report_tables
from outlie.results.page import Page

from .stored_runs import stored


def collected(folder):
    return report.collect(report.find([], str(folder)))


def test_seeds_share_a_cell_options_do_not(tmp_path):
    for seed in (0, 1):
        stored(tmp_path, seed=seed)
    stored(tmp_path, "breast_cancer", "knn", 0, "detector.k=9")
    stored(tmp_path, detector="pca")
    found = collected(tmp_path)
    ((row, cells),) = found.cells.items()
    assert row == report.Row("split", "breast_cancer", "test")
    assert {name: [run.result["seed"] for run in runs] for name, runs in cells.items()} == {
        "knn k=5": [0, 1],
        "knn k=9": [0],
        "pca": [0],
    }


def test_mean_and_deviation_of_the_seeds(tmp_path):
    folders = [stored(tmp_path, seed=seed) for seed in (0, 1, 2)]
    auroc = [json.loads((one / "result.json").read_text())["metrics"]["test"]["auroc"] for one in folders]
    (means,) = report_tables.means(collected(tmp_path).cells, "auroc").values()
    assert means["knn"] == pytest.approx((np.mean(auroc), np.std(auroc, ddof=1), 3))


def test_what_changes_no_number_tells_nothing_apart(tmp_path):
    stored(tmp_path, seed=0)
    stored(tmp_path, "breast_cancer", "knn", 1, "trainer.threads=2")
    assert set(collected(tmp_path).columns.values()) == {"knn"}


def test_data_of_other_options_are_another_row(tmp_path):
    stored(tmp_path)
    stored(tmp_path, "breast_cancer", "knn", 0, "dataset.anomaly=1")
    assert [row.dataset for row in collected(tmp_path).cells] == ["breast_cancer anomaly=0", "breast_cancer anomaly=1"]


def test_two_protocols_are_two_tables(tmp_path):
    stored(tmp_path, detector="knn")
    stored(tmp_path, detector="pca", protocol="dte_semi")
    found = collected(tmp_path)
    assert found.protocols() == ["split", "dte_semi"] or found.protocols() == ["dte_semi", "split"]
    page = Page("", "")
    report_tables.summary(page, found, [])
    tables = [part for part in page.sections[0].split("<table") if 'class="matrix"' in part]
    auroc = [part for part in tables if "AUROC in %" in part]
    assert len(auroc) == 2
    assert all(("pca" in part) != ("knn" in part) for part in auroc)


def test_out_of_distribution_sets_are_rows_of_their_own_protocol(tmp_path):
    folder = stored(tmp_path)
    result = json.loads((folder / "result.json").read_text())
    result |= {
        "metrics": {"svhn": {"auroc": 0.9}, "dtd": {"auroc": 0.8}},
        "protocols": {"svhn": "ood_far", "dtd": "ood_near"},
    }
    (folder / "result.json").write_text(json.dumps(result))
    assert set(collected(tmp_path).cells) == {
        report.Row("ood_far", "breast_cancer", "svhn"),
        report.Row("ood_near", "breast_cancer", "dtd"),
    }
    assert report.Row("ood_far", "breast_cancer", "svhn").label == "breast_cancer: svhn"


def spoilt(folder, text):
    (folder / "result.json").write_text(text)


def test_runs_without_numbers_are_named_with_the_reason(tmp_path):
    good = stored(tmp_path, detector="knn")
    cut, failed, other, none, lacking = (
        stored(tmp_path, detector=name) for name in ("pca", "ecod", "copod", "lof", "hbos")
    )
    spoilt(cut, (cut / "result.json").read_text()[:200])
    spoilt(
        failed, json.dumps({"schema": 1, "status": "failed", "error": "Traceback\n  File x\nValueError: <b>no</b>\n"})
    )
    spoilt(other, json.dumps({"schema": 2, "status": "done", "auc": 0.9}))
    (none / "result.json").unlink()
    spoilt(lacking, json.dumps({"schema": 1, "status": "done"}))
    found = collected(tmp_path)
    assert [run.folder for run in found.runs] == [good]
    assert {one.folder: one.state for one in found.left} == {
        cut: "damaged",
        failed: "failed",
        other: "other schema",
        none: "not finished",
        lacking: "damaged",
    }
    said = {one.folder: one.reason for one in found.left}
    assert said[failed] == "ValueError: <b>no</b>"
    assert "schema 2, this outlie reads 1" in said[other]
    assert "lacks dataset, detector, metrics, protocol, seed" in said[lacking]
    page = Page("", "")
    report_tables.summary(page, found, [])
    assert "ValueError: &lt;b&gt;no&lt;/b&gt;" in page.sections[0]
    assert "<b>no" not in page.sections[0]


def test_the_same_run_of_two_folders_counts_once(tmp_path):
    stored(tmp_path / "one")
    stored(tmp_path / "two")
    found = report.collect(report.find([str(tmp_path / "one"), str(tmp_path / "two")], str(tmp_path)))
    assert len(found.runs) == 1
    assert [one.state for one in found.left] == ["twice"]


def test_other_data_under_one_name_are_a_finding(tmp_path):
    stored(tmp_path, detector="pca")
    folder = stored(tmp_path, detector="knn")
    result = json.loads((folder / "result.json").read_text())
    spoilt(folder, json.dumps(result | {"data_sha256": "cd" * 32, "findings": ["a column is constant"]}))
    found = report.findings(collected(tmp_path))
    assert any("the data are not the same in all runs" in one for one in found)
    assert found["breast_cancer: a column is constant"] == [folder.name]


def test_runs_are_found_by_name_beginning_hash_glob_and_folder(tmp_path):
    knn, pca = stored(tmp_path, detector="knn"), stored(tmp_path, detector="pca")
    student = tmp_path / "distill" / "breast_cancer-score_student-0123456789"
    student.mkdir(parents=True)
    (student / "config.yaml").touch()

    def find(*words):
        return set(report.find(words, str(tmp_path)))

    assert find() == {knn, pca, student}
    assert find(knn.name) == find(knn.name.rpartition("-")[2]) == find("breast_cancer-knn") == find(str(knn)) == {knn}
    assert find("*pca*", "breast_cancer-knn") == {knn, pca}
    assert find(str(tmp_path)) == {knn, pca, student}
    assert find(str(tmp_path / "train")) == find(f"{tmp_path}/train/*") == {knn, pca}
    with pytest.raises(UserError, match=r"runs=breast_canser-knn stands for no run \(did you mean 'breast_cancer-knn-"):
        find("breast_canser-knn")
    with pytest.raises(UserError, match=r"runs=mnist-\* stands for no run"):
        find("mnist-*")
    with pytest.raises(UserError, match="there is no run in"):
        report.find([], str(tmp_path / "empty"))


def test_ranks_are_of_rows_and_columns_without_a_gap():
    found = {
        report.Row("p", str(row), "test"): {column: 0.0 for column in "abcd" if column != "d" or row == 0}
        for row in range(6)
    }
    rows, columns = report_ranks.common(found)
    assert columns == ["a", "b", "c"]
    assert len(rows) == 6


def test_shared_weights_are_counted_once(tmp_path):
    folders = [stored(tmp_path, detector=name) for name in ("knn", "pca")]
    for i, folder in enumerate(folders):
        result = json.loads((folder / "result.json").read_text())
        cost = {"backbone_train_cpu_s": 100.25, "fit_cpu_s": float(i + 1), "fit_s": 9.0, "parameters": 7}
        spoilt(folder, json.dumps(result | {"cost": cost}))
    assert math.isclose(report_tables.cpu_seconds(collected(tmp_path).runs), 103.25)
