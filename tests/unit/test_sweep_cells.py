"""From the words of a sweep to its cells."""

import io

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from outlie import catalog, compose
from outlie.commands import sweep
from outlie.errors import UserError
from outlie.results import store
from outlie.sweeps import dataset_groups, summary
from outlie.sweeps.cells import Cell, Event, expand, product, values
from outlie.sweeps.progress import Progress

WHERE = catalog.roots()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("seed=range(3)", ["seed=0", "seed=1", "seed=2"]),
        ("seed=range(1,7,2)", ["seed=1", "seed=3", "seed=5"]),
        ("detector=knn,lof", ["detector=knn", "detector=lof"]),
        ("detector=choice(knn,lof)", ["detector=knn", "detector=lof"]),
        ("detector.lr=1e-3,1e-4", ["detector.lr=0.001", "detector.lr=0.0001"]),
        ("detector.hidden=[8,8],[16]", ["detector.hidden=[8,8]", "detector.hidden=[16]"]),
        ("metrics.names=[auroc]", ["metrics.names=[auroc]"]),
        ("dataset=glob(adbench/wi*)", ["dataset=adbench/wilt", "dataset=adbench/wine"]),
        ("dataset=adbench/nlp,wine", [f"dataset={one}" for one in (*dataset_groups.groups()["adbench/nlp"], "wine")]),
        ("dataset.path='a,b.csv'", ["dataset.path='a,b.csv'"]),
    ],
)  # fmt: skip
def test_a_word_stands_for_several(word, expected):
    assert values(word, WHERE) == expected


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["seed=range(5,5)"], "empty range"),
        (["detector.lr=interval(0,1)"], "search=tpe"),
        (["dataset=glob(zz*)"], "matches nothing"),
        (["seed=range(0,1000000)"], "at most 100,000"),
        (["detector=knn,"], "cannot read"),
    ],
)
def test_words_that_make_no_sweep(words, says):
    with pytest.raises(UserError, match=says):
        product(words)


def test_every_mistake_of_every_cell_is_told_once():
    with pytest.raises(UserError) as error:
        expand(["detector=knn,lovf", "sed=range(3)", "dataset=wine,wime"])
    text = str(error.value)
    assert text.startswith("3 problems")
    assert all(one in text for one in ("did you mean 'lof'", "did you mean 'seed'", "did you mean 'wine'"))


def test_seeds_below_zero_are_refused():
    with pytest.raises(UserError, match="seed=-1: expected an integer of at least 0"):
        expand(["seed=-1,0"])


def test_a_cell_is_what_the_same_words_make_one_by_one():
    words = ["detector=knn,dte_c/paper", "dataset=wine,breast_cancer", "seed=range(2)", "metrics=fast"]
    for cell in expand(words):
        config = compose.compose("train", list(cell.words))  # by Hydra
        assert cell.config == OmegaConf.to_container(config)
        assert cell.folder == store.run_folder(cell.config)


def test_the_files_of_a_dataset_are_cells_of_their_own():
    cells = expand(["dataset=adbench/mvtec_ad", "detector=knn"])
    assert len(cells) == 15 and "dataset.part=bottle" in cells[0].words
    assert len({cell.folder for cell in cells}) == 15
    assert len(expand(["dataset=adbench/mvtec_ad", "detector=knn", "dataset.part=bottle,cable"])) == 2


def test_cells_with_one_hash_are_one_cell_and_it_is_said(capsys):
    assert len(expand(["seed=0,0", "detector=knn"])) == 1
    assert "computed once" in capsys.readouterr().err
    cells = expand(["detector=knn,knn/paper", "seed=range(2)"])  # two names of one setting
    assert [cell.config["choices"]["detector"] for cell in cells] == ["knn", "knn"]
    assert "detector=knn/paper is the same run as detector=knn, and 1 more" in capsys.readouterr().err
    assert len(expand(["trainer.threads=1,2", "detector=knn"])) == 1  # changes no number


