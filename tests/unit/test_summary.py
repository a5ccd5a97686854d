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


SEVERAL = {
    "dataset": "cifar10_ood",
    "detector": "neco",
    "protocol": "ood",
    "backbone": "resnet18",
    "protocols": {"cifar100": "ood_near", "svhn": "ood_far", "tiny_imagenet": "ood_near"},
    "metrics": {
        "cifar100": {"auroc": 0.9, "fpr95_ood_positive": 0.6, "fpr95_id_positive": 0.5},
        "svhn": {"auroc": 0.99, "fpr95_ood_positive": 0.06, "fpr95_id_positive": None},
        "tiny_imagenet": {"auroc": 0.8, "fpr95_ood_positive": 0.7, "fpr95_id_positive": 0.8},
    },
    "means": {
        "ood_near": {"auroc": 0.85, "fpr95_ood_positive": 0.65, "fpr95_id_positive": 0.65},
        "ood_far": {"auroc": 0.99, "fpr95_ood_positive": 0.06, "fpr95_id_positive": None},
    },
    "counts": {
        "cifar100": {"normal": 9000, "anomalies": 10_000},
        "svhn": {"normal": 9000, "anomalies": 26_032},
        "tiny_imagenet": {"normal": 9000, "anomalies": 10_000},
    },
    "threshold": {
        "value": -0.8,
        "false_alarms": 0.01,
        "n_calibration": 5000,
        "warning": None,
        "realised": {"svhn": {"fpr": 0.011, "recall": 0.85}, "cifar100": {"fpr": 0.011, "recall": None}},
    },
    "classifier": {"accuracy": 0.9512, "train_accuracy": 1.0, "nc1": 0.05, "nc2_equiangularity": 0.1, "nc4": 0.0},
}


def test_several_ood_sets_are_a_line_each_by_protocol_with_means(tmp_path):
    text = rendered(SEVERAL, tmp_path, width=80)
    said = words(text)
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80
    in_order = [
        "cifar100 (10,000) 90.00 60.00 50.00", "tiny_imagenet (10,000) 80.00 70.00 80.00",
        "ood_near, mean 85.00 65.00 65.00", "svhn (26,032) 99.00 6.00 -", "ood_far, mean 99.00 6.00 -",
    ]  # fmt: skip
    places = [said.index(line) for line in in_order]
    assert places == sorted(places)
    assert "svhn: in use, 1.1 % false alarms were realised on 9,000 test normals and 85 % of the anomalies" in said
    assert "cifar100: in use, 1.1 % false alarms were realised on 9,000 test normals." in said
    assert "tiny_imagenet: in use" not in said
    assert "precision" not in said and "None" not in said
    assert (
        "The classifier gets 95.1 % of the test rows right, 100 % of the training rows. "
        "Neural collapse (0 = complete): NC1 0.05, NC2 0.1, NC4 0." in said
    )


def test_one_ood_set_is_told_at_length(tmp_path):
    one = SEVERAL | {"protocols": {"svhn": "ood_far"}, "metrics": {"svhn": SEVERAL["metrics"]["svhn"]}}
    said = words(rendered(one, tmp_path))
    assert "svhn: 9,000 normal, 26,032 anomalies" in said
    assert "fpr95_ood_positive 6.00 95 % of anomalies found" in said
    assert "ood_far" not in said


@pytest.mark.parametrize(
    ("classifier", "sentence"),
    [
        (None, None),
        ({}, None),
        ({"accuracy": 0.5}, "The classifier gets 50 % of the test rows right."),
        ({"nc1": 0.123456}, "Neural collapse (0 = complete): NC1 0.123."),
    ],
)
def test_what_is_said_of_a_classifier(classifier, sentence):
    assert summary.classifier_in_words(classifier) == sentence


def test_parts_with_several_sets_name_each():
    out = io.StringIO()
    summary.render_group([SEVERAL], Console(file=out, width=80))
    said = words(out.getvalue())
    assert "cifar10_ood cifar100 90.00" in said and "cifar10_ood svhn 99.00" in said
    assert "mean of 3, unweighted 89.67" in said


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
