"""The choice of a cell, the shape over the blocks, and what of it is printed and written."""

import csv
import math
from io import StringIO

import pytest
from rich.console import Console

from outlie.probe import report

HELD_OUT = {"out_1": (0.5, 0.6), "out_2": (0.8, 0.9), "out_3": (0.9, 0.7)}
TEST = {"out_1": (0.55, 0.65), "out_2": (0.81, 0.64), "out_3": (0.70, 0.71)}


@pytest.fixture
def cells():
    return [
        {"block": block, "log_snr": level, "t": t, "width": 8, "train_accuracy": 1.0,
         "held_out_accuracy": HELD_OUT[block][i], "test_accuracy": TEST[block][i], "alignment": 0.1, "uniformity": -3.0}
        for block in HELD_OUT for i, (level, t) in enumerate([(9.21, 1), (6.12, 11)])
    ]  # fmt: skip


@pytest.fixture
def result(cells):
    about = {"dataset": "digits_ood", "backbone": "unet", "seed": 3, "use": "run train --config it", "grid": cells}
    return about | report.findings(cells, "t", 100) | {"rows": {"train": 1800, "held_out": 200, "test": 100}}


def test_the_choice_is_made_on_held_out_rows_and_told_on_test_rows(cells):
    found = report.findings(cells, "t", 100)
    assert found["chosen"] == {"block": "out_2", "log_snr": 6.12, "t": 11}  # the first of two with 0.9
    assert (found["accuracy"], found["held_out_accuracy"]) == (0.64, 0.9)
    assert found["standard_error"] == pytest.approx(math.sqrt(0.64 * 0.36 / 100))
    assert found["test_selected"] == {"block": "out_2", "log_snr": 9.21, "t": 1}
    assert found["accuracy_test_selected"] == 0.81
    over = found["over_blocks"]
    assert (over["log_snr"], over["single_peak"]) == (6.12, False)
    assert over["dip"] == pytest.approx(0.01)  # 0.65, 0.64, 0.71


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 5, 3, 0], 0), ([5], 0), ([1, 2, 3], 0), ([3, 2, 1], 0), ([2, 2, 2], 0),
        ([1, 4, 2, 5], 2), ([5, 1, 3, 0], 2), ([5, 1, 3, 0, 4], 4), ([0, 3, 1, 2, 9, 8], 2), ([4, 5, 5, 3], 0),
    ],
)  # fmt: skip
def test_the_dip_is_the_most_that_values_go_the_wrong_way(values, expected):
    assert report.dip(values) == expected
    peak = values.index(max(values))
    wrong = [values[i] - values[j] for i in range(peak + 1) for j in range(i, peak + 1)]
    wrong += [values[j] - values[i] for i in range(peak, len(values)) for j in range(i, len(values))]
    assert report.dip(values) == max(wrong)


def test_printed(result, tmp_path):
    console = Console(width=150, record=True, file=StringIO(), highlight=False)
    report.render(result, tmp_path, console)
    text = console.export_text()
    lines = [line.split() for line in text.splitlines()]
    assert ["t", "1", "11"] in lines
    assert ["out_2", "80.0", "90.0"] in lines
    assert "Chosen on 200 held-out images: out_2 at log-SNR 6.12 (t = 11); accuracy on 100 test images 64.00 %" in text
    assert "out_2 at log-SNR 9.21 (t = 1), 81.00 % (accuracy_test_selected)" in text
    assert "falls and rises by 1.00 points, where one accuracy has a standard error of 4.80" in text
    assert "with these features: run train --config it" in text


def test_one_peak_is_said_too(result):
    result["over_blocks"] = {"log_snr": 6.12, "single_peak": True, "dip": 0}
    assert report.sentences(result)[-1].endswith("the test accuracy has a single peak.")


def test_written(result, tmp_path):
    report.write(result, tmp_path)
    with open(tmp_path / "grid.csv") as file:
        lines = list(csv.DictReader(file))
    assert [line["block"] for line in lines] == ["out_1"] * 2 + ["out_2"] * 2 + ["out_3"] * 2
    assert list(lines[0])[:4] == ["block", "log_snr", "t", "width"]
    assert [float(lines[3][name]) for name in ("held_out_accuracy", "test_accuracy", "alignment")] == [0.9, 0.64, 0.1]
    assert (tmp_path / "probe.png").stat().st_size > 5_000
