"""The oracle's linear-Gaussian models as LatentModels, weights set by hand: specification of IWAE, section 11."""

import json
from pathlib import Path

import numpy as np
import torch

from outlie.density.latent import LatentModel
from outlie.density.likelihoods import Gaussian, raw_of

ORACLE = json.loads((Path(__file__).parents[1] / "golden" / "iwae_oracle.json").read_text())
CASES = {case["name"][0]: case for case in ORACLE["cases"]}


def linear_model(W, b, sigma2, encoder, bias) -> LatentModel:
    """x | z ~ N(W z + b, diag(sigma2)); q's (mean, log std) = encoder x + bias."""
    D, d = np.shape(W)
    model = LatentModel((D,), Gaussian(D, "feature", floor=0.0), [d], [[]]).double()
    state = {
        "decoder.0.weight": W,
        "decoder.0.bias": b,
        "likelihood.raw": exact_raw(np.sqrt(sigma2)),
        "posterior.weight": encoder,
        "posterior.bias": bias,
    }
    model.load_state_dict(
        {name: torch.as_tensor(np.asarray(value), dtype=torch.float64) for name, value in state.items()}
    )
    return model


def exact_raw(scale):
    """The inverse of softplus(raw) + 1e-4, in float64; `raw_of` is of float32."""
    raw = np.log(np.expm1(np.asarray(scale) - 1e-4))
    np.testing.assert_allclose(raw, raw_of(torch.tensor(scale), 0.0), rtol=1e-5, atol=1e-6)
    return raw


def of_case(case) -> tuple[LatentModel, torch.Tensor]:
    """The model of a case and its row (1, D). A q with correlations is turned: N(0, I) stays what it is."""
    own, q = case["model"], case["q"]
    variances, turn = np.linalg.eigh(np.array(q["cov"]))
    bias = np.concatenate([turn.T @ np.array(q["mean"]), 0.5 * np.log(variances)])
    D, d = np.shape(own["W"])
    model = linear_model(np.array(own["W"]) @ turn, own["b"], own["sigma2"], np.zeros((2 * d, D)), bias)
    return model, torch.tensor([case["x"]], dtype=torch.float64)


def amortised() -> tuple[LatentModel, torch.Tensor]:
    """The model with a linear encoder, and its six rows."""
    batch = ORACLE["amortised_batch"]
    own, q = batch["model"], batch["encoder"]
    weight = np.concatenate([q["A"], np.zeros_like(q["A"])])
    bias = np.concatenate([q["c"], np.log(q["q_std"])])
    rows = torch.tensor([row["x"] for row in batch["rows"]], dtype=torch.float64)
    return linear_model(own["W"], own["b"], own["sigma2"], weight, bias), rows


def generator(seed: int = 0) -> torch.Generator:
    """Random numbers of a test's own."""
    return torch.Generator().manual_seed(seed)
