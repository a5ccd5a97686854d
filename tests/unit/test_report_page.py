"""The page of a report: one file, well nested, nothing loaded, ids unique, pictures right and few enough."""

import itertools
import json
import re
import shlex
from html.parser import HTMLParser

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from outlie.commands import report as command
from outlie.results import report_pictures, report_plots, rerun, svg
from outlie.results.svg import Axis, Chart

from .stored_runs import stored

VOID = {"meta", "link", "input", "br", "path", "circle", "use"}  # path and circle: written <path .../> or closed
LOADS = ("src", "href", "xlink:href", "data", "poster", "srcset", "action")


class Reader(HTMLParser):
    """Every element with its attributes; an assertion where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> in {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Two seeds, three detectors, five datasets, two protocols, a failed run, one without labels."""
    outputs = tmp_path_factory.mktemp("page") / "outputs"
    for i, dataset in enumerate(("breast_cancer", "adbench/wine", "adbench/glass", "adbench/pima", "adbench/cardio")):
        for j, detector in enumerate(("knn", "pca", "hbos")):
            for seed in (0, 1):
                stored(
                    outputs, dataset, detector, seed, protocol="dte_semi", gap=1 + i / 3 + j, latency=0.1 * (3 - j),
                    losses=9 * (j == 0), bootstrap=20 * (i == 0),
                )  # fmt: skip
    stored(outputs, "adbench/glass", "ecod", protocol="split")
    stored(outputs, "adbench/wine", "ecod", protocol="split", labelled=False)
    failed = stored(outputs, "breast_cancer", "copod")
    (failed / "result.json").write_text(json.dumps({"schema": 1, "status": "failed", "error": "</table><script>"}))
    file = outputs / "report.html"
    assert command.main([f"output_dir={outputs}", "title=A & <i>B</i>"]) == 0
    return Reader(file.read_text()), file


def test_it_is_one_file_and_well_nested(page):
    reader, file = page
    assert file.stat().st_size < 2_000_000
    for _, attributes in reader.elements:
        for name in LOADS:
            assert (attributes.get(name) or "#").startswith(("#", "data:,")), attributes
        assert "url(http" not in (attributes.get("style") or "")
    assert not reader.all("script") and not reader.all("img") and not reader.all("iframe")
    assert "@import" not in file.read_text() and "url(http" not in file.read_text()


def test_ids_are_unique_and_every_anchor_has_its_target(page):
    reader, _ = page
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [one["href"] for one in reader.all("a")]
    assert len(targets) > 10
    named = [one[key] for _, one in reader.elements for key in ("aria-labelledby",) if key in one]
    assert {target.removeprefix("#") for target in targets} | set(named) <= set(ids)


def test_pictures_and_tables_speak(page):
    reader, _ = page
    assert len(reader.all("svg")) > 20
    assert all(one["role"] == "img" and one["aria-label"] for one in reader.all("svg"))
    assert len(reader.all("table")) == len(reader.all("caption"))
    assert all(one.get("scope") in ("col", "row") for one in reader.all("th"))
    levels = [int(tag[1]) for tag, _ in reader.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_every_section_is_there_and_text_is_escaped(page):
    reader, file = page
    words = "".join(reader.words)
    for section in ("Summary", "Datasets", "Recall against latency", "Ranks", "Training", "Configs", "Environment"):
        assert section in words
    assert "A & <i>B</i>" in words and "</table><script>" in words  # as text
    assert "<i>B" not in file.read_text()
    assert "Friedman" in words and "run train detector=hbos metrics=fast seed=1" in words
    assert "No labels: there are scores, and no metrics." in words
    assert re.search(r"\[\d+\.\d, \d+\.\d\]", words)  # an interval


def test_the_curve_is_the_one_of_scikit_learn():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], [40, 20])
    score = np.round(rng.normal(label), 1)  # with ties
    text = report_plots.roc_chart({"knn": (score, label)}, {"knn": "l0"}, "rows", log=False)
    path = re.search(r'<path d="([^"]+)" class="l0">', text)[1]
    at = np.array([float(one) for one in re.match(r"M(\S+) (\S+?)(?=[hv])", path).groups()])
    corners = [at.copy()]
    for way, length in re.findall(r"([hv])(-?[\d.]+)", path):
        at[int(way == "v")] += float(length)
        corners.append(at.copy())
    chart = Chart(Axis(0, 1, ""), Axis(0, 1, ""))
    fpr, recall, _ = roc_curve(label, score, drop_intermediate=False)
    expected = chart.points(fpr, recall)
    assert {tuple(one) for one in expected} <= {tuple(one) for one in corners}
    assert tuple(corners[-1]) == tuple(expected[-1])


