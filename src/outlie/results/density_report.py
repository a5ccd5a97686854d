"""What a run says about its density model: bounds, weights, gaps, latent units, gradients; on rows not trained on."""

from __future__ import annotations

import csv
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outlie import stages
from outlie.cell import Ground
from outlie.density import diagnostics
from outlie.density.diagnostics import DRAWS, SIZES, Importance
from outlie.density.objectives import Objective
from outlie.detectors.base import Views
from outlie.detectors.vae import VAE
from outlie.log import log
from outlie.metrics import cost
from outlie.results import store
from outlie.validation import held_out

UNIT_ROWS = 500  # training rows that tell active units
GRADIENT_ROWS, REPEATS = 64, (50, 200)  # of the training batch whose gradient is repeated; repeats at least and at most
EW_ROWS, EW_SIZES = (4, 20), (1, 10, 100)
# FLOP that a test set, the gradients and the study of q_EW may each cost on a core: 20, 10 and 2 s at 50 GFLOP/s
SET_WORK, GRADIENT_WORK, EW_WORK = 1e12, 5e11, 1e11
GPU = 100.0  # times as much
FEWEST_ROWS = 10


@dataclass(frozen=True)
class Look:
    """What was measured on the rows of one set."""

    weights: Importance
    amortisation: Tensor  # (B,) nats
    rows: int
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """The measurements by set, and all of it in plain numbers, for result.json."""

    looks: dict[str, Look]
    variances: list[Tensor]  # of q's mean, by layer and latent unit
    numbers: dict[str, Any]


def report(detector: VAE, ground: Ground) -> Report:
    """Look at the (first) model: on rows held out of its training, on each test set and on training rows."""
    with cost.seconds() as spent:
        found = _report(detector, ground)
    found.numbers.update(seconds=spent.wall, cpu_seconds=spent.cpu)
    for name, one in found.looks.items():
        n = one.numbers
        log.info(
            "density   %s: L_1 %.4g, L_5000 %.4g nats, KL %.3g, reconstruction %.4g, ESS %.2g %%, Pareto k %.2g",
            name, n["bounds"]["1"]["mean"], n["bounds"]["5000"]["mean"], n["kl"]["mean"], n["reconstruction"]["mean"],
            100 * n["ess_share"], n["pareto_k"],
        )  # fmt: skip
    for finding in findings(found):
        log.info("finding   %s", finding)
    log.info("density   looked at %d sets, %.1f s (CPU %.1f s)", len(found.looks), spent.wall, spent.cpu)
    return found


def _report(detector: VAE, ground: Ground) -> Report:
    model, seed, device = detector.model.eval(), detector.seed, ground.device
    slack = 1.0 if device.type == "cpu" else GPU
    work = diagnostics.work_of_a_sample(model)
    train = ground.views("train", with_input=True)
    reference, chosen = apart(detector, ground)
    where = {reference: (ground.views("train" if reference == "held_out" else reference, with_input=True), chosen)}
    for name, part in ground.split.tests.items():
        where[name] = (ground.views(name, with_input=True), some(len(part), seed))

    def rows(views: Views, chosen: Tensor) -> Tensor:
        return detector.rows(views[chosen].map(lambda t: t.to(device)))

    with stages.threads(work * diagnostics.ROWS * 20):
        most = int(slack * SET_WORK / work / (DRAWS + 2 * diagnostics.STEPS * diagnostics.STEP_DRAWS))
        most = min(detector.diagnose, max(FEWEST_ROWS, most))
        looks = {name: look(detector, rows(views, chosen[:most]), seed) for name, (views, chosen) in where.items()}
        share = detector.recipe.validation
        learnt = held_out(len(train), share, seed)[0] if share else some(len(train), seed)
        variances = diagnostics.mean_variances(model, rows(train, learnt[:UNIT_ROWS]), seed)
        batch = rows(train, learnt[: min(GRADIENT_ROWS, detector.recipe.batch_size)])
        snr = gradients(detector, batch, slack * GRADIENT_WORK / work)
        views, chosen = where[reference]
        samples = (diagnostics.BATCHES + diagnostics.POINTS) * sum(EW_SIZES)
        few = min(max(EW_ROWS[0], int(slack * EW_WORK / work / samples)), EW_ROWS[1], looks[reference].rows)
        q_ew = implied(detector, looks[reference], rows(views, chosen[:few]))
    numbers = {
        "reference": reference,
        "sets": {name: one.numbers for name, one in looks.items()},
        "latent_units": [len(layer) for layer in variances],
        "active_units": [int((layer > diagnostics.ACTIVE).sum()) for layer in variances],
        "snr": snr,
        "q_ew": q_ew,
    }
    return Report(looks, variances, plain(numbers))


def apart(detector: VAE, ground: Ground) -> tuple[str, Tensor]:
    """What the rows are that did not train the model: held_out, else calibration, else train; their numbers."""
    n = len(ground.split.train)
    if detector.recipe.validation:
        return "held_out", held_out(n, detector.recipe.validation, detector.seed)[1]
    if ground.split.calibration is not None:
        return "calibration", some(len(ground.split.calibration), detector.seed)
    return "train", some(n, detector.seed)


