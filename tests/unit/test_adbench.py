import csv
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import yaml

from outlie.commands.data import EMBEDDED, main
from outlie.data.adbench import ADBench
from outlie.data.adbench_files import datasets, one_file, select
from outlie.data.image_sets import SETS
from outlie.data.protocols import dte_rows
from outlie.data.sklearn_tables import SklearnTable
from outlie.errors import UserError

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
GROUPS = {"mnist_c": 16, "fashionmnist": 10, "cifar10": 10, "svhn": 10, "mvtec_ad": 15, "20news": 6, "agnews": 4}


def test_57_datasets_in_121_files():
    assert len(datasets()) == 57
    assert sum(len(parts) for parts in datasets().values()) == 121
    assert {name: len(parts) for name, parts in datasets().items() if len(parts) > 1} == GROUPS
    classical = [int(f.path.split("/")[1].split("_")[0]) for (f, *_) in datasets().values() if "Classical" in f.path]
    assert classical == list(range(1, 48))


def test_checksums_and_counts_are_those_of_the_manifest():
    manifest = SHARED / "data" / "adbench" / "MANIFEST.csv"
    if not manifest.is_file():
        pytest.skip(f"needs {manifest}")
    ours = {file.path: file for parts in datasets().values() for file in parts}
    with manifest.open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 65 == sum(bool(file.sha256) for file in ours.values())
    for row in rows:
        file = ours[row["file"]]
        assert file.sha256 == row["sha256"]
        assert [file.bytes, file.rows, file.features, file.anomalies] == [
            int(row[key]) for key in ("bytes", "n_samples", "n_features", "n_anomalies")
        ]


def test_table_names_are_those_of_the_published_table():
    table = SHARED / "reference" / "dte_adbench_semi_aucroc.csv"
    if not table.is_file():
        pytest.skip(f"needs {table}")
    with table.open() as lines:
        assert {row["dataset"] for row in csv.DictReader(lines)} == {p[0].table_name for p in datasets().values()}


def test_each_dataset_has_its_yaml():
    folder = ROOT / "configs" / "dataset" / "adbench"
    assert {path.stem for path in folder.glob("*.yaml")} == set(datasets())
    for path in folder.glob("*.yaml"):
        text = path.read_text()
        assert yaml.safe_load(text) == {"_target_": "outlie.data.adbench.ADBench", "name": path.stem}
        file = datasets()[path.stem][0]
        assert text.startswith(f"# ADBench {file.table_name} (")
        assert f" {file.features} features" in text.splitlines()[0]
        if len(datasets()[path.stem]) == 1:
            assert f" {file.rows} rows" in text.splitlines()[0]


def test_parts_of_a_group(adbench_dir):
    assert ADBench("thyroid").parts() == []
    assert ADBench("mvtec_ad").parts()[:3] == ["bottle", "cable", "capsule"]
    with pytest.raises(UserError, match=r"15 files.*dataset.part=bottle\|cable"):
        ADBench("mvtec_ad").load(0)
    with pytest.raises(UserError, match=r"did you mean 'bottle'"):
        ADBench("mvtec_ad", part="botle").load(0)
    with pytest.raises(UserError, match=r"has no parts"):
        ADBench("wine", part="0").load(0)
    split = ADBench("mvtec_ad", part="toothbrush").load(0)
    assert split.train.x.shape[1] == 512
    assert ADBench("cifar10", part=0).part == "0"  # Hydra reads dataset.part=0 as a number


def test_a_mistyped_name_gets_the_nearest():
    with pytest.raises(UserError, match=r"unknown ADBench dataset 'thyriod' .did you mean 'thyroid'"):
        ADBench("thyriod")


@pytest.mark.parametrize("name", ["breastw", "letter", "satellite"])  # uint8 and int16 files
def test_small_integer_files_become_float64(adbench_dir, name):
    path = adbench_dir / one_file(name).path
    with np.load(path, allow_pickle=False) as file:
        raw, y = file["X"], file["y"]
    assert raw.dtype.kind in "iu"
    assert raw.dtype.itemsize <= 2
    split = ADBench(name, "dte_semi_noleak").load(0)
    order = dte_rows(len(y), 0, 50_000, False)[0]
    normal = raw[order][y[order] == 0].astype(np.float64)
    np.testing.assert_array_equal(split.train.x.numpy(), normal[: round(0.5 * len(normal))])
    np.testing.assert_allclose(split.mean.numpy(), split.train.x.numpy().mean(0), rtol=1e-12)
    assert split.train.label is not None
    assert not split.train.label.any()


