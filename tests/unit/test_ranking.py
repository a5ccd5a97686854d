"""Ranking metrics against hand-computed vectors (shared specs/ood_metrics.md), scikit-learn and pair counting."""

import math
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from outlie.errors import UserError
from outlie.metrics import ranking
from outlie.metrics.evaluation import DEFAULT, MetricName

EXACT = {"rel": 0, "abs": 1e-12}

# name: confidences of ID, of OOD (higher = more ID), and by metric what OpenOOD, ViM/NECO and scikit-learn returned.
VECTORS = {
    "V1 positive class": (
        [9, 8, 7, 6, 5, 4, 3, 2, 1, 0.5],
        [8.5, 0.4, 0.3, 0.2],
        {"auroc": 0.775, "ood": 0.9, "reach": 0.25, "floor": 0.25, "percentile": 0.25},
        {"trapezoid_id": 0.82755772005772, "trapezoid_ood": 0.8197115384615384},
        {"ap_ood": 0.8269230769230769, "ap_id": 0.8480122655122654},
    ),
    "V2 floor against reach": (
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
        [1.5, 0.5],
        {"auroc": 0.95, "ood": 0.1, "reach": 0.5, "floor": 0.0, "percentile": 0.5},
        {"trapezoid_id": 0.9904545454545454, "trapezoid_ood": 0.7916666666666666},
        {"ap_ood": 0.8333333333333333, "ap_id": 0.9909090909090909},
    ),
    "V3 constant": (
        [1, 1, 1, 1],
        [1, 1, 1, 1],
        {"auroc": 0.5, "ood": 1.0, "reach": 1.0, "floor": 1.0, "percentile": 1.0},
        {"trapezoid_id": 0.75, "trapezoid_ood": 0.75},
        {"ap_ood": 0.5, "ap_id": 0.5},
    ),
    "V4 ties": (
        [3, 2, 2, 2],
        [2, 2, 1, 1],
        {"auroc": 0.8125, "ood": 0.75, "reach": 0.5, "floor": 0.5, "percentile": 0.5},
        {"trapezoid_id": 0.875, "trapezoid_ood": 0.8928571428571428},
        {"ap_ood": 0.7857142857142857, "ap_id": 0.75},
    ),
    "V5 where a sigmoid saturates": (
        [-100, -200],
        [-300, -400],
        {"auroc": 1.0, "ood": 0.0, "reach": 0.0, "floor": 0.0, "percentile": 0.0},
        {"trapezoid_id": 1.0, "trapezoid_ood": 1.0},
        {"ap_ood": 1.0, "ap_id": 1.0},
    ),
    "V6 energies": (
        [40, 38],
        [20, 18],
        {"auroc": 1.0, "ood": 0.0, "reach": 0.0, "floor": 0.0, "percentile": 0.0},
        {"trapezoid_id": 1.0, "trapezoid_ood": 1.0},
        {"ap_ood": 1.0, "ap_id": 1.0},
    ),
    "V7 perfect": (
        [4, 3, 2],
        [1, 0],
        {"auroc": 1.0, "ood": 0.0, "reach": 0.0, "floor": 0.0, "percentile": 0.0},
        {"trapezoid_id": 1.0, "trapezoid_ood": 1.0},
        {"ap_ood": 1.0, "ap_id": 1.0},
    ),
    "V8 inverted": (
        [0, 1],
        [2, 3, 4],
        {"auroc": 0.0, "ood": 1.0, "reach": 1.0, "floor": 1.0, "percentile": 1.0},
        {"trapezoid_id": 0.225, "trapezoid_ood": 0.37777777777777777},
        {"ap_ood": 0.4777777777777778, "ap_id": 0.325},
    ),
    "V9 imbalance": (
        [5, 4, 3, 2, 1.5],
        [4.5],
        {"auroc": 0.2, "ood": 0.8, "reach": 1.0, "floor": 1.0, "percentile": 1.0},
        {"trapezoid_id": 0.7766666666666666, "trapezoid_ood": 0.1},
        {"ap_ood": 0.2, "ap_id": 0.81},
    ),
    "V10 inside [0, 1]": (
        [0.9, 0.8, 0.7, 0.2],
        [0.75, 0.3, 0.1],
        {"auroc": 0.75, "ood": 0.5, "reach": 2 / 3, "floor": 1 / 3, "percentile": 2 / 3},
        {"trapezoid_id": 0.8354166666666667, "trapezoid_ood": 0.711111111111111},
        {"ap_ood": 0.7555555555555555, "ap_id": 0.8541666666666666},
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_published_vectors(name):
    normal, anomalous, point, trapezoid, ap = VECTORS[name]
    score = -np.array(normal + anomalous, dtype=float)
    label = np.array([0] * len(normal) + [1] * len(anomalous))
    ours = {
        "auroc": ranking.auroc(score, label),
        "ood": ranking.fpr_at_tpr(score, label, "ood"),
        **{rule: ranking.fpr_at_tpr(score, label, "id", rule=rule) for rule in ("reach", "floor", "percentile")},
        "trapezoid_id": ranking.aupr_trapezoid(score, label, "id"),
        "trapezoid_ood": ranking.aupr_trapezoid(score, label),
        "ap_ood": ranking.average_precision(score, label),
        "ap_id": ranking.average_precision(score, label, "id"),
    }
    assert ours == pytest.approx(point | trapezoid | ap, **EXACT)


def test_v3_constant_score_at_low_prevalence():
    score, label = np.zeros(8), np.array([1, 1, 0, 0, 0, 0, 0, 0])
    assert ranking.aupr_trapezoid(score, label) == pytest.approx(0.625, **EXACT)
    assert ranking.average_precision(score, label) == pytest.approx(0.25, **EXACT)


def test_v11_step_sum_against_trapezoid():
    score, label = [0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]
    assert ranking.aupr_trapezoid(score, label) == pytest.approx(0.7916666666666666, **EXACT)
    assert ranking.average_precision(score, label) == pytest.approx(0.8333333333333333, **EXACT)
    second = [0, 1, 0, 0, 0]
    assert ranking.aupr_trapezoid([5, 4, 3, 2, 1], second) == pytest.approx(0.25, **EXACT)
    assert ranking.average_precision([5, 4, 3, 2, 1], second) == pytest.approx(0.5, **EXACT)


@pytest.mark.parametrize(("fpr", "recall"), [(0.05, 0.6), (0.10, 0.8), (0.15, 0.8)])
def test_v12_recall_takes_the_last_point_at_a_false_positive_rate(fpr, recall):
    score = [*range(1, 11), 9.5, 10.5, 11, 4.5, 12]
    assert ranking.recall_at_fpr(score, [0] * 10 + [1] * 5, fpr) == pytest.approx(recall, **EXACT)


def test_v13_f1_flags_exactly_k():
    label = [0, 1, 1, 0, 0]
    assert ranking.f1_at_k([0.1, 0.5, 0.3, 0.2, 0.7], label) == 0.5
    tied = [0.1, 0.5, 0.5, 0.5, 0.7]
    assert ranking.f1_at_k(tied, label) == 0.5
    assert ranking.f1_at_k(tied, label, ties="expected") == pytest.approx(1 / 3, **EXACT)
    assert ranking.f1_at_k(tied, label, k=1) == 0.0
    assert ranking.f1_at_k(tied, label, k=5) == pytest.approx(2 * 2 / 7, **EXACT)
    with pytest.raises(UserError, match="k = 6 of 5 rows"):
        ranking.f1_at_k(tied, label, k=6)


def test_v14_v15_detection_error_and_ccr():
    score, label = -np.array([4, 3, 2, 1, 2.5, 0.5, 0.4, 0.3]), [0] * 4 + [1] * 4
    assert ranking.detection_error(score, label) == 0.125
    correct = [True, True, False, True, False, False, False, False]
    assert ranking.ccr_at_fpr(score, label, correct, 0.25) == 0.5
    assert ranking.ccr_at_fpr(score, label, correct, 0.5) == 0.75


def test_v16_float64():
    assert ranking.auroc(1e8 + np.arange(4.0), [0, 0, 1, 1]) == 1.0


def test_v17_scores_in_a_narrow_band_are_not_binned():
    rng = np.random.default_rng(0)
    score, label = rng.beta(2, 200, 1000), rng.integers(0, 2, 1000)
    assert ranking.auroc(score, label) == pytest.approx(roc_auc_score(label, score), **EXACT)


def test_v18_nineteen_of_twenty_is_95_percent():
    # 19 anomalies above the only normal row, one below: TPR 0.95 is reached without flagging the normal row.
    score, label = np.arange(21.0), np.array([1, 0] + [1] * 19)
    assert ranking.fpr_at_tpr(score, label, "ood") == 0.0
    assert ranking.fpr_at_tpr(score, label, "ood", tpr=Fraction(951, 1000)) == 1.0
    # One of twenty normals may be flagged at 5 %: 0.05 is 1/20 and not a binary number near it.
    assert ranking.recall_at_fpr(-score, 1 - label, 0.05) == 1.0
    assert ranking.recall_at_fpr(-score, 1 - label, 0.0499) == 0.0


def test_v19_scores_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match=r"not finite: 2 of 4 .*rows 1, 3"):
        ranking.auroc([0, np.nan, 1, np.inf], [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("score", "label", "message"),
    [
        ([1, 2], [0, 0], "0 anomalies and 2 normal rows"),
        ([1, 2], [1, 1], "2 anomalies and 0 normal rows"),
        ([], [], "0 anomalies and 0 normal rows"),
        ([1, 2, 3], [0, 1], "3 scores but 2 labels"),
        ([1, 2, 3], [0, 1, 2], "label 2 is neither"),
        ([[1, 2]], [[0, 1]], "one score for each row"),
    ],
)
def test_bad_input_is_named(score, label, message):
    with pytest.raises(UserError, match=message):
        ranking.auroc(score, label)


def test_unknown_metric_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'auroc'"):
        ranking.measure("aurok", [0, 1], [0, 1])


def test_metric_names_in_the_config_are_the_metrics_there_are():
    assert set(get_args(MetricName)) == set(ranking.METRICS)
    assert set(DEFAULT) <= set(ranking.METRICS)


def scored(most: int = 50):
    """Few distinct scores, hence many ties, and both classes."""

    def both(rows):
        return 0 < sum(label for _, label in rows) < len(rows)

    rows = st.lists(st.tuples(st.integers(-6, 6), st.integers(0, 1)), min_size=2, max_size=most).filter(both)
    return rows.map(lambda rows: (np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])))


