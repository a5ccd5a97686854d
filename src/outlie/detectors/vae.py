"""VAE and IWAE: an anomaly is a row to which a latent-variable model gives little probability."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from outlie.density import scores
from outlie.density.complexity import binarised, binarised_alike
from outlie.density.corruption import block_of_column, gaps_at_random, noised
from outlie.density.latent import LatentModel
from outlie.density.missing import attribution
from outlie.density.objectives import Objective, loss
from outlie.density.observation import check, observation_model
from outlie.density.regret import regret
from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.training import BurdaRecipe, Recipe
from outlie.errors import UserError
from outlie.options import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from outlie.validation import held_out

DRAWS = {"bound_gap": 128, "neg_iwae": 128, "recon_err_sir": 128, "typicality": 128}  # samples; other scores take 64
VALIDATION_K = 20
ROWS = 512  # of which validation and fit look at a time
FIT_ROWS = 1000


class VAE(Detector):
    """Variational and importance-weighted autoencoders with one or two stochastic layers, for tables and images.

    Args:
        likelihood: p(x | z) of numbers; null = student_t for rows, continuous_bernoulli for images, bernoulli with
            binarise. Boolean and one-hot columns of a table always have their own, Bernoulli and categorical.
        scale: gaussian: one sigma fixed at 1, one a feature, or one a feature and sample, from the decoder.
        floor: least sigma of gaussian and student_t, in units of x (standard deviations for tables).
        network: mlp, or conv for images.
        hidden: widths of the encoder's hidden layers, mirrored in the decoder; null = [128, 64], for images [200, 200].
        latent: width of z; null = half the columns, 2 to 16; for images 50.
        latent_2: width of a second stochastic layer above it; null = one layer only. Needs estimator=standard.
        hidden_2: hidden widths between the two.
        activation: of the hidden layers.
        k: samples of z a row in training.
        objective: elbo (mean of log w), iwae, or miwae, ciwae, piwae of Rainforth et al. 2018.
        estimator: of the encoder's gradient: standard, stl or dreg.
        groups: miwae, piwae: M groups, each of k / M samples.
        beta: ciwae: share of the ELBO.
        binarise: images: x ~ Bernoulli(pixel), anew at every presentation.
        missing: none = rows must be complete; random = gaps tell nothing (MIWAE, Mattei and Frellsen 2019); absence =
            which values are missing is modelled, too (not-MIWAE, Ipsen et al. 2021), with likelihood gaussian.
        hide: missing=random: share of the values that are hidden in training besides; with absence that would teach a
            wrong one.
        members: models that are trained side by side, for score_by=waic.
        background: share of the entries replaced by noise in a second model's training, for score_by=llr; null = none.
        score_by: neg_elbo, neg_iwae (-L_k), recon_prob, recon_err, recon_err_sir, latent_kl, bound_gap, llr,
            input_complexity, regret, waic or typicality.
        draws: samples of z a row for the score; null = 128 for neg_iwae, typicality, bound_gap and recon_err_sir, else
            64.
        diagnose: rows of the held-out and the test sets that the run's diagnostics look at; 0 = none.
        epochs: most epochs to train.
        min_steps: more epochs where `epochs` would give fewer optimiser steps than this.
        batch_size: rows per optimiser step.
        lr: learning rate of Adam.
        weight_decay: coupled L2.
        decay_lr: cosine decay of the learning rate to 0.
        clip_norm: longest gradient; 0 = any.
        validation: share of the training rows held out, on which the best epoch is chosen by L_20; 0 = none.
        patience: epochs without a better one before training stops; 0 = never.
        schedule: adam, or burda: the published recipe, for which epochs is 3280, lr 1e-3 and batch_size 20.
    """

    needs: ClassVar[tuple[str, ...]] = ("x",)
    images: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Cremer et al., Reinterpreting Importance-Weighted Autoencoders, ICLR workshop 2017; "
        "Burda et al., Importance Weighted Autoencoders, ICLR 2016"
    )
    scoring: ClassVar[tuple[str, ...]] = ("score_by", "draws", "diagnose")
    entropy: Tensor

    def __init__(
        self,
        likelihood: Literal["bernoulli", "continuous_bernoulli", "gaussian", "student_t", "categorical"] | None = None,
        scale: Literal["fixed", "feature", "sample"] = "feature",
        floor: NonNegativeFloat = 0.05,
        network: Literal["mlp", "conv"] = "mlp",
        hidden: list[PositiveInt] | None = None,
        latent: PositiveInt | None = None,
        latent_2: PositiveInt | None = None,
        hidden_2: list[PositiveInt] = [100, 100],  # noqa: B006
        activation: Literal["tanh", "silu"] = "tanh",
        k: PositiveInt = 20,
        objective: Literal["elbo", "iwae", "miwae", "ciwae", "piwae"] = "iwae",
        estimator: Literal["standard", "stl", "dreg"] = "dreg",
        groups: PositiveInt = 8,
        beta: NonNegativeFloat = 0.05,
        binarise: bool = False,
        missing: Literal["none", "random", "absence"] = "none",
        hide: NonNegativeFloat = 0.2,
        members: PositiveInt = 1,
        background: Fraction | None = None,
        score_by: Literal[
            "neg_elbo", "neg_iwae", "recon_prob", "recon_err", "recon_err_sir", "latent_kl", "bound_gap", "llr",
            "input_complexity", "regret", "waic", "typicality",
        ] = "neg_iwae",
        draws: PositiveInt | None = None,
        diagnose: NonNegativeInt = 100,
        epochs: PositiveInt = 200,
        min_steps: NonNegativeInt = 0,
        batch_size: PositiveInt = 128,
        lr: PositiveFloat = 1e-3,
        weight_decay: NonNegativeFloat = 0.0,
        decay_lr: bool = False,
        clip_norm: NonNegativeFloat = 5.0,
        validation: NonNegativeFloat = 0.1,
        patience: NonNegativeInt = 20,
        schedule: Literal["adam", "burda"] = "adam",
    ) -> None:  # fmt: skip
        super().__init__()
        if latent_2 and estimator != "standard":
            raise UserError(f"estimator={estimator} is for one stochastic layer: set detector.estimator=standard")
        if objective in ("miwae", "piwae") and k % groups:
            raise UserError(f"k={k} samples do not make {groups} equal groups: set detector.k or detector.groups")
        if missing == "absence" and likelihood != "gaussian":
            raise UserError("missing=absence draws the missing values: set detector.likelihood=gaussian")
        if missing != "none" and (binarise or likelihood == "categorical"):
            raise UserError("missing values are for tables: leave detector.binarise and likelihood=categorical away")
        if binarise and likelihood not in (None, "bernoulli"):
            raise UserError(
                f"binarise=true leaves 0 and 1, and likelihood={likelihood}: set detector.likelihood=bernoulli"
            )
        if validation >= 1 or hide >= 1 or beta > 1:
            raise UserError(f"validation={validation}, hide={hide} and beta={beta} are shares: set them below 1")
        if score_by == "waic" and members < 2:
            raise UserError("score_by=waic compares models: set detector.members=5")
        if score_by == "llr" and background is None:
            raise UserError("score_by=llr needs a second model: set detector.background=0.2")
        if score_by == "input_complexity" and not (binarise or likelihood == "categorical"):
            raise UserError(
                "score_by=input_complexity needs a probability in bits, of pixels with levels: set "
                "detector.likelihood=categorical, or likelihood=bernoulli and binarise=true"
            )
        if score_by == "regret" and latent_2:
            raise UserError("score_by=regret optimises one encoder: leave detector.latent_2 away")
        self.likelihood, self.scale, self.floor, self.network, self.activation = (
            likelihood, scale, floor, network, activation
        )  # fmt: skip
        self.hidden, self.hidden_2, self.latent, self.latent_2 = hidden, hidden_2, latent, latent_2
        self.objective = Objective(objective, estimator, k, groups, beta)
        self.samples, self.binarise, self.missing, self.hide = k, binarise, missing, hide
        self.members, self.background, self.score_by, self.diagnose = members, background, score_by, diagnose
        self.draws = draws or DRAWS.get(score_by, 64)
        self.gaps = missing != "none"
        recipe = BurdaRecipe if schedule == "burda" else Recipe
        self.recipe = recipe(
            epochs, batch_size, lr, weight_decay, min_steps, decay_lr or schedule == "burda", clip_norm=clip_norm,
            validation=validation, patience=patience, shuffle=schedule != "burda",
        )  # fmt: skip
        self.register_buffer("entropy", torch.zeros((), dtype=torch.float64))  # H: mean NLL of held-out rows

    def setup(self, spec: Spec) -> None:
        """Build the models for the row's shape and the kinds of its columns."""
        shape, self.seed = spec.shapes["x"], spec.seed
        self.is_image = len(shape) > 1
        D = math.prod(shape)
        self.block_of = block_of_column(spec.blocks, D)
        if self.score_by == "input_complexity" and not self.is_image:
            raise UserError("score_by=input_complexity compresses images, and these are rows: set backbone=pixels")
        if self.missing == "absence" and any(kind != "number" for kind, _ in spec.blocks):
            raise UserError(
                "missing=absence draws numbers, and some columns are booleans or texts: set detector=miwae, or "
                "dataset.categorical=drop"
            )
        grey = "bernoulli" if self.binarise else "continuous_bernoulli"
        name = self.likelihood or (grey if self.is_image else "student_t")
        hidden = self.hidden if self.hidden is not None else [200, 200] if self.is_image else [128, 64]
        latent = self.latent or (50 if self.is_image else min(16, max(2, D // 2)))

        def model() -> LatentModel:
            family = observation_model(name, D, spec.blocks, self.scale, self.floor)
            widths = [latent, *([self.latent_2] if self.latent_2 else [])]
            layers = [hidden, self.hidden_2]
            absence = self.missing == "absence"
            return LatentModel(shape, family, widths, layers, self.activation, self.network, self.gaps, absence)

        self.models = nn.ModuleList(model() for _ in range(self.members))
        self.noise_model = model() if self.background else None

    @property
    def model(self) -> LatentModel:
        """The (first) model."""
        model = self.models[0]
        assert isinstance(model, LatentModel)
        return model

    @property
    def all_models(self) -> list[LatentModel]:
        """The models, and that of the background."""
        return [m for m in (*self.models, self.noise_model) if isinstance(m, LatentModel)]

    def rows(self, views: Views) -> Tensor:
        """x in the models' precision; grey pixels made binary, where asked, in the same way each time."""
        x = views.x.to(self.model.posterior.weight)
        check(self.model.likelihood, x, self.binarise)
        return binarised_alike(x, self.seed) if self.binarise else x

    def prepare(self, train: Views) -> None:
        """Start the decoders at the mean of the training rows."""
        x = train.x.to(self.model.posterior.weight)
        check(self.model.likelihood, x, self.binarise)
        for model in self.all_models:
            model.start(x.flatten(1))

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """-bound, mean over rows, summed over the models; its value is the bound's, its gradient the estimator's."""
        x = views.x.to(self.model.posterior.weight)
        total = x.new_zeros((), dtype=torch.float64)
        for model in self.all_models:
            rows = x
            if model is self.noise_model:
                rows = noised(x, self.background or 0.0, self.block_of, generator)
            if self.binarise:
                rows = binarised(rows, generator)
            if self.missing == "random" and self.hide:
                rows = gaps_at_random(rows, self.hide, self.block_of, generator)
            noise = model.draw(self.samples, len(rows), generator)
            total = total + loss(model, rows, noise, self.objective)
        return total

    def validate(self, views: Views) -> Tensor:
        """-L_20, mean over rows, summed over the models."""
        parts = []
        for some in batches(views):
            x = self.rows(some)
            parts.append(torch.stack([scores.neg_iwae(m, x, VALIDATION_K, self.seed) for m in self.all_models]).sum(0))
        return torch.cat(parts).mean()

    def fit(self, train: Views) -> None:
        """H, the mean of -L_k on (1,000 of) the rows held out of training, or of all rows where none were."""
        validating = held_out(len(train), self.recipe.validation or 1.0, self.seed)[1][:FIT_ROWS]
        validating = validating if len(validating) else torch.arange(1)  # a single row
        rows = batches(train[validating.to(train.device)])
        nll = [scores.neg_iwae(self.model, self.rows(some), DRAWS["neg_iwae"], self.seed) for some in rows]
        self.entropy = torch.cat(nll).mean()

    def score(self, views: Views) -> Tensor:
        """(B,) by `score_by`."""
        x, k, seed, model = self.rows(views), self.draws, self.seed, self.model
        if self.score_by == "llr":
            assert isinstance(self.noise_model, LatentModel)
            return scores.bound(self.noise_model, x, k, seed) - scores.bound(model, x, k, seed)
        if self.score_by == "waic":
            return scores.waic(torch.stack([scores.bound(one, x, k, seed) for one in self.all_models[: self.members]]))
        if self.score_by == "typicality":
            return scores.typicality(scores.neg_iwae(model, x, k, seed), self.entropy)
        if self.score_by == "input_complexity":
            return scores.input_complexity(model, x, k, seed, levels=2 if self.binarise else 256)
        if self.score_by == "regret":
            return regret(model, x, seed)
        return PLAIN[self.score_by](model, x, k, seed)

    def attribute(self, views: Views) -> Tensor:
        """(B, D) -log p(x_j | x_-j), nats: the surprise of each value given the others; 0 where it is missing."""
        return attribution(self.model, self.rows(views), self.draws, self.seed, self.block_of)


PLAIN = {
    "neg_elbo": scores.neg_elbo, "neg_iwae": scores.neg_iwae, "recon_prob": scores.recon_prob,
    "recon_err": scores.recon_err, "recon_err_sir": scores.recon_err_sir, "latent_kl": scores.latent_kl,
    "bound_gap": scores.bound_gap,
}  # fmt: skip


def batches(views: Views) -> list[Views]:
    """Rows a few hundred at a time, on the models' device as they are."""
    return [views[rows] for rows in torch.arange(len(views), device=views.device).split(ROWS)]
