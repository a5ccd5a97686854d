"""A table's numbers from stored results: against NumPy and sums by hand; what is not whole is named, never guessed."""

import csv
import dataclasses
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from outlie import catalog
from outlie.commands import table as command
from outlie.errors import UserError
from outlie.results import rank_plots, table, table_numbers, table_terminal, table_text
from outlie.sweeps import cells as sweep_cells

YAML = """# A toy
title: Toy & co
source: nobody <nowhere>
protocol: dte_semi
leak_free: dte_semi_noleak
seeds: 3
words: [dataset.protocol=dte_semi, metrics=fast]
rows:
  cardio: {words: [dataset=adbench/cardio]}
  mvtec: {words: [dataset=adbench/mvtec_ad], published: MVTec-AD}
  wine: {words: [dataset=adbench/wine]}
columns:
  KNN: knn/paper
  I_Forest: {words: [detector=iforest], published: IForest}
  IWAE: iwae
metrics:
  auroc:
    value: metrics.test.auroc
    published: {file: toy.csv, row: dataset, column: method, mean: mean, std: std, seeds: 5}
  loss: {value: metrics.test.loss, scale: -1, better: low, unit: nats}
notes: [One note.]
"""
PUBLISHED = """dataset,method,mean,std
cardio,KNN,92.0,0.0
cardio,IForest,93.3,1.4
MVTec-AD,KNN,80.0,2.0
wine,KNN,99.0,0.2
wine,IForest,93.9,1.8
"""


class Toy(SimpleNamespace):
    """A config root with one table, and an outputs folder to put results into."""

    root: Path
    outputs: Path

    def load(self) -> table.Table:
        return table.load("toy", catalog.roots((str(self.root),)))

    def options(self, **changes):
        return command.KEYS | {"compute": False, "output_dir": str(self.outputs), "leak_free": False} | changes

    def view(self, **changes) -> table_numbers.View:
        options = self.options(**changes)
        return command.collect(command.select(self.load(), options), options, [], (str(self.root),))

    def store(self, row: str, detector: str, seed: int, numbers: dict, protocol="dte_semi", **changes) -> Path:
        part = [f"dataset.part={changes.pop('part')}"] if "part" in changes else []
        words = [
            f"dataset=adbench/{row}",
            f"detector={detector}",
            f"seed={seed}",
            f"dataset.protocol={protocol}",
            *part,
        ]
        (cell,) = sweep_cells.expand([*words, "metrics=fast", f"output_dir={self.outputs}"])
        result = {"schema": 1, "status": "done", "protocol": protocol, "metrics": {"test": numbers}}
        result |= {"cost": {"train_cpu_s": 30.0 + seed, "fit_s": 1.0}, "code_version": "1.2"}
        cell.folder.mkdir(parents=True, exist_ok=True)
        (cell.folder / "result.json").write_text(json.dumps(result | changes))
        return cell.folder


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    root = tmp_path / "configs"
    (root / "table").mkdir(parents=True)
    (root / "table" / "toy.yaml").write_text(YAML)
    (root / "table" / "toy.csv").write_text(PUBLISHED)
    return Toy(root=root, outputs=tmp_path / "outputs")


CARDIO = [0.915, 0.925, 0.95]


@pytest.fixture
def stored(toy: Toy) -> Toy:
    """KNN on cardio with three seeds, on all files of MVTec-AD with two; the others nowhere."""
    for seed, number in enumerate(CARDIO):
        toy.store("cardio", "knn/paper", seed, {"auroc": number, "loss": 10 * number})
    rng = np.random.default_rng(0)
    toy.mvtec = rng.uniform(0.7, 0.9, (15, 2))
    for i, part in enumerate(sweep_cells.parts(mvtec_config())):
        for seed in (0, 1):
            toy.store("mvtec_ad", "knn/paper", seed, {"auroc": toy.mvtec[i, seed]}, part=part)
    return toy


def mvtec_config() -> dict:
    return {"dataset": {"_target_": "outlie.data.adbench.ADBench", "name": "mvtec_ad"}}


