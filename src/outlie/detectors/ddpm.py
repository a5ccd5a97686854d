"""DDPM on tables: an anomaly is a row that the reverse diffusion does not give back. Livernoche et al. 2024."""

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor

from outlie.detectors.base import Detector, Spec, Views
from outlie.detectors.training import Recipe
from outlie.diffusion.nets import TabularResNet
from outlie.diffusion.samplers import reverse, reverse_times
from outlie.diffusion.schedules import alpha_bars, diffuse, linear_betas
from outlie.errors import UserError
from outlie.options import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class DDPM(Detector):
    """Reconstruction error after a partial reverse diffusion of the row itself.

    Args:
        T: number of noise levels.
        rec_start: the level at which the row enters the reverse chain.
        steps: reverse steps from there to 0, evenly spaced; null = every level.
        forward_noise: noise the row to rec_start first (published: no, the clean row enters).
        posterior_noise: add the posterior noise to every step (published tables: no; last released code: yes).
        score_by: reconstruction = mean over features of (x - x_0hat)^2; full_path = sum over the steps of the mean
            squared step; noise_error = mean squared error of the predicted noise, averaged over `steps` levels.
        epochs: most epochs to train.
        min_steps: more epochs where `epochs` would give fewer optimiser steps than this.
        batch_size: rows per optimiser step.
        lr: learning rate of Adam.
        weight_decay: coupled L2.
        decay_lr: cosine decay of the learning rate to 0.
        early_stop: stop after epoch 50 once the training loss exceeds that of 39 epochs before (published).
    """

    needs: ClassVar[tuple[str, ...]] = ("x",)
    paper: ClassVar[str] = "Livernoche et al., On Diffusion Modeling for Anomaly Detection, ICLR 2024 (DDPM)"
    scoring: ClassVar[tuple[str, ...]] = ("rec_start", "steps", "forward_noise", "posterior_noise", "score_by")
    net: TabularResNet
    abar: Tensor

    def __init__(
        self,
        T: PositiveInt = 1000,
        rec_start: PositiveInt = 250,
        steps: PositiveInt | None = 10,
        forward_noise: bool = False,
        posterior_noise: bool = False,
        score_by: Literal["reconstruction", "full_path", "noise_error"] = "reconstruction",
        epochs: PositiveInt = 20,
        min_steps: NonNegativeInt = 300,
        batch_size: PositiveInt = 64,
        lr: PositiveFloat = 1e-3,
        weight_decay: NonNegativeFloat = 5e-4,
        decay_lr: bool = True,
        early_stop: bool = False,
    ) -> None:
        super().__init__()
        if rec_start > T:
            raise UserError(
                f"rec_start = {rec_start} lies outside the {T} noise levels; set detector.rec_start to {T} or less"
            )
        self.recipe = Recipe(epochs, batch_size, lr, weight_decay, min_steps, decay_lr, drop_last=True)
        self.early_stop, self.rec_start, self.steps, self.score_by = early_stop, rec_start, steps, score_by
        self.forward_noise, self.posterior_noise = forward_noise, posterior_noise
        abar = alpha_bars(linear_betas(T))
        self.register_buffer("abar", abar.float(), persistent=False)
        self._abar = abar.tolist()  # float64 scalars for the reverse chain

    def setup(self, spec: Spec) -> None:
        """Build the noise predictor for the row's width."""
        self.net = TabularResNet(spec.shapes["x"][0])
        self.seed = spec.seed

    def loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """mean (eps_theta(x_t, t) - eps)^2 with t uniform, one per row; scalar."""
        x_BD = views.x.to(self.abar)
        t_B = torch.randint(len(self.abar), (len(x_BD),), generator=generator, device=x_BD.device)
        noise_BD = torch.randn(x_BD.shape, generator=generator, device=x_BD.device)
        x_t = diffuse(x_BD, noise_BD, self.abar[t_B, None])
        return (self.net(x_t, self.net.embed_time(t_B)) - noise_BD).square().mean()

    def stop(self, losses: list[float]) -> bool:
        """Epoch e > 50 and loss(e) > loss(e - 39), e counted from 0, as the released code indexes."""
        return self.early_stop and len(losses) > 51 and losses[-1] > losses[-40]

    def score(self, views: Views) -> Tensor:
        """(B,) by `score_by`; the time embedding is the same for every row and computed once a step."""
        x_BD = views.x.to(self.abar)
        if self.score_by == "noise_error":
            return self._noise_error(x_BD)
        times = reverse_times(self.rec_start, self.steps)
        generator = torch.Generator(x_BD.device).manual_seed(self.seed)
        state = x_BD
        if self.forward_noise:
            noise = torch.randn(1, x_BD.shape[1], generator=generator, device=x_BD.device)  # one draw for all rows
            state = diffuse(x_BD, noise, self.abar[times[0]])
        score = x_BD.new_zeros(len(x_BD))
        for following in self._reverse(state, times, generator if self.posterior_noise else None):
            score += (following - state).square().mean(1)
            state = following
        return score if self.score_by == "full_path" else (x_BD - state).square().mean(1)

    def denoise(self, x: Tensor) -> Tensor:
        """x_0hat: the end of the deterministic reverse chain from rec_start; (B, D) standardised rows."""
        *_, end = self._reverse(x.to(self.abar), reverse_times(self.rec_start, self.steps), None)
        return end

    def _reverse(self, x: Tensor, times: list[int], generator: torch.Generator | None) -> Iterator[Tensor]:
        shift_SW = self.net.embed_time(torch.tensor(times, device=x.device))

        def predict_noise(state: Tensor, position: int) -> Tensor:
            return self.net(state, shift_SW[position : position + 1])

        return reverse(predict_noise, x, self._abar, times, generator)

    def _noise_error(self, x_BD: Tensor) -> Tensor:
        # the same noise for all rows at each level: a row's score does not depend on its batch
        generator = torch.Generator(x_BD.device).manual_seed(self.seed)
        times = reverse_times(self.rec_start, self.steps or 25)
        shift_SW = self.net.embed_time(torch.tensor(times, device=x_BD.device))
        score = x_BD.new_zeros(len(x_BD))
        for position, t in enumerate(times):
            noise = torch.randn(1, x_BD.shape[1], generator=generator, device=x_BD.device)
            eps = self.net(diffuse(x_BD, noise, self.abar[t]), shift_SW[position : position + 1])
            score += (eps - noise).square().mean(1)
        return score / len(times)
