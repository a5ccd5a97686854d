"""Bootstrap: the vectorised pass against ranking.py on written-out resamples, and against DeLong's variance."""

import json

import numpy as np
import pytest

from outlie.metrics import bootstrap, ranking
from outlie.metrics.evaluation import Metrics, evaluate


def sample(normal: int, anomalies: int, seed: int, levels: int | None = None):
    rng = np.random.default_rng(seed)
    score = np.concatenate([rng.normal(0, 1, normal), rng.normal(1.5, 1, anomalies)])
    label = np.repeat([0, 1], [normal, anomalies])
    if levels:
        score = np.round(score * levels)
    order = rng.permutation(len(score))
    return score[order], label[order]


@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize("sizes", [(40, 7), (7, 40), (1, 5), (5, 1), (30, 30)])
@pytest.mark.parametrize("names", [set(ranking.METRICS), set(ranking.METRICS) - bootstrap.STEP_BY_NORMALS])
def test_same_resamples_give_the_same_numbers_as_one_by_one(levels, sizes, names):
    score, label = sample(*sizes, seed=3, levels=levels)
    together = bootstrap.resample(score, label, sorted(names), 25, np.random.default_rng(4))

    # The same draws, written out row by row in the order of the file (which breaks ties in F1@k).
    rng, anomaly = np.random.default_rng(4), label.astype(bool)
    weight = np.zeros((25, len(score)), dtype=int)
    for rows in (np.flatnonzero(anomaly), np.flatnonzero(~anomaly)):
        drawn = rows[rng.integers(0, len(rows), size=(25, len(rows)))]
        for r in range(25):
            weight[r] += np.bincount(drawn[r], minlength=len(score))
    for name, values in together.items():
        alone = [ranking.measure(name, np.repeat(score, w), np.repeat(label, w)) for w in weight]
        np.testing.assert_allclose(values, alone, rtol=0, atol=1e-12, err_msg=name)


def test_chunks_do_not_change_totals(monkeypatch):
    score, label = sample(60, 20, seed=5)
    block = bootstrap.blocks(score, label.astype(bool), merge_normals=True)
    weight = bootstrap.multiplicities(block, label.astype(bool), 10, block.max() + 1, np.random.default_rng(0))
    anomalous = np.zeros(block.max() + 1, dtype=bool)
    anomalous[block[label == 1]] = True
    assert (weight[:, anomalous].sum(1) == 20).all()
    assert (weight[:, ~anomalous].sum(1) == 60).all()
    monkeypatch.setattr(bootstrap, "CELLS", 160)  # two resamples at a time
    assert len(bootstrap.resample(score, label, ["auroc"], 25, np.random.default_rng(0))["auroc"]) == 25


def test_auroc_spread_is_delongs():
    score, label = sample(400, 150, seed=6)
    normal, anomalous = score[label == 0], score[label == 1]
    above = (anomalous[:, None] > normal).astype(float)  # placements (DeLong et al., 1988)
    variance = above.mean(1).var(ddof=1) / 150 + above.mean(0).var(ddof=1) / 400
    values = bootstrap.resample(score, label, ["auroc"], 4000, np.random.default_rng(7))["auroc"]
    assert values.std() == pytest.approx(np.sqrt(variance), rel=0.06)
    assert values.mean() == pytest.approx(ranking.auroc(score, label), abs=0.002)


def test_few_anomalies_leave_few_blocks():
    score, label = sample(5000, 10, seed=8)
    assert bootstrap.blocks(score, label.astype(bool), merge_normals=True).max() <= 20


def test_evaluate_is_ready_for_json_and_seeded():
    score, label = sample(200, 30, seed=9)
    metrics = Metrics(bootstrap=200)
    result = evaluate(score, label, metrics, seed=1)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result == evaluate(score, label, metrics, seed=1)
    assert result["intervals"] != evaluate(score, label, metrics, seed=2)["intervals"]
    assert result["counts"] == {"normal": 200, "anomalies": 30}
    assert list(result["metrics"]) == metrics.names
    for name, (low, high) in result["intervals"].items():
        assert low <= result["metrics"][name] <= high
    assert evaluate(score, label, Metrics(bootstrap=0))["intervals"] == {}


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_gives_null_and_a_reason(label):
    result = evaluate(np.arange(5.0), np.full(5, label), Metrics())
    assert set(result["metrics"].values()) == {None}
    assert result["intervals"] == {}
    assert "at least one of each" in result["findings"][0]


def test_few_anomalies_are_a_finding():
    score, label = sample(50, 3, seed=10)
    assert "only 3 anomalies" in evaluate(score, label, Metrics(bootstrap=50))["findings"][0]