def test_mean_std_and_seeds(stored):
    entry = stored.view().entries["cardio", "KNN"]
    values = 100 * np.array(CARDIO)
    assert entry.ours == pytest.approx((values.mean(), values.std(ddof=1), 3))
    assert entry.published == (92.0, 0.0, 5)
    assert entry.difference == pytest.approx(1.0) and entry.inside is True  # the floor of one point
    test = scipy.stats.ttest_ind_from_stats(values.mean(), values.std(ddof=1), 3, 92.0, 0.0, 5, equal_var=False)
    low, high = entry.interval
    assert (low + high) / 2 == pytest.approx(1.0)
    reach = scipy.stats.t.ppf(0.975, 2) * values.std(ddof=1) / np.sqrt(3)  # theirs does not scatter: 2 degrees are left
    assert high - low == pytest.approx(2 * reach) and test.pvalue > 0.05


def test_a_dataset_of_several_files_is_the_mean_over_files(stored):
    entry = stored.view().entries["mvtec", "KNN"]
    numbers = 100 * stored.mvtec
    assert entry.ours.mean == pytest.approx(numbers.mean())
    assert entry.ours.std == pytest.approx(numbers.std(1, ddof=1).mean())  # as published: not the std of the mean
    assert entry.ours.seeds == 2


def test_a_file_that_is_missing_leaves_no_number_of_the_dataset(stored):
    folder = stored.store("mvtec_ad", "knn/paper", 0, {"auroc": 0.5}, part="bottle")
    (folder / "result.json").unlink()
    assert stored.view().entries["mvtec", "KNN"].ours.seeds == 1  # the seed that all files have
    for path in folder.parent.glob("*mvtec_ad_zipper-*"):
        (path / "result.json").unlink()
    assert not stored.view().entries["mvtec", "KNN"].has_ours


@pytest.mark.parametrize(
    ("ours", "inside", "mark"), [(94.79, True, ""), (94.81, True, ""), (96.2, False, "↑"), (90.4, False, "↓")]
)
def test_inside_is_two_published_stds(toy, ours, inside, mark):
    toy.store("cardio", "iforest", 0, {"auroc": ours / 100})
    entry = toy.view().entries["cardio", "I_Forest"]  # 93.3 +- 2.8
    assert entry.inside is inside and table_text.mark(entry) == mark and entry.interval is None  # one seed


def test_what_is_absent_missing_failed_or_of_another_version_is_named(stored, empty_cache):
    _, second, third = (
        stored.store(
            "cardio", "iforest", seed, {"auroc": 0.9}, status="failed", error="Traceback\nValueError: too <bad>"
        )
        for seed in range(3)
    )
    (second / "result.json").write_text('{"schema": 1, "stat')
    third_result = json.loads((third / "result.json").read_text()) | {"schema": 2, "status": "done"}
    (third / "result.json").write_text(json.dumps(third_result))
    view = stored.view()
    status = {(one.row, one.column, one.seed): one.status for one in view.states if one.row != "mvtec"}
    assert [status["cardio", "I_Forest", seed] for seed in range(3)] == ["failed", "absent", "other schema"]
    assert status["wine", "KNN", 0] == "absent" and status["cardio", "KNN", 2] == "done"
    assert not view.entries["cardio", "I_Forest"].has_ours
    said = "\n".join(table_numbers.in_words(view))
    assert "adbench/wine" in said and "adbench/mvtec_ad (15 files)" in said and "`run data fetch adbench/" in said
    assert "ValueError: too <bad>" in said and "schema 2" in said
    assert "33 cells" in said  # 3 of cardio, 30 of mvtec_ad
    assert "code 1.2" in said and "Note: One note." in said
    assert "CPU minutes" in said