def some(n: int, seed: int) -> Tensor:
    """All row numbers in an order that the seed decides."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def look(detector: VAE, x: Tensor, seed: int) -> Look:
    """The bounds, weights and gaps of rows."""
    model = detector.model
    started = time.perf_counter()
    weights = diagnostics.importance(model, x, seed)
    rate = len(x) * DRAWS / (time.perf_counter() - started)
    elbo, bound = weights.curve[0], weights.curve[-1]
    amortisation = diagnostics.amortisation_gap(model, x, seed)
    kl, reconstruction = diagnostics.kl_and_reconstruction(model, x, elbo, seed)
    low, high = diagnostics.clamped(model, x)
    numbers = {
        "rows": len(x),
        "bounds": {str(k): mean_and_se(values) for k, values in zip(SIZES, weights.curve, strict=True)},
        "inference_gap": mean_and_se(bound - elbo),
        "amortisation_gap": mean_and_se(amortisation),
        "kl": mean_and_se(kl),
        "reconstruction": mean_and_se(reconstruction),
        "ess_share": float(weights.ess.quantile(0.5)),
        "entropy_share": float(weights.entropy.quantile(0.5)),
        "largest_weight": float(weights.largest.quantile(0.5)),
        "pareto_k": float(weights.pareto_k.nanmedian()),
        "pareto_k_above": float(untrusted(weights).double().mean()),
        "clamped_low": low,
        "clamped_high": high,
        "decoded_per_s": rate,
    }
    return Look(weights, amortisation, len(x), numbers)


def untrusted(weights: Importance) -> Tensor:
    """(B,) true where Pareto's k is above 0.7, or there is none."""
    return ~(weights.pareto_k <= diagnostics.PARETO)


def mean_and_se(values: Tensor) -> dict[str, float]:
    """Over rows."""
    se = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"mean": float(values.mean()), "se": se}


def gradients(detector: VAE, batch: Tensor, samples: float) -> dict[str, Any]:
    """SNR and DSNR on one training batch; as many repeats as `samples` allow, each counted thrice: there and back."""
    objective: Objective = detector.objective
    repeats = int(min(max(samples / (3 * objective.k * len(batch)), REPEATS[0]), REPEATS[1]))
    encoder, decoder = diagnostics.gradient_noise(detector.model, batch, objective, repeats, detector.seed)
    named = {"encoder": encoder, "decoder": decoder}
    return {
        "rows": len(batch),
        "repeats": repeats,
        "floor": 0.6745 / math.sqrt(repeats),  # what noise alone would give
        **{name: {"snr": one.snr, "dsnr": one.dsnr, "parameters": one.parameters} for name, one in named.items()},
    }


def implied(detector: VAE, reference: Look, x: Tensor) -> dict[str, Any] | None:
    """L_k, L_VAE[q_EW] and L_5000 of the first reference rows x; None where z is not all that is drawn."""
    if len(detector.model.latent) > 1 or detector.model.absence:
        return None
    curve = reference.weights.curve[:, : len(x)]
    sizes = {}
    for k in EW_SIZES:
        bound = curve[SIZES.index(k)]
        of_q_ew = diagnostics.bound_of_q_ew(detector.model, x, k, detector.seed)
        sizes[str(k)] = {"bound": mean_and_se(bound), "of_q_ew": mean_and_se(of_q_ew),
                         "gain": mean_and_se(of_q_ew - bound)}  # fmt: skip
    return {"rows": len(x), "batches": diagnostics.BATCHES, "k": sizes, "bound_5000": mean_and_se(curve[-1])}


def findings(found: Report) -> list[str]:
    """What a reader of the scores must know."""
    said = []
    doubtful = {name: int(untrusted(one.weights).sum()) for name, one in found.looks.items()}
    worst = [name for name in doubtful if doubtful[name] > 0.1 * found.looks[name].rows]
    worst.sort(key=lambda name: -doubtful[name])
    if worst:
        named = ", ".join(f"{doubtful[name]} of {found.looks[name].rows} {name} rows" for name in worst[:3])
        more = f" and more in {len(worst) - 3} other sets" if len(worst) > 3 else ""
        said.append(
            f"importance weights cannot be trusted on {named}{more} (Pareto k above {diagnostics.PARETO}): their -L_k "
            "mixes density and inference error"
        )
    reference = found.looks[found.numbers["reference"]].numbers
    for end, value in zip(("low", "high"), diagnostics.LOG_STD, strict=True):
        share = reference[f"clamped_{end}"]
        if share > 0.01:
            said.append(
                f"the encoder's log std is clamped at {value:g} for {100 * share:.3g} % of the latent units of "
                f"{found.numbers['reference']} rows"
            )
    for layer, (active, units) in enumerate(zip(found.numbers["active_units"], found.numbers["latent_units"])):
        if not active:
            which = f" of stochastic layer {layer + 1}" if len(found.variances) > 1 else ""
            said.append(f"none of the {units} latent units{which} is active: the model does not use them")
    return said


def plain(value: Any) -> Any:
    """The same for strict JSON: null where a number is not finite."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def by_set(numbers: dict[str, Any] | None) -> dict[str, float]:
    """`density/<set>/<key>`: means over the rows of each set, for the trackers; {} without a density."""
    found = {}
    for name, one in (numbers or {"sets": {}})["sets"].items():
        values = {f"bound_{k}": bound for k, bound in one["bounds"].items()} | one
        for key, value in values.items():
            number = value.get("mean") if isinstance(value, dict) else value
            if number is not None:
                found[f"density/{name}/{key}"] = number
    return found


def pictures(found: Report, folder: Path) -> list[Path]:
    """Write bounds.csv and draw density.png; the pictures."""
    from outlie.results import density_plots

    with store.whole(folder / "bounds.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["set", "k", "mean", "se"])
        for name, one in found.looks.items():
            for k, bound in one.numbers["bounds"].items():
                writer.writerow([name, k, bound["mean"], "" if math.isnan(bound["se"]) else bound["se"]])
    return [density_plots.figure(found, folder / "density.png")]
