"""Published cells are found for the settings that repeat them, and for no others."""

import pytest

from outlie.results import published


@pytest.mark.parametrize(
    ("dataset", "detector", "protocol", "auroc"),
    [
        ("adbench/thyroid", "dte_c/paper", "dte_semi", (0.9874, 0.0014)),
        ("adbench/cardio", "diffusion/paper", "dte_semi", (0.8694, 0.0196)),
        ("adbench/cardio", "knn/paper_unsup", "dte_unsup", (0.8302, 0.0185)),
        ("adbench/cardio", "dte_np/paper_unsup", "dte_unsup", (0.7767, 0.0216)),
    ],
)
def test_cell(dataset: str, detector: str, protocol: str, auroc: tuple[float, float]) -> None:
    cell = published.cell(dataset, detector, protocol)["auroc"]
    assert (cell["mean"], cell["std"]) == pytest.approx(auroc)


@pytest.mark.parametrize(
    ("dataset", "detector", "protocol"),
    [
        ("adbench/thyroid", "dte_c", "dte_semi"),  # our setting is not the published one
        ("adbench/thyroid", "dte_c/paper", "dte_semi_noleak"),  # nor is this protocol
        ("adbench/cardio", "knn/paper", "dte_unsup"),  # the unsupervised table has K = 32
        ("breast_cancer", "knn/paper", "split"),
    ],
)
def test_no_cell(dataset: str, detector: str, protocol: str) -> None:
    assert published.cell(dataset, detector, protocol) == {}


def test_every_dataset_of_the_tables_is_known_by_its_table_name() -> None:
    from outlie.data.adbench_files import datasets

    table = published._table("dte_adbench_semi_aucroc")
    assert {row for row, _ in table} == {files[0].table_name for files in datasets().values()}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ([], True),
        (["detector.lr=1e-3"], False),
        (["dataset.duplicate_small=false"], False),
        (["dataset.max_rows=500"], False),
        (["trainer.max_epochs=3"], False),
        (["seed=3", "trainer.threads=1"], True),
    ],
)
def test_a_changed_preset_or_protocol_has_no_published_cell(changes: list[str], found: bool) -> None:
    from outlie.commands.train import plain
    from outlie.compose import compose

    cfg = plain(compose("train", ["dataset=adbench/thyroid", "detector=dte_c/paper", *changes]))
    assert bool(published.cell_of(cfg)) is found
