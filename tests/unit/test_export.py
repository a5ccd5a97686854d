"""A run as an ONNX graph: traced at two sizes, right at all, checked on real rows; what is said where there is none."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from outlie.backbones.identity import Identity
from outlie.data.split import Rows, Split
from outlie.detectors.base import Detector, Spec, Views, set_up
from outlie.detectors.knn import KNN
from outlie.detectors.relation import Relation
from outlie.detectors.vim import ViM
from outlie.errors import UserError
from outlie.export import check
from outlie.export.trace import EXAMPLE, kth_value, search_sorted, traced

D, C = 6, 3
GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(120, D, generator=GENERATOR, dtype=torch.float64)


def chunks(x: Tensor) -> Tensor:
    """What scores do with a batch: its length, chunks of it, a loop over rows at once, a buffer that is filled."""
    out, weights = x.new_empty(len(x), 2), torch.ones(len(x), dtype=x.dtype)
    for start in range(0, len(x), 1000):
        part = x[start : start + 1000]
        out[start : start + 1000] = torch.stack([part.sum(1), part.amax(1)], 1)
    noise = torch.randn(1, x.shape[1], generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    norms = torch.cat([(part + noise).norm(dim=1) for part in x.split(4)])
    factor = float(torch.tensor([2.0, 3.0])[1])  # a value that is no row's
    return factor * out.sum(1) * weights + norms + torch.arange(2 * len(x))[1 - len(x) :].sum() * 0 * weights


@functools.cache
def graph_of_chunks() -> torch.nn.Module:
    return traced(chunks, ROWS)


@pytest.mark.parametrize("rows", [1, 2, 7, 11, 13, 100, 120])
def test_a_graph_from_two_sizes_is_right_at_others(rows):
    graph = graph_of_chunks()
    torch.testing.assert_close(graph(ROWS[:rows]), chunks(ROWS[:rows]), rtol=0, atol=0)


def test_numbers_of_the_model_may_be_those_of_the_traces():
    """11, 13 and their multiples are no sign of the batch: here columns are so many, and a value of them is read."""
    wide = torch.randn(40, 26, generator=GENERATOR, dtype=torch.float64)

    def score(x: Tensor) -> Tensor:
        widths = torch.full((13,), 2).tolist()
        return torch.stack([part.amax(1) for part in x.split(widths, 1)], 1).sum(1)

    graph = traced(score, wide)
    assert torch.equal(graph(wide), score(wide))


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (lambda x: x.sum(1) if float(x.sum()) > 0 else x.amax(1), "depends on a value of the row"),
        (lambda x: torch.from_numpy(np.sort(x.numpy(), 1))[:, 0], "outside torch"),
        (lambda x: torch.zeros(len(x)).index_add(0, (x[:, 0] > 0).nonzero()[:, 0], torch.ones(1)), "graph"),
        (lambda x: x.sum(1) + torch.randn(len(x), generator=torch.Generator().manual_seed(0)), "depends on the rows"),
        (lambda x: sum((x[i].sum() for i in range(len(x))), x.sum(1)), "steps"),
    ],
    ids=["branch", "numpy", "nonzero", "noise_of_rows", "loop_over_rows"],
)
def test_what_is_no_graph_is_refused(score, said):
    with pytest.raises(UserError, match=said):
        traced(score, ROWS)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 100])
@pytest.mark.parametrize("right", [False, True])
def test_search_sorted_is_numpys(n, right):
    generator = torch.Generator().manual_seed(n)
    ordered = torch.randint(0, 10, (4, n), generator=generator).double().sort(1).values  # ties
    values = torch.randint(-2, 13, (4, 30), generator=generator).double()
    side = "right" if right else "left"
    expected = np.stack([np.searchsorted(a, v, side=side) for a, v in zip(ordered.numpy(), values.numpy())])
    assert (search_sorted(ordered, values, right=right).numpy() == expected).all()


def test_kth_value_is_numpys():
    values, _ = kth_value(ROWS, 3, 1)
    assert torch.equal(values, torch.from_numpy(np.partition(ROWS.numpy(), 2, axis=1)[:, 2]))


class Fixed:
    """Answers with scores that are off by a little, and with verdicts of its own threshold."""

    def __init__(self, score: np.ndarray, threshold: float) -> None:
        self.all, self.limit = score, threshold

    def judge(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        score = self.all[x[:, 0].astype(int)]
        return score, score > self.limit


NUMBERS = np.arange(200.0)[:, None]
SCORE = np.linspace(-1, 1, 200)


def test_equal_scores_pass_at_all_batches():
    found = check.compare(Fixed(SCORE, 0.5), NUMBERS, SCORE, 0.5)
    assert [(one["batch"], one["rows"]) for one in found["batches"]] == [(1, 64), (7, 200), (200, 200)]
    assert all(one["largest_difference"] == 0 == one["verdicts_that_differ"] for one in found["batches"])


@pytest.mark.parametrize("off", [np.nan, np.inf, 0.001, -0.001])
def test_a_score_that_differs_is_refused(off):
    wrong = SCORE.copy()
    wrong[150] += off
    with pytest.raises(UserError, match="row 150 scores"):
        check.compare(Fixed(wrong, 0.5), NUMBERS, SCORE, None)


def test_a_verdict_may_differ_within_rounding_of_the_threshold_only():
    limit = float(SCORE[120])  # not above it
    found = check.compare(Fixed(SCORE + 1e-12, limit), NUMBERS, SCORE, limit)
    assert found["batches"][-1] | {"verdicts_that_differ": 1, "near_the_threshold": 1} == found["batches"][-1]
    with pytest.raises(UserError, match="judges row 119 otherwise"):
        check.compare(Fixed(SCORE, limit - 0.015), NUMBERS, SCORE, limit)


class Network(nn.Module):
    """Rows -> features and logits."""

    provides = ("features", "logits", "head")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(D, 8), nn.Linear(8, C)

    def forward(self, x: Tensor) -> Views:
        features = self.body(x.float()).relu()
        return Views(features=features, logits=self.head(features))


def identity() -> Identity:
    backbone = Identity()
    backbone.setup(Split("t", Rows(ROWS, torch.arange(len(ROWS))), {}, None, ROWS.mean(0), ROWS.std(0), ""))
    return backbone


def fitted(detector: Detector, backbone: nn.Module) -> Detector:
    with torch.no_grad():
        views = backbone(ROWS)
        shapes = {name: t.shape[1:] for name in ("x", "features", "logits") if (t := getattr(views, name)) is not None}
        set_up(detector, Spec(shapes, 0, C, getattr(backbone, "head", None), backbone))
        if hasattr(detector, "fit"):
            detector.fit(views)
    return detector.eval()


def finished(detector: Detector, backbone: nn.Module, folder: Path, threshold: float | None) -> Any:
    from outlie.export.finished import Finished
    from outlie.results import store

    result = {name: name for name in ("dataset", "protocol", "detector", "backbone", "data_sha256")} | {"seed": 0}
    result["threshold"] = None if threshold is None else {"value": threshold, "false_alarms": 0.01, "guarantee": 0.01}
    store.write_scores(folder / "scores.parquet", {"calibration": (np.arange(3), None, np.array([0.5, 0.1, 0.25]))})
    columns = tuple("abcdef")
    return Finished(folder, result, {}, backbone, fitted(detector, backbone), columns)


CASES = {"knn": (KNN, identity), "vim": (lambda: ViM(d=3), Network)}


@pytest.mark.parametrize("name", CASES)
def test_the_graph_scores_and_judges_as_the_run(name, tmp_path):
    pytest.importorskip("onnxscript")
    from outlie.export import graph
    from outlie.export.session import Exported

    make, network = CASES[name]
    run = finished(make(), network(), tmp_path, None)
    score = run.score(ROWS)
    limit = float(score.median()) + 1e-6
    run.result["threshold"] = {"value": limit, "false_alarms": 0.01, "guarantee": 0.01}
    graph.write(tmp_path / "model.onnx", run, ROWS[:3], None)
    exported = Exported(tmp_path / "model.onnx", 1)
    for rows in (1, 7, len(ROWS)):
        ours, verdict = exported.judge(ROWS[:rows].numpy())
        np.testing.assert_allclose(ours, score[:rows].numpy(), rtol=1e-5, atol=1e-6)
        assert (verdict == (score[:rows] > limit).numpy()).all()
    found = check.compare(exported, ROWS.numpy(), score.numpy(), limit)
    assert max(one["of_what_is_allowed"] for one in found["batches"]) < 0.1
    assert (exported.columns, exported.threshold) == (tuple("abcdef"), limit)
    assert exported.calibration.tolist() == [0.5, 0.1, 0.25]
    as_floats = exported.score(ROWS.float().numpy())  # rows that are no float64 are made so
    np.testing.assert_allclose(as_floats, exported.score(ROWS.float().double().numpy()))
    assert exported.score(np.empty((0, D))).shape == (0,)
    with pytest.raises(UserError, match=r"takes \(6,\)"):
        exported.score(np.zeros((2, 5)))


def test_a_score_that_onnx_has_no_operator_for_names_it(tmp_path):
    pytest.importorskip("onnxscript")
    from outlie.export import graph

    class Eigenvalues(KNN):
        def score(self, views: Views) -> Tensor:
            x = views.features
            return torch.linalg.eigvalsh(x[:, :, None] * x[:, None, :])[:, -1]

    with pytest.raises(UserError, match=r"no operator for aten\._linalg_eigh.*another detector"):
        graph.write(tmp_path / "model.onnx", finished(Eigenvalues(), identity(), tmp_path, None), ROWS, None)
    assert not list(tmp_path.glob("*.onnx"))


def test_a_score_that_depends_on_which_rows_says_so(tmp_path):
    pytest.importorskip("onnxscript")
    from outlie.export import graph

    with pytest.raises(UserError, match=r"cannot be exported.*nonzero.*run score"):
        graph.write(tmp_path / "model.onnx", finished(Relation(), Network(), tmp_path, None), ROWS, None)


def test_files_that_are_no_export_are_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from outlie.export.session import Exported

    with pytest.raises(UserError, match="no file"):
        Exported(tmp_path / "model.onnx")
    (tmp_path / "text.onnx").write_text(json.dumps({"no": "graph"}))
    with pytest.raises(UserError, match="cannot read"):
        Exported(tmp_path / "text.onnx")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in "xy")
    same = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(same, opset_imports=opset, ir_version=9), tmp_path / "other.onnx")
    with pytest.raises(UserError, match="not made by run export"):
        Exported(tmp_path / "other.onnx")


def test_so_many_rows_are_traced_as_the_largest_trace_has():
    with pytest.raises(ValueError, match="19 are needed"):
        traced(chunks, ROWS[: EXAMPLE - 1])