def everything(score, label) -> dict[str, float]:
    return {name: ranking.measure(name, score, label) for name in ranking.METRICS}


@settings(deadline=None, max_examples=150)
@given(scored())
def test_agrees_with_scikit_learn_and_pair_counting(rows):
    score, label = rows
    normal, anomalous = score[label == 0], score[label == 1]
    pairs = (anomalous[:, None] > normal).mean() + 0.5 * (anomalous[:, None] == normal).mean()
    precision, recall, _ = precision_recall_curve(label, score)
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    fnr_id, tpr_id, _ = roc_curve(1 - label, -score, drop_intermediate=False)
    expected = {
        "auroc": pairs,
        "average_precision": average_precision_score(label, score),
        "average_precision_id_positive": average_precision_score(1 - label, -score),
        "aupr_trapezoid_ood_positive": auc(recall, precision),
        "fpr95_ood_positive": fpr[np.argmax(tpr >= 0.95)],
        "fpr95_id_positive": fnr_id[np.argmax(tpr_id >= 0.95)],
        "recall_at_fpr05": tpr[fpr <= 0.05].max(),
        "recall_at_fpr10": tpr[fpr <= 0.10].max(),
        "detection_error": (1 - tpr + fpr).min() / 2,
    }
    ours = everything(score, label)
    assert {name: ours[name] for name in expected} == pytest.approx(expected, **EXACT)
    assert ours["auroc"] == pytest.approx(roc_auc_score(label, score), **EXACT)