def test_groups_of_datasets_exist():
    groups = dataset_groups.groups()
    known = catalog.choices("dataset", WHERE)
    assert all(name in known for names in groups.values() for name in names)
    assert len(groups["adbench/all"]) == 57 and len(groups["adbench/classical"]) == 47
    assert set(groups["adbench/small"]) | set(groups["adbench/large"]) == set(groups["adbench/classical"])
    assert "adbench/thyroid" in groups["adbench/small"] and "adbench/donors" in groups["adbench/large"]


def test_a_plain_run_says_how_to_sweep():
    for word in ("detector=knn,lof", "dataset=adbench/small", "launcher=local"):
        with pytest.raises(UserError, match="run train -m"):
            compose.compose("train", [word])


def test_a_name_tells_a_cell_from_others():
    cells = expand(["detector=dte_c", "detector.bins=3,7", "seed=0,1", "metrics=fast"])
    assert [cell.name for cell in cells][:2] == [
        "breast_cancer dte_c seed 0 detector.bins=3",
        "breast_cancer dte_c seed 1 detector.bins=3",
    ]
    assert len({cell.name for cell in cells}) == 4


def test_progress_counts_and_estimates():
    cells = expand(["detector=dte_c", "detector.bins=3,7", "seed=0,1"])
    said = io.StringIO()
    shown = Progress(Console(file=said, width=200))
    shown.start(len(cells), [Event(cells[0], "found")], cells[1:])
    for cell in cells[1:3]:
        shown.tell(Event(cell, "started"))
    assert shown.line() == "1 of 4 cells done, 1 of them found, 2 running"
    shown.tell(Event(cells[1], "done", seconds=10.0))
    shown.tell(Event(cells[2], "failed", error="Traceback\nValueError: a reason"))
    assert shown.remaining() == pytest.approx(5.0)  # one cell of ten seconds, two at once
    assert shown.line() == "2 of 4 cells done, 1 of them found, 1 failed, about 5 s left"
    assert "failed    breast_cancer dte_c seed 0 detector.bins=7: ValueError: a reason" in said.getvalue()


def test_students_are_swept_on_their_teachers_run(tmp_path):
    folder = tmp_path / "train" / "digits_ood-msp-0123456789"
    folder.mkdir(parents=True)
    words = ["dataset=digits_ood", "backbone=resnet10", "detector=msp"]
    OmegaConf.save(compose.compose("train", words), folder / "config.yaml")
    words = [f"teacher={folder}", "distiller=glob(ablation/*)", "backbone=resnet10/narrow", f"output_dir={tmp_path}"]
    cells = expand(words, command="distill")
    assert len(cells) == 12 and {cell.command for cell in cells} == {"distill"}
    assert all(cell.folder.parent == tmp_path / "distill" for cell in cells)


def test_the_runs_of_a_sweep_are_a_group_of_wandb_unless_the_user_names_one():
    (cell,) = expand(["detector=knn", "logger=wandb"])
    grouped = sweep.grouped(cell, "train-0123456789")
    assert grouped.config["logger"]["group"] == "train-0123456789" and grouped.folder == cell.folder
    (own,) = expand(["detector=knn", "logger=wandb", "logger.group=mine"])
    assert sweep.grouped(own, "train-0123456789").config["logger"]["group"] == "mine"
    (plain,) = expand(["detector=knn"])
    assert sweep.grouped(plain, "train-0123456789") == plain


def test_a_collections_name_stands_once_in_the_head_of_a_narrow_summary(tmp_path):
    datasets, detectors = ("adbench/internetads", "adbench/cardiotocography"), ("dte_c/paper", "knn")
    cells = [
        Cell((f"detector={detector}", f"dataset={dataset}"), {"seed": 0}, tmp_path / f"{i}{j}")
        for i, detector in enumerate(detectors)
        for j, dataset in enumerate(datasets)
    ]
    screen = Console(width=80, file=io.StringIO())
    summary.show({cell.folder: Event(cell, "found") for cell in cells}, tmp_path, screen)
    lines = screen.file.getvalue().splitlines()
    assert sum("adbench/" in line for line in lines[:-1]) == 1
    assert sum("dte_c/paper" in line and "cardiotocography" in line for line in lines) == 1
