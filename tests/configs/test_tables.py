"""Every table: its csv fits, its rows are in it, all that is published has a column, every column composes."""

import csv
from pathlib import Path

import pytest

from outlie import catalog
from outlie.results import table, table_cells

WHERE = catalog.roots()
PUBLISHED = Path(table.__file__).parent / "published"
# columns of ours that nobody published: the reader is told so by the table's note or source
OWN = {"IWAE", "DiffPath 6D"}


@pytest.mark.parametrize("name", table.names(WHERE))
def test_its_published_numbers_are_those_of_its_rows_and_columns(name):
    found = table.load(name, WHERE)
    assert catalog.description(catalog.choices("table", WHERE)[name])
    for metric in found.metrics.values():
        if not metric.published:
            continue
        rows, columns = ({key[i] for key in metric.published} for i in (0, 1))
        assert {line.published for line in found.rows} <= rows
        assert {line.published for line in found.columns if line.name not in OWN} <= columns | {"7"}  # bins, as in DTE
        pairs = [(r.published, c.published) for r in found.rows for c in found.columns]
        assert len(set(pairs) & set(metric.published)) >= 0.8 * len(found.rows)


@pytest.mark.parametrize("name", table.names(WHERE))
def test_every_column_composes(name, tmp_path):
    found = table.load(name, WHERE)
    row = found.rows[0]
    folders = []
    for column in found.columns:
        if table_cells.paths_lacking([*row.words, *column.words, *column.teacher]):
            continue
        composed, waits = table_cells.cells(found, row, column, [f"output_dir={tmp_path}"], ())
        assert composed and bool(waits) == bool(column.teacher)
        assert all(cell.config["dataset"].get("protocol", found.protocol) == found.protocol for cell in composed)
        folders += [cell.folder for cell in composed] if not waits else []
    assert len(set(folders)) == len(folders)  # no two columns are the same run


@pytest.mark.parametrize(
    ("name", "file"), [("dte_semi", "dte_adbench_semi_aucroc"), ("dte_unsup", "dte_adbench_unsup_aucpr")]
)
def test_every_published_column_and_row_is_there(name, file):
    found = table.load(name, WHERE)
    with (PUBLISHED / f"{file}.csv").open() as lines:
        published = list(csv.DictReader(lines))
    assert {line.published for line in found.columns} - OWN == {one["method"] for one in published}
    assert [line.published for line in found.rows] and {line.published for line in found.rows} == {
        one["dataset"] for one in published
    }
    number = found.metrics["auroc"].published["thyroid", "DTE-C"]
    assert (number.mean, number.std, number.seeds) == ((98.74, 0.14, 5) if name == "dte_semi" else number)


def test_the_paper_presets_are_those_that_published_knows():
    from outlie.results import published

    for name, known in (("dte_semi", published.DTE_COLUMNS), ("dte_unsup", published.UNSUP_COLUMNS)):
        columns = {line.words[0].removeprefix("detector="): line.published for line in table.load(name, WHERE).columns}
        shared = columns.keys() & known.keys()
        assert len(shared) > 10 and {key: columns[key] for key in shared} == {key: known[key] for key in shared}


def test_the_protocol_without_the_leak_composes_too(tmp_path):
    found = table.load("dte_semi", WHERE)
    wine = next(line for line in found.rows if line.name == "wine")
    assert wine.rows is not None and wine.rows < table_cells.LEAK_ROWS
    more = [f"output_dir={tmp_path}", f"dataset.protocol={found.leak_free}"]
    composed, _ = table_cells.cells(found, wine, found.columns[0], more, ())
    assert {cell.config["dataset"]["protocol"] for cell in composed} == {"dte_semi_noleak"}
