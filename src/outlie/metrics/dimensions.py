"""AUROC of NECO against d, the number of principal directions: ratio_d(x) = ||V_d^T z|| / ||z||, for all d at once."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from outlie.errors import UserError
from outlie.metrics.ranking import auroc

Array = NDArray[np.float64]

ROWS = 2048  # read at once, so that float64 copies stay small beside memory-mapped features


class Principal(NamedTuple):
    """All principal directions of the training rows: a row h has coordinates vectors^T ((h - shift) / scale)."""

    shift: Array  # (D,)
    scale: Array  # (D,)
    values: Array  # (D,) variance along each direction, descending
    vectors: Array  # (D, D), one direction a column


def auroc_by_dimension(
    train_features: ArrayLike,
    test_features: ArrayLike,
    ood: Mapping[str, ArrayLike],
    test_max_logit: ArrayLike | None = None,
    ood_max_logit: Mapping[str, ArrayLike] | None = None,
    standardize: bool = True,
    center: bool = True,
    ds: list[int] | None = None,
    classes: int | None = None,
) -> dict[str, list[tuple[int, float]]]:
    """AUROC of NECO (anomaly = positive, 1 = perfect) for each OOD set, as (d, AUROC) pairs in the order of d.

    Args:
        train_features: (N, D) in-distribution rows that the directions are fitted on
        test_features: (n, D) in-distribution rows
        ood: set name -> (m, D)
        test_max_logit: (n,) largest logit of each row, which multiplies the ratio; None = the ratio alone
        ood_max_logit: set name -> (m,); given if and only if `test_max_logit` is
        standardize: whether each feature is divided by its standard deviation on the training rows
        center: whether the mean is subtracted before projecting (scikit-learn's PCA); False = directions of the
            second moment about the origin; the same where `standardize` has centred already
        ds: values of d; None = `grid`
        classes: C, for `grid`
    """
    train, test = rows_of(train_features), rows_of(test_features)
    sets = {name: rows_of(features) for name, features in ood.items()}
    require_same_width(train, {"test": test, **sets})
    if (test_max_logit is None) != (ood_max_logit is None):
        raise UserError("max logits are given for the test rows or for the OOD sets only; give both, or neither")
    if ood_max_logit is not None and (missing := sorted(set(sets) - set(ood_max_logit))):
        raise UserError(f"no max logits for the OOD set '{missing[0]}'; there are: {', '.join(sorted(ood_max_logit))}")
    limit = min(len(train) - 1, train.shape[1])  # centred rows span no more
    chosen = np.array(grid(limit, classes) if ds is None else sorted(set(ds)))
    if chosen.size == 0 or chosen[0] < 1 or chosen[-1] > limit:
        raise UserError(
            f"d = {chosen.tolist()} for {len(train)} training rows of {train.shape[1]} features; "
            f"d is between 1 and {limit}"
        )
    basis = principal(train, standardize, center)
    raw_length = center and not standardize
    normal = _anomaly(ratios(basis, test, chosen, raw_length), test_max_logit)
    curves = {}
    for name, features in sets.items():
        logit = None if ood_max_logit is None else ood_max_logit[name]
        score = np.concatenate([normal, _anomaly(ratios(basis, features, chosen, raw_length), logit)])
        label = np.arange(len(score)) >= len(normal)
        curves[name] = [(int(d), auroc(score[:, i], label)) for i, d in enumerate(chosen)]
    return curves


def explained_variance(train_features: ArrayLike, standardize: bool = True) -> Array:
    """(D,) share of the training rows' variance along each principal direction, descending; they add up to 1."""
    values = principal(rows_of(train_features), standardize, center=True).values
    if values.sum() == 0:
        raise UserError("the training features are constant, so no direction explains their variance")
    return values / values.sum()


def grid(limit: int, classes: int | None = None) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... up to `limit`, which is included, and so are C - 1 and C.

    >>> grid(20, classes=10)
    [1, 2, 3, 4, 6, 8, 9, 10, 12, 16, 20]
    """
    powers = [2**i for i in range(max(limit, 1).bit_length())]
    wanted = {*powers, *(3 * power for power in powers), limit}
    if classes is not None:
        wanted |= {classes - 1, classes}
    return sorted(d for d in wanted if 1 <= d <= limit)


def principal(train: NDArray, standardize: bool, center: bool) -> Principal:
    """Eigenvectors of the (N, D) rows' covariance; of the standardised rows', or of the second moment about 0."""
    if len(train) < 2:
        raise UserError(f"principal directions need at least 2 training rows, not {len(train)}")
    n, dim = train.shape
    mean = np.zeros(dim)
    for chunk in _chunks(train):
        mean += chunk.sum(0) / n
    moment = np.zeros((dim, dim))
    for chunk in _chunks(train):  # a second pass: E[hh^T] - mm^T would lose the digits of collapsed features
        chunk -= mean
        moment += chunk.T @ chunk / n
    scale = np.ones(dim)
    if standardize:
        variance = moment.diagonal()
        eps = np.finfo(np.float64).eps
        constant = variance <= n * eps * variance + (n * eps * mean) ** 2  # scikit-learn's rule: rounding only
        scale = np.where(constant, 1.0, np.sqrt(variance))
        moment /= np.outer(scale, scale)
    elif not center:
        moment += np.outer(mean, mean)
    if not np.isfinite(moment).all():
        raise UserError("the training features are not finite: there are NaN or Inf, or values beyond 1e150")
    values, vectors = np.linalg.eigh(moment)
    shift = mean if standardize or center else np.zeros(dim)
    return Principal(shift, scale, values[::-1].clip(min=0), vectors[:, ::-1])


def coordinates(basis: Principal, features: NDArray, d: int) -> Array:
    """(n, d) coordinates along the first d directions."""
    parts = [(chunk - basis.shift) / basis.scale @ basis.vectors[:, :d] for chunk in _chunks(features)]
    return np.concatenate(parts)


def ratios(basis: Principal, features: NDArray, ds: NDArray[np.int64], raw_length: bool) -> Array:
    """(n, len(ds)) the NECO ratio for every d; a row of zeros, and one of length 0, has ratio 0.

    Args:
        raw_length: whether the denominator is ||h||, because the numerator alone is centred
    """
    parts = []
    for chunk in _chunks(features):
        energy = np.cumsum(((chunk - basis.shift) / basis.scale @ basis.vectors) ** 2, axis=1)  # (B, D)
        # Rotation keeps lengths: with the last sum as ||z||^2 the ratio is 1 at d = D, to the last digit.
        length = (chunk**2).sum(1) if raw_length else energy[:, -1]
        alive = (length > 0) & chunk.any(1)
        parts.append(np.sqrt(energy[:, ds - 1] / np.where(alive, length, np.inf)[:, None]))
    return np.concatenate(parts)


def rows_of(features: ArrayLike) -> NDArray:
    """Features as a (n, D) array that shares their memory; raises UserError where there are no rows or no columns."""
    features = np.asarray(features)
    if features.ndim != 2 or 0 in features.shape:
        raise UserError(f"features have shape {features.shape}; expected (rows, dimensions), at least one of each")
    return features


def require_same_width(train: NDArray, sets: Mapping[str, NDArray]) -> None:
    """Raise UserError where a set has another number of features than the training rows."""
    for name, features in sets.items():
        if features.shape[1] != train.shape[1]:
            raise UserError(f"{name} has {features.shape[1]} features, but the training rows have {train.shape[1]}")


def _chunks(features: NDArray) -> Iterator[Array]:
    for start in range(0, len(features), ROWS):
        yield np.array(features[start : start + ROWS], dtype=np.float64)  # a copy: the rows may be read-only


def _anomaly(ratio: Array, max_logit: ArrayLike | None) -> Array:
    if max_logit is None:
        return -ratio
    logit = np.asarray(max_logit, dtype=np.float64)
    if logit.shape != ratio.shape[:1]:
        raise UserError(f"max logits have shape {logit.shape}; expected one for each of {len(ratio)} rows")
    return -ratio * logit[:, None]
