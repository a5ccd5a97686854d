"""Which family p(x | z) is of, by name and by the kinds of a table's columns."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from outlie.density import likelihoods
from outlie.density.mixed import Categorical, Likelihood, Mixed
from outlie.errors import UserError

UNIT = (likelihoods.Bernoulli, likelihoods.ContinuousBernoulli)  # take values from 0 to 1


def observation_model(
    name: str, dim: int, blocks: tuple[tuple[str, int], ...], scale: Literal["fixed", "feature", "sample"], floor: float
) -> Likelihood:
    """The family of all columns; a table with boolean or one-hot columns is mixed, its numbers by `name`.

    Raises:
        UserError: for a family that cannot stand beside others.
    """
    if any(kind != "number" for kind, _ in blocks):
        if name not in ("gaussian", "student_t"):
            kinds = ", ".join(sorted({kind for kind, _ in blocks}))
            raise UserError(f"likelihood={name} on columns of kinds {kinds}: set detector.likelihood=student_t")
        return Mixed(blocks, name, scale=scale, floor=floor)
    if name == "bernoulli":
        return likelihoods.Bernoulli(dim)
    if name == "continuous_bernoulli":
        return likelihoods.ContinuousBernoulli(dim)
    if name == "categorical":
        return Categorical(dim, levels=256, pixels=True)
    if name == "gaussian":
        return likelihoods.Gaussian(dim, scale, floor=floor)
    return likelihoods.StudentT(dim, floor)


def check(family: Any, x: Tensor, binarise: bool) -> None:
    """UserError for values that the family cannot take."""
    if binarise or isinstance(family, (*UNIT, Categorical)):
        likelihoods.check_range(x)
