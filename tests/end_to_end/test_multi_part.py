"""A dataset of several files: each part is a run of its own, and their mean is printed."""

import numpy as np

from .conftest import only, result_of

MVTEC = ("detector=knn", "dataset=adbench/mvtec_ad")


def test_every_part_is_a_run_and_the_mean_is_printed(train, run, adbench_dir, tmp_path):
    parts = sorted(path.stem.removeprefix("MVTec-AD_") for path in adbench_dir.glob("CV_by_ResNet18/MVTec-AD_*.npz"))
    assert len(parts) == 15
    done = train(*MVTEC)
    results = [result_of(folder) for folder in (tmp_path / "outputs" / "train").iterdir()]
    assert sorted(result["dataset"] for result in results) == [f"adbench/mvtec_ad/{part}" for part in parts]
    assert {result["status"] for result in results} == {"done"}
    assert len({result["data_sha256"] for result in results}) == 15
    mean = 100 * np.mean([result["metrics"]["test"]["auroc"] for result in results])
    (line,) = (line for line in done.out.splitlines() if "mean of 15" in line)
    assert f"{mean:.2f}" in line
    again = train(*MVTEC)
    assert again.err.count("done already") == 15
    assert again.out == done.out
    plan = run("train", *MVTEC, "dry_run=true")
    assert plan.out.count("# plan: ") == 15


def test_one_part(train, refused, adbench_dir, tmp_path):
    done = train(*MVTEC, "dataset.part=zipper")
    folder = only(tmp_path / "outputs" / "train")
    assert folder.name.startswith("adbench_mvtec_ad_zipper-knn-")
    assert "mean of" not in done.out
    assert "did you mean 'zipper'?" in refused("train", *MVTEC, "dataset.part=ziper")