def test_index_is_the_row_in_the_file(adbench_dir):
    split = ADBench("wine", "split").load(3)
    with np.load(adbench_dir / one_file("wine").path, allow_pickle=False) as file:
        raw, y = file["X"].astype(float), file["y"]
    for rows in (split.train, split.calibration, split.tests["test"]):
        assert rows is not None
        assert rows.label is not None
        np.testing.assert_array_equal(rows.x.numpy(), raw[rows.index.numpy()])
        np.testing.assert_array_equal(rows.label.numpy(), y[rows.index.numpy()])


def test_same_data_same_hash_and_leaks_are_reported(adbench_dir):
    semi, unsup = ADBench("glass", "dte_semi").load(0), ADBench("glass", "dte_unsup").load(1)
    assert semi.data_sha256 == unsup.data_sha256 != ADBench("wine").load(0).data_sha256
    assert any("exact copies of training rows" in finding for finding in semi.findings)
    assert any("exact copies of training rows" in finding for finding in unsup.findings)


def test_select_what_a_user_types():
    assert [file.title for file in select(["adbench/thyroid", "mvtec_ad/bottle", "thyroid"])] == [
        "thyroid",
        "mvtec_ad/bottle",
    ]
    assert len(select(["all"])) == 121
    assert len(select(["svhn"])) == 10


# run data


def test_list_shows_every_dataset(empty_cache, capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(EMBEDDED) + 57 + len(SETS)
    assert all(len(line.split("  ")) > 5 for line in lines)
    images = {line.split()[0]: line for line in lines if line.startswith("image/")}
    assert set(images) == {f"image/{name}" for name in SETS}
    assert images["image/mnist"].split()[1:5] == ["4", "70000", "1x28x28", "-"]
    assert images["image/mnist"].endswith("not here") and images["image/digits"].endswith("inside scikit-learn")
    assert images["image/cifar10_part"].endswith("made from cifar10")
    assert any(line.startswith("adbench/thyroid ") and line.endswith("not here") and "3772" in line for line in lines)


def test_embedded_counts_are_true():
    for name, n, features, anomalies in EMBEDDED:
        config = yaml.safe_load((ROOT / "configs" / "dataset" / f"{name}.yaml").read_text())
        assert config.pop("_target_") == "outlie.data.sklearn_tables.SklearnTable"
        split = SklearnTable(**config).load(0)
        assert split.calibration is not None
        assert split.tests["test"].label is not None
        assert len(split.train) + len(split.calibration) + len(split.tests["test"]) == n
        assert split.train.x.shape[1] == features
        assert int(split.tests["test"].label.sum()) == anomalies


def test_sklearn_class_that_does_not_exist():
    with pytest.raises(UserError, match=r"allowed: 0 \(malignant\), 1 \(benign\)"):
        SklearnTable("breast_cancer", anomaly=7).load(0)


def test_verify_and_fetch_what_is_here(adbench_dir, capsys):
    assert main(["verify", "wine", "glass"]) == 0
    assert "2 files are right" in capsys.readouterr().out
    assert main(["fetch", "wine"]) == 0
    assert str(adbench_dir) in capsys.readouterr().out


def test_verify_names_what_is_missing(empty_cache, capsys):
    assert main(["verify", "wine"]) == 1
    assert "run data fetch wine" in capsys.readouterr().err
    assert main(["verify"]) == 0
    assert main(["path"]) == 0
    assert str(empty_cache) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["lst"], "did you mean 'list'"),
        (["fetch", "thyrod"], "did you mean 'thyroid'"),
        (["fetch"], "run data fetch NAME"),
        (["list", "wine"], "takes no names"),
    ],
)
def test_mistyped_words(argv, says):
    with pytest.raises(UserError, match=says):
        main(argv)


def test_run_data_imports_nothing_heavy():
    heavy = ("torch", "numpy", "polars", "hydra")
    code = f"import sys, outlie.commands.data; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_csv_is_inside_the_package():
    assert files("outlie.data").joinpath("adbench.csv").is_file()
