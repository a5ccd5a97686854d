"""One adapter around PyOD's classical detectors (Zhao et al. 2019, arXiv 1901.01588; PyOD is BSD-2)."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from outlie.detectors.base import Detector, Spec, Views
from outlie.errors import UserError, unknown

CHUNK = 10_000  # rows scored at once: DIF holds a dense rows x tree-nodes matrix
CBLOF = "pyod.models.cblof.CBLOF"
CBLOF_CLUSTERS = (4, 12, 20)  # tried in turn where the asked number gives no large / small split


@contextlib.contextmanager
def isolated(seed: int) -> Iterator[None]:
    """NumPy's and torch's global generators seeded inside, as they were outside; gradients on, even in inference mode.

    Some PyOD models draw from the global generators although they take a `random_state`. Warnings that a user can do
    nothing about are left out.
    """
    numpy_state = np.random.get_state()  # noqa: NPY002
    devices = range(torch.cuda.device_count())
    with (
        torch.random.fork_rng(devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        warnings.catch_warnings(),
        np.errstate(divide="ignore", invalid="ignore"),  # PCA without variance: see drop_empty_axes
    ):
        warnings.filterwarnings("ignore", "'pin_memory' argument")
        try:
            np.random.seed(seed % 2**32)  # noqa: NPY002
            torch.manual_seed(seed)
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002


def freeze_dif(model: Any, train: np.ndarray) -> None:
    """Standardise DIF's representations by the training rows; PyOD standardises each scored batch by itself."""

    def raw(net: torch.nn.Module, rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return net(torch.as_tensor(rows, dtype=torch.float32, device=model.device)).cpu().numpy()

    reduced = [raw(net, model.minmax_scaler.transform(train)) for net in model.net_lst]
    moments = {id(net): (r.mean(0), r.std(0)) for net, r in zip(model.net_lst, reduced, strict=True)}

    def representation(net: torch.nn.Module, rows: np.ndarray) -> np.ndarray:
        mean, std = moments[id(net)]
        return np.tanh((raw(net, rows) - mean) / np.where(std > 0, std, 1))

    model._deep_representation = representation


def drop_empty_axes(model: Any) -> None:
    """Leave out PCA's axes without variance (constant or repeated columns); PyOD divides by that variance."""
    keep = model.selected_w_components_ > len(model.w_components_) * np.finfo(float).eps
    model.selected_components_ = model.selected_components_[keep]
    model.selected_w_components_ = model.selected_w_components_[keep]


def widen_bins(model: Any) -> None:
    """Move LODA's bin edges up by 1e-9 of a bin, so that a training row that is an edge does not jump by rounding."""
    for limits in model.limits_:
        limits += 1e-9 * (limits[1] - limits[0])


class PyOD(Detector):
    """Any PyOD model; `pip install 'outlie[baselines]'`.

    A fitted PyOD model is a pickle, which we neither write nor read: the checkpoint holds the training features
    (n x D numbers) and loading fits again with the same seed, so the first score after a load costs one fit, and the
    same scores come back only from the same PyOD and scikit-learn.

    Two of PyOD's models standardise or rank each batch by itself, so that a row's score depends on its neighbours in
    the batch. DIF is given the training rows' mean and scale instead; ECOD and COPOD are our own (`detectors/ecod.py`).
    Any other model that does so is refused after the fit.

    Args:
        model: dotted class under `pyod.models`, e.g. pyod.models.iforest.IForest
        options: arguments of that class; the seed and the number of features are added where it takes them
    """

    needs: ClassVar[tuple[str, ...]] = ("features",)
    paper: ClassVar[str] = "PyOD, Zhao et al. 2019, arXiv 1901.01588"

    train_features: Tensor

    def __init__(self, model: str, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        if not model.startswith("pyod.models.") or model.count(".") != 3:
            raise UserError(f"model '{model}' is not a class under pyod.models; example: pyod.models.iforest.IForest")
        if model.split(".")[2] in ("ecod", "copod"):
            raise UserError(f"'{model}' ranks every batch by itself; use detector={model.split('.')[2]}")
        if importlib.util.find_spec("pyod") is None:
            raise UserError(f"'{model}' needs PyOD: pip install 'outlie[baselines]'")
        self.model = model
        self.options = dict(options or {})
        self.seed = 0
        self.fitted: Any = None
        self.register_buffer("train_features", torch.empty(0))

    def setup(self, spec: Spec) -> None:
        """Take the seed and check the options, so that a wrong name fails before any data is touched."""
        self.seed, self.fitted = spec.seed, None
        with isolated(self.seed):
            self._construct(spec.dim)

    def fit(self, train: Views) -> None:
        """Fit to (n, D) features and keep them, for the checkpoint."""
        assert train.features is not None
        self.train_features = train.features.detach().clone()
        self._refit()

    def score(self, views: Views) -> Tensor:
        """(B,) float64 PyOD decision scores; UserError if some are NaN or infinite."""
        assert views.features is not None
        if self.fitted is None:
            self._refit()
        rows = numpy64(views.features)
        with isolated(self.seed):
            parts = [self.fitted.decision_function(rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK)]
        scores = torch.as_tensor(np.concatenate([np.empty(0), *parts]), dtype=torch.float64)
        if bad := int((~torch.isfinite(scores)).sum()):
            raise UserError(f"{self.model}: {bad} of {len(scores)} scores are NaN or infinite")
        return scores.to(views.features.device)

    def _construct(self, dim: int, **changes: Any) -> Any:
        _, _, module, name = self.model.split(".")
        try:
            found = importlib.import_module(f"pyod.models.{module}")
        except ModuleNotFoundError as error:
            if error.name != f"pyod.models.{module}":
                raise UserError(f"{self.model} needs {error.name}: pip install 'outlie[baselines]'") from error
            raise UserError(f"PyOD has no module '{module}' (model={self.model})") from error
        if not hasattr(found, name):
            raise UserError(unknown("PyOD class", name, [n for n, _ in inspect.getmembers(found, inspect.isclass)]))
        cls = getattr(found, name)
        accepted = set(inspect.signature(cls).parameters) | ({"n_init"} if self.model == CBLOF else set())
        for key in self.options:
            if key not in accepted:
                raise UserError(unknown(f"option of {name}", key, accepted))
        added = {"random_state": self.seed % 2**32, "n_features": dim}
        given = {k: v for k, v in added.items() if k in accepted} | self.options | changes
        if self.model == CBLOF and "n_init" in given:
            given["clustering_estimator"] = kmeans(given.get("n_clusters", 8), given.pop("n_init"), self.seed)
        return cls(**given)

    def _refit(self) -> None:
        rows = numpy64(self.train_features)
        if rows.ndim != 2 or len(rows) == 0:
            raise UserError(f"{self.model} has not been fitted: no training rows")
        model = self._fit_model(rows)
        if self.model == "pyod.models.dif.DIF":
            freeze_dif(model, rows)
        if self.model == "pyod.models.loda.LODA":
            widen_bins(model)
        if self.model == "pyod.models.pca.PCA":
            drop_empty_axes(model)
        self._check_batch(model, rows[:8])
        self.fitted = model

    def _fit_model(self, rows: np.ndarray) -> Any:
        attempts: list[dict[str, int]] = [{}]
        if self.model == CBLOF:
            attempts += [{"n_clusters": k} for k in CBLOF_CLUSTERS if k < len(rows)]
        failure: ValueError | None = None
        for attempt in attempts:
            with isolated(self.seed):
                model = self._construct(rows.shape[1], **attempt)
                try:
                    return model.fit(rows)
                except ValueError as error:
                    failure = error
            if "valid cluster" not in str(failure):
                break
        size = f"{len(rows)} rows of {rows.shape[1]} feature" + "s" * (rows.shape[1] != 1)
        raise UserError(f"{self.model} cannot be fitted to {size}: {failure}") from failure

    def _check_batch(self, model: Any, rows: np.ndarray) -> None:
        with isolated(self.seed):
            together = model.decision_function(rows)
            alone = np.concatenate([model.decision_function(rows[i : i + 1]) for i in range(len(rows))])
        # most rows, not one: a row on the edge of two leaves may fall to either side by rounding
        if not np.isclose(together, alone, rtol=1e-4, atol=1e-6, equal_nan=True).mean() > 0.5:
            raise UserError(f"{self.model} scores a row differently alone and in a batch, so its numbers mean nothing")


def kmeans(clusters: int, starts: int, seed: int) -> Any:
    """The best of several starts; PyOD leaves their number to scikit-learn: 10 before its 1.4, 1 since."""
    from sklearn.cluster import KMeans

    return KMeans(clusters, n_init=starts, random_state=seed % 2**32)


def numpy64(features: Tensor) -> np.ndarray:
    """(n, D) float64 on the CPU."""
    return features.detach().cpu().double().numpy()