@settings(deadline=None, max_examples=100)
@given(scored(), st.randoms(use_true_random=False))
def test_invariances(rows, random):
    score, label = rows
    ours = everything(score, label)
    assert everything(np.exp(score / 3) - 7, label) == ours  # only the order matters
    order = np.array(random.sample(range(len(score)), len(score)))
    shuffled = everything(score[order], label[order])
    for values in (ours, shuffled):  # the one metric where the row order breaks ties
        values.pop("f1_at_k")
    assert shuffled == ours
    twice = everything(np.tile(score, 2), np.tile(label, 2))
    twice.pop("f1_at_k")
    assert twice == pytest.approx(ours, **EXACT)


@settings(deadline=None, max_examples=100)
@given(scored())
def test_classes_swap(rows):
    score, label = rows
    swapped = (-score, 1 - label)
    assert ranking.auroc(score, label) + ranking.auroc(-score, label) == pytest.approx(1, **EXACT)
    assert ranking.auroc(*swapped) == pytest.approx(ranking.auroc(score, label), **EXACT)
    for f in (ranking.average_precision, ranking.aupr_trapezoid, ranking.fpr_at_tpr):
        assert f(*swapped, positive="ood") == pytest.approx(f(score, label, positive="id"), **EXACT)
    # "95 % of normals accepted" and "at most 5 % of normals flagged" are the same operating point.
    accepted = ranking.fpr_at_tpr(score, label, "id")
    assert accepted == pytest.approx(1 - ranking.recall_at_fpr(score, label, 0.05), **EXACT)