def test_a_curve_of_many_rows_stays_small():
    rng = np.random.default_rng(0)
    label = (rng.random(200_000) < 0.3).astype(int)
    one = {"knn": (rng.normal(label), label)}
    assert len(report_plots.roc_chart(one, {"knn": "l0"}, "rows", log=True)) < 12_000
    assert len(report_plots.precision_recall_chart(one, {"knn": "l0"}, "rows")) < 12_000


@pytest.mark.parametrize(
    ("score", "label"),
    [
        (np.zeros(9), None),  # constant, no labels
        (np.arange(9.0), np.zeros(9, int)),  # one class
        (np.exp(np.arange(-9.0, 9)), np.repeat([0, 1], 9)),  # over many magnitudes
    ],
)
def test_scores_of_every_kind_are_drawn(score, label):
    text = report_plots.histogram((score, label), "a <b>", "rows", 1.0)
    Reader(text)
    assert "nan" not in text and "a &lt;b&gt;" in text


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (Axis(0, 1, "", percent=True), ["0 %", "25 %", "50 %", "75 %", "100 %"]),
        (Axis(0.001, 1, "", log=True, percent=True), ["0.1 %", "1 %", "10 %", "100 %"]),
        (Axis(2, 7, "", log=True), ["2", "5"]),
        (Axis(-3, 4, ""), ["-2", "0", "2", "4"]),
    ],
)
def test_ticks_are_round(axis, expected):
    assert list(axis.ticks().values()) == expected


def test_losses_of_a_file_that_was_cut_off(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,train_loss,validation_loss\n0,1.0,2.0\n1,inf,1.5\n2,0.5")
    assert report_plots.losses(file) == {"train_loss": ([0, 2], [1.0, 0.5]), "validation_loss": ([0, 1], [2.0, 1.5])}
    assert report_plots.losses(tmp_path / "none.csv") == {}
    assert report_plots.training_chart({"a": tmp_path / "none.csv"}, {"a": "l0"}, "knn") == ""


def test_lines_keep_their_colour_over_the_page():
    assert svg.styles(["c", "a"], ["a", "b", "c"]) == {"c": "l2", "a": "l0"}
    many = [str(i) for i in range(20)]
    assert len(set(svg.styles(many[10:18], many).values())) == 8


def test_pictures_stop_where_the_page_is_full(tmp_path, monkeypatch):
    for dataset in ("adbench/wine", "adbench/glass"):
        stored(tmp_path, dataset)
    monkeypatch.setattr(report_pictures, "MOST_BYTES", 1)
    assert command.main([f"output_dir={tmp_path}"]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "1 of 2 datasets are without pictures" in text
    assert "run report runs=&#x27;adbench_wine-*&#x27;" in text


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("detector=knn", "detector.k=9", "seed=3"),
        ("dataset=adbench/glass", "detector=dte_c/paper", "dataset.protocol=dte_unsup"),
        ("dataset=digits_ood", "backbone=resnet10", "detector=react", "metrics.names=[auroc]"),
        ("experiment=digits_ood", "trainer.max_epochs=2"),
    ],
)
def test_the_command_of_a_run_composes_to_its_config(words, tmp_path):
    from outlie import compose

    config = compose.composed("train", [*words, "output_dir=elsewhere", "trainer.threads=1"])
    command_line = rerun.command(tmp_path, config)
    assert "--config" not in command_line and "elsewhere" not in command_line
    again = compose.composed("train", shlex.split(command_line)[2:])
    assert rerun._numbers(again) | {"seed": again["seed"]} == rerun._numbers(config) | {"seed": config["seed"]}


def test_a_config_of_another_version_is_given_as_a_file(tmp_path):
    from outlie import compose

    config = compose.composed("train", ["detector=knn"])
    config["detector"] = config["detector"] | {"gone": 1}
    assert rerun.command(tmp_path, config) == f"run train --config {tmp_path}/config.yaml"
    config["teacher"] = "outputs/train/x"
    assert rerun.command(tmp_path, config) == f"run distill --config {tmp_path}/config.yaml"