def test_a_truncated_result_counts_as_missing_and_is_said(stored, adbench_dir):
    folder = stored.store("cardio", "iforest", 0, {"auroc": 0.9})
    text = (folder / "result.json").read_text()
    (folder / "result.json").write_text(text[: len(text) // 2])
    view = stored.view(columns=["I_Forest"], rows=["cardio"])
    assert [one.status for one in view.states] == ["truncated", "missing", "missing"]
    said = "\n".join(table_numbers.in_words(view))
    assert "Truncated: 1 cells of I_Forest (cardio)." in said and "is not whole" in said


def test_a_result_without_the_number_is_named(toy):
    toy.store("cardio", "knn/paper", 0, {"auroc": None})
    view = toy.view(columns=["KNN"], rows=["cardio"])
    assert view.states[0].status == "no such number" and view.states[0].number is None


def test_two_protocols_in_one_table_are_refused(stored):
    folder = stored.store("wine", "knn/paper", 0, {"auroc": 0.9})
    wrong = json.loads((folder / "result.json").read_text()) | {"protocol": "dte_unsup"}
    (folder / "result.json").write_text(json.dumps(wrong))
    with pytest.raises(UserError, match=rf"one protocol, this one is of dte_semi; .*{folder.name} \(dte_unsup\)"):
        stored.view()


def test_the_leak_stands_beside(stored):
    stored.store("wine", "knn/paper", 0, {"auroc": 0.99})
    stored.store("wine", "knn/paper", 0, {"auroc": 0.93}, protocol="dte_semi_noleak")
    view = stored.view(leak_free=True, rows=["wine", "cardio"])
    assert view.leaking == [] and not view.leak_states  # rows of unknown size: only a group of datasets knows them
    options = stored.options(leak_free=True)
    chosen = command.select(stored.load(), options)
    chosen = dataclasses.replace(chosen, rows=(chosen.rows[2]._replace(rows=129), chosen.rows[0]._replace(rows=1831)))
    view = command.collect(chosen, options, [], (str(stored.root),))
    assert {one.row for one in view.leak_states} == {"wine"}
    assert view.leaking == ["wine"]
    assert view.entries["wine", "KNN"].leak == pytest.approx(6.0)
    assert table_text.leak_lines(view)[1:] == [["wine", "93.00 (+6.00)"], ["mean leak", "+6.00"]]
    assert "93.00 (+6.00)" in table_text.markdown(view)
    wide = view.table.columns[0]._replace(name="A_Column_Of_20_Signs")
    named = dataclasses.replace(view, table=dataclasses.replace(view.table, columns=(wide,)), ranked=([], []))
    named.entries = {(e.row, wide.name): e for e in view.entries.values() if e.column == "KNN"}
    out = io.StringIO()
    table_terminal.render(named, Console(file=out, width=80))
    line = next(line for line in out.getvalue().splitlines() if line.startswith(wide.name) and "of" in line)
    assert line.split() == " ".join(table_text.column_lines(named)[1]).split() and line.endswith(" +6.00")


def test_ranks_and_means_over_what_both_have(toy):
    numbers = {"cardio": (0.92, 0.95, 0.90), "wine": (0.99, 0.95, 0.97)}
    for row, values in numbers.items():
        for detector, value in zip(("knn/paper", "iforest", "iwae"), values, strict=True):
            toy.store(row, detector, 0, {"auroc": value})
    view = toy.view()
    assert view.ranked == (["cardio", "wine"], ["KNN", "I_Forest", "IWAE"])
    found = table_numbers.columns(view)
    assert found["KNN"].ours == pytest.approx(95.5) and found["KNN"].published == pytest.approx(95.5)
    # IWAE is not published: both ranks are among the other two, ours 2 1 and 1 2, theirs 2 1 and 1 2
    assert (found["KNN"].our_rank, found["KNN"].published_rank) == (1.5, 1.5)
    assert np.isnan(found["IWAE"].our_rank) and found["IWAE"].compared == 0
    assert (found["I_Forest"].inside, found["I_Forest"].compared) == (2, 2)
    assert table_numbers.places(view, "wine") == {"KNN": 1, "IWAE": 2}
    statistics = table_numbers.statistics(view)
    expected = scipy.stats.friedmanchisquare(*np.array(list(numbers.values())).T)
    assert (statistics["chi2"], statistics["p"]) == pytest.approx((expected.statistic, expected.pvalue))
    assert statistics["ranks"] == pytest.approx([1.5, 2.0, 2.5])


def test_lower_may_be_better_and_numbers_have_a_scale(stored):
    view = stored.view(metric="loss", rows=["cardio"])
    assert view.entries["cardio", "KNN"].ours.mean == pytest.approx(-10 * np.mean(CARDIO))
    assert view.entries["cardio", "KNN"].inside is None and not view.metric.higher


def test_csv_and_cells_have_every_number(stored):
    view = stored.view()
    lines = list(csv.DictReader(io.StringIO(table_text.comma_separated(view))))
    assert len(lines) == 9
    first = lines[0]
    assert (first["row"], first["column"], first["inside"], first["published_seeds"]) == ("cardio", "KNN", "yes", "5")
    assert float(first["ours_mean"]) == pytest.approx(100 * np.mean(CARDIO))
    assert lines[2]["column"] == "IWAE" and lines[2]["published_mean"] == lines[2]["ours_mean"] == ""
    cells = list(csv.DictReader(io.StringIO(table_text.cells_csv(view))))
    assert len(cells) == 3 * 3 * (1 + 15 + 1)
    assert [cell["status"] for cell in cells[:3]] == ["done"] * 3 and cells[1]["seed"] == "1"
    assert Path(cells[0]["folder"]).is_dir() and float(cells[0]["cpu_s"]) == 30


def test_latex_is_balanced_and_escaped(stored):
    stored.store("cardio", "iforest", 0, {"auroc": 0.99})
    text = table_text.latex(stored.view())
    assert text.count(r"\begin{longtable}") == text.count(r"\end{longtable}") == 2
    assert text.count("{") == text.count("}") and r"\toprule" in text and r"\bottomrule" in text
    assert r"Toy \& co" in text and r"I\_Forest" in text
    assert r"\textbf{99.00}$\uparrow$" in text and r"\underline{93.00 $\pm$ 1.80}" in text
    first = text[: text.index(r"\end{longtable}")]
    lines = [line for line in first.splitlines() if line.endswith(r"\\") and "caption" not in line]
    assert {line.replace(r"\&", "").count("&") for line in lines} == {3}


def test_markdown_has_as_many_cells_in_every_line(stored):
    text = table_text.markdown(stored.view())
    block = text.split("\n\n")[3].splitlines()
    assert block[0] == "|  | KNN | I_Forest | IWAE |" and len({line.count("|") for line in block}) == 1
    assert "| cardio | **93.00 ± 1.80** (92.00 ± 0.00) | - (93.30 ± 1.40) | - |" in block


class Nested(HTMLParser):
    """Collects what opens and closes."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.data = ""

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.data += data


def test_html_is_nested_and_escaped(stored):
    stored.store("wine", "iforest", 0, {}, status="failed", error="<script>alert(1)</script>")
    text = table_text.html(stored.view())
    page = Nested()
    page.feed(text)
    assert page.open == [] and "nobody <nowhere>" in page.data
    assert "<script" not in text and "<nowhere" not in text and "Toy &amp; co" in text
    assert "<strong>93.00 ± 1.80</strong><br><small>92.00 ± 0.00</small>" in text


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_terminal_is_never_wider_than_100_columns(stored, width):
    stored.store("cardio", "iforest", 0, {"auroc": 0.99})
    out = io.StringIO()
    view = stored.view()
    table_terminal.render(view, Console(file=out, width=width, highlight=False))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert all(len(line) <= 100 for line in lines if "±" in line and "Inside" not in line and "std" not in line)
    assert any(line.startswith("cardio") and "93.00±1.80" in line and "99.00↑" in line for line in lines)
    assert "…" not in out.getvalue()


def test_columns_come_in_pages(stored):
    view = stored.view()
    assert table_terminal.pages(view, 100) == [["KNN", "I_Forest", "IWAE"]]
    assert table_terminal.pages(view, 25) == [["KNN"], ["I_Forest"], ["IWAE"]]


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        (
            "dataset,method,mean,std",
            "dataset,method,mean,sd",
            r"toy.csv has no column 'std'.*dataset, method, mean, sd",
        ),
        ("cardio,KNN,92.0", "cardio,KNN,high", r"toy.csv, line 2, column mean: 'high' is no number"),
        ("cardio,KNN,92.0", "cardio,KNN,nan", r"'nan' is no number"),
        ("cardio,IForest", "cardio,KNN", r"line 3: a second number of cardio and KNN"),
        (PUBLISHED[24:], "", r"toy.csv has no line"),
    ],
)
def test_a_published_csv_that_does_not_fit(toy, was, becomes, says):
    path = toy.root / "table" / "toy.csv"
    path.write_text(PUBLISHED.replace(was, becomes, 1))
    with pytest.raises(UserError, match=says):
        toy.load()


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ("seeds: 3", "sedes: 3", r"unknown key 'sedes' \(did you mean 'seeds'\?\)"),
        ("title: Toy & co\n", "", "has no title"),
        ("toy.csv", "gone.csv", "published file 'gone.csv' is not there"),
        ("value: metrics.test.auroc", "valu: x", "did you mean 'value'"),
        ("published: MVTec-AD", "name: MVTec-AD", "unknown key 'name'"),
        (YAML[YAML.index("rows:") : YAML.index("columns:")], "rows: adbench/smal\n", "did you mean 'adbench/small'"),
        ("  KNN: knn/paper", "  - KNN", "toy.yaml is not valid YAML"),
    ],
)
def test_a_table_that_is_not_as_it_should_be(toy, was, becomes, says):
    path = toy.root / "table" / "toy.yaml"
    path.write_text(YAML.replace(was, becomes, 1))
    with pytest.raises(UserError, match=says):
        toy.load()


def test_numbers_of_a_csv_by_seed(toy):
    (toy.root / "table" / "toy.csv").write_text("dataset,method,seed,auc\ncardio,KNN,0,90\ncardio,KNN,1,94\n")
    text = YAML.replace("mean: mean, std: std, seeds: 5", "mean: auc, seed: seed")
    (toy.root / "table" / "toy.yaml").write_text(text)
    number = toy.load().metrics["auroc"].published["cardio", "KNN"]
    assert number == pytest.approx((92, np.sqrt(8), 2))


def test_a_student_waits_for_its_teacher(toy):
    text = YAML.replace(
        "  IWAE: iwae", "  small: {teacher: [dataset=camvid, detector=knn, backbone=pspnet_r18], words: []}"
    )
    (toy.root / "table" / "toy.yaml").write_text(text)
    view = toy.view(columns=["small"], rows=["cardio"])
    (one,) = view.states
    assert one.cell.command == "train" and "the teacher of small comes first" in one.why
    assert Path(one.folder).name.startswith("camvid-knn-")


def test_a_folder_of_the_users_that_is_not_there_is_absent(toy):
    text = YAML.replace("[dataset=adbench/cardio]", "[dataset=dense_folder, dataset.path=no/such/folder]")
    (toy.root / "table" / "toy.yaml").write_text(text)
    view = toy.view(rows=["cardio"])
    assert {one.status for one in view.states} == {"absent"} and view.states[0].why == "no/such/folder"


def test_the_diagram_has_names_and_bars(tmp_path):
    drawn = [
        rank_plots.critical_difference(["A_b", "C"], [1.2, 1.8], cliques, "toy", 0.5) for cliques in ([[0, 1]], [])
    ]
    paths = [tmp_path / f"{i}.svg" for i in range(2)]
    for figure, path in zip(drawn, paths, strict=True):
        rank_plots.save(figure, path)
    joined, apart = (path.read_text() for path in paths)
    assert "A_b  1.20" in joined and "1.80  C" in joined and "CD 0.50" in joined
    assert joined.count("stroke-width: 3") == apart.count("stroke-width: 3") + 1
    rank_plots.save(rank_plots.critical_difference(["A_b", "C"], [1.2, 1.8], [], "toy", 0.5), tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == apart