@settings(deadline=None, max_examples=100)
@given(scored(), st.data())
def test_f1_against_the_confusion_matrix(rows, data):
    score, label = rows
    k = data.draw(st.integers(1, len(score)))
    flagged = np.zeros(len(score), dtype=bool)
    flagged[sorted(range(len(score)), key=lambda i: (-score[i], i))[:k]] = True
    hits = int((flagged & (label == 1)).sum())
    assert ranking.f1_at_k(score, label, k) == pytest.approx(2 * hits / (k + label.sum()), **EXACT)
    cut = np.sort(score)[::-1][k - 1]
    above, tied = score > cut, score == cut
    expected = label[above].sum() + (k - above.sum()) * label[tied].mean()
    assert ranking.f1_at_k(score, label, k, "expected") == pytest.approx(2 * expected / (k + label.sum()), **EXACT)


def test_roc_curve_is_scikit_learns():
    rng = np.random.default_rng(1)
    score, label = rng.integers(0, 9, 60).astype(float), rng.integers(0, 2, 60)
    for ours, theirs in zip(ranking.roc(score, label), roc_curve(label, score, drop_intermediate=False), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_gaussian_closed_form():
    # Normals N(0, 1), anomalies N(2, 1): AUROC = Phi(2 / sqrt 2), recall at FPR a = 1 - Phi(Phi^-1(1 - a) - 2).
    rng = np.random.default_rng(2)
    score = np.concatenate([rng.normal(0, 1, 200_000), rng.normal(2, 1, 200_000)])
    label = np.repeat([0, 1], 200_000)
    assert ranking.auroc(score, label) == pytest.approx(0.5 * (1 + math.erf(1.0)), abs=0.003)
    assert ranking.recall_at_fpr(score, label, 0.05) == pytest.approx(0.63876, abs=0.01)
    assert ranking.fpr_at_tpr(score, label, "ood") == pytest.approx(0.36124, abs=0.01)
