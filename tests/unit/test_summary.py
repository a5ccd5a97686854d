"""The closing summary: what it says, that it fits 80 columns, and that it is plain where there is no terminal."""

import copy
import io
import json

import pytest
from rich.console import Console

from outlie.errors import UserError
from outlie.results import summary

RESULT = {
    "schema": 1,
    "status": "done",
    "protocol": "random",
    "dataset": "sklearn/breast_cancer",
    "detector": "ddpm[odd]",
    "backbone": "identity",
    "seed": 0,
    "metrics": {"test": {"auroc": 0.98712, "fpr95_ood_positive": 0.028, "recall_at_fpr01": 0.83}},
    "intervals": {"test": {"auroc": [0.971, 0.999], "recall_at_fpr01": [0.76, 0.89]}},
    "counts": {"test": {"normal": 1107, "anomalies": 93}},
    "threshold": {
        "value": 5.2421,
        "false_alarms": 0.01,
        "n_calibration": 60,
        "guarantee": 1 / 61,
        "warning": "60 calibration rows cannot guarantee 1 % false alarms",
        "realised": {
            "test": {"fpr": 0.013, "fpr_interval": [0.004, 0.05], "recall": 0.85, "recall_interval": [0.8, 0.9]}
        },
    },
    "latency": {
        "latency_p50_ms": 1.234,
        "latency_p95_ms": 1.5,
        "latency_p99_ms": 22.4,
        "backbone_p50_ms": 0.0211,
        "detector_p50_ms": 1.21,
        "throughput_per_s": 45231.2,
        "batch_size": 1024,
        "calls": 800,
        "device": "cpu",
        "threads": 1,
    },
    "cost": {
        "train_s": 182.0,
        "train_cpu_s": 179.0,
        "fit_s": None,
        "score_s": 0.21,
        "parameters": 51234,
        "flops_per_row": 102400,
        "peak_memory_mb": 812.4,
        "peak_memory_of": "process",
    },
    "findings": ["3 rows of test are exact duplicates of training rows"],
    "error": None,
}


def rendered(result, run_dir, **kwargs) -> str:
    out = io.StringIO()
    summary.render(result, run_dir, Console(file=out, highlight=False, **kwargs))
    return out.getvalue()


def words(text: str) -> str:
    return " ".join(text.split())


def test_says_what_a_person_wants_to_know(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    text = rendered(RESULT, tmp_path)
    said = words(text)
    assert "ddpm[odd] on sklearn/breast_cancer (protocol random, backbone identity, seed 0)" in said
    assert "test: 1,107 normal, 93 anomalies" in said
    assert "auroc 98.71 97.1 - 99.9" in said
    assert "fpr95_ood_positive 2.80 95 % of anomalies found" in said
    assert "At 1 % false alarms it finds 83 % of the anomalies [76-89]." in said
    assert "score > 5.242, for 1 % false alarms, from 60 normal rows" in said
    assert "1.3 % false alarms were realised on 1,107 test normals [0.4-5]" in said
    assert "85 % of the anomalies were found [80-90]" in said
    assert "One row takes 1.2 ms (p50), 22 ms (p99): backbone 0.021 ms, detector 1.2 ms." in said
    assert "45,231 rows per second in batches of 1,024 (cpu, 1 thread)." in said
    assert "Trained in 3.0 min (3.0 min of CPU), scored in 0.21 s." in said
    assert "51,234 parameters, 102 kFLOP a row, 812 MiB at peak (process)." in said
    assert "! 60 calibration rows cannot guarantee" in said
    assert "! 3 rows of test" in said
    assert str(tmp_path) in text
    assert "result.json" in said
    assert "published" not in said


def test_fits_80_columns_and_is_plain_without_a_terminal(tmp_path):
    result = copy.deepcopy(RESULT)
    result["published"] = {"test": {"auroc": {"mean": 0.95, "std": 0.002}}}
    text = rendered(result, tmp_path, width=80)
    lines = [line for line in text.splitlines() if str(tmp_path) not in line]  # a path stays whole, to be copied
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in text
    assert "\r" not in text
    assert "95.00" in text
    assert "published" in text
    assert "\x1b[" in rendered(result, tmp_path, force_terminal=True)


def test_what_was_not_measured_is_left_out(tmp_path):
    bare = {"detector": "knn", "dataset": "csv", "metrics": {"test": {"auroc": None}}, "findings": ["one class only"]}
    said = words(rendered(bare, tmp_path / "gone"))
    assert "auroc -" in said
    assert "one class only" in said
    assert "No threshold" in said
    assert "None" not in said
    assert "nan" not in said
    assert "One row takes" not in said


def test_a_failed_run_says_why(tmp_path):
    trace = "Traceback (most recent call last):\n  File ...\nOSError: disk full\n"
    said = rendered({"status": "failed", "error": trace}, tmp_path)
    assert "failed: OSError: disk full" in said
    assert "None" not in said
    assert "Traceback" not in said


def test_a_warning_is_said_once(tmp_path):
    result = RESULT | {"findings": [RESULT["threshold"]["warning"]]}
    assert words(rendered(result, tmp_path)).count("cannot guarantee") == 1


def test_a_set_without_labels_says_how_many_rows(tmp_path):
    result = {"metrics": {"test": {}}, "intervals": {"test": {}}, "counts": {"test": {"rows": 1200}}}
    said = words(rendered(result, tmp_path))
    assert "test: 1,200 rows" in said
    assert "metric" not in said


def test_parts_of_a_dataset_with_their_mean():
    parts = [
        {"dataset": f"adbench/cifar10/{i}[x]", "metrics": {"test": {"auroc": value, "f1_at_k": None}}}
        for i, value in enumerate((0.5, 0.6, 0.7))
    ]
    out = io.StringIO()
    summary.render_group(parts, Console(file=out, width=80))
    said = words(out.getvalue())
    assert "adbench/cifar10/1[x] 60.00 -" in said
    assert "mean of 3, unweighted 60.00 -" in said
    assert "average_precision" not in said


def test_unlabelled_test_set(tmp_path):
    result = copy.deepcopy(RESULT)
    result["metrics"]["test"] = dict.fromkeys(RESULT["metrics"]["test"])
    result["threshold"]["realised"]["test"] = dict.fromkeys(("fpr", "fpr_interval", "recall", "recall_interval"))
    said = words(rendered(result, tmp_path))
    assert "it finds" not in said
    assert "calibrated threshold" not in said
    assert "None" not in said


def test_show_reads_the_folder(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    out = io.StringIO()
    summary.show(tmp_path, Console(file=out))
    assert "it finds 83 %" in out.getvalue()


@pytest.mark.parametrize(("content", "message"), [(None, "no result.json"), ("{trunc", "not readable")])
def test_show_names_what_is_missing(tmp_path, content, message):
    if content:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(UserError, match=message):
        summary.show(tmp_path)
